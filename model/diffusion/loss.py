"""The training objective, equation (2), computed as a v-prediction error.

    (2)   E [ lambda(sigma) || D_theta(x0 + n; sigma, c) - x0 ||^2 ],   lambda(sigma) = (1 + sigma^2) / sigma^2

With the preconditioning (10)-(13), lambda c_out^2 = 1, so (2) equals

          E [ || F_theta(c_in x; c_noise) - v ||^2 ],   v = (n - sigma x0) / sqrt(1 + sigma^2)     (n of unit variance)

which never divides by sigma. The weighted form loses everything to cancellation at small sigma in bf16; `weighted`
computes it anyway, for the test that the two are equal and for reading.
"""

from dataclasses import dataclass

from torch import Tensor

from model.conditioning.conditioning import Conditioning
from model.diffusion.noise import add_noise, per_video
from model.diffusion.preconditioning import Denoiser, EDMPreconditioning


def weighting(sigma: Tensor) -> Tensor:
    """lambda(sigma) = (1 + sigma^2) / sigma^2. Any shape."""
    return (1 + sigma**2) / sigma**2


def v_target(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """v = (n - sigma x0) / sqrt(1 + sigma^2); x0 and unit-variance noise (B, T, C, H, W), sigma (B,)."""
    s = per_video(sigma, x0)
    return (noise - s * x0) / (1 + s**2).sqrt()


@dataclass(frozen=True)
class DiffusionLoss:
    """The loss of each video of a batch. `weighted=True` evaluates equation (2) as printed; the value is the same."""

    weighted: bool = False

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        *,
        image_only: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error over frames, channels and pixels of each video: (B,).

        x0 and noise: latents and unit-variance noise (B, T, C, H, W); sigma (B,); image_only (B, T) bool.

        Raises:
            ValueError: the denoiser is not preconditioned by (10)-(13), for which the v form holds.
        """
        if not isinstance(denoiser.preconditioning, EDMPreconditioning):
            raise ValueError("the loss is the v-prediction error of EDMPreconditioning: equations (10)-(13)")
        x = add_noise(x0, noise, sigma)
        if self.weighted:
            error = (denoiser(x, sigma, conditioning, image_only=image_only) - x0) ** 2
            return weighting(sigma.to(x0)) * error.flatten(1).mean(1)
        output = denoiser.network_output(x, sigma, conditioning, image_only=image_only)
        return ((output - v_target(x0, noise, sigma)) ** 2).flatten(1).mean(1)
