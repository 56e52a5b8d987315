"""Motion score by RAFT at 800x450 on pairs 0.5 s apart (Stable Video Diffusion, App. C: the last stage's motion score).

torchvision's RAFT (Teed and Deng 2020), large or small, with its published weights or a local file in the same layout.
The aggregation is that of the coarse score. Stage contract: see `curation.batched_motion`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from curation.batched_motion import BatchedMotion
from curation.compat import ensure_torchvision
from curation.weights import WeightsUnavailable, read_state

PIXELS = 800 * 450
_STRIDE = 8  # RAFT matches at an eighth of its input
_MIN_SIDE_PX = 128  # its coarsest correlation level needs 2 px


class RaftMotion(BatchedMotion):
    """RAFT motion score.

    Args:
        weights: one file with torchvision's state dict.
        size: `large` or `small`.
        updates: refinement steps (torchvision's default).
        name: recorded with the column.
        batch: pairs per call; about 0.3 GB of GPU memory each for the large model.
    """

    frame_short_side_px = 450

    def __init__(
        self,
        *,
        weights: Sequence[Path],
        size: Literal["large", "small"] = "large",
        device: str = "cpu",
        batch: int = 8,
        updates: int = 12,
        name: str | None = None,
    ) -> None:
        ensure_torchvision()
        from torchvision.models import optical_flow

        self.name = name or f"raft_{size}"
        super().__init__(device=device, batch=batch)
        make = optical_flow.raft_large if size == "large" else optical_flow.raft_small
        network = make(weights=None)
        state = read_state(weights[0])
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise WeightsUnavailable(
                f"{weights[0]} does not hold the weights of torchvision's raft_{size}: {first}"
            ) from error
        self._network = network.eval().to(self._device)
        self._updates = updates

    def _size(self, height: int, width: int) -> tuple[int, int]:
        # 800x450 for 16:9; the same number of pixels for other shapes, so that the aspect is kept.
        scale = math.sqrt(PIXELS / (height * width))
        scale = max(scale, _MIN_SIDE_PX / min(height, width))
        return round(height * scale), round(width * scale)

    def _flow(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        height, width = before.shape[2:]
        margin = (0, -width % _STRIDE, 0, -height % _STRIDE)
        pair = [F.pad(frame / 127.5 - 1, margin, mode="replicate") for frame in (before, after)]
        half = self._device.type == "cuda"
        # The coordinates that RAFT adds its updates to stay in fp32: bf16 would round them to whole pixels.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            flow = self._network(*pair, num_flow_updates=self._updates)[-1]
        return flow[..., :height, :width]
