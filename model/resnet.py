"""Convolutional half of the network: the 2-D residual block, the temporal one behind it, and how the two are blended.

Video LDM (arXiv 2304.08818) section 3.1 and figure 4: a temporal layer sees the frames of a clip as a sequence, and its
output is blended with the spatial one by a learned factor; images bypass it. SVD (arXiv 2311.15127) appendix D uses
the same blocks with a (3, 1, 1) kernel.

Layout. Every activation is a stack of frames `(B*T, C, H, W)` in channels-last memory, so that in memory it *is* the
array `(B, T, H, W, C)`. A temporal convolution over (3, 1, 1) is then a 2-D convolution of kernel (3, 1) on the
same memory seen as an image of `T` rows and `H*W` columns: no transposition, and the convolution libraries'
fastest layout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32


def channels_last(x: Tensor) -> Tensor:
    """The same `(N, C, H, W)` tensor, dense in channels-last memory (a copy only if it was not)."""
    return x.contiguous(memory_format=torch.channels_last)


def frames_as_rows(x: Tensor, frames: int) -> Tensor:
    """View `(B*T, C, H, W)` as `(B, C, T, H*W)`: frames become the rows of one image per clip."""
    n, c, h, w = x.shape
    return channels_last(x).permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)


def rows_as_frames(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `frames_as_rows`."""
    b, c, t, _ = x.shape
    return x.permute(0, 2, 3, 1).reshape(b * t, height, width, c).permute(0, 3, 1, 2)


def silu(x: Tensor) -> Tensor:
    """SiLU of a fresh intermediate: overwritten in place while sampling, where no gradient needs it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class TimeMixer(nn.Module):
    """Learned blend of spatial and temporal branch, `a * spatial + (1 - a) * temporal` with `a = sigmoid(mix_factor)`.

    `a` starts at sigmoid(0.5) = 0.62, and is 1 for frames that are single images, which therefore see the pure 2-D
    network (Video LDM equation 2 and section 3.1.1; SVD trains jointly on images this way).
    """

    def __init__(self, mix_factor: float = 0.5) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([mix_factor]))

    def temporal_weight(self, image_only: Tensor | None) -> Tensor:
        """`1 - a`: shape `(1, 1)`, or `(B, T)` when `image_only` (bool, `(B, T)`) is given."""
        weight = torch.sigmoid(-self.mix_factor)[:, None]
        return weight if image_only is None else torch.where(image_only, torch.zeros_like(weight), weight)


class SpatialResBlock(nn.Module):
    """GN-SiLU-conv, plus the embedding, GN-SiLU-conv, plus the skip: the residual block of Stable Diffusion 2.1."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_channels, out_channels)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """`x` (B*T, C_in, H, W), `emb` (B, E) for all frames of a clip -> (B*T, C_out, H, W)."""
        frames = x.shape[0] // emb.shape[0]
        h = self.conv1(silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb)).repeat_interleave(frames, dim=0)[:, :, None, None]
        h = self.conv2(silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class TemporalConv(nn.Conv3d):
    """A (3, 1, 1) convolution, with its 3-D weight, done as the (3, 1) convolution of one image per clip."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H*W) -> (B, C, T, H*W)."""
        return F.conv2d(x, self.weight.squeeze(-1), self.bias, padding=(1, 0))


class TemporalResBlock(nn.Module):
    """The same block along time: convolutions (3, 1, 1), statistics over all frames, zero-initialised last layer.

    Because of the zeros a fresh block is exactly the identity, whatever the blend.
    """

    def __init__(self, channels: int, emb_channels: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, eps=eps)
        self.conv1 = TemporalConv(channels)
        self.time_emb_proj = nn.Linear(emb_channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels, eps=eps)
        self.conv2 = TemporalConv(channels)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def residual(self, x: Tensor, emb: Tensor) -> Tensor:
        """The branch without its skip connection: `x` (B, C, T, H*W), `emb` (B, E) -> (B, C, T, H*W)."""
        h = self.conv1(silu(self.norm1(x)))
        h = h + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        return self.conv2(silu(self.norm2(h)))


class VideoResBlock(nn.Module):
    """Spatial residual block, temporal residual block, and their blend."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int, eps: float) -> None:
        super().__init__()
        self.spatial_res_block = SpatialResBlock(in_channels, out_channels, emb_channels, eps)
        self.temporal_res_block = TemporalResBlock(out_channels, emb_channels, eps)
        self.time_mixer = TimeMixer()

    def forward(self, x: Tensor, emb: Tensor, image_only: Tensor | None = None) -> Tensor:
        """`x` (B*T, C_in, H, W), `emb` (B, E), `image_only` (B, T) bool or None -> (B*T, C_out, H, W)."""
        x = self.spatial_res_block(x, emb)
        height, width = x.shape[-2:]
        rows = frames_as_rows(x, x.shape[0] // emb.shape[0])
        # a x + (1 - a) (x + residual) = x + (1 - a) residual: one pass, and exactly x where a = 1.
        weight = self.time_mixer.temporal_weight(image_only)[:, None, :, None].to(x.dtype)
        return rows_as_frames(torch.addcmul(rows, self.temporal_res_block.residual(rows, emb), weight), height, width)


class Downsample(nn.Module):
    """Halve height and width (never time): 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H/2, W/2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
