"""What actors send each other arrives as it was, and a writer that cannot write says so."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation.errors import CannotScore
from curation.segment import FinishedClip, Segment, write_segment
from curation.storage import Storage
from curation.text_stage import TextStage
from workers.wire import message, messages, pack, unpack
from workers.writer import WriterActor


def segment() -> Segment:
    rng = np.random.default_rng(0)
    clips = []
    for k in range(3):
        row = {"clip_id": f"{k:032x}", "source_id": "a" * 32, "start_pts": k, "duration_s": 2.5, "has_audio": bool(k)}
        row |= {"motion_coarse": 0.5 * k, "gate": "motion.coarse" if k == 2 else None}
        frames = [rng.integers(0, 255, (36, 64, 3), dtype=np.uint8) for _ in range(3)] if k < 2 else []
        clips.append(FinishedClip(row, rng.bytes(1000 + k), b"jpeg" * k, frames))
    return Segment("a" * 32, 4, clips)


def test_a_segment_arrives_as_it_was_sent() -> None:
    sent = segment()
    block = message("segment", "/films/x", {"source_id": sent.source_id, "index": sent.index}, pack(sent))
    block = pa.concat_tables([message("report", "/films/y", {"row": {}}), block])
    (_, _, _, nothing), (kind, uri, note, clips) = messages(block)
    assert nothing is None
    assert (kind, uri) == ("segment", "/films/x")
    assert clips is not None
    got = unpack(note["source_id"], note["index"], clips)
    assert (got.source_id, got.index, got.name) == (sent.source_id, 4, f"part-{'a' * 32}-0004")
    for before, after in zip(sent.clips, got.clips, strict=True):
        assert {key: value for key, value in after.row.items() if value is not None} == {
            key: value for key, value in before.row.items() if value is not None
        }
        assert bytes(after.data) == before.data
        assert bytes(after.thumbnail) == before.thumbnail
        assert len(after.frames) == len(before.frames)
        assert all(np.array_equal(a, b) for a, b in zip(before.frames, after.frames, strict=True))


def test_what_the_writer_stores_is_what_the_plain_function_stores(tmp_path: Path) -> None:
    note = {"source_id": "a" * 32, "index": 4}
    answer = WriterActor(str(tmp_path / "actor"))(message("segment", "/films/x", note, pack(segment())))
    ((kind, uri, receipt, _),) = messages(answer)
    size = write_segment(Storage(tmp_path / "plain"), segment())
    assert (kind, uri) == ("receipt", "/films/x")
    assert receipt == {"source_id": "a" * 32, "index": 4, "clips": 3, "seconds": 7.5, "bytes": size}
    for name in (f"media/part-{'a' * 32}-0004.tar", f"clips/part-{'a' * 32}-0004.parquet"):
        assert (tmp_path / "actor" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_writer_that_cannot_write_stops_the_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    note = {"source_id": "a" * 32, "index": 0}
    ((kind, _, answer, _),) = messages(
        WriterActor(str(tmp_path / "file"))(message("segment", "/films/x", note, pack(segment())))
    )
    assert kind == "abort"
    assert f"cannot write to {tmp_path / 'file'}" in answer["message"]


class _Brightness:
    """A measure with a known answer, which refuses black frames."""

    name = "brightness"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def ratio(self, frames: list[np.ndarray]) -> np.ndarray:
        self.calls.append(len(frames))
        if any(frame.max() == 0 for frame in frames):
            raise CannotScore("black", "nothing to see")
        return np.array([frame.mean() / 255 for frame in frames])


def test_text_is_scored_in_batches_across_clips_and_gated_clips_are_left_alone() -> None:
    measure = _Brightness()
    scored = TextStage(measure, batch=4).apply(segment())
    assert measure.calls == [4, 2]
    for before, after in zip(segment().clips[:2], scored.clips[:2], strict=True):
        assert after.row["text_area"] == pytest.approx([frame.mean() / 255 for frame in before.frames])
        assert after.row["text_area_model"] == "brightness"
        assert after.frames == []
    assert "text_area" not in scored.clips[2].row
    assert "text_area_model" not in scored.clips[2].row


def test_a_clip_that_cannot_be_scored_does_not_cost_the_others_their_score() -> None:
    mixed = segment()
    mixed.clips[0].frames[1] = np.zeros_like(mixed.clips[0].frames[1])
    scored = TextStage(_Brightness()).apply(mixed)
    assert scored.clips[0].row["text_area_error"] == "black"
    assert "text_area" not in scored.clips[0].row
    assert len(scored.clips[1].row["text_area"]) == 3
