"""Micro-conditioning: the scalars the network sees as sinusoids, in the order the released weights expect.

    fps - 1, motion bucket, augmentation strength [, elevation in degrees]

Frame rate is given to the network as fps - 1 (generative-models' `fps_id`; diffusers subtracts it too). Text-to-video
keeps the third place with augmentation 0, so that image-to-video can start from its weights.
"""

from typing import TypeAlias

import torch
from torch import Tensor

Scalars: TypeAlias = float | Tensor
"""One number for the whole batch, or one per video (B,)."""


def vector_ids(
    batch: int,
    *,
    fps: Scalars,
    motion_bucket: Scalars,
    augmentation: Scalars = 0.0,
    elevation: Scalars | None = None,
) -> Tensor:
    """The raw scalars of a batch, float32 (batch, 3), or (batch, 4) with an elevation. Each is a number or (batch,).

    Raises:
        ValueError: fps below 1 or a motion bucket outside 0..255.
    """
    columns = [fps, motion_bucket, augmentation] + ([] if elevation is None else [elevation])
    values = torch.stack([torch.as_tensor(column, dtype=torch.float32).expand(batch) for column in columns], dim=1)
    if (values[:, 0] < 1).any():
        raise ValueError(f"fps {values[:, 0].min():g}: at least 1 is needed")
    if ((values[:, 1] < 0) | (values[:, 1] > 255)).any():
        raise ValueError("motion bucket: 0 to 255")
    values[:, 0] -= 1
    return values
