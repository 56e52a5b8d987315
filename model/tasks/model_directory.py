"""Model directories on disk: diffusers' layout, plus `clipmill.json` for what diffusers has no place for.

model_index.json          StableVideoDiffusionPipeline, where every part is one diffusers knows
clipmill.json             task, frames, guidance, motion map (model/tasks/description.py); absent in published ones
unet/                     config.json, diffusion_pytorch_model.safetensors
vae/                      diffusers' autoencoder, or config.json of the Haar pyramid
scheduler/                noise levels, as diffusers' EulerDiscreteScheduler
image_encoder/            transformers' CLIP, or open_clip's image tower (open_clip_config.json)
feature_extractor/        mean and standard deviation of CLIP's pixels
text_encoder/             the same for text
input_scale/              learned c_in, where there is one
mask_embedding/           learned mask of frame interpolation
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from model.checkpoints import load_unet, save_unet
from model.conditioning.haar import DETAIL_GAINS, HaarAutoencoder
from model.conditioning.image import ImageEncoder, OpenClipImageEncoder, TransformersImageEncoder
from model.conditioning.latents import Autoencoder, KLAutoencoder
from model.conditioning.open_clip_weights import CONFIG_FILE, load_tower, save_tower
from model.conditioning.resize import CLIP_MEAN, CLIP_STD
from model.conditioning.text import OpenClipTextEncoder, TextEncoder, TransformersTextEncoder
from model.diffusion.preconditioning import LearnedInputScale
from model.tasks.description import FILE, ModelDescription, ModelDirectoryError, published_image_to_video
from model.tasks.interpolation_mask import MaskEmbedding
from model.tasks.video_model import VideoModel
from model.unet_config import UNetConfig
from model.weight_files import CheckpointError, compare_keys, fit, listing, read_weights, write_weights

WEIGHTS = "model.safetensors"


def load_model(
    directory: Path, *, device: torch.device | str, dtype: torch.dtype, offload: bool, allow_pickle: bool = False
) -> VideoModel:
    """Read a directory; see VideoModel.load."""
    if not directory.is_dir():
        raise ModelDirectoryError(
            f"{directory} is no directory; a model directory holds unet/, vae/ and model_index.json"
        )
    if not (directory / "unet").is_dir() or not (directory / "vae").is_dir():
        raise ModelDirectoryError(f"{directory}: unet/ and vae/ are needed; found {sorted(os.listdir(directory))[:10]}")
    place = "cpu" if offload else device
    unet = load_unet(directory, device=place, dtype=dtype, allow_pickle=allow_pickle)
    unet.requires_grad_(False).eval()
    described = (directory / FILE).is_file()
    description = ModelDescription.load(directory) if described else _published(directory, unet.config)
    with _quiet():
        model = VideoModel(
            description=description,
            unet=unet,
            autoencoder=_load_autoencoder(directory / "vae", dtype, allow_pickle),
            image_encoder=load_image_encoder(directory, dtype, allow_pickle),
            text_encoder=_load_text_encoder(directory / "text_encoder", dtype, allow_pickle),
            input_scale=_load_input_scale(directory / "input_scale", description.input_scale),
            mask_embedding=_load_mask_embedding(directory / "mask_embedding"),
            device=device,
            offloaded=offload,
        )
    model.settle()
    return model


def save_model(model: VideoModel, directory: Path) -> None:
    """Write a directory, complete or not at all: into a temporary sibling, then renamed.

    Raises:
        FileExistsError: the directory exists and is not empty.
        CheckpointError: no space.
    """
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} exists and is not empty")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with _quiet():
            _write(model, partial)
        partial.chmod(0o755)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except SafetensorError as error:
        raise CheckpointError(
            f"{directory}: cannot be written ({error}); free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: VideoModel, directory: Path) -> None:
    index: dict[str, Any] = {"_class_name": "ClipmillVideoModel"}
    save_unet(model.unet, directory)
    index["unet"] = ["diffusers", "UNetSpatioTemporalConditionModel"]
    if isinstance(model.autoencoder, HaarAutoencoder):
        levels = model.autoencoder.levels
        stored = {"_class_name": "HaarAutoencoder", "levels": levels, "detail_gains": DETAIL_GAINS[:levels]}
        _write_json(directory / "vae" / "config.json", stored)
        index["vae"] = ["clipmill", "HaarAutoencoder"]
    elif isinstance(model.autoencoder, KLAutoencoder):
        model.autoencoder.model.save_pretrained(directory / "vae")
        index["vae"] = ["diffusers", type(model.autoencoder.model).__name__]
    else:
        raise ModelDirectoryError(f"do not know how to write an autoencoder of kind {model.autoencoder.kind!r}")
    _write_json(directory / "scheduler" / "scheduler_config.json", _scheduler_config(model.description))
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    if model.image_encoder is not None:
        index["image_encoder"] = _write_encoder(model.image_encoder, directory / "image_encoder")
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        _write_json(
            directory / "feature_extractor" / "preprocessor_config.json", _processor_config(model.image_encoder)
        )
    if model.text_encoder is not None:
        index["text_encoder"] = _write_encoder(model.text_encoder, directory / "text_encoder")
    for name in ("input_scale", "mask_embedding"):
        part = getattr(model, name)
        if part is not None:
            write_weights(part.state_dict(), directory / name / WEIGHTS)
    opens_in_diffusers = (
        model.description.task == "image_to_video"
        and model.autoencoder.kind == "kl-temporal"
        and isinstance(model.image_encoder, TransformersImageEncoder)
        and model.input_scale is None
    )
    if opens_in_diffusers:
        index |= {"_class_name": "StableVideoDiffusionPipeline", "_diffusers_version": "0.35.0"}
    _write_json(directory / "model_index.json", index)
    model.description.save(directory)


def _published(directory: Path, config: UNetConfig) -> ModelDescription:
    """A directory without clipmill.json is taken for a published image-to-video checkpoint."""
    if config.in_channels != 2 * config.out_channels:
        raise ModelDirectoryError(
            f"{directory}: no {FILE}, and unet/config.json has {config.in_channels} input channels: "
            f"only published image-to-video checkpoints ({2 * config.out_channels}) can do without"
        )
    sigmas: dict[str, float] = {}
    scheduler = directory / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        read = _read_json(scheduler)
        sigmas = {key: float(read[key]) for key in ("sigma_min", "sigma_max") if read.get(key) is not None}
    return published_image_to_video(config.num_frames, **sigmas)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, which would run into ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _pretrained(kind: Any, folder: Path, stem: str, allow_pickle: bool, **options: Any) -> Any:
    """A part of another library's class. Those libraries make up weights that a file lacks; here that is an error.

    Raises:
        CheckpointError: no weights, weights that do not fit, or a pickle.
    """
    plain = (folder / f"{stem}.safetensors").is_file() or (folder / f"{stem}.safetensors.index.json").is_file()
    variant = "fp16" if not plain and any(folder.glob(f"{stem}.fp16*")) else None
    if not allow_pickle and not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which can run code: allow_pickle=True reads it" if pickles else ""
        raise CheckpointError(f"{folder}: no {stem}.safetensors{hint}")
    try:
        part, report = kind.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # theirs to choose: a value of the wrong kind in config.json raises almost anything
        raise CheckpointError(f"{folder}: config.json and the weights cannot be read ({error})") from error
    surplus = {key for key in report["unexpected_keys"] if not key.endswith("position_ids")}  # a constant of old files
    compare_keys(set(report["missing_keys"]), surplus, str(folder))
    wrong = [
        f"{key}: {tuple(found)} in the file, {tuple(size)} in the network"
        for key, found, size in report["mismatched_keys"]
    ]
    if wrong:
        raise CheckpointError(f"{folder} does not fit the network.\n" + listing("wrong shape", wrong))
    return part


def _clip(kind: Any, folder: Path, dtype: torch.dtype, allow_pickle: bool) -> Any:
    """One of transformers' CLIP towers; weights of a wrong shape are reported, and refused, by `_pretrained`."""
    return _pretrained(kind, folder, "model", allow_pickle, dtype=dtype, ignore_mismatched_sizes=True)


