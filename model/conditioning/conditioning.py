"""What the network is conditioned on: one small record, made by every task, read by the denoiser and by guidance."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


class ConditioningError(ValueError):
    """The conditioning cannot be used: a wrong shape, or values that are not finite."""


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of B videos of T frames.

    Attributes:
        context: tokens for cross-attention, (B, S, D), or (B, T, S, D) where frames are prompted differently.
        vector_ids: raw scalars (B, K), in the order fps-1, motion bucket, augmentation strength[, elevation].
        concat: channels put beside the noisy latents (not scaled by c_in), (B, T, C', H, W); None for text-to-video.
        time_context: other tokens for the temporal attention only, (B, S', D): temporal prompting.
    """

    context: Tensor
    vector_ids: Tensor
    concat: Tensor | None = None
    time_context: Tensor | None = None

    def null(self) -> "Conditioning":
        """The unconditional side of guidance as published: zero tokens and zero channels; the vector is kept."""
        return replace(
            self,
            context=torch.zeros_like(self.context),
            concat=None if self.concat is None else torch.zeros_like(self.concat),
            time_context=None if self.time_context is None else torch.zeros_like(self.time_context),
        )

    def join(self, other: "Conditioning") -> "Conditioning":
        """Both along the batch: one pass of the network instead of two."""
        joined = {}
        for name in (field.name for field in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if (mine is None) != (theirs is None):
                raise ConditioningError(f"{name} is given on one side only: the two cannot share a batch")
            joined[name] = None if mine is None else torch.cat([mine, theirs])
        return Conditioning(**joined)

    def to(self, device: torch.device | str) -> "Conditioning":
        """The same on another device."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return Conditioning(**{name: None if value is None else value.to(device) for name, value in moved.items()})

    def check(self) -> "Conditioning":
        """Refuse values that would silently turn the whole video into NaN.

        Raises:
            ConditioningError: names the first part that holds NaN or infinity, and how many.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not torch.isfinite(value).all():
                bad = int((~torch.isfinite(value)).sum())
                cause = (
                    "the numbers given: frame rate, motion bucket, augmentation, elevation"
                    if field.name == "vector_ids"
                    else "the input image and the encoder (float16 encoders overflow: use float32 or bfloat16)"
                )
                raise ConditioningError(
                    f"conditioning {field.name}: {bad} of {value.numel()} values are NaN or infinite. Check {cause}"
                )
        return self


def drop(conditioning: Conditioning, *, context: Tensor, concat: Tensor | None = None) -> Conditioning:
    """Training-time dropout for guidance: the masked parts become null, each on its own.

    Args:
        context: (B,) bool, True where the tokens (also those of the temporal attention) are dropped.
        concat: (B,) bool, True where the concatenated channels are dropped; None drops none.
    """

    def masked(value: Tensor | None, mask: Tensor | None) -> Tensor | None:
        if value is None or mask is None:
            return value
        return value.masked_fill(mask.to(value.device).reshape(-1, *[1] * (value.ndim - 1)), 0)

    dropped = masked(conditioning.context, context)
    assert dropped is not None
    return replace(
        conditioning,
        context=dropped,
        concat=masked(conditioning.concat, concat),
        time_context=masked(conditioning.time_context, context),
    )
