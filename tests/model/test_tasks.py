"""Every task end to end from a tiny model's directory, and what each puts in front of the network."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from model.conditioning import ConditioningError
from model.conditioning.haar import HaarAutoencoder
from model.conditioning.motion import MotionBuckets
from model.diffusion import LearnedInputScale, LinearPredictionGuider, TrianglePredictionGuider, VanillaCFG
from model.tasks import (
    FrameCountWarning,
    ImageToVideo,
    Interpolation,
    ModelDescription,
    ModelDirectoryError,
    Orbit,
    OutOfMemory,
    SamplingOptions,
    TextToVideo,
    VideoModel,
    model_directory,
    tiny_random_model,
)
from model.tasks import interpolation as interpolation_module
from model.tasks.description import published_image_to_video
from model.tasks.interpolation_mask import MaskEmbedding, ends_given
from model.tasks.orbit import azimuths
from model.weight_files import CheckpointError

FRAMES = {"text_to_video": 4, "image_to_video": 4, "interpolation": 5, "orbit": 4}
QUICK = {"steps": 2}


def image(seed: int = 0, size: tuple[int, int] = (32, 48)) -> Tensor:
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 9, 1, 4).mul(4).clamp(-1, 1)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for task, frames in FRAMES.items():
        model = tiny_random_model(task, frames=frames)
        model.description = replace(model.description, width=48, height=32)
        made[task] = tmp_path_factory.mktemp("models") / task
        model.save(made[task])
    return made


@pytest.fixture(scope="module")
def models(directories) -> dict[str, VideoModel]:
    return {task: VideoModel.load(directory) for task, directory in directories.items()}


def run(model: VideoModel, options: SamplingOptions | None = None, **arguments: object) -> Tensor:
    options = options or model.options(**QUICK)
    task = model.description.task
    if task == "text_to_video":
        return TextToVideo(model)(**({"prompts": "a dog", "options": options} | arguments))
    if task == "interpolation":
        return Interpolation(model)(**({"start": image(0), "end": image(1), "options": options} | arguments))
    maker = {"image_to_video": ImageToVideo, "orbit": Orbit}[task]
    return maker(model)(**({"images": image(), "options": options} | arguments))


class Recorder(nn.Module):
    """Stands in front of the network and keeps what it is given."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[dict[str, Tensor]] = []

    @property
    def config(self):
        return self.network.config

    def forward(self, sample, c_noise, context, vector_ids, **more):
        self.calls.append({"sample": sample, "c_noise": c_noise, "context": context, "vector_ids": vector_ids, **more})
        return self.network(sample, c_noise, context, vector_ids, **more)


def recorded(model: VideoModel, **arguments: object) -> dict[str, Tensor]:
    """What the network is given at the first step, both sides of guidance in one batch: null first."""
    recorder = Recorder(model.unet)
    run(replace(model, unet=recorder), **arguments)
    return recorder.calls[0]


@pytest.mark.parametrize("task", list(FRAMES))
def test_task_samples_from_a_directory_and_reproduces_bit_for_bit(directories, models, task):
    first = run(models[task])
    assert first.shape == (1, FRAMES[task], 3, 32, 48)
    assert first.dtype == torch.float32
    assert first.abs().max() <= 1
    assert first.std() > 0.05
    assert torch.equal(first, run(VideoModel.load(directories[task])))
    assert not torch.equal(first, run(models[task], models[task].options(seed=1, **QUICK)))


@pytest.mark.parametrize("task", list(FRAMES))
def test_batches_and_memory_savers_change_nothing_but_rounding(models, task):
    model = models[task]
    plain = run(model)
    saving = run(model, model.options(two_pass=True, decode_chunk=1, offload=True, **QUICK))
    torch.testing.assert_close(saving, plain, atol=1e-4, rtol=0)


