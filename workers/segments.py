"""How an actor scores the segments of a block: the loop that all scoring stages share."""

import logging
import time

import pyarrow as pa

from curation.stages import Stage, run
from curation.tracing import span
from workers.wire import message, messages, pack, unpack


def score_segments(batch: pa.Table, stage: Stage, clock: str, *, key_frames: bool, small_frames: bool) -> pa.Table:
    """The messages of a block, the clips in them scored; other messages pass.

    Args:
        clock: the column of `schema.SOURCES` that the stage's processor seconds count for.
        key_frames, small_frames: whether a later stage needs these; else they are dropped here.
    """
    answers = []
    for kind, uri, note, clips in messages(batch):
        if kind == "segment" and clips is not None:
            segment = unpack(note["source_id"], note["index"], clips)
            began = time.process_time()
            name = clock.removesuffix("_s")
            with _Warnings() as said, span(name, uri, segment=note["index"], clips=len(segment.clips)):
                run(stage, segment.clips)
            note.setdefault("timings", {})[clock] = time.process_time() - began
            if said.messages:
                note.setdefault("warnings", []).extend(said.messages)
            for clip in segment.clips:
                clip.frames = clip.frames if key_frames else []
                clip.small = clip.small if small_frames else None
            clips = pack(segment)
        answers.append(message(kind, uri, note, clips))
    return pa.concat_tables(answers)


class _Warnings(logging.Handler):
    """What the models say meanwhile (a batch that was halved), so that the driver can show it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> "_Warnings":
        logging.getLogger("curation").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("curation").removeHandler(self)
