"""A training sample, as the data set fills it and the loader hands it over."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class TrainingSample:
    """One sample as the loader hands it over, before anything is encoded."""

    ordinal: int
    key: str
    shard: str
    fps: float
    motion: float  # score; NaN where there is none
    caption: str
    elevation_deg: float
    frames: np.ndarray | None  # RGB uint8 (T, H, W, 3); None for precomputed latents
    mean: np.ndarray | None = None  # posterior of the latents, float32 (T, C, h, w)
    std: np.ndarray | None = None
    ends: np.ndarray | None = None  # first and last frame beside latents, RGB uint8 (2, H, W, 3)
    replaced: tuple[str, ...] = field(default=())  # messages of the samples that could not be read
