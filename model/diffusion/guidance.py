"""Classifier-free guidance, with a scale that may differ per frame.

    (4)   D^w(x; sigma, c) = w D(x; sigma, c) - (w - 1) D(x; sigma) = D_u + w (D_c - D_u)

A guider answers two questions: the scales w of the frames, and how two denoised videos combine. The frames next to a
conditioning image need little guidance and the last ones much, hence the scale that grows over the frames.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Guider(Protocol):
    """A schedule of guidance scales over the frames of a video."""

    def scales(self, num_frames: int) -> Tensor:
        """The scale of each frame, float32 (num_frames,)."""
        ...


def guide(unconditional: Tensor, conditional: Tensor, scales: Tensor) -> Tensor:
    """Equation (4), frame by frame.

    Args:
        unconditional, conditional: denoised videos (B, T, C, H, W), or flat (B*T, C, H, W) as in generative-models.
        scales: (B, T), or (T,) for the same scales in every video.

    Raises:
        ValueError: the scales do not fit the frames.
    """
    w = scales.to(conditional)
    if conditional.ndim == 4:
        if conditional.shape[0] % w.shape[-1]:
            raise ValueError(
                f"{conditional.shape[0]} flat frames are no whole number of videos of {w.shape[-1]} frames"
            )
        videos = conditional.shape[0] // w.shape[-1]
        w = w.expand(videos, -1).reshape(-1, 1, 1, 1)
    else:
        if w.shape[-1] != conditional.shape[1] or (w.ndim == 2 and w.shape[0] not in (1, conditional.shape[0])):
            raise ValueError(f"guidance scales {tuple(w.shape)} do not fit a video batch {tuple(conditional.shape)}")
        w = w.reshape(-1, w.shape[-1], 1, 1, 1)
    return unconditional + w * (conditional - unconditional)


@dataclass(frozen=True)
class VanillaCFG:
    """The same scale for every frame."""

    scale: float

    def scales(self, num_frames: int) -> Tensor:
        """(num_frames,)"""
        return torch.full((num_frames,), self.scale)


@dataclass(frozen=True)
class LinearPredictionGuider:
    """From `min_scale` at the first frame to `max_scale` at the last (Fig. 16). Released: 1.0 to 2.5 for 14 frames,
    1.5 to 3.0 for 25."""

    max_scale: float
    min_scale: float = 1.0

    def scales(self, num_frames: int) -> Tensor:
        """(num_frames,); one frame alone gets min_scale."""
        return torch.linspace(self.min_scale, self.max_scale, num_frames)


@dataclass(frozen=True)
class TrianglePredictionGuider:
    """From `min_scale` at the first frame up to `max_scale` half-way and back: for orbits, which end where they began.

    `period` is the length of a triangle as a fraction of the video: 0.5 gives two.
    """

    max_scale: float
    min_scale: float = 1.0
    period: float = 1.0

    def __post_init__(self) -> None:
        if self.period <= 0:
            raise ValueError(f"period {self.period} of a triangular guider: more than 0 is needed")

    def scales(self, num_frames: int) -> Tensor:
        """(num_frames,)"""
        phase = torch.linspace(0, 1, num_frames, dtype=torch.float64) / self.period
        triangle = 2 * (phase - (phase + 0.5).floor()).abs()
        return (self.min_scale + triangle * (self.max_scale - self.min_scale)).float()


def per_video_scales(guider: Guider, batch: int, num_frames: int) -> Tensor:
    """The scales of a batch of videos, (batch, num_frames)."""
    return guider.scales(num_frames).expand(batch, num_frames)
