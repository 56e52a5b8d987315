"""The actor that measures text in the frames that travel with a segment."""

import time

import pyarrow as pa

from curation.text_stage import TextStage, text_area
from workers.wire import message, messages, pack, unpack


class TextActor:
    """Segment messages in, the same with `text_area` and without the frames out; other messages pass."""

    def __init__(self, implementation: str, batch: int, device: str = "cpu", threads: int = 1) -> None:
        self._stage = TextStage(text_area(implementation, device=device, threads=threads), batch=batch)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The messages of a block."""
        answers = []
        for kind, uri, note, clips in messages(batch):
            if kind == "segment" and clips is not None:
                segment = unpack(note["source_id"], note["index"], clips)
                began = time.process_time()
                try:
                    self._stage.apply(segment)
                except Exception as error:  # the boundary of one item: the clips stay, and say that they have no score
                    self._stage.give_up(segment, f"internal_error: {type(error).__name__}: {error}")
                note["text_s"] = time.process_time() - began
                clips = pack(segment)
            answers.append(message(kind, uri, note, clips))
        return pa.concat_tables(answers)
