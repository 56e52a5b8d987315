"""Whole generative-models checkpoints: UNet, autoencoders and image encoder in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.compat import ensure_torchvision
from model.tasks import ImageToVideo, ModelDirectoryError, VideoModel
from model.tasks.random_model import tiny_random_model
from model.training.config_file import parse_config
from model.training.starting_point import starting_point
from model.video_io import from_bytes
from model.weight_files import CheckpointError

ensure_torchvision()

pytestmark = pytest.mark.filterwarnings("ignore::model.tasks.FrameCountWarning")


def frames_of(model: VideoModel, seed: int = 23) -> Tensor:
    pixels = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageToVideo(model)(from_bytes(pixels.numpy()), frames=3, options=model.options(steps=2, seed=seed))[0]


def sized_like_the_published(model: VideoModel) -> VideoModel:
    """A tiny model whose heads are 64 wide, as sgm's are: then a file needs no hint to be read."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from model.conditioning.image import TransformersImageEncoder
    from model.unet import UNetConfig, VideoUNet

    torch.manual_seed(1)
    config = UNetConfig.tiny(
        in_channels=8, block_out_channels=(64, 64), num_attention_heads=(1, 1), cross_attention_dim=48, norm_eps="sgm"
    )
    model.unet = VideoUNet(config)
    for parameter in model.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=56,
        projection_dim=48,
        hidden_act="gelu",
    )
    model.image_encoder = TransformersImageEncoder(CLIPVisionModelWithProjection(vision))
    model.settle()
    return model


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return sized_like_the_published(tiny_random_model("image_to_video", autoencoder="kl", frames=14))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sgm") / "tiny.safetensors"
    model.save(path)
    return path


def as_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file as generative-models itself would have written it: with what it holds besides, and no hints of ours."""
    extra = "conditioner.embedders.3.encoder."
    text = "conditioner.embedders.0.open_clip.model."
    return state | {
        f"{extra}decoder.conv_in.weight": torch.zeros(3, 4, 3, 3),
        f"{extra}post_quant_conv.bias": torch.zeros(4),
        f"{text}positional_embedding": torch.zeros(77, 48),
        f"{text}text_projection": torch.zeros(48, 48),
        f"{text}logit_scale": torch.zeros(()),
        f"{text}token_embedding.weight": torch.zeros(9, 48),
        f"{text}ln_final.weight": torch.ones(48),
    }


def test_what_was_saved_samples_the_same_frames(model, saved):
    again = VideoModel.load(saved)
    assert again.description == model.description
    assert again.unet.config == model.unet.config
    expected = frames_of(model)
    torch.testing.assert_close(frames_of(again), expected, atol=1e-3, rtol=0)
    assert (frames_of(again, seed=24) - expected).abs().max() > 0.02  # not for lack of sensitivity


def test_training_starts_from_a_file_with_all_its_parts(saved, tmp_path):
    text = f"""
