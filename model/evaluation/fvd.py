"""The Fréchet video distance (Unterthiner et al. 2018, arXiv 1812.01717): how far the distribution of sampled videos
is from that of real ones, in the features of I3D.

    FVD = |mean_1 - mean_2|^2 + trace(cov_1 + cov_2 - 2 (cov_1 cov_2)^(1/2))

It is biased: fewer videos give a larger distance, so numbers compare only at the same number of videos, frames, rate
and size (appendix E.4 has 13,320 videos of 16 frames).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.evaluation.errors import EvaluationError
from model.evaluation.i3d import FEATURES, I3D, SIDE_PX

Fit = Literal["squash", "crop"]


def to_input(frames: np.ndarray, fit: Fit = "squash") -> Tensor:
    """Frames (T, H, W, 3) uint8 as I3D takes them: (3, T, 224, 224) float32 on [-1, 1].

    Args:
        fit: `squash`, the published one, resizes both sides without anti-aliasing, as TensorFlow 1 does; `crop` keeps
            the aspect ratio: the short side is resized with anti-aliasing, and the centre cropped.
    """
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float()
    if fit == "squash":
        pictures = _tensorflow_1(_tensorflow_1(pictures, dim=2), dim=3)
    else:
        height, width = frames.shape[1:3]
        scale = SIDE_PX / min(height, width)
        size = (max(round(height * scale), SIDE_PX), max(round(width * scale), SIDE_PX))
        pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        top, left = (size[0] - SIDE_PX) // 2, (size[1] - SIDE_PX) // 2
        pictures = pictures[:, :, top : top + SIDE_PX, left : left + SIDE_PX]
    return pictures / 127.5 - 1


def _tensorflow_1(pictures: Tensor, dim: int) -> Tensor:
    """One side resized as tf.image.resize_bilinear does it: place k of the result lies at k * old / new of the old."""
    old = pictures.shape[dim]
    at = torch.arange(SIDE_PX, dtype=torch.float32) * (old / SIDE_PX)
    low = at.long().clamp(max=old - 1)
    share = (at - low).reshape([-1 if k == dim else 1 for k in range(pictures.ndim)])
    first, second = pictures.index_select(dim, low), pictures.index_select(dim, (low + 1).clamp(max=old - 1))
    return first + share * (second - first)


@dataclass
class Moments:
    """Count, mean and scatter of features, gathered batch by batch in float64."""

    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(FEATURES))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros((FEATURES, FEATURES)))

    def add(self, features: np.ndarray) -> None:
        """`features`: (n, 400)."""
        features = features.astype(np.float64)
        count = self.count + len(features)
        mean = features.mean(0)
        apart, centred = mean - self.mean, features - mean
        self.scatter += centred.T @ centred + np.outer(apart, apart) * (self.count * len(features) / count)
        self.mean += apart * (len(features) / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """(400, 400), unbiased."""
        return self.scatter / (self.count - 1)


def gather(videos: Iterable[np.ndarray], network: I3D, *, fit: Fit = "squash", batch: int = 8) -> Moments:
    """The moments of videos (T, H, W, 3) uint8, all of the same T; `batch` of them go through the network at once."""
    found = Moments()
    waiting: list[Tensor] = []
    device = network.logits.weight.device

    def flush() -> None:
        with torch.inference_mode():
            found.add(network(torch.stack(waiting).to(device)).float().cpu().numpy())
        waiting.clear()

    for video in videos:
        waiting.append(to_input(video, fit))
        if len(waiting) == batch:
            flush()
    if waiting:
        flush()
    return found


def frechet_distance(one: Moments, other: Moments) -> float:
    """FVD of two sets of features.

    Raises:
        EvaluationError: fewer than two videos in a set, which have no covariance.
    """
    if min(one.count, other.count) < 2:
        raise EvaluationError(f"FVD compares two sets of at least 2 videos; there are {one.count} and {other.count}")
    # trace((A B)^(1/2)) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric: unlike a
    # general matrix root, that holds also for fewer videos than features, whose covariances are singular.
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ other.covariance @ root).clip(0)).sum()
    apart = one.mean - other.mean
    found = float(apart @ apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * both)
    return max(found, 0.0)  # equal sets are a rounding error away from each other, on either side
