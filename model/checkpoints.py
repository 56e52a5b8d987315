"""Reading and writing the network's weights: diffusers directories, sgm checkpoints, Stable Diffusion 2.1 weights.

"sgm" is the layout of Stability-AI's generative-models; whole sgm checkpoints, with autoencoder and image encoder, are
read and written by `model/tasks/sgm_checkpoint.py`. The network is never built twice. Pickles are refused unless
`allow_pickle=True` (`weight_files.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .key_layouts import SGM_PREFIX, sd21_keys, sgm_keys
from .unet import VideoUNet
from .unet_config import ATTENTION_DOWN, ATTENTION_UP, PLAIN_DOWN, PLAIN_UP, UNetConfig
from .weight_files import CheckpointError, compare_keys, compare_shapes, fit, read_weights, write_weights

__all__ = [
    "CheckpointError",
    "load_sd21_into",
    "load_sgm",
    "load_unet",
    "read_weights",
    "save_sgm",
    "save_unet",
    "unet_from_sgm",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


# ---- the three layouts -------------------------------------------------------------------------------------------


def load_unet(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    allow_pickle: bool = False,
) -> VideoUNet:
    """Load a network from a pipeline directory, its `unet` directory, or an sgm checkpoint file.

    Args:
        path: a directory with `unet/config.json` or `config.json`, or a single file in sgm layout.
        device: where the weights go.
        dtype: what they are converted to.
        variant: read `diffusion_pytorch_model.<variant>.safetensors` (e.g. `fp16`). Default: the plain file, or the
            only variant there is.
        allow_pickle: also read pickled weights.
    Raises:
        CheckpointError: nothing usable there, or keys are missing, surplus or of the wrong shape.
    """
    path = Path(path)
    if path.is_file():
        return load_sgm(path, device=device, dtype=dtype, allow_pickle=allow_pickle)
    directory = path / "unet" if (path / "unet" / CONFIG_FILE).is_file() else path
    try:
        config = UNetConfig.from_diffusers(json.loads((directory / CONFIG_FILE).read_text()))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: neither unet/{CONFIG_FILE} nor {CONFIG_FILE} is there; expected a diffusers directory"
        ) from None
    except (json.JSONDecodeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    state: dict[str, Tensor] = {}
    for file in _weight_files(directory, variant, allow_pickle):
        state.update(read_weights(file, device=device, dtype=dtype, allow_pickle=allow_pickle))
    return _build(config, state, str(directory))


def save_unet(unet: VideoUNet, directory: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
    """Write `directory/unet/config.json` and its weights, as diffusers' `from_pretrained` reads them.

    Args:
        dtype: convert on the way out; default: as they are.
    Returns:
        the `unet` directory.
    """
    folder = Path(directory) / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(unet.state_dict(), folder / WEIGHTS_FILE, dtype=dtype)
    config = folder / (CONFIG_FILE + ".part")
    config.write_text(json.dumps(unet.config.to_diffusers(), indent=2) + "\n")
    config.replace(folder / CONFIG_FILE)
    return folder


def load_sgm(
    path: str | os.PathLike[str],
    *,
    config: UNetConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
) -> VideoUNet:
    """Load the network of a generative-models checkpoint (keys below `model.diffusion_model.`; the rest is not read).

    Args:
        config: default: inferred from the weights' shapes, with heads of 64 channels and the epsilon of sgm.
    Raises:
        CheckpointError: see `load_unet`.
    """
    path = Path(path)
    found = read_weights(path, device=device, dtype=dtype, allow_pickle=allow_pickle, prefix=SGM_PREFIX)
    if not found:
        raise CheckpointError(f"{path}: no key starts with {SGM_PREFIX!r}; expected a generative-models checkpoint")
    return unet_from_sgm(found, path, config)


def unet_from_sgm(found: Mapping[str, Tensor], source: Path, config: UNetConfig | None = None) -> VideoUNet:
    """The network with weights `found` under sgm's names (prefix removed); `source` is named in errors.

    Raises:
        CheckpointError: see `load_unet`.
    """
    config = config or _config_of_sgm(found, source)
    with torch.device("meta"):
        ours = list(VideoUNet(config).state_dict())
    back = {theirs: key for key, theirs in sgm_keys(ours, config).items()}
    return _build(config, {back.get(key, SGM_PREFIX + key): value for key, value in found.items()}, str(source))


def save_sgm(unet: VideoUNet, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
    """Write the network as the `model.diffusion_model.` part of a generative-models checkpoint (safetensors)."""
    state = unet.state_dict()
    names = sgm_keys(state, unet.config)
    write_weights({SGM_PREFIX + names[key]: value for key, value in state.items()}, path, dtype=dtype)
    return Path(path)


def load_sd21_into(unet: VideoUNet, path: str | os.PathLike[str], *, allow_pickle: bool = False) -> list[str]:
    """Initialise the spatial layers from Stable Diffusion 2.1, in place; temporal layers keep their values.

    Additional input channels of `conv_in` (conditioning latent, mask) are set to zero, and so is the last layer of the
    scalar conditions, which the image model does not have: step 0 sees exactly the image model.

    Args:
        path: a diffusers pipeline or `unet` directory, or the original single file.
    Returns:
        the keys that were read.
    Raises:
        CheckpointError: a spatial key is missing, surplus or of another shape.
    """
    path = Path(path)
    ours = unet.state_dict()
    names = sd21_keys(ours)
    if path.is_dir():
        directory = path / "unet" if (path / "unet").is_dir() else path
        found: dict[str, Tensor] = {}
        for file in _weight_files(directory, None, allow_pickle):
            found.update(read_weights(file, allow_pickle=allow_pickle))
    else:
        found = read_weights(path, allow_pickle=allow_pickle, prefix=SGM_PREFIX)
        if found:
            names = sgm_keys(names, unet.config)
        else:
            found = read_weights(path, allow_pickle=allow_pickle)
    compare_keys(set(names.values()), set(found), str(path))
    state = {}
    for key, theirs in names.items():
        value = found[theirs]
        if key == "conv_in.weight" and value.shape[1] < ours[key].shape[1]:
            extra = ours[key].shape[1] - value.shape[1]
            value = torch.cat([value, value.new_zeros(value.shape[0], extra, *value.shape[2:])], dim=1)
        # Projections of SD 1.x and of single-file SD 2.x transformers may be 1x1 convolutions: the same numbers.
        if value.ndim == 4 and ours[key].ndim == 2 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        state[key] = value
    compare_shapes(state, {key: ours[key] for key in state}, str(path))
    unet.load_state_dict(state, strict=False)
    for parameter in unet.add_embedding.linear_2.parameters():
        nn.init.zeros_(parameter)
    return list(state)


# ---- files and sizes ----------------------------------------------------------------------------------------------


def _weight_files(directory: Path, variant: str | None, allow_pickle: bool) -> list[Path]:
    """The file or shards with the weights of a diffusers model directory."""
    stem = WEIGHTS_FILE.removesuffix(".safetensors")
    tag = f".{variant}" if variant else ""
    for name in (f"{stem}{tag}.safetensors", f"{stem}.safetensors.index{tag}.json"):
        file = directory / name
        if file.is_file():
            if file.suffix != ".json":
                return [file]
            return [directory / shard for shard in sorted(set(json.loads(file.read_text())["weight_map"].values()))]
    others = sorted(directory.glob(f"{stem}.*.safetensors")) if variant is None else []
    if len(others) == 1:
        return others
    pickled = directory / f"{stem}{tag}.bin"
    if pickled.is_file():
        return [pickled]  # refused by read_weights unless asked for
    hint = f"; variants there: {', '.join(o.name for o in others)}" if others else ""
    raise CheckpointError(f"{directory}: no {stem}{tag}.safetensors{hint}")


def _build(config: UNetConfig, state: dict[str, Tensor], source: str) -> VideoUNet:
    with torch.device("meta"):
        unet = VideoUNet(config)
    fit(unet, state, source)
    return unet


def _config_of_sgm(state: Mapping[str, Tensor], source: Path) -> UNetConfig:
    """Read the size off the shapes. Heads have 64 channels in every published model; they leave no trace in a shape."""
    try:
        channels: list[int] = []
        attention: list[bool] = []
        blocks = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("input_blocks."))
        down = [i for i in range(blocks) if f"input_blocks.{i}.0.op.weight" in state]
        layers = (down[0] if down else blocks) - 1
        for first in range(1, blocks, layers + 1):
            channels.append(state[f"input_blocks.{first}.0.in_layers.2.weight"].shape[0])
            attention.append(f"input_blocks.{first}.1.proj_in.weight" in state)
        cross = next(v for k, v in state.items() if k.endswith("transformer_blocks.0.attn2.to_k.weight"))
        depth = {int(k.split(".")[3]) for k in state if k.startswith("middle_block.1.transformer_blocks.")}
        vector = state["label_emb.0.0.weight"].shape[1]
        return UNetConfig(
            in_channels=state["input_blocks.0.0.weight"].shape[1],
            out_channels=state["out.2.weight"].shape[0],
            block_out_channels=tuple(channels),
            down_block_types=tuple(ATTENTION_DOWN if a else PLAIN_DOWN for a in attention),
            up_block_types=tuple(ATTENTION_UP if a else PLAIN_UP for a in reversed(attention)),
            layers_per_block=layers,
            num_attention_heads=tuple(max(1, c // 64) for c in channels),
            cross_attention_dim=cross.shape[1],
            transformer_layers_per_block=len(depth),
            addition_time_embed_dim=256 if vector % 256 == 0 else vector // 3,
            projection_class_embeddings_input_dim=vector,
            norm_eps="sgm",
        )
    except (KeyError, StopIteration, IndexError) as error:
        raise CheckpointError(
            f"{source}: cannot tell the network's size, {error} is not there; pass config=UNetConfig(...)"
        ) from error
