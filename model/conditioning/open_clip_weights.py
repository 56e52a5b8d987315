"""open_clip models with their weights: from the hub by tag, from a local file, or one tower from a model directory."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "model.safetensors"


class EncoderError(ValueError):
    """An encoder's weights cannot be had or do not fit; the message names the file."""


def open_clip_model(name: str, weights: str) -> tuple[Any, dict[str, Any]]:
    """A whole open_clip model and its configuration; never with random weights.

    Args:
        weights: a tag of open_clip's, or a local file.

    Raises:
        EncoderError: no such model, or the weights cannot be had.
    """
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise EncoderError(f"open_clip has no model {name!r}; see open_clip.list_models()")
    try:
        clip = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
    except (RuntimeError, OSError) as error:
        raise EncoderError(
            f"open_clip {name}, weights {weights!r}: {error}; give a tag from open_clip.list_pretrained() with the hub "
            "reachable, or a local file"
        ) from error
    return clip.eval().requires_grad_(False), config


def save_tower(tower: nn.Module, config: dict[str, Any] | None, folder: Path) -> None:
    """Write one tower's weights beside the configuration of the model it belongs to.

    Raises:
        EncoderError: the configuration is not known.
    """
    if config is None:
        raise EncoderError("an open_clip encoder without its model configuration cannot be written")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": config}, indent=2) + "\n")
    save_file({key: value.contiguous() for key, value in tower.state_dict().items()}, folder / WEIGHTS_FILE)


def load_tower(folder: Path, tower: Literal["image", "text"], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """What save_tower wrote: the image tower alone, or the whole model with only its text tower filled, and its config.

    The whole is built without memory (on the meta device); only the tower's weights are read.

    Raises:
        EncoderError: files missing, or keys missing or surplus.
    """
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from open_clip import CLIP

    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())["model_cfg"]
        weights = {key: value.to(dtype) for key, value in load_file(folder / WEIGHTS_FILE).items()}
        with torch.device("meta"):
            clip = CLIP(**config)
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise EncoderError(f"{folder}: not an open_clip encoder ({error!r})") from error
    module = clip.visual if tower == "image" else clip
    try:
        missing, surplus = module.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:  # a weight of the wrong shape
        raise EncoderError(f"{folder / WEIGHTS_FILE}: {error}") from error
    if tower == "text":
        elsewhere = ("visual.", "logit_", "text_projection")
        missing = [key for key in missing if not key.startswith(elsewhere)]
        length = clip.context_length
        clip.register_buffer("attn_mask", torch.full((length, length), float("-inf")).triu(1), persistent=False)
    if missing or surplus:
        raise EncoderError(
            f"{folder / WEIGHTS_FILE}: {len(missing)} keys missing {missing[:10]}, "
            f"{len(surplus)} surplus {surplus[:10]}"
        )
    return module.eval().requires_grad_(False), config
