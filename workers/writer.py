"""The actor that stores segments. It is the only one that writes to the dataset."""

import pyarrow as pa

from curation.segment import write_segment
from curation.storage import Storage
from workers.wire import message, messages, unpack


class WriterActor:
    """Stores each segment and answers with a receipt; passes a source's report on."""

    def __init__(self, output: str) -> None:
        self._storage = Storage(output)

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
            try:
                receipt["bytes"] = write_segment(self._storage, segment)
                answers.append(message("receipt", uri, receipt))
            except Exception as error:  # object stores have their own kinds
                said = f"cannot write to {self._storage.root}: {error or type(error).__name__}"
                answers.append(message("abort", uri, {"message": said}))
        return pa.concat_tables(answers)
