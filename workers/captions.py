"""The actor that writes captions and merges them."""

from collections.abc import Mapping

import pyarrow as pa

from curation.model_stages import CaptionStage
from curation.registry import Choice, load
from workers.segments import score_segments
from workers.threads import limit_threads


class CaptionActor:
    """Segment messages in, the same with captions out; others pass."""

    def __init__(self, models: Mapping[str, Choice], key_frames: bool, device: str = "cpu", threads: int = 1) -> None:
        """`models`: choices for any of the roles spatial, temporal, merge, by these names. `key_frames`: a later stage
        needs them."""
        limit_threads(threads)
        loaded = {role: load(choice, device=device) for role, choice in models.items()}
        self._stage = CaptionStage(**loaded, threads=threads)
        self._key_frames = key_frames

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The messages of a block."""
        return score_segments(batch, self._stage, "captions_s", key_frames=self._key_frames, small_frames=False)
