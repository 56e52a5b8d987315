"""What every scoring stage is, and how one is run: a clip that cannot be scored says why, and costs the others nothing.

stage.apply(clips: Sequence[FinishedClip]) -> None      fills columns in, in place
stage.models: {column: model} of what it fills in
run(stage, clips)                                       how a worker calls it
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from curation.errors import CannotScore
from curation.segment import FinishedClip


class Stage(Protocol):
    """One or more models that fit one worker."""

    @property
    def models(self) -> Mapping[str, str]:
        """The columns that it fills in, and what measures each."""
        ...

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in value or error, and the model's name, of each column of each clip."""
        ...


def run(stage: Stage, clips: Sequence[FinishedClip]) -> None:
    """`stage.apply` to the clips that no gate has stopped; an exception becomes the reason of the clip that caused it.

    The batch is tried whole, then clip by clip, so that the others get their values.
    """
    waiting = [clip for clip in clips if clip.row.get("gate") is None]
    before = [dict(clip.row) for clip in waiting]
    try:
        if waiting:
            stage.apply(waiting)
    except Exception as error:  # the boundary of one item, whatever it does to a model
        for clip, row in zip(waiting, before, strict=True):
            clip.row = row
        if len(waiting) > 1:
            for clip in waiting:
                run(stage, [clip])
            return
        for column, model in stage.models.items():
            waiting[0].row[f"{column}_model"] = model
            waiting[0].row[f"{column}_error"] = f"internal_error: {type(error).__name__}: {error}"


def per_clip(
    model: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Any]], clips: Sequence[FinishedClip]
) -> dict[int, Any]:
    """Per clip, the model's answers for its first, middle and last frame, or the reason (str) why there are none.

    Clips share calls where they can.
    """
    seen = [index for index, clip in enumerate(clips) if clip.frames]
    answers: dict[int, Any] = {index: "no_frames" for index, clip in enumerate(clips) if not clip.frames}
    frames = [frame for index in seen for frame in clips[index].frames]
    try:
        values = model(frames) if frames else []
        at = 0
        for index in seen:
            count = len(clips[index].frames)
            answers[index] = values[at : at + count]
            at += count
    except CannotScore:  # one of them cannot be taken; find out which
        for index in seen:
            try:
                answers[index] = model(clips[index].frames)
            except CannotScore as error:
                answers[index] = error.reason
    return answers
