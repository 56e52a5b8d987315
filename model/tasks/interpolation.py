"""Frame interpolation (paper section 4.4, App. D.5): three new frames between two, and a whole clip at 4x its rate.

The UNet reads 2C + 1 channels: noisy latent, known-or-masked latent, mask (9 for the KL autoencoder). Both known frames
get noise in *latent* space, here in units in which latents have unit variance. Cross-attention reads two tokens, the
CLIP embeddings of start and end.
"""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from model.conditioning.conditioning import Conditioning
from model.conditioning.vector import Scalars, vector_ids
from model.tasks.description import ModelDirectoryError
from model.tasks.interpolation_mask import MaskEmbedding, ends_given
from model.tasks.sampling import (
    Progress,
    SamplingOptions,
    check_frames,
    check_size,
    explain_out_of_memory,
)
from model.tasks.video_model import VideoModel


def conditioning(
    mask_embedding: MaskEmbedding,
    tokens: Tensor,
    ends: Tensor,
    num_frames: int,
    *,
    fps: Scalars,
    motion_bucket: Scalars,
    augmentation: Scalars,
) -> Conditioning:
    """The same for training and sampling.

    Args:
        tokens: CLIP embeddings of start and end (B, 2, D).
        ends: their latents, unscaled, with noise already added (B, 2, C, h, w).
        augmentation: sigma_aug of that noise.
    """
    known = ends.new_zeros(len(ends), num_frames, *ends.shape[2:])
    known[:, 0], known[:, -1] = ends[:, 0], ends[:, 1]
    ids = vector_ids(len(ends), fps=fps, motion_bucket=motion_bucket, augmentation=augmentation)
    return Conditioning(
        context=tokens, vector_ids=ids.to(tokens.device), concat=mask_embedding(known, ends_given(num_frames))
    )


def augment_latents(latents: Tensor, strength: Scalars, noise: Tensor, scaling_factor: float) -> Tensor:
    """Noise of sigma_aug on unscaled latents (B, ...), in units in which the scaled latents have unit variance."""
    sigma = torch.as_tensor(strength, dtype=latents.dtype, device=latents.device) / scaling_factor
    return latents + sigma.reshape(-1, *[1] * (latents.ndim - 1)) * noise.to(latents)


class Interpolation:
    """`Interpolation(model)(start, end)` -> frames (B, 5, 3, H, W) on [-1, 1]; `.upsample(clip)` for a whole clip.

    Raises:
        ModelDirectoryError: the model is not for this task.
    """

    def __init__(self, model: VideoModel) -> None:
        model.require("interpolation")
        if model.mask_embedding is None:
            raise ModelDirectoryError("interpolation needs mask_embedding/model.safetensors; this model has none")
        self.model = model
        self.mask_embedding = model.mask_embedding

    def __call__(
        self,
        start: Tensor,
        end: Tensor,
        *,
        frames: int | None = None,
        fps: float | None = None,
        motion_bucket: float = 127,
        augmentation: float | None = None,
        options: SamplingOptions | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample the frames from start to end, both included (as the model redraws them).

        Args:
            start, end: (B, 3, H, W) on [-1, 1].
            fps: frame rate of the result, not of the two frames.

        Raises:
            ValueError: sizes or frame counts that cannot be.
            SamplingError: out of memory, or the network produced NaN.
        """
        model, given = self.model, self.model.description
        if start.shape != end.shape:
            raise ValueError(f"start {tuple(start.shape)} and end {tuple(end.shape)} differ in shape")
        options = options or model.options()
        frames = given.frames if frames is None else frames
        strength = given.augmentation if augmentation is None else augmentation
        check_frames(frames, given.frames)
        height, width = start.shape[-2:]
        check_size(width, height, model.size_multiple)
        generator = options.generator()
        images = torch.stack([start, end], dim=1)
        with explain_out_of_memory(options, dtype=model.dtype), torch.no_grad():
            ends = model.encode_images(images.flatten(0, 1), options).unflatten(0, images.shape[:2])
            latent_noise = torch.randn(ends.shape, generator=generator)
            self.mask_embedding.to(model.device)
            cond = conditioning(
                self.mask_embedding,
                model.image_tokens(images.flatten(0, 1), options).unflatten(0, images.shape[:2]),
                augment_latents(ends, strength, latent_noise, model.autoencoder.scaling_factor),
                frames,
                fps=given.fps if fps is None else fps,
                motion_bucket=motion_bucket,
                augmentation=strength,
            )
            latents = model.sample_latents(
                cond,
                len(start),
                frames,
                (width, height),
                options,
                generator=generator,
                noise=noise,
                progress=progress,
            )
        return model.decode(latents, options)

    def upsample(
        self,
        clip: Iterable[Tensor],
        *,
        fps: float,
        motion_bucket: float = 127,
        augmentation: float | None = None,
        options: SamplingOptions | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Tensor]:
        """A clip at `fps` -> n (T-1) + 1 frames at n times the rate, one by one; n = frames - 1, 4 as published.

        The given frames are kept as they are; the model's new frames go between them. Pairs are sampled one by one with
        the same seed, so neighbouring gaps start from the same noise. Two given frames are in memory at a time.

        Args:
            clip: frames (3, H, W) on [-1, 1]: a tensor (T, 3, H, W), or what reads a film.

        Raises:
            ValueError: fewer than two frames.
        """
        rate = self.model.description.frames - 1
        pairs = 0
        for start, end in itertools.pairwise(clip):
            between = self(
                start[None],
                end[None],
                fps=fps * rate,
                motion_bucket=motion_bucket,
                augmentation=augmentation,
                options=options,
                progress=progress,
            )
            if pairs == 0:
                yield start
            yield from between[0, 1:-1].to(start)
            yield end
            pairs += 1
        if pairs == 0:
            raise ValueError("a clip of fewer than 2 frames: there is nothing to interpolate between")
