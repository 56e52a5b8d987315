"""From loaded samples to what the loss takes: latents, noise, noise level, conditioning, all keyed by sample ordinal.

The frozen networks run here, on the training device, without gradients. Every random number of a sample comes from its
own streams (data/randomness.py), so a sample is trained on the same way wherever and whenever it comes up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.conditioning.conditioning import Conditioning, drop
from model.conditioning.motion import DEFAULT, MotionBuckets
from model.data.latents import posterior
from model.data.randomness import Purpose, Streams
from model.data.sample import TrainingSample
from model.diffusion.noise import LogNormal
from model.tasks import image_to_video, interpolation, text_to_video
from model.tasks.video_model import VideoModel
from model.training.config import StageConfig


@dataclass
class EncodedBatch:
    """B samples ready for the loss."""

    x0: Tensor  # (B, T, C, h, w), scaled latents
    noise: Tensor  # the same shape, unit variance
    sigma: Tensor  # (B,)
    conditioning: Conditioning
    image_only: Tensor | None  # (B, T) bool


class Encoder:
    """`encoder(samples)` -> EncodedBatch."""

    def __init__(
        self, model: VideoModel, stage: StageConfig, streams: Streams, device: torch.device, *, chunk: int = 16
    ) -> None:
        self.model, self.stage, self.streams, self.device = model, stage, streams, device
        self._chunk = chunk
        self._motion: MotionBuckets = model.description.motion or DEFAULT
        self._sigma = LogNormal(stage.p_mean, stage.p_std)
        self._augmentation = LogNormal(stage.augmentation_mean, stage.augmentation_std)
        for part in (model.autoencoder, model.image_encoder, model.text_encoder):
            if isinstance(part, torch.nn.Module):
                part.to(device)

    def __call__(self, samples: Sequence[TrainingSample]) -> EncodedBatch:
        """Encode B samples of one shape."""
        with torch.no_grad():
            x0 = self._latents(samples)
            noise = torch.stack([self._normal(Purpose.NOISE, s, x0.shape[1:]) for s in samples]).to(x0)
            z = torch.stack([self._normal(Purpose.SIGMA, s, ()) for s in samples])
            sigma = self._sigma.from_normal(z).to(self.device)
        image = x0.shape[1] == 1
        conditioning = self._conditioning(samples, x0.shape[1], image)
        image_only = torch.ones(x0.shape[:2], dtype=torch.bool, device=self.device) if image else None
        return EncodedBatch(x0, noise, sigma, self._dropped(conditioning, samples), image_only)

    def _latents(self, samples: Sequence[TrainingSample]) -> Tensor:
        """Scaled latents, drawn from each sample's posterior."""
        if samples[0].mean is not None:
            mean = torch.stack([torch.from_numpy(s.mean) for s in samples]).to(self.device)
            std = torch.stack([torch.from_numpy(s.std) for s in samples]).to(self.device)
        else:
            frames = torch.stack([_signed(s.frames) for s in samples]).to(self.device)
            parts = posterior(self.model.autoencoder, frames.flatten(0, 1), chunk=self._chunk)
            mean, logvar = (p.unflatten(0, frames.shape[:2]) for p in parts)
            std = (0.5 * logvar).exp()
        drawn = torch.stack([self._normal(Purpose.POSTERIOR, s, mean.shape[1:]) for s in samples]).to(mean)
        return (mean + std * drawn) * self.model.autoencoder.scaling_factor

    def _conditioning(self, samples: Sequence[TrainingSample], frames: int, image: bool) -> Conditioning:
        task, model = self.stage.task, self.model
        fps = torch.tensor([1.0 if image else s.fps for s in samples])
        bucket = torch.tensor(
            [0.0 if image or not np.isfinite(s.motion) else self._motion.bucket(s.motion) for s in samples]
        )
        if task == "text_to_video":
            assert model.text_encoder is not None
            with torch.no_grad():
                tokens = model.text_encoder([s.caption for s in samples]).float()
            return text_to_video.conditioning(tokens, fps=fps, motion_bucket=bucket)
        assert model.image_encoder is not None
        z = torch.stack([self._normal(Purpose.AUGMENTATION, s, ()) for s in samples])
        strength = self._augmentation.from_normal(z)
        ends = torch.stack([_ends(s) for s in samples]).to(self.device)  # (B, 2, 3, H, W)
        with torch.no_grad():
            if task == "interpolation":
                assert model.mask_embedding is not None
                both = ends.flatten(0, 1)
                tokens = model.image_encoder(both).float().unflatten(0, ends.shape[:2])
                latents = model.autoencoder.encode(both).float().unflatten(0, ends.shape[:2])
                noise = torch.stack([self._normal(Purpose.FIRST_FRAME, s, latents.shape[1:]) for s in samples])
                latents = interpolation.augment_latents(
                    latents, strength.to(latents), noise, model.autoencoder.scaling_factor
                )
            else:
                first = ends[:, 0]
                tokens = model.image_encoder(first).float()
                noise = torch.stack([self._normal(Purpose.FIRST_FRAME, s, first.shape[1:]) for s in samples])
                latents = model.autoencoder.encode(image_to_video.augment(first, strength, noise)).float()
        if task == "interpolation":  # outside no_grad: the mask embedding is learned
            assert model.mask_embedding is not None
            return interpolation.conditioning(
                model.mask_embedding, tokens, latents, frames, fps=fps, motion_bucket=bucket, augmentation=strength
            )
        elevation = torch.tensor([s.elevation_deg for s in samples]) if task == "orbit" else None
        return image_to_video.conditioning(
            tokens, latents, frames, fps=fps, motion_bucket=bucket, augmentation=strength, elevation=elevation
        )

    def _dropped(self, conditioning: Conditioning, samples: Sequence[TrainingSample]) -> Conditioning:
        """Leave out tokens and conditioning latents at random, each on its own, for guidance."""
        draws = np.array([self.streams.draws(Purpose.DROPOUT, s.ordinal).random(2) for s in samples])
        context = torch.from_numpy(draws[:, 0] < self.stage.drop_context)
        concat = torch.from_numpy(draws[:, 1] < self.stage.drop_concat)
        return drop(conditioning, context=context, concat=concat if conditioning.concat is not None else None)

    def _normal(self, purpose: Purpose, sample: TrainingSample, shape: Sequence[int]) -> Tensor:
        draws = self.streams.draws(purpose, sample.ordinal).standard_normal(tuple(shape), dtype=np.float32)
        return torch.as_tensor(draws)


def _signed(frames: np.ndarray | None) -> Tensor:
    """RGB uint8 (T, H, W, 3) -> float32 (T, 3, H, W) on [-1, 1]."""
    assert frames is not None
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def _ends(sample: TrainingSample) -> Tensor:
    """First and last frame, (2, 3, H, W) on [-1, 1]."""
    if sample.ends is not None:
        return _signed(sample.ends)
    assert sample.frames is not None
    return _signed(sample.frames[[0, -1]])
