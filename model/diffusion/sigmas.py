"""The noise levels a sampler steps through: EDM eq. 5 (Karras et al. 2022), with the released models' range.

sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,   i = 0..N-1,   sigma_N = 0
"""

import torch
from torch import Tensor

SIGMA_MIN = 0.002
SIGMA_MAX = 700.0  # of the released SVD checkpoints; training draws log-normal sigmas whose 99 % quantile is 112
RHO = 7.0


def karras_sigmas(
    steps: int, *, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """Decreasing noise levels, float64, shape (steps + 1,): `steps` levels from sigma_max to sigma_min, then 0.

    Raises:
        ValueError: no steps, or a range that is not 0 < sigma_min < sigma_max.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: at least 1 is needed")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max}: 0 < sigma_min < sigma_max is needed")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])
