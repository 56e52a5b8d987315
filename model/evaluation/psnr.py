"""Peak signal-to-noise ratio: how near a sampled video is to the one that it should be (paper, figure 10a)."""

import numpy as np


def psnr(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Of each pair of frames (T, H, W, 3) uint8, in dB; infinite where they are equal.

    Raises:
        ValueError: of other shapes.
    """
    if one.shape != other.shape:
        raise ValueError(f"frames of {_size(one)} and of {_size(other)} cannot be compared")
    error = ((one.astype(np.float32) - other.astype(np.float32)) ** 2).mean((1, 2, 3), dtype=np.float64)
    with np.errstate(divide="ignore"):
        found: list[float] = (10 * np.log10(255.0**2 / error)).tolist()
    return found


def _size(frames: np.ndarray) -> str:
    return f"{len(frames)} x {frames.shape[2]}x{frames.shape[1]}"