def _load_autoencoder(folder: Path, dtype: torch.dtype, allow_pickle: bool = False) -> Autoencoder:
    config = _read_json(folder / "config.json")
    name = config.get("_class_name")
    if name == "HaarAutoencoder":
        levels = config.get("levels")
        if not isinstance(levels, int):
            raise ModelDirectoryError(f"{folder / 'config.json'}: levels {levels!r}; a whole number is needed")
        if config.get("detail_gains") != list(DETAIL_GAINS[:levels]):
            raise ModelDirectoryError(
                f"{folder / 'config.json'}: detail_gains {config.get('detail_gains')}; they are "
                f"{list(DETAIL_GAINS[:levels])} in this version of Clipmill: train, or `clipmill sample init`, again"
            )
        return HaarAutoencoder(levels)
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    import diffusers

    if name not in ("AutoencoderKL", "AutoencoderKLTemporalDecoder"):
        raise ModelDirectoryError(f"{folder / 'config.json'}: unknown autoencoder {name!r}")
    return KLAutoencoder(
        _pretrained(getattr(diffusers, name), folder, "diffusion_pytorch_model", allow_pickle, torch_dtype=dtype)
    )


def load_image_encoder(directory: Path, dtype: torch.dtype, allow_pickle: bool = False) -> ImageEncoder | None:
    """The image encoder of a model directory, None where it has none. Raises ModelDirectoryError."""
    folder = directory / "image_encoder"
    if not folder.is_dir():
        return None
    processor = directory / "feature_extractor" / "preprocessor_config.json"
    read = _read_json(processor) if processor.is_file() else {}
    mean, std = (_three_numbers(read, *of, processor) for of in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    if (folder / CONFIG_FILE).is_file():
        visual, config = load_tower(folder, "image", dtype)
        return OpenClipImageEncoder(visual, mean, std, config)
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from transformers import CLIPVisionModelWithProjection

    encoder = _clip(CLIPVisionModelWithProjection, folder, dtype, allow_pickle)
    return TransformersImageEncoder(encoder, mean, std)


def _three_numbers(read: dict[str, Any], key: str, default: tuple[float, ...], source: Path) -> tuple[float, ...]:
    """A value for each of R, G, B."""
    value = read.get(key, default)
    if not (isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)):
        raise ModelDirectoryError(f"{source}: {key} {value!r}; three numbers are needed")
    return tuple(value)