output: {tmp_path}
data: {{shards: [none]}}
model: {{start: {saved}}}
stages: [{{preset: image-to-video-320, tiny: true}}]
"""
    config = parse_config(text)
    started, whole = starting_point(config, config.stages[0], None, None), VideoModel.load(saved)
    for part in ("unet", "autoencoder", "image_encoder"):
        found, expected = (getattr(each, part).state_dict() for each in (started, whole))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_a_published_file_is_read_without_hints_of_ours(model, saved, tmp_path):
    save_file(as_published(load_file(saved)), tmp_path / "svd_xt_1_1.safetensors")
    found = VideoModel.load(tmp_path / "svd_xt_1_1.safetensors")
    assert (found.description.frames, found.description.max_guidance, found.description.steps) == (25, 3.0, 30)
    assert found.unet.config.norm_eps == "sgm"
    torch.testing.assert_close(frames_of_with(found, model), frames_of(model), atol=1e-3, rtol=0)


def frames_of_with(found: VideoModel, reference: VideoModel) -> Tensor:
    """With the options of another model: a published file does not know its guidance."""
    found.description = reference.description
    return frames_of(found)


def test_a_file_becomes_a_directory_that_diffusers_opens(model, saved, tmp_path):
    from diffusers import StableVideoDiffusionPipeline
    from open_clip import CLIP

    from model.conditioning.resize import clip_pixels
    from model.conditioning.sgm_names import open_clip_vision_config

    VideoModel.load(saved).save(tmp_path / "directory")
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "directory")
    # open_clip's own network with the weights of the file, which generative-models would run.
    prefix = "conditioner.embedders.0.open_clip.model.visual."
    state = {key.removeprefix(prefix): v for key, v in load_file(saved).items() if key.startswith(prefix)}
    tower = CLIP(**open_clip_vision_config(state)).visual.eval()
    tower.load_state_dict(state)
    pixels = clip_pixels(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1, 224)
    with torch.no_grad():
        expected = tower(pixels)
        torch.testing.assert_close(pipeline.image_encoder(pixels).image_embeds, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.01  # not for lack of sensitivity


def test_the_same_model_makes_the_same_bytes(model, saved, tmp_path):
    for i in range(4):  # safetensors shuffles its metadata anew for each file
        model.save(tmp_path / f"{i}.safetensors")
        assert (tmp_path / f"{i}.safetensors").read_bytes() == saved.read_bytes()


def test_names_are_those_of_generative_models(saved):
    """Spot checks against its source: AutoencodingEngine, VideoDecoder, and the two embedders that have weights."""
    state = load_file(saved)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    for key, shape in {
        "model.diffusion_model.label_emb.0.0.weight": (256, 96),
        "first_stage_model.encoder.down.0.block.1.conv2.bias": (32,),
        "first_stage_model.encoder.down.2.downsample.conv.weight": (32, 32, 3, 3),
        "first_stage_model.encoder.mid.attn_1.q.weight": (32, 32, 1, 1),
        "first_stage_model.encoder.mid.attn_1.norm.weight": (32,),
        "first_stage_model.encoder.norm_out.weight": (32,),
        "first_stage_model.decoder.mid.block_2.time_stack.out_layers.3.weight": (32, 32, 3, 1, 1),
        "first_stage_model.decoder.mid.block_1.time_stack.in_layers.0.bias": (32,),
        "first_stage_model.decoder.up.0.block.1.mix_factor": (1,),
        "first_stage_model.decoder.up.3.upsample.conv.bias": (32,),
        "first_stage_model.decoder.conv_out.weight": (3, 32, 3, 3),
        "first_stage_model.decoder.conv_out.time_mix_conv.weight": (3, 3, 3, 1, 1),
        "conditioner.embedders.0.open_clip.model.visual.class_embedding": (128,),
        "conditioner.embedders.0.open_clip.model.visual.proj": (128, 48),
        "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.1.attn.in_proj_weight": (384, 128),
        "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.0.mlp.c_fc.bias": (512,),
        "conditioner.embedders.3.encoder.encoder.conv_out.weight": (8, 32, 3, 3),
        "conditioner.embedders.3.encoder.quant_conv.weight": (8, 8, 1, 1),
    }.items():
        assert shapes.get(key) == shape, key
    assert "first_stage_model.decoder.up.0.upsample.conv.bias" not in state  # the finest level has none
    assert not any(key.startswith("first_stage_model.quant") for key in state)
    # All that there is: 4 parts, no other.
    heads = {".".join(key.split(".")[: 3 if key.startswith("cond") else 1]) for key in state}
    assert heads == {"model", "first_stage_model", "conditioner.embedders.0", "conditioner.embedders.3"}


def test_the_first_stage_encodes_as_the_frame_encoder_does(model, saved):
    """Its quant_conv is inside the last convolution."""
    from diffusers import AutoencoderKLTemporalDecoder

    state = load_file(saved)
    ours = model.autoencoder.model
    folded = AutoencoderKLTemporalDecoder.from_config(ours.config).eval()
    folded.load_state_dict(ours.state_dict())
    for leaf in ("weight", "bias"):
        getattr(folded.encoder.conv_out, leaf).data = state[f"first_stage_model.encoder.conv_out.{leaf}"]
    folded.quant_conv = torch.nn.Identity()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            folded.encode(image).latent_dist.mean, ours.encode(image).latent_dist.mean, atol=1e-5, rtol=1e-4
        )


def test_autoencoder_names_agree_with_diffusers_own_conversion():
    """diffusers converts 2-D latent-diffusion autoencoders; its result is our starting point, key for key."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    from model.tasks.sgm_checkpoint import _sgm_autoencoder

    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    vae = AutoencoderKL(block_out_channels=(32, 64, 96), down_block_types=down, up_block_types=up, layers_per_block=2)
    theirs = convert_ldm_vae_checkpoint(
        {f"first_stage_model.{key}": value for key, value in _sgm_autoencoder(vae).items()}, dict(vae.config)
    )
    expected = vae.state_dict()
    assert theirs.keys() == expected.keys()
    assert all(torch.equal(theirs[key], expected[key]) for key in expected)


