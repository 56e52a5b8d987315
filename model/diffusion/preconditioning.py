"""The denoiser D_theta around the network F_theta.

    (3)   D_theta(x; sigma) = c_skip(sigma) x + c_out(sigma) F_theta(c_in(sigma) x; c_noise(sigma))

    (10)  c_skip  = 1 / (sigma^2 + 1)               (5)  of SD 2.1:  1
    (11)  c_out   = -sigma / sqrt(sigma^2 + 1)      (6)              -sigma
    (12)  c_in    = 1 / sqrt(sigma^2 + 1)           (7)              1 / sqrt(sigma^2 + 1)
    (13)  c_noise = ln(sigma) / 4                   (8)              argmin_j |sigma - sigma_j|

With (10)-(13) the input of F has unit variance for data of unit variance, and so has its target,
v = (n - sigma x0) / sqrt(sigma^2 + 1). c_noise goes into the network as it is (-1.55 .. 1.64 for 0.002 .. 700).

Conditioning that is concatenated to the channels is not multiplied by c_in: F sees [c_in x, concat].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from model.conditioning.conditioning import Conditioning
from model.diffusion.noise import per_video


@dataclass(frozen=True)
class EDMPreconditioning:
    """Equations (10)-(13): what every model of the paper after the first thousand steps uses. Sigma of any shape."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        """(10)"""
        return 1 / (sigma**2 + 1)

    def c_out(self, sigma: Tensor) -> Tensor:
        """(11)"""
        return -sigma / (sigma**2 + 1).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """(12)"""
        return 1 / (sigma**2 + 1).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(13)"""
        return sigma.log() / 4


@dataclass(frozen=True)
class EpsPreconditioning:
    """Equations (5)-(8): SD 2.1 as it was trained, with the 1000 noise levels of its scaled-linear schedule.

    Use it to run, or to start from, an image model that has not seen the continuous noise schedule yet.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    levels: int = 1000

    def sigmas(self) -> Tensor:
        """The discrete noise levels sigma_j, increasing, float64 (levels,)."""
        roots = torch.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.levels, dtype=torch.float64)
        alphas_cumprod = (1 - roots**2).cumprod(0)
        return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    def c_skip(self, sigma: Tensor) -> Tensor:
        """(5)"""
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        """(6)"""
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        """(7)"""
        return 1 / (sigma**2 + 1).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """(8)"""
        levels = self.sigmas().to(sigma.device)
        return (sigma.double()[..., None] - levels).abs().argmin(-1).to(sigma)


Preconditioning = EDMPreconditioning | EpsPreconditioning

Kind = Literal["scale", "function"]
"""Of a learned c_in."""


class LearnedInputScale(nn.Module):
    """An option the paper does not have: c_in is learned, as a factor on the published one.

        c_in(sigma) = exp(g(sigma)) / sqrt(sigma^2 + 1)

    `scale`: g is one number. `function`: g is a small perceptron of c_noise(sigma), squashed by tanh so that the factor
    stays within [1/e, e]. In both, g = 0 at the start (the published c_in, exactly), and the logarithm keeps the factor
    positive. c_skip and c_out stay as they are, so the target of the network is unchanged.
    """

    def __init__(self, kind: Kind = "scale", width: int = 16) -> None:
        super().__init__()
        if kind not in ("scale", "function"):
            raise ValueError(f"learned c_in of kind {kind!r}: 'scale' or 'function'")
        self.kind, self.width = kind, width
        if kind == "scale":
            self.log_scale = nn.Parameter(torch.zeros(()))
        else:
            self.hidden = nn.Linear(1, width)
            self.out = nn.Linear(width, 1)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, sigma: Tensor) -> Tensor:
        """The factor on the published c_in; sigma of any shape, the same shape back."""
        if self.kind == "scale":
            return self.log_scale.to(sigma).exp().expand(sigma.shape)
        c_noise = (sigma.log() / 4).to(self.out.weight)[..., None]
        return self.out(nn.functional.silu(self.hidden(c_noise))).tanh().exp()[..., 0].to(sigma)


def fold_input_scale(conv_in: nn.Conv2d, scale: LearnedInputScale, noisy_channels: int) -> None:
    """Multiply a learned constant c_in factor into the first convolution, so that software without the option (the
    diffusers pipeline) computes the same. Only the noisy channels are scaled; concatenated conditioning is not.

    Raises:
        ValueError: the factor depends on sigma, so no weight can hold it.
    """
    if scale.kind != "scale":
        raise ValueError("a learned c_in that is a function of sigma cannot be folded into the weights")
    with torch.no_grad():
        conv_in.weight[:, :noisy_channels] *= scale.log_scale.exp().to(conv_in.weight)
        scale.log_scale.zero_()


class Denoiser(nn.Module):
    """D_theta of equation (3): a network, its preconditioning, and optionally a learned c_in.

    The arithmetic around the network is done in the dtype of `x` (float32 while sampling); the network runs in its own.
    """

    def __init__(
        self,
        network: nn.Module,
        preconditioning: Preconditioning | None = None,
        input_scale: LearnedInputScale | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.preconditioning: Preconditioning = preconditioning or EDMPreconditioning()
        self.input_scale = input_scale

    def network_output(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, *, image_only: Tensor | None = None
    ) -> Tensor:
        """F_theta(c_in x; c_noise), in the dtype of x. x (B, T, C, H, W), sigma (B,), image_only (B, T) bool."""
        sigma = sigma.to(x)
        c_in = self.preconditioning.c_in(sigma)
        if self.input_scale is not None:
            c_in = c_in * self.input_scale(sigma)
        sample = per_video(c_in, x) * x
        if conditioning.concat is not None:
            sample = torch.cat([sample, conditioning.concat.to(sample)], dim=2)
        dtype = network_dtype(self.network)
        time_context = conditioning.time_context
        output: Tensor = self.network(
            sample.to(dtype),
            self.preconditioning.c_noise(sigma),
            conditioning.context.to(x.device, dtype),
            conditioning.vector_ids.to(x.device),
            time_context=None if time_context is None else time_context.to(x.device, dtype),
            image_only=image_only,
        )
        return output.to(x.dtype)

    def forward(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, *, image_only: Tensor | None = None
    ) -> Tensor:
        """The denoised video D_theta(x; sigma, c), same shape and dtype as x (B, T, C, H, W); sigma (B,)."""
        output = self.network_output(x, sigma, conditioning, image_only=image_only)
        sigma = sigma.to(x)
        c_skip, c_out = self.preconditioning.c_skip(sigma), self.preconditioning.c_out(sigma)
        return per_video(c_skip, x) * x + per_video(c_out, x) * output


def network_dtype(network: nn.Module) -> torch.dtype:
    """The dtype a network computes in: that of its first floating-point parameter (float32 if it has none)."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


DenoiseFunction = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), sigma (B,)) -> denoised (B, ...): what a sampler calls."""