def test_text_to_video_conditioning(models):
    given = recorded(models["text_to_video"], prompts=["a dog", "a cat"], fps=25, motion_bucket=60)
    assert given["sample"].shape == (4, 4, 48, 8, 12)
    assert given["context"].shape == (4, 77, 32)
    assert not given["context"][:2].any()  # null: zero tokens
    assert given["vector_ids"].tolist() == [[24, 60, 0]] * 4  # ... with the vector kept
    assert given["time_context"] is None
    tokens = models["text_to_video"].text_encoder(["a dog", "a cat"])
    torch.testing.assert_close(given["context"][2:], tokens)


def test_temporal_prompt_reaches_only_the_temporal_attention(models):
    model = models["text_to_video"]
    plain, prompted = recorded(model), recorded(model, temporal_prompt="zooming in")
    assert torch.equal(plain["context"], prompted["context"])
    torch.testing.assert_close(prompted["time_context"][1:], model.text_encoder(["zooming in"]))
    assert not prompted["time_context"][:1].any()
    assert not torch.equal(run(model), run(model, temporal_prompt="zooming in"))
    torch.testing.assert_close(run(model, temporal_prompt="a dog"), run(model), atol=1e-5, rtol=0)


def test_negative_prompt_replaces_the_null_side(models):
    given = recorded(models["text_to_video"], negative_prompt="blurry")
    away, towards = models["text_to_video"].text_encoder(["blurry", "zooming in"])
    torch.testing.assert_close(given["context"][0], away)
    given = recorded(models["text_to_video"], negative_prompt="blurry", temporal_prompt="zooming in")
    torch.testing.assert_close(given["time_context"][0], away, msg="guidance acts on the temporal prompt too")
    torch.testing.assert_close(given["time_context"][1], towards)


def test_image_to_video_conditioning(models):
    model = models["image_to_video"]
    pictures = torch.cat([image(0), image(1)])
    given = recorded(model, images=pictures, fps=7, motion_bucket=100, augmentation=0.0)
    assert given["sample"].shape == (4, 4, 96, 8, 12)
    concat = given["sample"][:, :, 48:]
    assert not concat[:2].any()
    for t in range(4):  # the same latent beside every frame: mode, unscaled, not multiplied by c_in
        torch.testing.assert_close(concat[2:, t], model.autoencoder.encode(pictures))
    assert given["context"].shape == (4, 1, 32)
    assert not given["context"][:2].any()
    torch.testing.assert_close(given["context"][2:, 0], model.image_encoder(pictures))
    assert given["vector_ids"].tolist() == [[6, 100, 0]] * 4
    # The noisy half: unit variance at sigma_max, since c_in (1 + sigma_max^2)^(1/2) = 1.
    assert given["sample"][:, :, :48].std().item() == pytest.approx(1, abs=0.02)


def test_augmentation_is_noise_in_pixels_and_told_to_the_network(models):
    model = models["image_to_video"]
    clean, noisy = (recorded(model, augmentation=s) for s in (0.0, 0.1))
    assert noisy["vector_ids"][0, 2].item() == pytest.approx(0.1)
    latents = [given["sample"][1:, 0, 48:] for given in (clean, noisy)]
    pixels = [model.autoencoder.decode(latent) for latent in latents]
    assert (pixels[1] - pixels[0]).std().item() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(clean["context"], noisy["context"])  # CLIP sees the clean image


def test_orbit_appends_the_elevation(models):
    given = recorded(models["orbit"], elevation=12.5)
    assert given["vector_ids"].shape == (2, 4)
    assert given["vector_ids"][0, 3] == 12.5
    assert not torch.equal(run(models["orbit"], elevation=0), run(models["orbit"], elevation=60))
    assert isinstance(models["orbit"].options().guider, TrianglePredictionGuider)
    assert azimuths()[:2] == [0, pytest.approx(360 / 21)]
    assert len(azimuths()) == 21
    with pytest.raises(ValueError, match="between -90 and 90"):
        run(models["orbit"], elevation=91)


