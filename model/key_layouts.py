"""Names of the same weights in three layouts: diffusers (ours), generative-models (`sgm`), and Stable Diffusion 2.1.

* `diffusers`: `UNetSpatioTemporalConditionModel`; the names of `model.unet.VideoUNet`.
* `sgm`: Stability-AI's `VideoUNet` inside a whole-model checkpoint, below `model.diffusion_model.`.
* Stable Diffusion 2.1's 2-D UNet, either in diffusers' `UNet2DConditionModel` names (the spatial half of
  ours, without the `spatial_res_block` level) or in the names of its original checkpoint (the spatial half of `sgm`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .unet_config import ATTENTION_UP, UNetConfig

SGM_PREFIX = "model.diffusion_model."

_TEMPORAL = re.compile(r"temporal_res_block|temporal_transformer_blocks|time_pos_embed|time_mixer")

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def sgm_keys(keys: Iterable[str], config: UNetConfig) -> dict[str, str]:
    """Map each of our state-dict keys to its name in an sgm checkpoint (without the prefix)."""
    return {key: _sgm_key(key, config) for key in keys}


def sd21_keys(keys: Iterable[str]) -> dict[str, str]:
    """Map our keys that exist in Stable Diffusion 2.1 to their diffusers names there; temporal keys are left out."""
    return {key: key.replace(".spatial_res_block", "") for key in keys if not is_new_in_video(key)}


def is_new_in_video(key: str) -> bool:
    """Whether one of our keys has no counterpart in the 2-D UNet (temporal layers and the vector conditioning)."""
    return is_temporal(key) or key.startswith("add_embedding")


def is_temporal(key: str) -> bool:
    """Whether one of our keys belongs to a temporal layer or its blend, which single images bypass."""
    return _TEMPORAL.search(key) is not None


def _sgm_key(key: str, config: UNetConfig) -> str:
    name, _, leaf = key.rpartition(".")
    if name in _TOP:
        return f"{_TOP[name]}.{leaf}"
    head, _, rest = key.partition(".")
    if head == "mid_block":
        kind, j, inner = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(j)}.{_sgm_inner(kind, inner)}"
    level, kind, j, inner = rest.split(".", 3)
    i, n = int(level), config.layers_per_block
    if head == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(i + 1) * (n + 1)}.0.op.{inner.removeprefix('conv.')}"
        return f"input_blocks.{i * (n + 1) + int(j) + 1}.{1 if kind == 'attentions' else 0}.{_sgm_inner(kind, inner)}"
    if kind == "upsamplers":
        position = 2 if config.up_block_types[i] == ATTENTION_UP else 1
        return f"output_blocks.{i * (n + 1) + n}.{position}.{inner}"
    return f"output_blocks.{i * (n + 1) + int(j)}.{1 if kind == 'attentions' else 0}.{_sgm_inner(kind, inner)}"


def _sgm_inner(kind: str, inner: str) -> str:
    if kind == "attentions":
        inner = re.sub(r"^temporal_transformer_blocks\.", "time_stack.", inner)
        return inner.replace("time_pos_embed.linear_1", "time_pos_embed.0").replace(
            "time_pos_embed.linear_2", "time_pos_embed.2"
        )
    part, _, rest = inner.partition(".")
    if part == "time_mixer":
        return inner
    layer, _, leaf = rest.partition(".")
    return f"{'time_stack.' if part == 'temporal_res_block' else ''}{_RESNET[layer]}.{leaf}"
