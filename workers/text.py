"""The actor that finds text in the frames that travel with a segment."""

import pyarrow as pa

from curation.registry import Choice, load
from curation.text_stage import TextStage
from workers.segments import score_segments


class TextActor:
    """Segment messages in, the same with `text_area` and `watermark` and without the frames out; others pass."""

    def __init__(self, detector: Choice, batch: int, device: str = "cpu", threads: int = 1) -> None:
        self._stage = TextStage(load(detector, device=device, threads=threads), batch=batch)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The messages of a block."""
        return score_segments(batch, self._stage, "text_s", key_frames=False, small_frames=False)
