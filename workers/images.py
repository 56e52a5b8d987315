"""The actor whose models look at a clip's first, middle and last frame."""

from collections.abc import Collection, Mapping

import pyarrow as pa

from curation.model_stages import ImageStage
from curation.registry import Choice, load
from workers.segments import score_segments
from workers.threads import limit_threads


class ImageActor:
    """Segment messages in, the same with embeddings, similarity, aesthetic and NSFW scores out; others pass."""

    def __init__(
        self,
        models: Mapping[str, Choice],
        captions: Collection[str],
        key_frames: bool,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        """`models`: choices for any of the roles similarity, aesthetic, nsfw. `captions`: the kinds that `CaptionActor`
        has written. `key_frames`: a later stage needs them."""
        limit_threads(threads)
        loaded = {role: load(choice, device=device) for role, choice in models.items()}
        self._stage = ImageStage(**loaded, captions=captions)
        self._key_frames = key_frames

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The messages of a block."""
        return score_segments(batch, self._stage, "images_s", key_frames=self._key_frames, small_frames=False)
