"""Published directories come in, exported ones go out: against diffusers' StableVideoDiffusionPipeline."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curation.compat import ensure_torchvision
from model.checkpoints import CheckpointError
from model.tasks import ImageToVideo, ModelDirectoryError, VideoModel
from model.tasks.model_directory import _scheduler_config
from model.tasks.random_model import tiny_random_model
from tests.model import published_directory

ensure_torchvision()

# Large enough that the coarsest level is 2 x 2: at 1 x 1 a group norm of two values is a sign function, and any
# rounding error becomes another video.
FRAMES, HEIGHT, WIDTH, STEPS = 5, 128, 128, 3

pytestmark = pytest.mark.filterwarnings("ignore::model.tasks.FrameCountWarning")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory with the names and layout of the published SVD, every part made and saved by its own library: real
    config keys and four levels, narrow channels, random weights. No clipmill.json."""
    directory = tmp_path_factory.mktemp("published") / "svd"
    published_directory.save(
        directory,
        unet={
            "block_out_channels": (32, 32, 64, 64),
            "num_attention_heads": (1, 1, 2, 2),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 96,
            "num_frames": 14,
            "sample_size": 96,
        },
        vae={"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
        vision={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 224,
            "patch_size": 56,
            "projection_dim": 32,
        },
    )
    assert not (directory / "clipmill.json").exists()
    return directory


def picture() -> "tuple[object, Tensor]":
    """The same image for both: PIL (8 bits) and a tensor on [-1, 1]."""
    from PIL import Image

    from model.video_io import from_bytes

    noise = torch.randn(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    smooth = nn.functional.avg_pool2d(noise, 9, 1, 4).mul(4).clamp(-1, 1)
    array = ((smooth + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return Image.fromarray(array[0]), from_bytes(array)


def theirs(directory, steps: int = STEPS) -> Tensor:
    """Frames (T, H, W, 3) on [0, 1] of diffusers' pipeline, noise from the same seed."""
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        picture()[0],
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=steps,
        min_guidance_scale=1.0,
        max_guidance_scale=2.5,
        fps=7,
        motion_bucket_id=127,
        noise_aug_strength=0.02,
        decode_chunk_size=5,
        generator=torch.Generator().manual_seed(23),
        output_type="pt",
    ).frames
    return frames[0].permute(0, 2, 3, 1)


def ours(model: VideoModel, steps: int = STEPS, **options: object) -> Tensor:
    options = {"steps": steps, "seed": 23, "decode_chunk": 5} | options
    frames = ImageToVideo(model)(
        picture()[1], frames=FRAMES, fps=7, motion_bucket=127, options=model.options(**options)
    )
    return ((frames[0] + 1) / 2).permute(0, 2, 3, 1)


def test_a_published_directory_samples_the_same_frames_as_diffusers(published):
    model = VideoModel.load(published)
    reference = theirs(published)
    mine = ours(model)
    assert mine.shape == reference.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert reference.std() > 0.01
    assert (mine - reference).abs().max() < 1e-3
    assert (np.abs((mine - reference).numpy()) * 255).max() < 0.5
    # ... which is not for lack of sensitivity: another seed or a scaled conditioning frame is far away.
    assert (ours(model, seed=24) - reference).abs().max() > 0.02


def test_published_defaults_are_known(published):
    description = VideoModel.load(published).description
    assert (description.task, description.frames, description.steps) == ("image_to_video", 14, 25)
    assert (description.min_guidance, description.max_guidance) == (1.0, 2.5)
    assert (description.sigma_min, description.sigma_max) == (0.002, 700.0)
    assert description.motion is None  # it was never published


def test_an_exported_directory_opens_in_diffusers_and_gives_the_same_frames(published, tmp_path):
    model = VideoModel.load(published)
    with torch.no_grad():  # as if it had been trained further
        model.unet.conv_out.weight.mul_(1.2)
    model.save(tmp_path / "export")
    assert json.loads((tmp_path / "export" / "model_index.json").read_text())["_class_name"] == (
        "StableVideoDiffusionPipeline"
    )
    reference = theirs(tmp_path / "export")
    again = ours(VideoModel.load(tmp_path / "export"))
    assert (again - reference).abs().max() < 1e-3
    assert (ours(VideoModel.load(published)) - reference).abs().max() > 5e-3


def test_our_own_tiny_model_opens_in_diffusers(tmp_path):
    model = tiny_random_model("image_to_video", autoencoder="kl", frames=FRAMES)
    model.save(tmp_path / "tiny")
    assert (ours(VideoModel.load(tmp_path / "tiny"), steps=2) - theirs(tmp_path / "tiny", steps=2)).abs().max() < 1e-3


def test_exported_scheduler_has_our_noise_levels():
    from diffusers import EulerDiscreteScheduler

    from model.diffusion import karras_sigmas

    scheduler = EulerDiscreteScheduler.from_config(_scheduler_config(tiny_random_model("image_to_video").description))
    scheduler.set_timesteps(25)
    torch.testing.assert_close(scheduler.sigmas, karras_sigmas(25).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scheduler.timesteps, (karras_sigmas(25)[:-1].log() / 4).float(), rtol=1e-4, atol=1e-5)
    assert float(scheduler.init_noise_sigma) == pytest.approx((1 + 700**2) ** 0.5, rel=1e-6)


def test_half_precision_variants_are_found(published, tmp_path):
    import shutil

    copy_ = tmp_path / "fp16"
    shutil.copytree(published, copy_)
    for file in copy_.rglob("*.safetensors"):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert torch.equal(ours(VideoModel.load(copy_)), ours(VideoModel.load(published)))


def test_bfloat16_runs_and_stays_near(published):
    coarse = ours(VideoModel.load(published, dtype=torch.bfloat16))
    assert (coarse - ours(VideoModel.load(published))).abs().mean() < 0.05


def test_missing_and_surplus_keys_are_listed(published, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(published, broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.surprise"] = state.pop("conv_in.bias")
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"(?s)1 missing key:\s+conv_in.bias.*1 surplus key:\s+conv_in.surprise"):
        VideoModel.load(broken)
    config = json.loads((broken / "unet" / "config.json").read_text())
    shutil.copytree(published / "unet", broken / "unet", dirs_exist_ok=True)
    (broken / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": 9}))
    with pytest.raises(CheckpointError, match="wrong shape"):
        VideoModel.load(broken)


@pytest.mark.parametrize(
    ("part", "file", "pickled"),
    [
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("image_encoder", "model.safetensors", "pytorch_model.bin"),
    ],
)
def test_no_library_makes_up_the_weights_that_a_part_lacks(published, tmp_path, part, file, pickled):
    """diffusers and transformers draw missing weights at random, with a warning; here it is an error."""
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(published, broken)
    state = load_file(published / part / file)
    first, *_, last = sorted(state)

    def refused(message: str, changed: dict[str, Tensor]) -> None:
        save_file(changed, broken / part / file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            VideoModel.load(broken)

    refused(rf"(?s){part}.*1 missing key:\s+{first}\b", {key: value for key, value in state.items() if key != first})
    refused(r"(?s)11 surplus keys:.*and 1 more", state | {f"x{i}": torch.zeros(1) for i in range(11)})
    refused(last, state | {last: torch.zeros(5, 5)})  # a wrong shape: the key is named
    (broken / part / file).unlink()
    torch.save(state, broken / part / pickled)
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        VideoModel.load(broken)
    assert VideoModel.load(broken, allow_pickle=True).image_encoder is not None


def test_only_image_to_video_can_do_without_a_description(published):
    model = copy.copy(VideoModel.load(published))
    model.description = replace(model.description, task="orbit")
    with pytest.raises(ModelDirectoryError, match="holds 3 scalars; orbit has 4"):
        model.require("orbit")
