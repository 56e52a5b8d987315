"""What frame interpolation puts beside the noisy latents (App. D.5): known latents, a learned mask, and which is which.

z = {z_s, z_m, ..., z_m, z_e}     one latent a frame: start, learned mask embedding for unknown frames, end
m = {1, 0, ..., 0, 1}             one channel: 1 where the latent is given
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MaskEmbedding(nn.Module):
    """The learned z_m, (C, h, w): it stands where a frame is unknown. Other latent sizes get it resized bilinearly."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.z_m = nn.Parameter(torch.zeros(channels, height, width))

    def forward(self, known: Tensor, given: Tensor) -> Tensor:
        """Concatenated conditioning of B videos: (B, T, C + 1, h, w).

        Args:
            known: latents (B, T, C, h, w); what stands at unknown frames is ignored.
            given: (T,) or (B, T) bool, True where the latent is known.
        """
        b, t, _, h, w = known.shape
        z_m = self.z_m[None]
        if z_m.shape[-2:] != (h, w):
            z_m = F.interpolate(z_m, size=(h, w), mode="bilinear", align_corners=False)
        mask = given.to(known.device).expand(b, t)[:, :, None, None, None]
        latents = torch.where(mask, known, z_m.to(known)[:, None])
        return torch.cat([latents, mask.to(known).expand(b, t, 1, h, w)], dim=2)


def ends_given(num_frames: int) -> Tensor:
    """(num_frames,) bool: the first and the last frame are known."""
    given = torch.zeros(num_frames, dtype=torch.bool)
    given[[0, -1]] = True
    return given
