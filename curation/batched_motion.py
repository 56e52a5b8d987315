"""Motion scores by a flow network: pairs of many clips in one batch, frames reduced and fields averaged on the device.

The aggregation is that of `curation.motion`, so that every flow gives a score in the same unit. A stage object has

    name                    recorded with the column
    frame_short_side_px     decode frames at this size or larger (at 2 fps)
    score(frames, times_s) -> MotionScore                       raises CannotScore
    score_many([(frames, times_s), ...]) -> [MotionScore | CannotScore, ...]     one per clip, in order

Only the reduced fields (16 px on the shortest side) come back from the device.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from curation.batching import Batches
from curation.errors import CannotScore
from curation.motion import FIELD_SHORT_SIDE_PX, MotionScore, check_frames, scaled_size, score_fields

Clip = tuple[NDArray[np.uint8], NDArray[np.floating[Any]]]
"""Frames (N, H, W, 3) RGB or (N, H, W) grey, and their times in seconds (N,)."""


class BatchedMotion:
    """The part that all flow networks share. A subclass gives `_size` and `_flow`.

    Args:
        max_pairs: a longer clip is scored on so many pairs, spread evenly over it; None for all.
    """

    name: str
    frame_short_side_px: int

    def __init__(self, *, device: str, batch: int, max_pairs: int | None = None) -> None:
        self._device = torch.device(device)
        self._max_pairs = max_pairs
        self._batches = Batches(batch, self.name)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which flow is computed for frames of this size."""
        raise NotImplementedError

    def _flow(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """(B, 2, h, w) flow in px between (B, 3, h, w) RGB frames in [0, 255]."""
        raise NotImplementedError

    def score(self, frames: NDArray[np.uint8], times_s: NDArray[np.floating[Any]]) -> MotionScore:
        """Score one clip. Raises CannotScore, see `curation.motion.check_frames`."""
        (result,) = self.score_many([(frames, times_s)])
        if isinstance(result, CannotScore):
            raise result
        return result

    def score_many(self, clips: Sequence[Clip]) -> list[MotionScore | CannotScore]:
        """Score clips together; one that cannot be scored is its CannotScore and does not touch the others."""
        results: list[MotionScore | CannotScore | None] = [None] * len(clips)
        gaps: dict[int, NDArray[np.float64]] = {}
        chosen: dict[int, list[int]] = {}
        by_size: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for index, (frames, times_s) in enumerate(clips):
            try:
                gaps[index] = check_frames(frames, times_s)
            except CannotScore as error:
                results[index] = error
                continue
            pairs = by_size.setdefault(frames.shape[1:], [])
            chosen[index] = _spread(len(frames) - 1, self._max_pairs)
            pairs.extend((index, k) for k in chosen[index])
        fields: dict[tuple[int, int], tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        for pairs in by_size.values():
            reduced = self._batches.map(lambda batch: self._reduced_flow(clips, batch), pairs)
            fields.update(zip(pairs, reduced, strict=True))
        for index, gap in gaps.items():
            mine = [fields[index, k] for k in chosen[index]]
            flows, confidence = (np.stack([m[part] for m in mine]) for part in (0, 1))
            try:
                results[index] = score_fields(flows, gap[chosen[index]], confidence)
            except CannotScore as error:
                results[index] = error
        return [result for result in results if result is not None]

    def _reduced_flow(
        self, clips: Sequence[Clip], pairs: Sequence[tuple[int, int]]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        with torch.inference_mode():
            before = self._frames([clips[index][0][k] for index, k in pairs])
            after = self._frames([clips[index][0][k + 1] for index, k in pairs])
            flow = self._flow(before, after).float()
            height, width = before.shape[2:]
            columns, rows = scaled_size(height, width, FIELD_SHORT_SIDE_PX)
            scale = FIELD_SHORT_SIDE_PX / min(height, width)
            field = F.adaptive_avg_pool2d(flow, (rows, columns)) * scale
            confidence = _texture(before, (rows, columns))
        fields = field.permute(0, 2, 3, 1).cpu().numpy()
        return list(zip(fields, confidence.cpu().numpy(), strict=True))

    def _frames(self, frames: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """(B, 3, h, w) float in [0, 255] on the device, at the size of the network."""
        stacked = torch.from_numpy(np.stack(frames)).to(self._device, non_blocking=True)
        if stacked.ndim == 3:
            stacked = stacked[..., None].expand(-1, -1, -1, 3)
        pictures = stacked.permute(0, 3, 1, 2).float()
        size = self._size(pictures.shape[2], pictures.shape[3])
        if tuple(pictures.shape[2:]) != size:
            pictures = F.interpolate(pictures, size=size, mode="bilinear", antialias=True, align_corners=False)
        return pictures


def _spread(count: int, most: int | None) -> list[int]:
    """Numbers from 0 to count - 1: all, or `most` of them at even distances."""
    if most is None or count <= most:
        return list(range(count))
    return [(2 * k + 1) * count // (2 * most) for k in range(most)]


def _texture(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`curation.motion.texture` of each frame, (B, h, w): how far the flow of a cell can be trusted."""
    grey = (pictures * pictures.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]).sum(1, keepdim=True)
    scharr = pictures.new_tensor([[-3.0, 0.0, 3.0], [-10.0, 0.0, 10.0], [-3.0, 0.0, 3.0]]) / 32
    kernels = torch.stack([scharr, scharr.T])[:, None]
    gradient = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="reflect"), kernels)
    energy = F.adaptive_avg_pool2d((gradient**2).sum(1, keepdim=True), size)[:, 0]
    return energy / (energy + 16)
