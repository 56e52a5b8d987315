"""The text stage: text area and watermark of every clip, from the text boxes of its first, middle and last frame."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from curation.batching import Batches
from curation.segment import FinishedClip
from curation.stages import per_clip
from curation.text_area import Polygon, union_ratio
from curation.watermark import watermark_columns


class TextDetector(Protocol):
    """What finds text: see `curation.text_area`."""

    name: str

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[list[Polygon]]:
        """Text boxes of each frame. Raises CannotScore."""


class TextStage:
    """Fills `text_area` and `watermark` in."""

    def __init__(self, detector: TextDetector, *, batch: int = 12) -> None:
        """`batch`: frames per call of the detector; frames of several clips go together."""
        self._detector = detector
        self._batches = Batches(batch, detector.name)
        self.models = {"text_area": detector.name, "watermark": detector.name}

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in the columns of every clip."""
        for index, boxes in per_clip(lambda frames: self._batches.map(self._detector.detect, frames), clips).items():
            row, frames = clips[index].row, clips[index].frames
            row |= {f"{column}_model": model for column, model in self.models.items()}
            if isinstance(boxes, str):
                row |= {f"{column}_error": boxes for column in self.models}
            else:
                areas = [union_ratio(found, *frame.shape[:2]) for found, frame in zip(boxes, frames, strict=True)]
                row["text_area"] = [float(area) for area in areas]
                row |= watermark_columns(frames, boxes)
