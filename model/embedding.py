"""How scalars enter the network: sinusoids, and the two-layer perceptron behind each of them.

Noise level, frame rate, motion, augmentation strength, elevation and the frame index all go this way (SVD appendix D;
Video LDM section 3.1 for the frame index).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PERIOD = 10_000.0


def sinusoid(values: Tensor, dim: int) -> Tensor:
    """Embed scalars as `[cos(v w_i), sin(v w_i)]` with `w_i = 10000^(-i / (dim/2))`.

    Args:
        values: any shape; the values are used as they are (`c_noise = ln(sigma)/4` is *not* scaled by 1000).
        dim: even width of the embedding.
    Returns:
        float32 tensor of shape `(*values.shape, dim)`.
    """
    half = dim // 2
    exponent = -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=values.device)
    angle = values.to(torch.float32).unsqueeze(-1) * torch.exp(exponent / half)
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


class EmbeddingMLP(nn.Module):
    """`linear_2(SiLU(linear_1(x)))`: behind every sinusoid."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, hidden_dim)
        self.linear_2 = nn.Linear(hidden_dim, out_dim or hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_dim)` to `(..., out_dim)`."""
        return self.linear_2(F.silu(self.linear_1(x)))
