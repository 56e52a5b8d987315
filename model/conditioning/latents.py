"""Frames to latents and back, whatever the autoencoder: SD 2.1's KL autoencoder, SVD's with temporal decoder, or Haar.

Two conventions of the published models, easy to get wrong:
- the latents that are diffused are multiplied by `scaling_factor` (0.18215), sampled from the posterior in training;
- the latents of a conditioning frame are the *mode* of the posterior and are *not* multiplied by it.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Autoencoder(Protocol):
    """First stage. `factor` is H / h, `channels` the number of latent channels, `kind` the name in clipmill.json."""

    kind: str
    factor: int
    channels: int
    scaling_factor: float

    def encode(self, frames: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Frames (N, 3, H, W) on [-1, 1] -> unscaled latents (N, C, h, w): the posterior's mode, or a sample of it."""
        ...

    def decode(self, latents: Tensor, *, num_frames: int = 1) -> Tensor:
        """Unscaled latents (N, C, h, w) -> frames (N, 3, H, W); N is a multiple of num_frames consecutive frames."""
        ...


class KLAutoencoder(nn.Module):
    """diffusers' AutoencoderKL (`kind` kl) or AutoencoderKLTemporalDecoder (kl-temporal)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.temporal = type(model).__name__ == "AutoencoderKLTemporalDecoder"
        self.kind = "kl-temporal" if self.temporal else "kl"
        self.factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        self.channels = int(self.model.config.latent_channels)
        self.scaling_factor = float(self.model.config.scaling_factor)

    @torch.no_grad()
    def encode(self, frames: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Frames (N, 3, H, W) on [-1, 1] -> unscaled latents (N, C, h, w).

        A float16 autoencoder that asks for it (`force_upcast`) encodes in float32: its activations overflow.
        """
        weight = next(self.model.parameters())
        upcast = weight.dtype == torch.float16 and bool(getattr(self.model.config, "force_upcast", False))
        if upcast:
            self.model.to(torch.float32)
        try:
            dtype = torch.float32 if upcast else weight.dtype
            posterior = self.model.encode(frames.to(weight.device, dtype)).latent_dist
            # Noise is drawn on the CPU so that one seed gives the same latents on every device.
            latents: Tensor = posterior.mode()
            if sample:
                noise = torch.randn(latents.shape, generator=generator).to(latents)
                latents = latents + posterior.std * noise
        finally:
            if upcast:
                self.model.to(torch.float16)
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor, *, num_frames: int = 1) -> Tensor:
        """Unscaled latents (N, C, h, w) -> frames (N, 3, H, W), float32."""
        weight = next(self.model.parameters())
        latents = latents.to(weight.device, weight.dtype)
        if self.temporal:
            frames: Tensor = self.model.decode(latents, num_frames=num_frames).sample
        else:
            frames = self.model.decode(latents).sample
        return frames.float()


def encode_video(
    autoencoder: Autoencoder,
    frames: Tensor,
    *,
    sample: bool = False,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> Tensor:
    """What is diffused: frames (B, T, 3, H, W) on [-1, 1] -> scaled latents (B, T, C, h, w), by `chunk` frames."""
    flat = frames.flatten(0, 1)
    parts = [autoencoder.encode(part, sample=sample, generator=generator) for part in flat.split(chunk or len(flat))]
    return torch.cat(parts).unflatten(0, frames.shape[:2]) * autoencoder.scaling_factor


def encode_condition(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    """A conditioning frame (B, 3, H, W) on [-1, 1] -> the posterior's mode, unscaled, (B, C, h, w)."""
    return autoencoder.encode(image)


def decode_video(autoencoder: Autoencoder, latents: Tensor, *, chunk: int | None = None) -> Tensor:
    """Scaled latents (B, T, C, h, w) -> frames (B, T, 3, H, W) on [-1, 1] (clamped), float32, on the CPU.

    At most `chunk` frames are decoded at a time (None: a whole video), never frames of two videos together: a temporal
    decoder mixes neighbouring frames, so a smaller chunk costs little memory and a little consistency.
    """
    videos = []
    for video in latents:
        parts = (video / autoencoder.scaling_factor).split(chunk or len(video))
        frames = [autoencoder.decode(part, num_frames=len(part)).float().clamp(-1, 1).cpu() for part in parts]
        videos.append(torch.cat(frames))
    return torch.stack(videos)
