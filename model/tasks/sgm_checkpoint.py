"""Whole generative-models (`sgm`) checkpoints of image-to-video: svd.safetensors, svd_xt.safetensors and their like.

    model.diffusion_model.*                           the UNet
    first_stage_model.{encoder,decoder}.*             the autoencoder whose decoder makes the frames
    conditioner.embedders.0.open_clip.model.visual.*  ViT-H/14, the image as a cross-attention token
    conditioner.embedders.3.encoder.*                 the autoencoder that encodes the conditioning frame
    (embedders 1, 2 and 4 are sinusoids of fps, motion bucket and augmentation: they have no weights)

Two autoencoders, one encoder. In `first_stage_model` a temporal decoder stands behind an encoder without `quant_conv`;
the autoencoder in `embedders.3` is Stable Diffusion 2.1's, whole, with `quant_conv`. Read are the decoder of the first
and the encoder of the second, as diffusers does. Written are both encoders, in the first one with `quant_conv`
multiplied into the last convolution.

What a published file holds and nothing runs is neither read nor written: SD 2.1's own decoder in `embedders.3`, and the
leftovers of open_clip's text tower. Where they are missing, generative-models says so and goes on without them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints import unet_from_sgm
from model.conditioning.image import OpenClipImageEncoder, TransformersImageEncoder
from model.conditioning.latents import KLAutoencoder
from model.conditioning.sgm_names import (
    autoencoder_config,
    autoencoder_keys,
    is_autoencoder_attention,
    open_clip_vision_config,
    open_clip_vision_state,
    transformers_vision_state,
)
from model.key_layouts import SGM_PREFIX, sgm_keys
from model.tasks.description import ModelDescription, ModelDirectoryError, published_image_to_video
from model.tasks.video_model import VideoModel
from model.unet_config import UNetConfig
from model.weight_files import CheckpointError, compare_keys, fit, read_metadata, read_weights, write_weights

FIRST_STAGE = "first_stage_model."
IMAGE_ENCODER = "conditioner.embedders.0.open_clip.model.visual."
FRAME_ENCODER = "conditioner.embedders.3.encoder."
METADATA = "clipmill"
"""Key of the file's metadata under which `save` leaves what the weights do not tell."""

_UNREAD = re.compile(
    r"model_ema\.|denoiser\.|loss_fn\.|first_stage_model\.(loss|regularization)\."
    r"|conditioner\.embedders\.0\.open_clip\.(mean|std|model\.(?!visual\.))"
    r"|conditioner\.embedders\.3\.encoder\.(decoder|post_quant_conv|loss|regularization)\."
)


def load_sgm_model(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
    allow_pickle: bool = False,
) -> VideoModel:
    """Read a whole checkpoint file; see `VideoModel.load`.

    The file does not say how many frames it was trained for: 25 if its name contains `xt`, as the published ones have
    it, else 14.

    Raises:
        CheckpointError: not such a file, keys missing, surplus or of the wrong shape, or a pickle.
    """
    state = read_weights(path, dtype=dtype, allow_pickle=allow_pickle)
    told = json.loads(read_metadata(path).get(METADATA, "{}"))
    parts: dict[str, dict[str, Tensor]] = {p: {} for p in (SGM_PREFIX, FIRST_STAGE, IMAGE_ENCODER, FRAME_ENCODER)}
    surplus = []
    for key, value in state.items():
        prefix = next((p for p in parts if key.startswith(p)), None)
        if _UNREAD.match(key):
            continue
        if prefix is None:
            surplus.append(key)
        else:
            parts[prefix][key.removeprefix(prefix)] = value
    for prefix, found in parts.items():
        if not found:
            raise CheckpointError(
                f"{path}: no key starts with {prefix!r}; expected a whole image-to-video checkpoint of "
                "generative-models (load_sgm reads the UNet alone)"
            )
    if surplus:
        compare_keys(set(), set(surplus), str(path))
    config = UNetConfig.from_diffusers(told["unet"]) if "unet" in told else None
    unet = unet_from_sgm(parts[SGM_PREFIX], path, config)
    if "description" in told:
        description = ModelDescription.from_json(told["description"], str(path))
    else:
        unet.config = unet.config.replace(num_frames=25 if "xt" in path.stem.lower() else 14)
        description = published_image_to_video(unet.config.num_frames)
    try:
        autoencoder = _autoencoder(parts[FIRST_STAGE], parts[FRAME_ENCODER], path)
        image_encoder = _image_encoder(parts[IMAGE_ENCODER], told.get("open_clip"), path)
    except KeyError as error:
        raise CheckpointError(f"{path}: cannot tell the size of a part, {error} is not there") from error
    model = VideoModel(
        description=description,
        unet=unet,
        autoencoder=autoencoder,
        image_encoder=image_encoder,
        device=device,
        offloaded=offload,
    )
    model.settle()
    return model


