"""What the network does with its inputs, how it is prepared for training and sampling, and what it refuses."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from curation.compat import ensure_torchvision
from model import attention, onednn
from model.activation_memory import count_activations, training_activations
from model.attention import Attention, VideoTransformer
from model.resnet import TemporalResBlock, VideoResBlock
from model.unet import UNetConfig, VideoUNet
from tests.model.random_unets import TINY, inputs, randomised, relative_difference

ensure_torchvision()

import peft  # noqa: E402

SMALL = UNetConfig.tiny()


@pytest.fixture
def unet() -> VideoUNet:
    return randomised(SMALL)


@torch.no_grad()
def test_a_fresh_network_starts_as_published():
    unet = VideoUNet(SMALL)
    assert not unet(*inputs(SMALL, tokens=1)).any()
    block = TemporalResBlock(32, 64, 1e-5)
    assert not block.residual(torch.randn(1, 32, 4, 6), torch.randn(1, 64)).any()
    assert 1 - unet.mid_block.attentions[0].time_mixer.temporal_weight(None).item() == pytest.approx(0.6225, abs=1e-4)


@torch.no_grad()
def test_the_number_of_frames_is_not_baked_in(unet):
    assert unet(*inputs(SMALL, tokens=1, frames=1)).shape == (2, 1, 4, 8, 16)
    assert unet(*inputs(SMALL, tokens=1, frames=25, batch=1, size=(4, 4))).shape == (1, 25, 4, 4, 4)


@torch.no_grad()
def test_one_token_is_what_the_softmax_makes_of_two_equal_ones(unet):
    sample, c_noise, context, ids = inputs(SMALL, tokens=1)
    assert (
        relative_difference(unet(sample, c_noise, context, ids), unet(sample, c_noise, context.expand(-1, 2, -1), ids))
        < 1e-5
    )


@torch.no_grad()
def test_time_context_reaches_the_temporal_layers_only(unet):
    sample, c_noise, context, ids = inputs(SMALL, tokens=3)
    other = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(5))
    plain = unet(sample, c_noise, context, ids)
    assert torch.equal(unet(sample, c_noise, context, ids, time_context=context), plain)
    assert relative_difference(unet(sample, c_noise, context, ids, time_context=other), plain) > 1e-3
    images = torch.ones(2, 5, dtype=torch.bool)
    without = unet(sample, c_noise, context, ids, image_only=images)
    assert torch.equal(unet(sample, c_noise, context, ids, time_context=other, image_only=images), without)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_context_per_frame_reaches_its_own_frame(unet, tokens):
    sample, c_noise, context, ids = inputs(SMALL, tokens=tokens)
    per_frame = context[:, None].repeat(1, 5, 1, 1)
    assert relative_difference(unet(sample, c_noise, per_frame, ids), unet(sample, c_noise, context, ids)) < 1e-5
    changed = per_frame.clone()
    changed[:, 2] += 1
    images = torch.ones(2, 5, dtype=torch.bool)  # no path between frames
    before = unet(sample, c_noise, per_frame, ids, image_only=images)
    after = unet(sample, c_noise, changed, ids, image_only=images)
    moved = (after - before).abs().amax(dim=(0, 2, 3, 4)) > 1e-4
    assert moved.tolist() == [False, False, True, False, False]


@torch.no_grad()
def test_temporal_attention_in_parts_is_the_same(monkeypatch):
    layer, x = Attention(64, 4), torch.randn(2, 5, 6, 64)
    whole = layer.temporal(x)
    monkeypatch.setattr(attention, "MAX_SEQUENCES", 7)  # 24 sequences: CUDA's grid ends at 65,535
    assert relative_difference(layer.temporal(x), whole) < 1e-6


@torch.no_grad()
def test_group_norm_in_bf16_keeps_its_statistics_in_fp32():
    norm = randomised(SMALL).conv_norm_out
    x = torch.randn(2, 32, 64, 64) + 30  # a mean that bf16 sums would lose
    exact = norm(x.bfloat16().float())
    assert relative_difference(norm.bfloat16()(x.bfloat16()).float(), exact) < 2**-7


def test_queries_and_keys_of_a_single_token_have_no_gradient(unet):
    unet(*inputs(SMALL, tokens=1)).sum().backward()
    without = {name for name, p in unet.named_parameters() if p.grad is None}
    assert without == {
        n
        for n, _ in unet.named_parameters()
        if "attn2.to_q" in n or "attn2.to_k" in n or ("norm2" in n and "transformer" in n)
    }


@pytest.mark.parametrize("tokens", [1, 3])
def test_activation_checkpointing_changes_memory_and_nothing_else(tokens):
    results = []
    for enabled in (False, True):
        unet = randomised(SMALL)
        unet.enable_activation_checkpointing(enabled)
        args = inputs(SMALL, tokens=tokens)
        kept = count_activations(lambda unet=unet, args=args: unet(*args), unet.parameters()).kept
        unet(*args).square().sum().backward()
        results.append((kept, {n: p.grad for n, p in unet.named_parameters() if p.grad is not None}))
    (plain_kept, plain), (kept, recomputed) = results
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert kept < plain_kept / 8


def test_saved_tensors_are_counted_once_and_weights_not_at_all():
    layer, x = nn.Linear(16, 16), torch.randn(8, 16)
    assert count_activations(lambda: layer(x), layer.parameters()).kept == 8 * 16 * 4
    assert count_activations(lambda: layer(x) + layer(x), layer.parameters()).kept == 8 * 16 * 4


def test_a_published_clip_trains_within_nine_gib_of_activations():
    needed = training_activations(UNetConfig.svd(), frames=14, height=72, width=128)
    assert needed.largest_recompute > 2**30
    assert needed.peak <= 9 * 2**30


def test_fsdp_units_hold_all_blocks_once_and_stay_small():
    with torch.device("meta"):
        unet = VideoUNet(UNetConfig.svd())
    units = unet.fsdp_units()
    modules = [m for unit in units for m in unit]
    blocks = [m for m in unet.modules() if isinstance(m, (VideoResBlock, VideoTransformer))]
    assert len(modules) == len(set(modules)) == len(blocks) == 38
    assert max(sum(p.numel() for m in unit for p in m.parameters()) for unit in units) <= 161_100_000


def test_blocks_compile_without_graph_breaks():
    unet = randomised(SMALL)
    context = inputs(SMALL, tokens=3, batch=1)[2]
    x, emb = torch.randn(5, 32, 4, 4), torch.randn(1, 128)
    block, transformer = unet.fsdp_units()[0]
    for module, args in ((block, (x, emb, None)), (transformer, (x, 5, context, context, None))):
        expected = module(*args)
        module.compile(fullgraph=True, backend="eager")
        assert torch.equal(module(*args), expected)


# ---- sampling on a CPU -------------------------------------------------------------------------------------------

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this build of PyTorch has no oneDNN primitives")


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3])
def test_prepared_for_sampling_gives_the_same_result(unet, tokens):
    args = inputs(SMALL, tokens=tokens)
    onednn.disable(unet)
    expected = unet(*args)
    state = {k: v.clone() for k, v in unet.state_dict().items()}
    unet.prepare_for_sampling()
    assert relative_difference(unet(*args), expected) < 1e-5
    assert all(torch.equal(v, state[k]) for k, v in unet.state_dict().items())
    for twin in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert relative_difference(twin(*args), expected) < 1e-5
    other = inputs(SMALL, tokens=tokens, batch=1, frames=3, size=(4, 8))
    result = unet(*other)
    onednn.disable(unet)
    assert relative_difference(result, unet(*other)) < 1e-5


@needs_onednn
def test_packed_weights_follow_their_originals(unet):
    args = inputs(SMALL, tokens=3)
    unet.prepare_for_sampling()
    with torch.no_grad():
        before = unet(*args)
        for p in unet.parameters():
            p.data *= 1.1  # e.g. a LoRA is merged; autograd's version counter does not see this
        merged = unet(*args)
        plain = copy.deepcopy(unet)
        onednn.disable(plain)
        assert relative_difference(merged, before) > 1e-2
        assert relative_difference(merged, plain(*args)) < 1e-5
        unet.load_state_dict(randomised(SMALL, seed=9).state_dict(), assign=True)
        assert relative_difference(unet(*args), randomised(SMALL, seed=9)(*args)) < 1e-5
    unet(*args).sum().backward()  # and gradients take the ordinary way
    assert unet.conv_in.weight.grad.abs().sum() > 0
    assert type(unet.conv_in) is onednn.PackedConv2d
    unet.train()
    assert type(unet.conv_in) is nn.Conv2d


@needs_onednn
@torch.no_grad()
def test_adapters_of_peft_fit_the_names_and_survive_packing(unet):
    args = inputs(SMALL, tokens=3)
    base = unet(*args)
    targets = r".*temporal_transformer_blocks.*\.(to_q|to_k|to_v|to_out\.0)$"
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.inject_adapter_in_model(config, unet)
    assert len([n for n, _ in adapted.named_modules() if n.endswith("lora_A")]) == 4 * 8
    expected = adapted(*args)
    assert relative_difference(expected, base) > 1e-3
    adapted.prepare_for_sampling()
    assert relative_difference(adapted(*args), expected) < 1e-5


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.zeros(2, 5, 4, 8, 16)}, "sample has 4 channels; this network takes 8"),
        ({"sample": torch.zeros(2, 5, 8, 9, 16)}, "9x16: height and width must be multiples of 2"),
        ({"sample": torch.zeros(10, 8, 8, 16)}, "expected \\(batch, frames, channels, height, width\\)"),
        ({"context": torch.zeros(2, 3, 7)}, "context has shape \\(2, 3, 7\\); expected \\(2, tokens, 32\\)"),
        ({"context": torch.zeros(2, 4, 3, 32)}, "context has 4 sets of tokens for 5 frames"),
        ({"vector_ids": torch.zeros(2, 4)}, "vector_ids has shape \\(2, 4\\); expected \\(2, 3\\)"),
        ({"time_context": torch.zeros(1, 3, 32)}, "time_context has shape"),
        ({"image_only": torch.zeros(2, 4, dtype=torch.bool)}, "image_only has shape \\(2, 4\\); expected \\(2, 5\\)"),
    ],
)
def test_a_wrong_shape_is_named(unet, change, message):
    named = dict(zip(("sample", "c_noise", "context", "vector_ids"), inputs(SMALL, tokens=3), strict=True))
    with pytest.raises(ValueError, match=message):
        unet(**{**named, **change})


def test_latents_of_the_published_network_must_be_multiples_of_8():
    with torch.device("meta"):
        unet = VideoUNet(UNetConfig.svd())
        args = torch.zeros(1, 14, 8, 70, 128), torch.zeros(1), torch.zeros(1, 1, 1024), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="70x128: height and width must be multiples of 8, that is 64 pixels"):
        unet(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": (32, 48)}, "48 channels with 4 heads"),
        ({"num_attention_heads": (2,)}, "num_attention_heads has 1 entries"),
        ({"down_block_types": ("DownBlock2D", "DownBlock2D")}, "unknown block 'DownBlock2D'"),
        ({"projection_class_embeddings_input_dim": 100}, "multiple of addition_time_embed_dim"),
        ({"norm_eps": "other"}, "norm_eps"),
        ({"in_channels": None}, "in_channels is None; a whole number"),
        ({"addition_time_embed_dim": 0}, "addition_time_embed_dim is 0; a whole number"),
        ({"num_attention_heads": (0, 0)}, "num_attention_heads is .0, 0.; a list of whole numbers"),
    ],
)
def test_an_impossible_size_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TINY.replace(**change)
