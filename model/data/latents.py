"""Precomputed latents as members of shards: the posterior of the frames' latents, and the two frames that condition.

Encoding 14 x 576 x 1024 costs a quarter of a training step, and gives the same posterior every time. A `.latents`
member is a safetensors file: `mean` and `logvar` (T, C, h, w) in bfloat16, `ends` (2, H, W, 3) uint8, the first and
last frame (noise is added to them in every epoch anew, so they are kept as pixels), and `fps`, a float32 scalar. A
sample is drawn from the posterior again in every epoch. Crop and frames are fixed when the latents are made.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.conditioning.latents import Autoencoder
from model.data.buckets import Bucket
from model.data.decode import CannotRead
from model.data.sample import TrainingSample

NO_VARIANCE = -30.0  # logvar of an autoencoder without posterior: a standard deviation of 3e-7


@torch.no_grad()
def posterior(autoencoder: Autoencoder, frames: Tensor, *, chunk: int = 16) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents of frames (N, 3, H, W) on [-1, 1]: twice (N, C, h, w), unscaled, float32."""
    means, logvars = [], []
    for part in frames.split(chunk):
        model = getattr(autoencoder, "model", None)
        if model is None:  # Haar: there is no posterior
            mean = autoencoder.encode(part)
            logvar = torch.full_like(mean, NO_VARIANCE)
        else:
            weight = next(model.parameters())
            found = model.encode(part.to(weight.device, weight.dtype)).latent_dist
            mean, logvar = found.mean, found.logvar
        means.append(mean.float())
        logvars.append(logvar.float())
    return torch.cat(means), torch.cat(logvars)


def pack_latents(mean: Tensor, logvar: Tensor, ends: Tensor, fps: float) -> bytes:
    """The bytes of a `.latents` member. mean, logvar (T, C, h, w); ends (2, H, W, 3) uint8."""
    tensors = {"mean": mean.bfloat16(), "logvar": logvar.bfloat16(), "ends": ends, "fps": torch.tensor(float(fps))}
    return bytes(save({k: v.contiguous().cpu() for k, v in tensors.items()}))


def read_latents(data: bytes, sample: TrainingSample, bucket: Bucket) -> TrainingSample:
    """Fill a sample from a `.latents` member.

    Raises:
        CannotRead: not such a file, or made for another shape.
    """
    try:
        tensors = load(data)
        mean, logvar, ends = tensors["mean"], tensors["logvar"], tensors["ends"]
    except (SafetensorError, KeyError) as error:
        raise CannotRead(f"is not a latents file ({error})") from error
    if len(mean) < bucket.frames or tuple(ends.shape[1:3]) != (bucket.height, bucket.width):
        raise CannotRead(
            f"holds latents of {len(mean)}x{ends.shape[1]}x{ends.shape[2]}; {bucket} is asked: precompute them for it"
        )
    if len(mean) > bucket.frames and bucket.frames > 1:
        raise CannotRead(f"holds {len(mean)} frames, {bucket.frames} are asked: precompute latents for this stage")
    sample.mean = mean[: bucket.frames].float().numpy()
    sample.std = (0.5 * logvar[: bucket.frames].float()).exp().numpy()
    sample.ends, sample.fps = ends.numpy(), max(1.0, float(tensors["fps"]))
    return sample
