"""Samplers: they follow the probability-flow ODE from noise to data.

    (1)   dx = -sigma'(t) sigma(t) grad_x log p(x; sigma(t)) dt,   grad_x log p = (D(x; sigma) - x) / sigma^2

With sigma(t) = t this is dx/dsigma = (x - D(x; sigma)) / sigma, called d below. Both samplers are EDM's Algorithm 2
with its optional noise (`churn`); without it Heun is Algorithm 1, and Euler is the same without the correction.

x is (B, ...), `sigmas` is decreasing and ends in 0; a denoiser is a function (x, sigma (B,)) -> D(x; sigma).
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.diffusion.preconditioning import DenoiseFunction

StepCallback = Callable[[int, float, Tensor], None]
"""(step, sigma, denoised): called after each evaluation at the start of a step, for progress and previews."""


@dataclass(frozen=True)
class Churn:
    """EDM Algorithm 2: noise added before each step whose sigma lies in [s_min, s_max]; S_churn is over all steps."""

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """The relative increase of sigma, gamma_i of EDM Algorithm 2."""
        return min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_min <= sigma <= self.s_max else 0.0


@torch.no_grad()
def sample_euler(
    denoise: DenoiseFunction,
    x: Tensor,
    sigmas: Tensor,
    *,
    churn: Churn | None = None,
    generator: torch.Generator | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Euler steps: what the released models are sampled with. x (B, ...) ~ N(0, sigma_0^2); returns the sample."""
    return _sample(denoise, x, sigmas, churn, generator, callback, correct=False)


@torch.no_grad()
def sample_heun(
    denoise: DenoiseFunction,
    x: Tensor,
    sigmas: Tensor,
    *,
    churn: Churn | None = None,
    generator: torch.Generator | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Heun's second-order steps: two evaluations a step, except the last. x (B, ...) ~ N(0, sigma_0^2)."""
    return _sample(denoise, x, sigmas, churn, generator, callback, correct=True)


SAMPLERS = {"euler": sample_euler, "heun": sample_heun}


def _sample(
    denoise: DenoiseFunction,
    x: Tensor,
    sigmas: Tensor,
    churn: Churn | None,
    generator: torch.Generator | None,
    callback: StepCallback | None,
    *,
    correct: bool,
) -> Tensor:
    churn = churn or Churn()
    levels = sigmas.tolist()
    if len(levels) < 2 or levels[-1] != 0 or any(a <= b for a, b in itertools.pairwise(levels)):
        raise ValueError("sigmas must decrease strictly and end in 0")
    steps = len(levels) - 1
    for i in range(steps):
        sigma, sigma_next = levels[i], levels[i + 1]
        gamma = churn.gamma(sigma, steps)
        if gamma > 0:  # raise the noise level to sigma_hat by adding fresh noise
            sigma_hat = sigma * (1 + gamma)
            fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            x = x + math.sqrt(sigma_hat**2 - sigma**2) * churn.s_noise * fresh
            sigma = sigma_hat
        denoised = denoise(x, _fill(x, sigma))
        if callback is not None:
            callback(i, sigma, denoised)
        d = (x - denoised) / sigma
        x_next = x + (sigma_next - sigma) * d
        if correct and sigma_next > 0:  # evaluate again at the end of the step, and step with the mean of both slopes
            d_next = (x_next - denoise(x_next, _fill(x, sigma_next))) / sigma_next
            x_next = x + (sigma_next - sigma) * (d + d_next) / 2
        x = x_next
    return x


def _fill(x: Tensor, sigma: float) -> Tensor:
    return torch.full(x.shape[:1], sigma, dtype=x.dtype, device=x.device)
