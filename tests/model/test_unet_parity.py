"""The network against diffusers: same names, same shapes, same numbers."""

from __future__ import annotations

import pytest
import torch

from curation.compat import ensure_torchvision
from model.embedding import sinusoid
from model.unet import UNetConfig, VideoUNet
from tests.model.random_unets import MEDIUM, TINY, inputs, randomised, relative_difference

ensure_torchvision()

from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel  # noqa: E402


def diffusers_twin(unet: VideoUNet) -> UNetSpatioTemporalConditionModel:
    config = {k: v for k, v in unet.config.to_diffusers().items() if not k.startswith("_")}
    twin = UNetSpatioTemporalConditionModel(**config)
    twin.load_state_dict(unet.state_dict())
    return twin.to(unet.conv_in.weight.dtype).eval()


def test_published_size_has_the_published_keys_and_parameters():
    with torch.device("meta"):
        ours, theirs = VideoUNet(UNetConfig.svd()), UNetSpatioTemporalConditionModel()
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert len(shapes) == 1428
    assert sum(p.numel() for p in ours.parameters()) == 1_524_623_082


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize("config", [TINY, MEDIUM, MEDIUM.replace(in_channels=9)], ids=["tiny", "medium", "medium-9ch"])
def test_same_output_as_diffusers(config: UNetConfig, tokens: int):
    unet = randomised(config)
    args = inputs(config, tokens=tokens)
    with torch.no_grad():
        expected, sampled = diffusers_twin(unet)(*args).sample, unet(*args)
    assert expected.std() > 0.1
    assert relative_difference(sampled, expected) < 1e-5
    assert relative_difference(unet(*args), expected) < 1e-5  # as it runs in training


def test_same_gradients_as_diffusers():
    # In float64: some gradients are exactly zero in theory, and rounding noise in float32.
    unet = randomised(TINY, dtype=torch.float64)
    twin = diffusers_twin(unet)
    args = [x.double() for x in inputs(TINY, tokens=3)]
    weight = torch.randn(2, 5, 4, 8, 16, generator=torch.Generator().manual_seed(2))
    weight = weight.double()
    (unet(*args) * weight).sum().backward()
    (twin(*args).sample * weight).sum().backward()
    theirs = dict(twin.named_parameters())
    for name, p in unet.named_parameters():
        difference = (p.grad - theirs[name].grad).abs().max()
        assert difference < 1e-9 * (1 + theirs[name].grad.abs().max()), name


def test_image_only_frames_see_exactly_the_2d_unet():
    config = TINY.replace(norm_eps="sgm", in_channels=4)
    unet = randomised(config)
    spatial = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=config.block_out_channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.num_attention_heads,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=config.projection_class_embeddings_input_dim,
    ).eval()
    state = {key.replace(".spatial_res_block", ""): value for key, value in unet.state_dict().items()}
    state = {key.replace("add_embedding", "class_embedding"): value for key, value in state.items()}
    spatial.load_state_dict({key: state[key] for key in spatial.state_dict()})
    sample, c_noise, context, ids = inputs(config, tokens=7)
    vector = sinusoid(ids, config.addition_time_embed_dim).flatten(1).repeat_interleave(5, dim=0)
    with torch.no_grad():
        expected = spatial(
            sample.flatten(0, 1),
            c_noise.repeat_interleave(5),
            context.repeat_interleave(5, dim=0),
            class_labels=vector,
        ).sample
        found = unet(sample, c_noise, context, ids, image_only=torch.ones(2, 5, dtype=torch.bool))
        video = unet(sample, c_noise, context, ids)
    assert relative_difference(found.flatten(0, 1), expected) < 1e-5
    assert relative_difference(video, found) > 1e-2


def test_images_and_clips_mix_in_one_batch():
    unet = randomised(TINY)
    args = inputs(TINY, tokens=2)
    mask = torch.tensor([[True] * 5, [False] * 5])
    with torch.no_grad():
        images, clips = unet(*args, image_only=torch.ones_like(mask)), unet(*args)
        mixed = unet(*args, image_only=mask)
    assert relative_difference(mixed[0], images[0]) < 1e-5
    assert relative_difference(mixed[1], clips[1]) < 1e-5