def _load_text_encoder(folder: Path, dtype: torch.dtype, allow_pickle: bool) -> TextEncoder | None:
    if not folder.is_dir():
        return None
    if (folder / CONFIG_FILE).is_file():
        return OpenClipTextEncoder(*load_tower(folder, "text", dtype))
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from transformers import CLIPTextModel

    return TransformersTextEncoder(_clip(CLIPTextModel, folder, dtype, allow_pickle))


def _load_input_scale(folder: Path, kind: str | None) -> LearnedInputScale | None:
    if kind is None:
        return None
    scale = LearnedInputScale(kind)  # type: ignore[arg-type]
    fit(scale, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    return scale


def _load_mask_embedding(folder: Path) -> MaskEmbedding | None:
    if not folder.is_dir():
        return None
    weights = read_weights(folder / WEIGHTS)
    compare_keys({"z_m"}, set(weights), str(folder / WEIGHTS))
    embedding = MaskEmbedding(*weights["z_m"].shape)
    embedding.load_state_dict(weights)
    return embedding


def _write_encoder(encoder: ImageEncoder | TextEncoder, folder: Path) -> list[str]:
    if isinstance(encoder, TransformersImageEncoder | TransformersTextEncoder):
        encoder.model.save_pretrained(folder)
        return ["transformers", type(encoder.model).__name__]
    if isinstance(encoder, OpenClipImageEncoder | OpenClipTextEncoder):
        tower = encoder.model if isinstance(encoder, OpenClipImageEncoder) else encoder
        save_tower(tower, encoder.config, folder)
        return ["open_clip", type(encoder).__name__]
    raise ModelDirectoryError(f"do not know how to write an encoder of kind {encoder.kind!r}")


def _scheduler_config(description: ModelDescription) -> dict[str, Any]:
    """The released scheduler: continuous EDM noise levels under diffusers' names."""
    return {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.35.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "sigma_max": description.sigma_max,
        "sigma_min": description.sigma_min,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
    }


def _processor_config(encoder: ImageEncoder) -> dict[str, Any]:
    size = getattr(encoder, "image_size", 224)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(getattr(encoder, "mean", CLIP_MEAN)),
        "image_std": list(getattr(encoder, "std", CLIP_STD)),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelDirectoryError(f"{path} is missing") from error
    except json.JSONDecodeError as error:
        raise ModelDirectoryError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ModelDirectoryError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
