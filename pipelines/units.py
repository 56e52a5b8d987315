"""Quantities in job specs carry their unit: `2 s`, `25 %`, `64 MB`. A bare number is refused, not guessed."""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z%]+)\s*")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _parse(text: Any, units: dict[str, float] | dict[str, int], example: str) -> float:
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise ValueError(f"{text} has no unit; write it like {example!r} (units: {', '.join(units)})")
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in units:
        raise ValueError(f"{text!r} is not a quantity; write it like {example!r} (units: {', '.join(units)})")
    value = float(match[1]) * units[match[2]]
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]}... is too large for a quantity")
    return value


def seconds(text: Any) -> float:
    """`'1.5 min'` -> 90.0. Raises ValueError for anything else than a number with a unit of time."""
    return _parse(text, _SECONDS, "2 s")


def size_bytes(text: Any) -> int:
    """`'64 MB'` -> 64000000. Raises ValueError for anything else than a number with a unit of size."""
    return round(_parse(text, _BYTES, "64 MB"))


def write_seconds(value: float) -> str:
    """The shortest text that `seconds` reads as `value`."""
    for unit in ("h", "min"):
        if value and value % _SECONDS[unit] == 0:
            return f"{value / _SECONDS[unit]:g} {unit}"
    return f"{value:.12g} s"


def write_bytes(value: int) -> str:
    """The shortest text that `size_bytes` reads as `value`."""
    for unit in ("TB", "GB", "MB", "kB"):
        if value and value % _BYTES[unit] == 0:
            return f"{value // _BYTES[unit]} {unit}"
    return f"{value} B"


Seconds = Annotated[float, BeforeValidator(seconds, json_schema_input_type=str), PlainSerializer(write_seconds)]
"""A duration: text with a unit in YAML, seconds in Python."""

Bytes = Annotated[int, BeforeValidator(size_bytes, json_schema_input_type=str), PlainSerializer(write_bytes)]
"""A size: text with a unit in YAML, bytes in Python."""
