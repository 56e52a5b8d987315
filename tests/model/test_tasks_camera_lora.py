"""Camera LoRA: load, scale, combine, unload, merge into the weights and back."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model import onednn
from model.tasks.camera_lora import LoraAdapters, LoraError, add_lora, save_lora
from model.unet import VideoUNet
from model.unet_config import UNetConfig

CONFIG = UNetConfig.tiny(cross_attention_dim=16, num_frames=3)
INPUTS = (
    torch.randn(1, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.zeros(1),
    torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(1)),
    torch.tensor([[6.0, 127.0, 0.02]]),
)


def network() -> VideoUNet:
    torch.manual_seed(0)
    unet = VideoUNet(CONFIG)
    for parameter in unet.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return unet.eval().requires_grad_(False)


def altered(adapter: Path, copy: Path, suffix: str, weight: Tensor) -> None:
    """A copy of an adapter, one weight of it replaced."""
    shutil.copytree(adapter, copy)
    state = load_file(copy / "adapter_model.safetensors")
    key = next(key for key in state if key.endswith(suffix))
    save_file(state | {key: weight}, copy / "adapter_model.safetensors")


@torch.no_grad()
def output(unet: nn.Module) -> Tensor:
    return unet(*INPUTS)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters as training would leave them: B is not zero any more."""
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("zooming", "horizontal")):
        unet = network()
        trainable = add_lora(unet, name=name, rank=4, alpha=8)
        torch.manual_seed(seed)
        for parameter in trainable:
            nn.init.normal_(parameter, std=0.1)
        save_lora(unet, folder / name, name=name)
    return folder


def test_a_fresh_adapter_changes_nothing_and_alone_is_trainable():
    unet = network()
    before, weights = output(unet), sum(p.numel() for p in unet.parameters())
    trainable = add_lora(unet, rank=16)
    assert torch.equal(output(unet), before)
    assert {id(p) for p in unet.parameters() if p.requires_grad} == {id(p) for p in trainable}
    assert sum(p.numel() for p in unet.parameters()) - weights == sum(p.numel() for p in trainable)
    names = [name for name, p in unet.named_parameters() if p.requires_grad]
    assert all(".temporal_transformer_blocks." in name for name in names)
    unet(*INPUTS).pow(2).sum().backward()
    gradients = [name for name, p in unet.named_parameters() if p.grad is not None and p.grad.any()]
    assert gradients
    assert all("lora_B" in name for name in gradients)  # A gets none while B is zero
    with pytest.raises(LoraError, match="already has an adapter"):
        add_lora(unet)


def test_published_size_has_the_known_number_of_parameters():
    with torch.device("meta"):
        unet = VideoUNet(UNetConfig.svd())
    assert sum(p.numel() for p in add_lora(unet)) == 3_319_808


def test_load_scale_combine_unload(adapters):
    unet = network()
    keys, plain = list(unet.state_dict()), output(unet)
    loras = LoraAdapters(unet)
    assert loras.load(adapters / "zooming") == "zooming"
    zooming = output(unet)
    assert (zooming - plain).abs().max() > 1e-3
    loras.set_scale("zooming", 0.0)
    torch.testing.assert_close(output(unet), plain, atol=1e-6, rtol=0)
    loras.set_scale("zooming", 1.0)
    torch.testing.assert_close(output(unet), zooming)
    loras.load(adapters / "horizontal", scale=-0.5)
    assert loras.scales == {"zooming": 1.0, "horizontal": -0.5}
    # The reference: the sum written into the weights by hand.
    by_hand = network()
    with torch.no_grad():
        for name, scale in loras.scales.items():
            state = load_file(adapters / name / "adapter_model.safetensors")
            for key in {key.partition(".lora_")[0] for key in state}:
                module = by_hand.get_submodule(key.removeprefix("base_model.model."))
                module.weight += scale * 8 / 4 * state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
    torch.testing.assert_close(output(unet), output(by_hand), atol=1e-5, rtol=1e-4)
    loras.unload("zooming")
    loras.unload()
    assert torch.equal(output(unet), plain)
    assert list(unet.state_dict()) == keys
    assert not hasattr(unet, "peft_config")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_and_back_is_exact(adapters, dtype):
    unet = network().to(dtype)
    original = {key: value.clone() for key, value in unet.state_dict().items()}
    loras = LoraAdapters(unet)
    loras.load(adapters / "zooming", scale=0.7)
    loras.load(adapters / "horizontal", scale=1.3)
    beside = output(unet)
    loras.merge()
    assert loras.merged
    assert list(unet.state_dict()) == list(original)  # plain modules again: it can be saved as any network
    changed = [key for key, value in unet.state_dict().items() if not torch.equal(value, original[key])]
    assert changed
    assert all(".temporal_transformer_blocks." in key for key in changed)
    torch.testing.assert_close(output(unet), beside, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=1e-3)
    for action in (lambda: loras.set_scale("zooming", 2), lambda: loras.unload(), lambda: loras.load(adapters)):
        with pytest.raises(LoraError, match="unmerge"):
            action()
    for _ in range(3):  # no drift
        loras.unmerge()
        assert torch.equal(output(unet), beside)
        loras.merge()
    loras.unmerge()
    loras.unload()
    assert all(torch.equal(value, original[key]) for key, value in unet.state_dict().items())