def test_a_frame_wise_decoder_survives_too(model, tmp_path):
    """svd_image_decoder.safetensors: the first stage is Stable Diffusion's autoencoder."""
    from diffusers import AutoencoderKL

    from model.conditioning.latents import KLAutoencoder

    torch.manual_seed(0)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=down, up_block_types=up, latent_channels=4)
    other = VideoModel(
        description=model.description,
        unet=model.unet,
        autoencoder=KLAutoencoder(vae.eval()),
        image_encoder=model.image_encoder,
    )
    other.save(tmp_path / "image_decoder.safetensors")
    found = VideoModel.load(tmp_path / "image_decoder.safetensors").autoencoder
    assert found.kind == "kl"
    expected = vae.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.model.state_dict().items())


def test_files_that_are_not_whole_are_refused_by_name(saved, tmp_path):
    state = load_file(saved)

    def refused(message: str, changed: dict[str, Tensor], name: str = "x.safetensors") -> None:
        save_file(changed, tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            VideoModel.load(tmp_path / name)

    def without(start: str) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if not key.startswith(start)}

    refused("no key starts with 'first_stage_model.'", without("first_stage_model."))
    refused("no key starts with 'conditioner.embedders.3.encoder.'", without("conditioner.embedders.3"))
    refused(r"(?s)1 surplus key:\s+conditioner.embedders.7.x", state | {"conditioner.embedders.7.x": torch.zeros(1)})
    key = "first_stage_model.decoder.norm_out.weight"
    refused(
        r"(?s)autoencoder.*1 missing key:\s+decoder.conv_norm_out.weight", {k: v for k, v in state.items() if k != key}
    )
    refused("wrong shape", state | {key: torch.zeros(64)})
    refused(
        r"(?s)image encoder.*1 surplus key:\s+surprise",
        state | {"conditioner.embedders.0.open_clip.model.visual.surprise": torch.zeros(1)},
    )
    refused("cannot tell the size of a part", without("first_stage_model.decoder.conv_in"))
    torch.save({"state_dict": state}, tmp_path / "svd.ckpt")
    with pytest.raises(CheckpointError, match="a pickle can run code"):
        VideoModel.load(tmp_path / "svd.ckpt")
    assert VideoModel.load(tmp_path / "svd.ckpt", allow_pickle=True).description.frames == 14
    (tmp_path / "torn.safetensors").write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        VideoModel.load(tmp_path / "torn.safetensors")


def test_what_has_no_place_in_the_layout_is_not_written(tmp_path):
    with pytest.raises(ModelDirectoryError, match="holds a KL autoencoder, not 'haar'"):
        tiny_random_model("image_to_video").save(tmp_path / "a.safetensors")
    with pytest.raises(ModelDirectoryError, match="is for orbit, not for image to video"):
        tiny_random_model("orbit", autoencoder="kl").save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
