"""Image-to-video (paper section 4.3, App. D.4): 14 or 25 frames from one image.

The image enters twice: as one CLIP token for cross-attention, and as a latent beside the noise of every frame. The
latent is the posterior's mode, not scaled, of the image with a little noise in pixels (`augmentation`), whose strength
the network is told.
"""

import torch
from torch import Tensor

from model.conditioning.conditioning import Conditioning
from model.conditioning.vector import Scalars, vector_ids
from model.tasks.sampling import (
    Progress,
    SamplingOptions,
    check_frames,
    check_size,
    explain_out_of_memory,
)
from model.tasks.video_model import VideoModel


def conditioning(
    token: Tensor,
    latent: Tensor,
    num_frames: int,
    *,
    fps: Scalars,
    motion_bucket: Scalars,
    augmentation: Scalars,
    elevation: Scalars | None = None,
) -> Conditioning:
    """The same for training and sampling.

    Args:
        token: CLIP image embedding (B, D).
        latent: mode of the augmented frame's posterior, unscaled (B, C, h, w); copied to every frame.
        augmentation: sigma_aug of the noise in that frame.
        elevation: degrees; only models for orbits have it.
    """
    ids = vector_ids(len(token), fps=fps, motion_bucket=motion_bucket, augmentation=augmentation, elevation=elevation)
    return Conditioning(
        context=token[:, None],
        vector_ids=ids.to(token.device),
        concat=latent[:, None].expand(-1, num_frames, -1, -1, -1),
    )


def augment(images: Tensor, strength: Scalars, noise: Tensor) -> Tensor:
    """Noise on the conditioning frame, in pixels on [-1, 1] (App. D.4). Images, noise (B, 3, H, W), strength (B,)."""
    sigma = torch.as_tensor(strength, dtype=images.dtype, device=images.device)
    return images + sigma.reshape(-1, 1, 1, 1) * noise.to(images)


class ImageToVideo:
    """`ImageToVideo(model)(image)` -> frames (B, T, 3, H, W) on [-1, 1], on the CPU.

    Raises:
        ModelDirectoryError: the model is not for this task.
    """

    task = "image_to_video"

    def __init__(self, model: VideoModel) -> None:
        model.require(self.task)
        self.model = model

    def __call__(
        self,
        images: Tensor,
        *,
        frames: int | None = None,
        fps: float | None = None,
        motion_bucket: float = 127,
        augmentation: float | None = None,
        options: SamplingOptions | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample one video per image.

        Args:
            images: (B, 3, H, W) on [-1, 1], at the size of the video.
            augmentation: sigma of the noise on the conditioning frame; more frees the video from the image.
            noise: unit-variance initial noise (B, T, C, h, w) instead of the seed's.

        Raises:
            ValueError: sizes or frame counts that cannot be.
            ConditioningError: the image or its embedding holds NaN.
            SamplingError: out of memory, or the network produced NaN.
        """
        return self._sample(images, frames, fps, motion_bucket, augmentation, None, options, noise, progress)

    def _sample(
        self,
        images: Tensor,
        frames: int | None,
        fps: float | None,
        motion_bucket: float,
        augmentation: float | None,
        elevation: float | None,
        options: SamplingOptions | None,
        noise: Tensor | None,
        progress: Progress | None,
    ) -> Tensor:
        model, given = self.model, self.model.description
        options = options or model.options()
        frames = given.frames if frames is None else frames
        strength = given.augmentation if augmentation is None else augmentation
        check_frames(frames, given.frames)
        height, width = images.shape[-2:]
        check_size(width, height, model.size_multiple)
        generator = options.generator()
        # Drawn before the initial noise, as diffusers does: the same generator gives both programs the same noise.
        pixel_noise = torch.randn(images.shape, generator=generator)
        with explain_out_of_memory(options, dtype=model.dtype), torch.no_grad():
            cond = conditioning(
                model.image_tokens(images, options),
                model.encode_images(augment(images, strength, pixel_noise), options),
                frames,
                fps=given.fps if fps is None else fps,
                motion_bucket=motion_bucket,
                augmentation=strength,
                elevation=elevation,
            )
            latents = model.sample_latents(
                cond,
                len(images),
                frames,
                (width, height),
                options,
                generator=generator,
                noise=noise,
                progress=progress,
            )
        return model.decode(latents, options)