def test_unmerging_follows_a_network_that_has_moved(adapters):
    unet = network()
    loras = LoraAdapters(unet)
    loras.load(adapters / "zooming")
    loras.merge()
    unet.to("meta")
    loras.unmerge()
    assert {parameter.device.type for parameter in unet.parameters()} == {"meta"}


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_reads_the_files_and_computes_the_same(adapters, tmp_path, rslora):
    shutil.copytree(adapters / "zooming", tmp_path / "zooming")
    config = json.loads((tmp_path / "zooming" / "adapter_config.json").read_text())
    (tmp_path / "zooming" / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": rslora}))
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from peft import PeftModel

    unet = network()
    loras = LoraAdapters(unet)
    loras.load(tmp_path / "zooming")
    theirs = PeftModel.from_pretrained(network(), tmp_path / "zooming")
    for each in (unet, theirs.base_model.model):
        onednn.disable(each)  # packed products round differently, and only ours has them in the adapted layers
    torch.testing.assert_close(output(theirs.base_model.model), output(unet), atol=1e-6, rtol=1e-5)
    loras.merge()
    torch.testing.assert_close(output(theirs.base_model.model), output(unet), atol=1e-5, rtol=1e-4)


def test_adapters_that_do_not_fit_are_refused(adapters, tmp_path):
    unet = network()
    before = copy.deepcopy(unet.state_dict())
    loras = LoraAdapters(unet)
    with pytest.raises(LoraError, match=r"adapter_config\.json is missing"):
        loras.load(tmp_path)
    wide = VideoUNet(CONFIG.replace(block_out_channels=(64, 64)))
    add_lora(wide, rank=4)
    save_lora(wide, tmp_path / "wide")
    with pytest.raises(LoraError, match=r"keys do not fit this network.*\(4, 64\) does not fit a layer of \(32, 32\)"):
        loras.load(tmp_path / "wide")
    for key, shape, message in (
        ("lora_A", (2, 32), r"\(2, 32\) does not fit a layer of \(32, 32\) at rank 4: \(4, 32\)"),
        ("lora_B", (32, 2), r"\(32, 2\) does not fit a layer of \(32, 32\) at rank 4: \(32, 4\)"),
    ):
        altered(adapters / "zooming", tmp_path / key, f"to_q.{key}.weight", torch.zeros(shape))
        with pytest.raises(LoraError, match=message):
            loras.load(tmp_path / key)
    with pytest.raises(LoraError, match="no adapter 'pan'; loaded: none"):
        loras.unload("pan")
    with pytest.raises(LoraError, match="no adapter 'pan'"):
        save_lora(unet, tmp_path / "x", name="pan")
    loras.load(adapters / "zooming")
    with pytest.raises(LoraError, match="already loaded"):
        loras.load(adapters / "zooming")
    loras.unload()
    shutil.copytree(adapters / "zooming", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "adapter_config.json").read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"r": None}, "r None and lora_alpha 8"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
        ({"r": 8}, "at rank 8"),
        ({"alpha_pattern": {"to_q": 1}}, "alpha_pattern is not supported"),
    ):
        (tmp_path / "copy" / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(LoraError, match=message):
            loras.load(tmp_path / "copy")
    (tmp_path / "copy" / "adapter_config.json").write_text("[]")
    with pytest.raises(LoraError, match=r"adapter_config\.json: not a JSON object"):
        loras.load(tmp_path / "copy")
    (tmp_path / "copy" / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "copy" / "adapter_model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(LoraError, match=r"adapter_model\.safetensors: not a readable safetensors file"):
        loras.load(tmp_path / "copy")
    assert not loras.scales
    assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())
