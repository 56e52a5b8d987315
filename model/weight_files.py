"""Files of weights: reading and writing them safely, and fitting what was read to a module.

Weights are read from safetensors straight into their final dtype and device. Pickles (.ckpt, .bin, .pt) can run code
when opened: they are refused unless `allow_pickle=True`. A file under its final name is complete.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_PICKLES = {".ckpt", ".bin", ".pt", ".pth"}
_LISTED = 10


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the network; the message names the file and the keys."""


def read_weights(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
    prefix: str = "",
) -> dict[str, Tensor]:
    """Read the tensors of one file whose key starts with `prefix`, which is removed.

    Raises:
        CheckpointError: the file is missing, damaged, or a pickle that was not asked for.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix in _PICKLES:
        if not allow_pickle:
            raise CheckpointError(
                f"{path}: a pickle can run code when it is opened. Convert it to safetensors, "
                "or pass allow_pickle=True (--allow-pickle) if you trust its source"
            )
        pickled = _read_pickle(path)
        return {k.removeprefix(prefix): v.to(device, dtype) for k, v in pickled.items() if k.startswith(prefix)}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 - not a dict
            return {key.removeprefix(prefix): file.get_tensor(key).to(dtype=dtype) for key in keys}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); download or copy it again"
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            content = torch.load(path, map_location="cpu", weights_only=False)  # the caller vouched for it
    except Exception as error:  # a pickle runs what it says: it can raise anything
        raise CheckpointError(f"{path}: not a readable pickle ({error}); download or copy it again") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a dictionary of tensors")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors; nothing for other files."""
    path = Path(path)
    if path.suffix in _PICKLES:
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def write_weights(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write under a temporary name, then rename: a file under its final name is complete.

    Args:
        dtype: convert on the way out; default: as they are.
    Raises:
        CheckpointError: no space, or no permission.
    """
    path = Path(path)
    dense = {key: value.detach().to(dtype=dtype or value.dtype).contiguous().cpu() for key, value in state.items()}
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dense, part, metadata={"format": "pt", **(metadata or {})})
        _order_metadata(part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        size = sum(value.numel() * value.element_size() for value in dense.values())
        raise CheckpointError(
            f"{path}: cannot write {size / 2**20:.0f} MiB ({error}); free space or choose another place"
        ) from error


def _order_metadata(path: Path) -> None:
    """safetensors writes metadata in an order that differs from process to process; the same weights are to make the
    same bytes. The file holds the header's length (8 bytes), the header as JSON, and the tensors."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def fit(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Give a module (also one without memory, on the meta device) exactly these weights.

    Raises:
        CheckpointError: keys are missing, surplus or of the wrong shape.
    """
    expected = module.state_dict()
    compare_keys(set(expected), set(state), source)
    compare_shapes(state, expected, source)
    module.load_state_dict(state, assign=True)
    module.eval()


def compare_keys(expected: set[str], found: set[str], source: str) -> None:
    """Refuse missing and surplus keys: the first ten of each, and how many there are."""
    problems = [
        listing(f"{what} key", sorted(keys))
        for what, keys in (("missing", expected - found), ("surplus", found - expected))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network.\n" + "\n".join(problems))


def compare_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of other shapes than expected; their keys agree."""
    wrong = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(expected[key].shape)} in the network"
        for key in expected
        if state[key].shape != expected[key].shape
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit the network.\n" + listing("wrong shape", wrong))


def listing(what: str, items: Iterable[str]) -> str:
    """The number of items and the first ten of them, for an error message."""
    items = list(items)
    more = f"\n  ... and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{len(items)} {what}{'s' if len(items) > 1 else ''}:\n  " + "\n  ".join(items[:_LISTED]) + more
