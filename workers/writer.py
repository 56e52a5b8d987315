"""The actor that stores segments. It is the only one that writes to the dataset."""

import logging
import os

import pyarrow as pa

from curation.schema import SCORES
from curation.segment import Segment, write_segment
from curation.storage import Storage
from curation.structured_log import log_if_asked
from curation.tracing import span
from workers.wire import message, messages, unpack

log = logging.getLogger("clipmill.writer")


class WriterActor:
    """Stores each segment and answers with a receipt; passes a source's report on."""

    def __init__(self, output: str) -> None:
        self._storage = Storage(output)
        log_if_asked()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Messages in, as many small messages out.

        A dataset that cannot be written to is no source's fault: it becomes an `abort` for the driver, because an
        exception here would cost this block only, and the job would go on losing segments.
        """
        answers = []
        for kind, uri, note, clips in messages(batch):
            if kind != "segment" or clips is None:
                answers.append(message(kind, uri, note))
                continue
            segment = unpack(note["source_id"], note["index"], clips)
            receipt = note | {"clips": len(segment.clips)}
            receipt["seconds"] = sum(clip.row["duration_s"] for clip in segment.clips)
            if errors := _unscored(segment):
                receipt["errors"] = errors
            try:
                with span("store", uri, segment=segment.index, clips=len(segment.clips)) as traced:
                    receipt["bytes"] = traced["bytes"] = write_segment(self._storage, segment)
                answers.append(message("receipt", uri, receipt))
                ids = {"job": os.environ.get("CLIPMILL_JOB"), "source_id": segment.source_id, "source_uri": uri}
                log.info("segment stored", extra={"ids": ids | {"clips": [c.row["clip_id"] for c in segment.clips]}})
            except Exception as error:  # object stores have their own kinds
                said = f"cannot write to {self._storage.root}: {error or type(error).__name__}"
                answers.append(message("abort", uri, {"message": said}))
        return pa.concat_tables(answers)


def _unscored(segment: Segment) -> dict[str, int]:
    """Clips that could not be scored, by score."""
    found = {
        score.name: sum(clip.row.get(f"{score.column}_error") is not None for clip in segment.clips) for score in SCORES
    }
    return {name: number for name, number in found.items() if number}
