"""Aspect-ratio buckets: sizes of about the same area, so that a portrait clip is not cropped to a strip.

All samples of a batch have one shape, so a batch comes from one bucket (order.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

ASPECTS = (21 / 9, 16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)


@dataclass(frozen=True)
class Bucket:
    """The shape of one batch: frames, and size in pixels. `image`: its frames skip the temporal layers."""

    frames: int
    height: int
    width: int
    image: bool = False

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def sizes(height: int, width: int, multiple: int, *, by_aspect: bool) -> list[tuple[int, int]]:
    """The sizes (height, width) of the buckets; the base size first.

    Raises:
        ValueError: the base size is not a multiple of what the network and autoencoder need.
    """
    if height % multiple or width % multiple:
        near = f"{round(height / multiple) * multiple or multiple}x{round(width / multiple) * multiple or multiple}"
        raise ValueError(f"size {height}x{width}: height and width must be multiples of {multiple}, such as {near}")
    found = [(height, width)]
    if by_aspect:
        area = height * width
        for aspect in ASPECTS:
            w = max(multiple, round(math.sqrt(area * aspect) / multiple) * multiple)
            h = max(multiple, round(math.sqrt(area / aspect) / multiple) * multiple)
            if (h, w) not in found:
                found.append((h, w))
    return found


def nearest_size(width: np.ndarray, height: np.ndarray, choices: list[tuple[int, int]]) -> np.ndarray:
    """The bucket whose aspect ratio is nearest to each clip's, (N,) int64."""
    aspect = np.log(np.maximum(width, 1) / np.maximum(height, 1))
    targets = np.log([w / h for h, w in choices])
    return np.abs(aspect[:, None] - targets[None]).argmin(1)