def test_interpolation_conditioning(models):
    model = models["interpolation"]
    with torch.no_grad():
        model.mask_embedding.z_m.copy_(torch.randn(model.mask_embedding.z_m.shape))
    given = recorded(model, augmentation=0.0)
    assert given["sample"].shape == (2, 5, 2 * 48 + 1, 8, 12)
    known, mask = given["sample"][1, :, 48:96], given["sample"][1, :, 96]
    assert not given["sample"][0, :, 48:].any()  # null: no frame is given
    torch.testing.assert_close(known[0], model.autoencoder.encode(image(0))[0])
    torch.testing.assert_close(known[4], model.autoencoder.encode(image(1))[0])
    z_m = nn.functional.interpolate(model.mask_embedding.z_m[None], size=(8, 12), mode="bilinear")[0]
    for t in (1, 2, 3):
        torch.testing.assert_close(known[t], z_m)
    assert mask.flatten(1).mean(1).tolist() == [1, 0, 0, 0, 1]
    assert given["context"].shape == (2, 2, 32)  # start and end
    torch.testing.assert_close(given["context"][1:2, 0], model.image_encoder(image(0)))
    torch.testing.assert_close(given["context"][1:2, 1], model.image_encoder(image(1)))


def test_interpolation_noise_is_added_in_latent_space_in_units_of_sigma():
    latents = torch.zeros(2, 2, 4, 32, 32)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = interpolation_module.augment_latents(latents, torch.tensor([0.05, 0.1]), noise, 0.18215)
    assert (noisy[0] * 0.18215).std().item() == pytest.approx(0.05, rel=0.02)
    assert (noisy[1] * 0.18215).std().item() == pytest.approx(0.1, rel=0.02)


def test_the_mask_embedding_learns():
    embedding = MaskEmbedding(4, 8, 8)
    embedding(torch.zeros(2, 5, 4, 8, 8), ends_given(5)).pow(2).add(1).log().sum().backward()
    assert embedding.z_m.grad is not None
    assert embedding.z_m.grad.shape == (4, 8, 8)
    embedding(torch.zeros(2, 5, 4, 8, 8), ends_given(5))[:, :, :4].sum().backward()
    assert torch.equal(embedding.z_m.grad, torch.full((4, 8, 8), 6.0))  # 2 videos x 3 unknown frames


def test_interpolation_chains_to_four_times_the_frame_rate(models):
    model = models["interpolation"]
    clip = torch.cat([image(i) for i in range(3)])
    result = torch.stack(list(Interpolation(model).upsample(clip, fps=7, options=model.options(**QUICK))))
    assert result.shape == (9, 3, 32, 48)
    assert torch.equal(result[::4], clip)  # the given frames stay
    assert not torch.equal(result[1:4], result[5:8])
    recorder = Recorder(model.unet)
    list(Interpolation(replace(model, unet=recorder)).upsample(clip, fps=7, options=model.options(**QUICK)))
    assert recorder.calls[0]["vector_ids"][0, 0] == 4 * 7 - 1
    with pytest.raises(ValueError, match="fewer than 2 frames"):
        list(Interpolation(model).upsample(clip[:1], fps=7))


def test_wrong_sizes_name_the_multiple_and_the_nearest_fit(models):
    with pytest.raises(ValueError, match=r"50 x 33: .* multiples of 8 .* nearest is 48 x 32"):
        run(models["image_to_video"], images=image(size=(33, 50)))
    with pytest.raises(ValueError, match="multiples of 8"):
        run(models["text_to_video"], width=50)


def test_another_frame_count_runs_with_a_warning(models):
    with pytest.warns(FrameCountWarning, match="6 frames asked for, but this model was trained for 4"):
        assert run(models["image_to_video"], frames=6).shape[1] == 6
    with pytest.raises(ValueError, match="at least 2"):
        run(models["image_to_video"], frames=1)
    for task in ("image_to_video", "text_to_video", "interpolation"):  # 0 is not "the model's own"
        with pytest.raises(ValueError, match="frames is 0"):
            run(models[task], frames=0)
        with pytest.raises(ValueError, match="fps 0"):
            run(models[task], fps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(models["image_to_video"], frames=4)


def test_nan_in_the_image_is_refused(models):
    broken = image()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConditioningError, match="NaN or infinite"):
        run(models["image_to_video"], images=broken)


