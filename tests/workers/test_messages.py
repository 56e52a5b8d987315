"""What actors send each other arrives as it was, and a writer that cannot write says so."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from curation.errors import CannotScore
from curation.segment import FinishedClip, Segment, write_segment
from curation.stages import run
from curation.storage import Storage
from curation.text_stage import TextStage
from workers.segments import score_segments
from workers.wire import message, messages, pack, unpack
from workers.writer import WriterActor


def segment() -> Segment:
    rng = np.random.default_rng(0)
    clips = []
    for k in range(3):
        row = {"clip_id": f"{k:032x}", "source_id": "a" * 32, "start_pts": k, "duration_s": 2.5, "has_audio": bool(k)}
        row |= {"motion_coarse": 0.5 * k, "gate": "motion.coarse" if k == 2 else None}
        frames = [rng.integers(0, 255, (36, 64, 3), dtype=np.uint8) for _ in range(3)] if k < 2 else []
        small = (rng.integers(0, 255, (5, 18, 32, 3), dtype=np.uint8), np.arange(5) / 2) if k == 0 else None
        clips.append(FinishedClip(row, rng.bytes(1000 + k), b"jpeg" * k, frames, small))
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


class _Dark:
    """A detector that finds the upper half of every frame to be text, and refuses black frames."""

    name = "upper_half"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[list[NDArray[np.float32]]]:
        self.calls.append(len(frames))
        if any(frame.max() == 0 for frame in frames):
            raise CannotScore("black", "nothing to see")
        return [[np.array([[0, 0], [63, 0], [63, 17], [0, 17]], np.float32)] for _ in frames]


def test_text_is_scored_in_batches_across_clips_and_gated_clips_are_left_alone() -> None:
    detector = _Dark()
    scored = segment()
    run(TextStage(detector, batch=4), scored.clips)
    assert detector.calls == [4, 2]
    for clip in scored.clips[:2]:
        assert clip.row["text_area"] == pytest.approx([0.5] * 3)
        assert clip.row["text_area_model"] == clip.row["watermark_model"] == "upper_half"
        assert clip.row["watermark"] == 0.0  # noise, another one in every frame
    assert "text_area" not in scored.clips[2].row
    assert "text_area_model" not in scored.clips[2].row


def test_a_clip_that_cannot_be_scored_does_not_cost_the_others_their_score() -> None:
    mixed = segment()
    mixed.clips[0].frames[1] = np.zeros_like(mixed.clips[0].frames[1])
    run(TextStage(_Dark()), mixed.clips)
    assert mixed.clips[0].row["text_area_error"] == mixed.clips[0].row["watermark_error"] == "black"
    assert "text_area" not in mixed.clips[0].row
    assert len(mixed.clips[1].row["text_area"]) == 3


class _Fragile:
    """A stage that breaks off half way where a clip is 1001 bytes long, and warns of every call."""

    models: Mapping[str, str] = {"nsfw": "fragile"}

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        logging.getLogger("curation.batching").warning("called with %d", len(clips))
        for clip in clips:
            clip.row["nsfw_model"] = "fragile"
            if len(clip.data) == 1001:
                raise ZeroDivisionError("a bug")
            clip.row["nsfw"] = [0.5]


def test_an_exception_is_the_reason_of_its_clip_alone_and_frames_go_when_nothing_needs_them() -> None:
    sent = segment()
    note = {"source_id": sent.source_id, "index": 4}
    block = pa.concat_tables([message("segment", "x", note, pack(sent)), message("report", "x", {"row": {}})])
    kept = score_segments(block, _Fragile(), "images_s", key_frames=True, small_frames=False)
    (_, _, answer, clips), (kind, *_) = messages(kept)
    assert kind == "report"
    assert clips is not None
    scored = unpack(sent.source_id, 4, clips).clips
    assert scored[0].row["nsfw"] == [0.5]
    assert scored[0].row["nsfw_error"] is None
    assert scored[1].row["nsfw_error"] == "internal_error: ZeroDivisionError: a bug"
    assert (scored[1].row["nsfw"], scored[1].row["nsfw_model"]) == (None, "fragile")
    assert scored[2].row["nsfw_model"] is None  # stopped by a gate
    assert answer["timings"].keys() == {"images_s"}
    assert answer["warnings"] == ["called with 2", "called with 1", "called with 1"]
    assert len(scored[0].frames) == 3
    assert scored[0].small is None
    dropped = score_segments(block, _Fragile(), "images_s", key_frames=False, small_frames=True)
    clips = messages(dropped)[0][3]
    assert clips is not None
    first = unpack(sent.source_id, 4, clips).clips[0]
    assert first.frames == []
    assert sent.clips[0].small is not None
    assert first.small is not None
    assert np.array_equal(first.small[0], sent.clips[0].small[0])
    assert np.array_equal(first.small[1], sent.clips[0].small[1])
