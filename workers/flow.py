"""The actor that measures learned optical flow."""

import pyarrow as pa

from curation.model_stages import FlowStage
from curation.registry import Choice, load
from workers.segments import score_segments
from workers.threads import limit_threads


class FlowActor:
    """Segment messages in, the same with `motion_flow` and without the 2 fps frames out; others pass."""

    def __init__(self, flow: Choice, key_frames: bool, device: str = "cpu", threads: int = 1) -> None:
        """`key_frames`: a later stage needs them."""
        limit_threads(threads)
        self._stage = FlowStage(load(flow, device=device), threads=threads)
        self._key_frames = key_frames

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The messages of a block."""
        return score_segments(batch, self._stage, "flow_s", key_frames=self._key_frames, small_frames=False)