def save_sgm_model(model: VideoModel, path: Path) -> None:
    """Write an image-to-video model as one sgm checkpoint, in the dtypes its parts have.

    generative-models runs all residual blocks with an epsilon of 1e-5; a model from a diffusers directory is run with
    1e-6 in some (`UNetConfig.norm_eps`): its frames differ there by a little.

    Raises:
        ModelDirectoryError: a part that this layout has no place for.
        CheckpointError: no space.
    """
    model.require("image_to_video")
    if not isinstance(model.autoencoder, KLAutoencoder):
        raise ModelDirectoryError(f"{path}: an sgm checkpoint holds a KL autoencoder, not {model.autoencoder.kind!r}")
    if model.input_scale is not None:
        raise ModelDirectoryError(f"{path}: an sgm checkpoint has no place for a learned c_in (input_scale)")
    vision, open_clip_config = _vision_of(model.image_encoder, path)
    unet = model.unet.state_dict()
    names = sgm_keys(unet, model.unet.config)
    state = {SGM_PREFIX + names[key]: value for key, value in unet.items()}
    whole = _sgm_autoencoder(model.autoencoder.model)
    if "decoder.mid.block_2.conv1.weight" not in whole:
        raise ModelDirectoryError(f"{path}: vae/config.json: layers_per_block is 1; sgm's decoder has at least 2")
    if model.autoencoder.temporal:
        frames = {key: value for key, value in whole.items() if not key.startswith("decoder.")}
        whole = _without_quant_conv(whole)
    else:
        frames = whole
    state |= {FIRST_STAGE + key: value for key, value in whole.items()}
    state |= {IMAGE_ENCODER + key: value for key, value in vision.items()}
    state |= {FRAME_ENCODER + key: value.clone() for key, value in frames.items()}
    told = {
        "description": model.description.to_json(),
        "unet": model.unet.config.to_diffusers(),
        "open_clip": open_clip_config,
    }
    write_weights(state, path, metadata={METADATA: json.dumps(told)})


# ---- parts -------------------------------------------------------------------------------------------------------


def _autoencoder(first_stage: dict[str, Tensor], frame_encoder: dict[str, Tensor], source: Path) -> KLAutoencoder:
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

    config = autoencoder_config(first_stage)
    with torch.device("meta"):
        if any(".time_stack." in key for key in first_stage):
            autoencoder: nn.Module = AutoencoderKLTemporalDecoder(**config)
            decoder = {key: value for key, value in first_stage.items() if key.startswith("decoder.")}
            found = {**frame_encoder, **decoder}
        else:
            levels = len(config["block_out_channels"])
            autoencoder = AutoencoderKL(**config, up_block_types=("UpDecoderBlock2D",) * levels)
            found = first_stage
    names = autoencoder_keys(autoencoder.state_dict(), len(config["block_out_channels"]))
    back = {theirs: key for key, theirs in names.items()}
    state = {}
    for key, value in found.items():
        flat = is_autoencoder_attention(key) and value.ndim == 4
        state[back.get(key, FIRST_STAGE + key)] = value[:, :, 0, 0] if flat else value
    fit(autoencoder, state, f"{source} (autoencoder)")
    return KLAutoencoder(autoencoder)


def _sgm_autoencoder(autoencoder: nn.Module) -> dict[str, Tensor]:
    state = autoencoder.state_dict()
    config: Any = autoencoder.config
    names = autoencoder_keys(state, len(config.block_out_channels))
    renamed = {names[key]: value for key, value in state.items()}
    return {key: value[:, :, None, None] if is_autoencoder_attention(key) else value for key, value in renamed.items()}


def _without_quant_conv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The 1x1 `quant_conv` multiplied into the encoder's last convolution (in float64, then rounded)."""
    state = dict(state)
    mix, shift = state.pop("quant_conv.weight")[:, :, 0, 0].double(), state.pop("quant_conv.bias").double()
    weight, bias = state["encoder.conv_out.weight"], state["encoder.conv_out.bias"]
    state["encoder.conv_out.weight"] = torch.einsum("oc,cihw->oihw", mix, weight.double()).to(weight.dtype)
    state["encoder.conv_out.bias"] = (mix @ bias.double() + shift).to(bias.dtype)
    return state


def _image_encoder(
    state: dict[str, Tensor], config: dict[str, Any] | None, source: Path
) -> TransformersImageEncoder | OpenClipImageEncoder:
    """The tower as transformers' CLIP, which diffusers opens; as open_clip's where its configuration asks for more."""
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    plain = open_clip_vision_config(state)["vision_cfg"]
    config = config or {"vision_cfg": plain}
    vision = config["vision_cfg"]
    where = f"{source} (image encoder)"
    if config.get("quick_gelu") or not vision.keys() <= plain.keys():
        from open_clip import CLIP

        with torch.device("meta"):
            visual = CLIP(**config).visual
        fit(visual, state, where)
        return OpenClipImageEncoder(visual, config=config)
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = CLIPVisionConfig(
        hidden_size=plain["width"],
        intermediate_size=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=plain["layers"],
        num_attention_heads=plain["width"] // vision.get("head_width", 64),
        image_size=plain["image_size"],
        patch_size=plain["patch_size"],
        projection_dim=state["proj"].shape[1],
        hidden_act="gelu",
    )
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(sizes)
    fit(encoder, transformers_vision_state(state), where)
    embeddings = encoder.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]  # a constant, which no file holds
    return TransformersImageEncoder(encoder)


def _vision_of(encoder: object, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An image encoder's weights in open_clip's names, and its configuration."""
    if isinstance(encoder, OpenClipImageEncoder):
        state = encoder.model.state_dict()
        return state, encoder.config or open_clip_vision_config(
            state, encoder.model.transformer.resblocks[0].attn.num_heads
        )
    if isinstance(encoder, TransformersImageEncoder):
        config = encoder.model.config
        if config.hidden_act != "gelu":
            raise ModelDirectoryError(
                f"{path}: the image encoder's hidden_act is {config.hidden_act!r}; generative-models runs 'gelu'"
            )
        state = open_clip_vision_state(encoder.model)
        return state, open_clip_vision_config(state, config.num_attention_heads)
    raise ModelDirectoryError(f"{path}: do not know how to write an image encoder of type {type(encoder).__name__}")