def test_out_of_memory_says_what_to_turn_on(models):
    class Full(Recorder):
        def forward(self, *args, **more):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model = replace(models["image_to_video"], unet=Full(models["image_to_video"].unet))
    with pytest.raises(OutOfMemory, match=r"--two-pass.*--decode-chunk 1.*--offload.*--dtype bfloat16"):
        run(model)
    with pytest.raises(OutOfMemory) as caught:
        run(model, model.options(two_pass=True, offload=True, decode_chunk=1))
    assert "--two-pass" not in str(caught.value)
    assert "fewer frames" in str(caught.value)


def test_out_of_memory_while_loading_says_what_helps_then(directories, monkeypatch):
    def full(_: VideoModel) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(VideoModel, "settle", full)
    with pytest.raises(OutOfMemory, match=r"use: offload \(--offload\), bfloat16 \(--dtype bfloat16\), a device with"):
        VideoModel.load(directories["image_to_video"])


def test_offload_moves_each_part_in_turn(models):
    """On a machine with one device the moves are all that can be seen: one part away from the CPU at a time."""
    moves: list[tuple[str, str]] = []

    class Moving(nn.Module):
        def __init__(self, name: str, part: nn.Module) -> None:
            super().__init__()
            self.name, self.part = name, part

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("part"), name)

        def to(self, device, *rest):
            moves.append((self.name, "away" if device != "cpu" or not moves or moves[-1][0] != self.name else "back"))
            return self

        def forward(self, *args, **more):
            assert moves[-1] == (self.name, "away")
            return self.part(*args, **more)

    model = models["image_to_video"]
    model = replace(
        model,
        unet=Moving("unet", model.unet),
        image_encoder=Moving("clip", model.image_encoder),
        autoencoder=model.autoencoder,
    )
    run(model, model.options(offload=True, **QUICK))
    assert moves == [("clip", "away"), ("clip", "back"), ("unet", "away"), ("unet", "back")]


def test_progress_is_called_once_a_step(models):
    seen = []
    model = models["image_to_video"]
    options = model.options(steps=3, sampler="heun")
    run(model, options, progress=lambda step, steps, denoised: seen.append((step, steps, tuple(denoised.shape))))
    assert seen == [(i, 3, (1, 4, 48, 8, 12)) for i in (1, 2, 3)]


# ---- directories ---------------------------------------------------------------------------------------------------


