"""Weights in and out, in the three layouts the world has them in."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from curation.compat import ensure_torchvision
from model.checkpoints import CheckpointError, load_sd21_into, load_sgm, load_unet, save_sgm, save_unet
from model.key_layouts import SGM_PREFIX, is_new_in_video, sd21_keys, sgm_keys
from model.unet import UNetConfig, VideoUNet
from tests.model.random_unets import TINY, inputs, randomised, relative_difference

ensure_torchvision()

from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel  # noqa: E402

SD21 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}


def meta_keys(config: UNetConfig) -> list[str]:
    with torch.device("meta"):
        return list(VideoUNet(config).state_dict())


def same_state(a: VideoUNet, b: VideoUNet) -> bool:
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


def test_diffusers_directory_round_trip(tmp_path):
    unet = randomised(TINY)
    save_unet(unet, tmp_path)
    assert same_state(load_unet(tmp_path), unet)
    assert same_state(load_unet(tmp_path / "unet"), unet)
    assert load_unet(tmp_path).config == TINY
    assert load_unet(tmp_path, dtype=torch.bfloat16).conv_in.weight.dtype == torch.bfloat16


def test_diffusers_opens_what_we_save_and_we_open_what_it_saves(tmp_path):
    unet, args = randomised(TINY), inputs(TINY, tokens=2)
    save_unet(unet, tmp_path)
    theirs = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path, subfolder="unet").eval()
    with torch.no_grad():
        assert relative_difference(theirs(*args).sample, unet(*args)) < 1e-5
    theirs.save_pretrained(tmp_path / "back", max_shard_size="500KB")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1  # shards with an index
    assert same_state(load_unet(tmp_path / "back"), unet)


def test_a_lone_variant_is_found_and_two_are_not_guessed(tmp_path):
    folder = save_unet(randomised(TINY), tmp_path)
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    load_unet(tmp_path)
    save_file(
        load_file(folder / "diffusion_pytorch_model.fp16.safetensors"),
        folder / "diffusion_pytorch_model.ema.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"variants there: .*ema.*fp16"):
        load_unet(tmp_path)
    load_unet(tmp_path, variant="ema")


@pytest.mark.parametrize("norm_eps", ["diffusers", "sgm"])
def test_epsilon_survives_saving(tmp_path, norm_eps):
    unet = randomised(TINY.replace(norm_eps=norm_eps))
    save_unet(unet, tmp_path)
    found = load_unet(tmp_path)
    assert found.config.norm_eps == norm_eps
    assert found.up_blocks[0].resnets[0].temporal_res_block.norm1.eps == (1e-5 if norm_eps == "sgm" else 1e-6)


def test_sgm_names_of_the_published_model():
    names = sgm_keys(meta_keys(UNetConfig.svd()), UNetConfig.svd())
    assert len(set(names.values())) == len(names) == 1428
    # The corners of the published layout (generative-models, VideoUNet).
    for ours, theirs in {
        "conv_in.weight": "input_blocks.0.0.weight",
        "add_embedding.linear_2.bias": "label_emb.0.2.bias",
        "down_blocks.0.resnets.0.spatial_res_block.conv1.weight": "input_blocks.1.0.in_layers.2.weight",
        "down_blocks.0.downsamplers.0.conv.weight": "input_blocks.3.0.op.weight",
        "down_blocks.2.attentions.1.time_mixer.mix_factor": "input_blocks.8.1.time_mixer.mix_factor",
        "down_blocks.3.resnets.1.temporal_res_block.norm2.bias": "input_blocks.11.0.time_stack.out_layers.0.bias",
        "mid_block.attentions.0.time_pos_embed.linear_2.weight": "middle_block.1.time_pos_embed.2.weight",
        "mid_block.resnets.1.temporal_res_block.time_emb_proj.weight": "middle_block.2.time_stack.emb_layers.1.weight",
        "up_blocks.0.upsamplers.0.conv.weight": "output_blocks.2.1.conv.weight",
        "up_blocks.1.upsamplers.0.conv.bias": "output_blocks.5.2.conv.bias",
        "up_blocks.3.resnets.2.spatial_res_block.conv_shortcut.weight": "output_blocks.11.0.skip_connection.weight",
        "up_blocks.3.attentions.2.temporal_transformer_blocks.0.attn2.to_out.0.bias": (
            "output_blocks.11.1.time_stack.0.attn2.to_out.0.bias"
        ),
        "conv_norm_out.weight": "out.0.weight",
    }.items():
        assert names[ours] == theirs


def test_sgm_round_trip_infers_the_size_and_skips_the_rest_of_the_file(tmp_path):
    config = TINY.replace(
        block_out_channels=(64, 128), num_attention_heads=(1, 2), norm_eps="sgm", num_frames=14, sample_size=96
    )
    unet = randomised(config)
    file = save_sgm(unet, tmp_path / "svd.safetensors")
    state = load_file(file)
    assert all(key.startswith(SGM_PREFIX) for key in state)
    save_file({**state, "first_stage_model.decoder.conv_in.weight": torch.zeros(3)}, file)
    found = load_sgm(file)
    assert same_state(found, unet)
    assert found.config == config
    assert same_state(load_unet(file), unet)


def test_stable_diffusion_2_1_fills_all_spatial_layers():
    with torch.device("meta"):
        image_model, video_model = UNet2DConditionModel(**SD21), VideoUNet(UNetConfig.svd())
    theirs = {key: value.shape for key, value in image_model.state_dict().items()}
    ours = {key: value.shape for key, value in video_model.state_dict().items()}
    names = sd21_keys(ours)
    assert len(names) == 686
    assert set(names.values()) == set(theirs)
    assert [key for key, name in names.items() if ours[key] != theirs[name]] == ["conv_in.weight"]
    assert sum(is_new_in_video(key) for key in ours) == 742


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_image_weights_initialise_the_video_model(tmp_path, layout):
    image = randomised(TINY.replace(in_channels=4, norm_eps="sgm"))
    names = sd21_keys(image.state_dict())
    if layout == "original":
        original = sgm_keys(names, image.config)
        state = {SGM_PREFIX + original[key]: image.state_dict()[key] for key in names}
        path = tmp_path / "v2-1.safetensors"
        save_file({**state, "cond_stage_model.x": torch.zeros(1)}, path)
    else:
        path = tmp_path / "unet"
        path.mkdir()
        save_file(
            {name: image.state_dict()[key] for key, name in names.items()}, path / "diffusion_pytorch_model.safetensors"
        )
    video = VideoUNet(TINY.replace(in_channels=9, norm_eps="sgm"))
    assert sorted(load_sd21_into(video, path)) == sorted(names)
    assert not video.conv_in.weight[:, 4:].any()
    assert video.down_blocks[0].resnets[0].temporal_res_block.conv2.weight.abs().max() == 0

    # With image-only frames the result is the image model, whatever the five new channels and the scalars hold.
    sample, c_noise, context, ids = inputs(TINY.replace(in_channels=9), tokens=3)
    only = torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        for parameter in image.add_embedding.linear_2.parameters():  # which the image model does not have
            parameter.zero_()
        expected = image(sample[:, :, :4], c_noise, context, ids, image_only=only)
        assert relative_difference(video(sample, c_noise, context, ids, image_only=only), expected) < 1e-5
        # And so it is for clips, once the fresh temporal layers are told to start as the identity.
        video.start_as_image_model()
        assert relative_difference(video(sample, c_noise, context, ids), expected) < 1e-5


def test_missing_and_surplus_keys_are_listed_and_counted(tmp_path):
    folder = save_unet(randomised(TINY), tmp_path)
    weights = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    lost = sorted(k for k in state if "time_stack" in k or "temporal_res_block" in k)
    save_file({**{k: v for k, v in state.items() if k not in lost}, "extra.weight": torch.zeros(2)}, weights)
    with pytest.raises(CheckpointError) as caught:
        load_unet(tmp_path)
    message = str(caught.value)
    assert f"{len(lost)} missing keys" in message
    assert "1 surplus key:\n  extra.weight" in message
    assert [line.strip() for line in message.splitlines() if "temporal_res_block" in line] == lost[:10]
    assert f"and {len(lost) - 10} more" in message


def test_wrong_shape_names_the_key_and_both_shapes(tmp_path):
    folder = save_unet(randomised(TINY), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    with pytest.raises(CheckpointError, match=r"conv_in\.weight: \(32, 8, 3, 3\) in the file, \(32, 9, 3, 3\)"):
        load_unet(tmp_path)


def test_pickles_are_refused_unless_asked_for(tmp_path):
    unet = randomised(TINY.replace(block_out_channels=(64, 128), num_attention_heads=(1, 2)))
    names = sgm_keys(unet.state_dict(), unet.config)
    file = tmp_path / "svd.ckpt"
    torch.save({"state_dict": {SGM_PREFIX + names[k]: v for k, v in unet.state_dict().items()}}, file)
    with pytest.raises(CheckpointError, match="allow_pickle=True"):
        load_unet(file)
    assert same_state(load_unet(file, allow_pickle=True), unet)
    for junk in (b"", b"junk", file.read_bytes()[:500]):
        file.write_bytes(junk)
        with pytest.raises(CheckpointError, match=r"svd\.ckpt: not a readable pickle"):
            load_unet(file, allow_pickle=True)


@pytest.mark.parametrize("damage", ["truncated", "empty", "no directory", "other model", "no weights", "no sgm keys"])
def test_unusable_input_names_the_file(tmp_path, damage):
    folder = save_unet(randomised(TINY), tmp_path / "model")
    weights = folder / "diffusion_pytorch_model.safetensors"
    target = folder
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "no directory":
        target = tmp_path / "nothing"
    elif damage == "other model":
        (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no sgm keys":
        target = weights
    with pytest.raises(CheckpointError, match=str(target.name)):
        load_unet(target)


def test_saving_never_leaves_half_a_file_under_the_final_name(tmp_path, monkeypatch):
    unet = randomised(TINY)
    weights = save_unet(unet, tmp_path) / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()

    def full_disk(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.weight_files.save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write \d+ MiB.*No space left"):
        save_unet(randomised(TINY, seed=1), tmp_path)
    assert weights.read_bytes() == before
    assert [p.name for p in weights.parent.iterdir() if p.suffix == ".part"] == []
