"""The text stage: the text area of every clip of a segment, from its first, middle and last frame."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from curation.errors import CannotScore
from curation.segment import FinishedClip, Segment


class TextArea(Protocol):
    """What measures text: see `curation.text_area`."""

    name: str

    def ratio(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Share of each frame under text, (len(frames),). Raises CannotScore."""


class TextStage:
    """Fills `text_area` in, and drops the frames, which nothing needs any longer."""

    def __init__(self, measure: TextArea, *, batch: int = 12) -> None:
        """`batch`: frames per call of the detector; frames of several clips go together."""
        self._measure = measure
        self._batch = batch

    def apply(self, segment: Segment) -> Segment:
        """Score every clip that no gate has stopped, in place."""
        waiting = [clip for clip in segment.clips if clip.row.get("gate") is None]
        for clip in waiting:
            clip.row["text_area_model"] = self._measure.name
            if not clip.frames:
                clip.row["text_area_error"] = "no_frames"
        seen = [clip for clip in waiting if clip.frames]
        frames = [frame for clip in seen for frame in clip.frames]
        try:
            parts = [self._measure.ratio(frames[k : k + self._batch]) for k in range(0, len(frames), self._batch)]
            ratios = np.concatenate(parts) if parts else np.zeros(0)
            at = 0
            for clip in seen:
                clip.row["text_area"] = [float(ratio) for ratio in ratios[at : at + len(clip.frames)]]
                at += len(clip.frames)
        except CannotScore:
            for clip in seen:  # one of them cannot be measured; find out which
                self._apply_alone(clip)
        for clip in segment.clips:
            clip.frames = []
        return segment

    def give_up(self, segment: Segment, reason: str) -> None:
        """Record that the clips that wait for a score get none, and why."""
        for clip in segment.clips:
            clip.frames = []
            if clip.row.get("gate") is None and clip.row.get("text_area") is None:
                clip.row |= {"text_area_error": reason, "text_area_model": self._measure.name}

    def _apply_alone(self, clip: FinishedClip) -> None:
        try:
            clip.row["text_area"] = [float(ratio) for ratio in self._measure.ratio(clip.frames)]
        except CannotScore as error:
            clip.row["text_area_error"] = error.reason


def text_area(implementation: str, *, device: str = "cpu", threads: int = 1) -> TextArea:
    """The detector called `implementation`: craft or ppocr (on the CPU only).

    Raises:
        curation.weights.WeightsUnavailable: its weights are not there.
    """
    from curation.text_area import CraftTextArea, PPOCRTextArea

    if implementation == "craft":
        return CraftTextArea(device=device, threads=threads)
    return PPOCRTextArea(threads=threads)