def test_the_motion_map_travels_with_the_model(tmp_path):
    model = tiny_random_model("image_to_video", frames=4)
    fitted = MotionBuckets.fit([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    model.description = replace(model.description, motion=fitted)
    model.save(tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "clipmill.json").read_text())["motion"]
    assert stored["fitted_on"] == 6
    assert VideoModel.load(tmp_path / "m").description.motion == fitted


@pytest.mark.parametrize("kind", ["scale", "function"])
def test_a_learned_c_in_travels_with_the_model(tmp_path, kind):
    model = tiny_random_model("image_to_video", frames=4)
    model.input_scale = LearnedInputScale(kind)
    with torch.no_grad():
        for p in model.input_scale.parameters():
            p.add_(0.2)
    model.description = replace(model.description, input_scale=kind, width=48, height=32)
    model.save(tmp_path / "m")
    loaded = VideoModel.load(tmp_path / "m")
    assert torch.equal(run(loaded), run(VideoModel.load(tmp_path / "m")))
    # Close, not equal: rounding follows where weights lie in memory, and a file's are not aligned as made ones are.
    torch.testing.assert_close(run(loaded), run(model), rtol=0, atol=1e-4)
    assert (run(loaded) - run(replace(model, input_scale=None))).abs().max() > 1e-2
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["_class_name"] != "StableVideoDiffusionPipeline"  # diffusers would compute something else


def test_saving_is_complete_or_not_at_all(tmp_path, monkeypatch):
    model = tiny_random_model("image_to_video", frames=4)
    monkeypatch.setattr(ModelDescription, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(
        model_directory, "save_unet", lambda *_: (_ for _ in ()).throw(SafetensorError("No space left on device"))
    )
    with pytest.raises(CheckpointError, match=r"m: cannot be written \(No space left on device\); free space"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        model.save(tmp_path / "full")


def test_broken_directories_are_named(tmp_path, directories):
    import shutil

    with pytest.raises(ModelDirectoryError, match="is no directory"):
        VideoModel.load(tmp_path / "nowhere")
    with pytest.raises(ModelDirectoryError, match="unet/ and vae/ are needed"):
        VideoModel.load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(directories["image_to_video"], copy)
    data = json.loads((copy / "clipmill.json").read_text())
    for change, message in (
        ({"task": "poetry"}, "task 'poetry'"),
        ({"format": 2}, "format 1"),
        ({"colour": "red"}, "unknown keys colour"),
        ({"motion": {"scores": [0, 1]}}, "motion map"),
        ({"guider": "cubic"}, "guider 'cubic'"),
    ):
        (copy / "clipmill.json").write_text(json.dumps(data | change))
        with pytest.raises(ModelDirectoryError, match=message):
            VideoModel.load(copy)
    (copy / "clipmill.json").write_text("{")
    with pytest.raises(ModelDirectoryError, match=r"clipmill\.json"):
        VideoModel.load(copy)
    (copy / "clipmill.json").write_text(json.dumps(data))
    (copy / "vae" / "config.json").write_text('{"_class_name": "AutoencoderOobleck"}')
    with pytest.raises(ModelDirectoryError, match="unknown autoencoder 'AutoencoderOobleck'"):
        VideoModel.load(copy)
    (copy / "vae" / "config.json").write_text('{"_class_name": "HaarAutoencoder", "levels": null}')
    with pytest.raises(ModelDirectoryError, match=r"vae.config\.json: levels None"):
        VideoModel.load(copy)
    (copy / "vae" / "config.json").write_text('{"_class_name": "HaarAutoencoder", "levels": 2}')
    with pytest.raises(ModelDirectoryError, match=r"detail_gains None; they are \[4.0, 2.0\] in this version"):
        VideoModel.load(copy)
    shutil.copytree(directories["image_to_video"], copy, dirs_exist_ok=True)
    for file, change, message in (
        ("unet/config.json", {"layers_per_block": []}, r"unet.config\.json: config\.json: layers_per_block = \[\]"),
        (
            "image_encoder/config.json",
            {"projection_dim": None},
            r"image_encoder: config\.json and the weights",
        ),
        ("feature_extractor/preprocessor_config.json", {"image_std": [1]}, r"config\.json: image_std \[1\]; three"),
    ):
        before = (copy / file).read_text()
        (copy / file).write_text(json.dumps(json.loads(before) | change))
        with pytest.raises((ModelDirectoryError, CheckpointError), match=message):
            VideoModel.load(copy)
        (copy / file).write_text(before)


def test_a_model_for_another_task_is_refused(models):
    with pytest.raises(ModelDirectoryError, match="for image to video, not for text to video"):
        TextToVideo(models["image_to_video"])
    without = replace(models["image_to_video"], image_encoder=None)
    with pytest.raises(ModelDirectoryError, match="needs an image encoder"):
        ImageToVideo(without)
    other = replace(models["image_to_video"], autoencoder=HaarAutoencoder(1))
    with pytest.raises(ModelDirectoryError, match="out_channels 48, but the autoencoder has 12"):
        ImageToVideo(other)
    wrong = replace(models["text_to_video"], description=replace(models["text_to_video"].description, task="orbit"))
    with pytest.raises(ModelDirectoryError, match="needs"):
        Orbit(wrong)


def test_guidance_defaults_come_with_the_model():
    model = tiny_random_model("text_to_video", frames=4)
    assert model.options().guider == VanillaCFG(7.0)
    assert model.options(seed=9).seed == 9
    with pytest.raises(ValueError, match="euler or heun"):
        model.options(sampler="dpm")
    longer = published_image_to_video(25)
    assert longer.default_guider() == LinearPredictionGuider(3.0, 1.5)
    assert longer.default_guider(max_scale=1.0).scales(25).tolist() == [1.0] * 25, "no guidance was asked for"
    assert longer.default_guider(2.0, 1.0) == LinearPredictionGuider(1.0, 2.0)
