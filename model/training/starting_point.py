"""What a stage starts from: the network, carried over from the stage before, and the frozen networks around it.

The paper's chain changes the shape of the network twice: image-to-video and interpolation read more channels than the
text-to-video model they start from, orbits read one more scalar. The added weights are zero, so that at the first step
the network computes exactly what it did before.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints import CheckpointError, load_sd21_into, load_unet
from model.conditioning.haar import HaarAutoencoder
from model.conditioning.image import ImageEncoder
from model.conditioning.latents import Autoencoder
from model.conditioning.motion import MotionBuckets
from model.conditioning.text import TextEncoder
from model.diffusion.preconditioning import Kind, LearnedInputScale
from model.tasks.description import ModelDescription
from model.tasks.interpolation_mask import MaskEmbedding
from model.tasks.model_directory import _load_autoencoder, _load_text_encoder, load_image_encoder
from model.tasks.random_model import _image_encoder, _text_encoder
from model.tasks.video_model import VideoModel
from model.training.config import ModelConfig, StageConfig, TrainConfig
from model.training.config_file import ConfigError
from model.unet import UNetConfig, VideoUNet

SCALARS = {"orbit": 4}
HAAR_LEVELS = {"haar": 2, "haar-1": 1}


def starting_point(
    config: TrainConfig, stage: StageConfig, previous: VideoModel | None, motion: MotionBuckets | None
) -> VideoModel:
    """The model a stage begins with, on the CPU, in float32.

    Args:
        previous: what the stage before ended with.
        motion: map from motion score to bucket, stored with the model.

    Raises:
        ConfigError: weights, autoencoder or encoder cannot be found or do not fit.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        start = previous if previous is not None else _from_start(model, stage)
        autoencoder = start.autoencoder if start else _autoencoder(model)
        text = (start.text_encoder if start else None) or _encoder(model, "text_encoder")
        image = (start.image_encoder if start else None) or _encoder(model, "image_encoder")
        width = token_width(stage, text, image, start.unet.config if start else None)
        wanted = _shape(model, stage, autoencoder, width, start.unet.config if start else None)
        unet = VideoUNet(wanted)
        if start is not None:
            unet.load_state_dict(carry_over(start.unet.state_dict(), unet.state_dict()))
        elif model.start != "random":
            try:
                load_sd21_into(unet, _sd21_weights(Path(model.start)))
            except CheckpointError as error:
                raise ConfigError(f"model.start: {error}") from error
        height, width = stage.height // autoencoder.factor, stage.width // autoencoder.factor
        mask = start.mask_embedding if start else None
        scale = start.input_scale if start else None
        kind = learned_c_in(stage, scale.kind if scale else None)
        if scale is None and kind is not None:
            scale = LearnedInputScale(kind)
        return VideoModel(
            description=_describe(stage, motion, scale),
            unet=unet.train().requires_grad_(True),
            autoencoder=autoencoder,
            image_encoder=image,
            text_encoder=text,
            input_scale=scale,
            mask_embedding=(mask or MaskEmbedding(autoencoder.channels, height, width))
            if stage.task == "interpolation"
            else None,
        )


def learned_c_in(stage: StageConfig, before: Kind | None) -> Kind | None:
    """The kind of learned c_in that a stage has.

    Args:
        before: that of the model it starts from.

    Raises:
        ConfigError: the stage asks for another one.
    """
    if before is not None and stage.learned_c_in not in (None, before):
        raise ConfigError(
            f"stage {stage.name}: learned_c_in: {stage.learned_c_in}, but it starts from a model that has learned "
            f"one of kind {before}, which is trained on"
        )
    return stage.learned_c_in or before


def token_width(
    stage: StageConfig, text: TextEncoder | None, image: ImageEncoder | None, network: UNetConfig | None
) -> int:
    """Channels of the tokens that a stage reads.

    Args:
        network: what it starts from; None: nothing.

    Raises:
        ConfigError: there is no encoder for them, or its tokens have another width than the network was made for.
    """
    kind, encoder = ("text", text) if stage.task == "text_to_video" else ("image", image)
    if encoder is None:
        raise ConfigError(f"stage {stage.name}: {stage.task} needs model.{kind}_encoder: a directory, or `untrained`")
    if network is not None and encoder.dim != network.cross_attention_dim:
        raise ConfigError(
            f"stage {stage.name}: model.{kind}_encoder gives tokens of {encoder.dim} channels, but the network it "
            f"starts from reads {network.cross_attention_dim}: choose an encoder of that width"
        )
    return encoder.dim


