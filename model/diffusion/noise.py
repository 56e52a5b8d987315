"""How much noise: the log-normal distribution of sigma in training, and the forward process x = x0 + sigma n.

One sigma per *video*: all frames of a video share it, the noise itself is independent per frame and pixel. (The paper
does not say so; both public trainers that reach its quality patched the released code, which drew one per frame.)
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(p_mean, p_std^2) (App. D; P_mean and P_std differ per training stage)."""

    p_mean: float
    p_std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.p_mean) and math.isfinite(self.p_std) and self.p_std >= 0):
            raise ValueError(f"p_mean {self.p_mean}, p_std {self.p_std}: both finite and p_std >= 0 are needed")

    def sample(self, batch: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one sigma per video: float32 (batch,), on the CPU (one seed, every device)."""
        return self.from_normal(torch.randn(batch, generator=generator))

    def from_normal(self, z: Tensor) -> Tensor:
        """Sigma for given standard-normal draws, for callers that key their noise by sample number. Any shape."""
        return (self.p_mean + self.p_std * z).exp()

    def quantile(self, q: float) -> float:
        """The sigma below which a fraction q of the draws lies (0 < q < 1)."""
        return math.exp(NormalDist(self.p_mean, self.p_std).inv_cdf(q)) if self.p_std else math.exp(self.p_mean)


CONDITIONING_AUGMENTATION = LogNormal(p_mean=-3.0, p_std=0.5)
"""ln sigma_aug ~ N(-3, 0.5^2) (App. D.4): noise on the conditioning frame, in pixels on [-1, 1]; median 0.050."""


def per_video(sigma: Tensor, x: Tensor) -> Tensor:
    """Sigma (B,) shaped to broadcast over x (B, ...), in x's dtype.

    Raises:
        ValueError: sigma does not have one value per video.
    """
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}: one value per video, ({x.shape[0]},), is needed")
    return sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x = x0 + sigma n, the argument of D in eq. (2). x0 and noise (B, T, C, H, W), sigma (B,)."""
    return x0 + per_video(sigma, x0) * noise
