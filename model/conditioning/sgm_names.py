"""Names of the autoencoder's and the image encoder's weights in generative-models (`sgm`) checkpoints.

* The autoencoder is written in the original latent-diffusion names (`encoder.down.0.block.1.nin_shortcut`); SVD's
  temporal decoder adds `time_stack`, `mix_factor` and `conv_out.time_mix_conv` (sgm's `VideoDecoder`).
* The image encoder is open_clip's image tower.

`model/key_layouts.py` does the same for the UNet, `model/tasks/sgm_checkpoint.py` puts the file together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

_TOWER = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre": "vision_model.pre_layrnorm",
    "ln_post": "vision_model.post_layernorm",
}
_TOWER_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_RESNET = {"conv_shortcut": "nin_shortcut"}
_TEMPORAL_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_TOP = {
    "encoder.conv_norm_out": "encoder.norm_out",
    "decoder.conv_norm_out": "decoder.norm_out",
    "decoder.time_conv_out": "decoder.conv_out.time_mix_conv",
}


def autoencoder_keys(keys: Iterable[str], levels: int) -> dict[str, str]:
    """Map each key of diffusers' AutoencoderKL or AutoencoderKLTemporalDecoder to its name in sgm.

    Args:
        levels: number of resolutions; sgm counts those of the decoder from the finest.
    """
    return {key: _autoencoder_key(key, levels) for key in keys}


def is_autoencoder_attention(key: str) -> bool:
    """Whether a weight (under its sgm name) is a 1x1 convolution there and a linear layer in diffusers."""
    return re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", key) is not None


def _autoencoder_key(key: str, levels: int) -> str:
    name, _, leaf = key.rpartition(".")
    if name in _TOP:
        return f"{_TOP[name]}.{leaf}"
    half, _, rest = key.partition(".")
    block, _, rest = rest.partition(".")
    if block == "mid_block":
        kind, j, inner = rest.split(".", 2)
        if kind == "attentions":
            layer, _, leaf = inner.rpartition(".")
            return f"{half}.mid.attn_1.{_ATTENTION[layer]}.{leaf}"
        return f"{half}.mid.block_{int(j) + 1}.{_resnet_key(inner)}"
    if block in ("down_blocks", "up_blocks"):
        i, kind, j, inner = rest.split(".", 3)
        level = f"{half}.down.{i}" if block == "down_blocks" else f"{half}.up.{levels - 1 - int(i)}"
        if kind == "resnets":
            return f"{level}.block.{j}.{_resnet_key(inner)}"
        return f"{level}.{'downsample' if kind == 'downsamplers' else 'upsample'}.{inner}"
    return key  # conv_in, conv_out, quant_conv, post_quant_conv


def _resnet_key(inner: str) -> str:
    part, _, rest = inner.partition(".")
    if part == "time_mixer":
        return rest
    if part == "temporal_res_block":
        layer, _, leaf = rest.partition(".")
        return f"time_stack.{_TEMPORAL_RESNET[layer]}.{leaf}"
    layer, _, leaf = (rest if part == "spatial_res_block" else inner).partition(".")
    return f"{_RESNET.get(layer, layer)}.{leaf}"


def autoencoder_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """diffusers' arguments for an autoencoder whose weights have these sgm names.

    Raises:
        KeyError: a weight that tells a size is not there.
    """
    levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down.")})
    layers = len({key.split(".")[4] for key in state if key.startswith("encoder.down.0.block.")})
    channels = tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels))
    return {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "layers_per_block": layers,
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
    }


def open_clip_vision_state(encoder: Any) -> dict[str, Tensor]:
    """The weights of transformers' CLIPVisionModelWithProjection under open_clip's names (`visual.` left off)."""
    source: dict[str, Tensor] = {}
    for key, value in encoder.state_dict().items():
        source[key.removeprefix("vision_model.")] = value
    state = {
        "class_embedding": source["embeddings.class_embedding"],
        "positional_embedding": source["embeddings.position_embedding.weight"],
        "proj": source["visual_projection.weight"].T,
        "conv1.weight": source["embeddings.patch_embedding.weight"],
    }
    for theirs, ours in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        state |= {f"{theirs}.{leaf}": source[f"{ours}.{leaf}"] for leaf in ("weight", "bias")}
    layers = len({key.split(".")[2] for key in source if key.startswith("encoder.layers.")})
    for i in range(layers):
        there, here = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
        for leaf in ("weight", "bias"):
            parts = [source[f"{here}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            state[f"{there}.attn.in_proj_{leaf}"] = torch.cat(parts)
            for theirs, ours in _TOWER_BLOCK.items():
                state[f"{there}.{theirs}.{leaf}"] = source[f"{here}.{ours}.{leaf}"]
    return state


def transformers_vision_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse: an open_clip image tower's weights under the names of CLIPVisionModelWithProjection.

    Keys that no such tower has keep their names.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name, _, leaf = key.rpartition(".")
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        layer = f"vision_model.encoder.layers.{found[1]}" if found else ""
        if key == "proj":
            renamed["visual_projection.weight"] = value.T.contiguous()
        elif key in _TOWER or name in _TOWER:
            renamed[_TOWER.get(key) or f"{_TOWER[name]}.{leaf}"] = value
        elif found and found[2] == "attn" and leaf.startswith("in_proj_"):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{part}_proj.{leaf.removeprefix('in_proj_')}"] = piece.clone()
        elif found and found[2] in _TOWER_BLOCK:
            renamed[f"{layer}.{_TOWER_BLOCK[found[2]]}.{leaf}"] = value
        else:
            renamed[key] = value
    return renamed


def open_clip_vision_config(state: Mapping[str, Tensor], heads: int | None = None) -> dict[str, Any]:
    """open_clip's configuration of an image tower with these weights (names without `visual.`).

    The heads leave no trace in a shape: unless they are given they are those of ViT-H-14 for its size, else of 64
    channels, open_clip's default. The text tower is a placeholder.

    Raises:
        KeyError: a weight that tells a size is not there.
    """
    width, _, patch, _ = state["conv1.weight"].shape
    positions, dim = state["positional_embedding"].shape[0], state["proj"].shape[1]
    layers = len({key.split(".")[2] for key in state if key.startswith("transformer.resblocks.")})
    head_width = width // heads if heads else 80 if (width, patch, layers) == (1280, 14, 32) else 64
    return {
        "embed_dim": dim,
        "vision_cfg": {
            "image_size": round((positions - 1) ** 0.5) * patch,
            "layers": layers,
            "width": width,
            "head_width": head_width,
            "mlp_ratio": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
            "patch_size": patch,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": dim, "heads": 1, "layers": 1},
    }