def carry_over(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """The old weights in the new shapes: input channels and scalar conditions that were added have weight zero.

    Raises:
        ConfigError: the networks differ in more than that.
    """
    if old.keys() != new.keys():
        raise ConfigError("the stage before has another network: only channels and scalar conditions may differ")
    result = {}
    for key, fresh in new.items():
        value = old[key]
        if value.shape != fresh.shape:
            if key not in ("conv_in.weight", "add_embedding.linear_1.weight"):
                raise ConfigError(f"{key}: {tuple(value.shape)} before, {tuple(fresh.shape)} now")
            widened = torch.zeros_like(fresh)
            shared = min(value.shape[1], fresh.shape[1])
            widened[:, :shared] = value[:, :shared]
            value = widened
        result[key] = value
    return result


def _from_start(model: ModelConfig, stage: StageConfig) -> VideoModel | None:
    """The model named as the start, unless it is `random` or an image model."""
    if model.start == "random":
        return None
    directory = Path(model.start)
    if not directory.exists():
        raise ConfigError(f"model.start: {directory} is not there; `random`, a model or Stable Diffusion 2.1")
    if _is_image_model(directory):
        return None
    whole = directory.is_file() and model.autoencoder == "from start"  # a generative-models checkpoint, its parts too
    if whole or (directory / "vae").is_dir():
        loaded = VideoModel.load(directory)
    else:
        unet = load_unet(directory)
        loaded = VideoModel(_describe(stage, None), unet, _autoencoder(model))
    choices: dict[str, Any] = {
        name: _encoder(model, name)
        for name in ("text_encoder", "image_encoder")
        if getattr(model, name) != "from start"
    }
    if model.autoencoder != "from start":
        choices["autoencoder"] = _autoencoder(model)
    return replace(loaded, **choices)


def _is_image_model(directory: Path) -> bool:
    config = directory / "unet" / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("_class_name") == "UNet2DConditionModel"


def _sd21_weights(directory: Path) -> Path:
    return directory / "unet" if (directory / "unet").is_dir() else directory


def _shape(
    model: ModelConfig, stage: StageConfig, autoencoder: Autoencoder, context: int, old: UNetConfig | None
) -> UNetConfig:
    if old is None:
        old = UNetConfig.tiny() if model.size == "tiny" else UNetConfig.base_text_to_video()
        # Stable Diffusion 2.1 and SVD were trained with one epsilon in all residual blocks; diffusers' is for sampling.
        old = old.replace(cross_attention_dim=context, norm_eps="sgm")
        if model.channels is not None:
            heads = tuple(max(1, c // (16 if model.size == "tiny" else 64)) for c in model.channels)
            old = old.replace(block_out_channels=model.channels, num_attention_heads=heads)
    c = autoencoder.channels
    return old.replace(
        in_channels={"text_to_video": c, "interpolation": 2 * c + 1}.get(stage.task, 2 * c),
        out_channels=c,
        num_frames=stage.frames,
        projection_class_embeddings_input_dim=SCALARS.get(stage.task, 3) * old.addition_time_embed_dim,
    )


def _autoencoder(model: ModelConfig) -> Autoencoder:
    if model.autoencoder in HAAR_LEVELS:
        return HaarAutoencoder(levels=HAAR_LEVELS[model.autoencoder])
    source = model.start if model.autoencoder == "from start" else model.autoencoder
    if source == "random":
        raise ConfigError(
            "model.autoencoder: `haar`, `haar-1`, or a directory with vae/, is needed where nothing is started from"
        )
    folder = Path(source) / "vae" if (Path(source) / "vae").is_dir() else Path(source)
    try:
        loaded = _load_autoencoder(folder, torch.float32)
    except ValueError as error:
        raise ConfigError(f"model.autoencoder: {error}") from error
    if isinstance(loaded, nn.Module):
        loaded.requires_grad_(False).eval()
    return loaded


def _encoder(model: ModelConfig, name: str) -> Any:
    source = getattr(model, name)
    if source == "untrained":
        encoder: Any = _text_encoder() if name == "text_encoder" else _image_encoder()
    else:
        directory = Path(model.start if source == "from start" else source)
        if str(directory) == "random" or (source == "from start" and not (directory / name).is_dir()):
            return None
        load: Any = _load_text_encoder if name == "text_encoder" else load_image_encoder
        folder = directory if name == "image_encoder" else directory / name
        encoder = load(folder, torch.float32, False)
        if encoder is None:
            raise ConfigError(f"model.{name}: {directory} holds no {name}/")
    return encoder.requires_grad_(False).eval()


def _describe(
    stage: StageConfig, motion: MotionBuckets | None, scale: LearnedInputScale | None = None
) -> ModelDescription:
    """What the trained model will say about itself."""
    text = stage.task == "text_to_video"
    long = stage.frames > 14
    return ModelDescription(
        task=stage.task,
        frames=max(stage.frames, 2),
        width=stage.width,
        height=stage.height,
        fps=max(1.0, min(stage.fps[1], 7.0)),
        guider="constant" if text else "triangle" if stage.task == "orbit" else "linear",
        min_guidance=1.5 if long and not text else 1.0,
        max_guidance=7.0 if text else 3.0 if long else 2.5,
        motion=motion,
        input_scale=None if scale is None else scale.kind,
    )
