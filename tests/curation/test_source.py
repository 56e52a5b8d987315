"""A source gives segments of finished clips and one row; whatever is wrong with it ends in that row."""

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation import source as source_module
from curation.errors import CannotDecode
from curation.identity import SAMPLE_BYTES, SAMPLES, clip_id, source_id
from curation.probe import probe
from curation.remarks import remark
from curation.rules import parse_rule
from curation.schema import CLIPS, SOURCES
from curation.segment import Segment, write_segment
from curation.source import SourceReport, SourceSettings, SourceStage
from curation.storage import Storage
from tests.bad_media import EXPECTED, damage, write_bad_films
from tests.media import Shot, film, make_film, render

SETTINGS = SourceSettings(min_s=1.0, max_s=4.0)
LOST = ("lost_transition_s", "lost_short_s", "lost_keyframe_s", "lost_error_s")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bad_films(tmp_path_factory.mktemp("films"))


def run(path: Path, settings: SourceSettings = SETTINGS) -> tuple[list[Segment], dict[str, Any]]:
    *segments, report = SourceStage(settings).run(path)
    assert isinstance(report, SourceReport)
    assert report.segments == len(segments)
    assert report.row.keys() <= set(SOURCES.names)
    return [segment for segment in segments if isinstance(segment, Segment)], report.row


def seconds_close(row: dict[str, Any]) -> bool:
    return abs(row["kept_s"] + sum(row[name] for name in LOST) - row["duration_s"]) < 1e-6


@pytest.mark.parametrize("name", EXPECTED)
def test_each_source_is_one_row_with_its_reason(films: Path, name: str) -> None:
    segments, row = run(films / name)
    assert (row["status"], row["reason"]) == EXPECTED[name], row["message"]
    assert (row["reason"] is None) == (row["message"] is None)
    assert row["clips"] == sum(len(segment.clips) for segment in segments)
    noted = ("truncated", "wrong_extension", "timestamps_restart")
    assert row["clips"] > 0 or EXPECTED[name] not in (("ok", None), *(("ok", reason) for reason in noted))
    assert seconds_close(row)


def test_a_frame_held_for_seconds_is_frozen_for_as_long(tmp_path: Path) -> None:
    path = tmp_path / "variable.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for k, picture in enumerate(render(Shot("bunny", 100), (320, 180))):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = k if k <= 50 else k + 75
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    ((clip,),) = (segment.clips for segment in run(path, replace(SETTINGS, max_s=20.0))[0])
    assert clip.row["duration_s"] == pytest.approx(7.0)
    # 14 pairs 0.5 s apart in 7 s, and five of them in the 3.04 s for which one frame is held.
    assert clip.row["frozen"] == pytest.approx(5 / 14)


def write_transport_stream(path: Path, first: int, frames: int, sounds: int) -> None:
    """Noise, which takes many bytes, and soundtracks without sound. The first frame is number `first`."""
    random = np.random.default_rng(first)
    with av.open(str(path), "w", format="mpegts") as out:
        video = out.add_stream("libx264", rate=25, options={"g": "25", "qp": "20", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
        tracks = [out.add_stream("mp2", rate=44100) for _ in range(sounds)]
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(random.integers(0, 255, (270, 320), dtype=np.uint8), "yuv420p")
            frame.pts = first + k
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for track in tracks:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1152), np.int16), "s16", "stereo")
            silence.rate, silence.pts = 44100, first * 44100 // 25
            out.mux(track.encode(silence))
            out.mux(track.encode(None))


def test_a_transport_stream_that_gains_streams_halfway(tmp_path: Path) -> None:
    film = tmp_path / "broadcast.ts"
    for first, frames, sounds in ((0, 150, 0), (150, 25, 30), (175, 150, 0)):  # libav looks at both ends of a file
        write_transport_stream(tmp_path / "part.ts", first, frames, sounds)
        with film.open("ab") as file:
            file.write((tmp_path / "part.ts").read_bytes())
    with av.open(str(film)) as container:
        assert len(container.streams) == 1
        with pytest.raises(IndexError):  # what `packets_of` is for: without this it can go
            list(container.demux(video=0))
    segments, row = run(film)
    assert (row["status"], row["duration_s"]) == ("ok", pytest.approx(325 / 25, abs=0.2)), row["message"]
    assert sum(len(segment.clips) for segment in segments) == row["clips"] > 0
    assert seconds_close(row)


NAMES = {
    "matroska": "mkv mk3d",
    "mpegts": "ts mts m2ts m2t mpg mpeg",
    "mpeg": "mpg mpeg vob",
    "ogg": "ogg ogv ogm",
    "mpegvideo": "m2v mpg mpeg",
    "avi": "avi divx",
    "mov,mp4,m4a,3gp,3g2,mj2": "mp4 mov qt f4v m4v 3gp",
    "asf": "asf wmv",
    "flv": "flv f4v",
}


def test_a_name_that_fits_its_content_is_not_remarked_on(tmp_path: Path) -> None:
    info = probe(make_film(tmp_path / "film.mp4", [Shot("bikes.1", 30)]).path)
    for suffix in {suffix for names in NAMES.values() for suffix in names.split()}:
        name = tmp_path / f"name.{suffix.upper()}"
        name.symlink_to(info.path)
        for container, fitting in NAMES.items():
            reason, _ = remark(replace(info, path=str(name), container=container))
            assert (reason is None) == (suffix in fitting.split()), (suffix, container)


@pytest.mark.parametrize("name", ["film.mkv", "film.flv"])
def test_a_film_with_sound_is_truncated_where_both_break_off(tmp_path: Path, name: str) -> None:
    path = make_film(tmp_path / name, [Shot("bikes.1", 50)], audio_s=5.0).path
    assert remark(probe(path)) == (None, None)  # its sound outlasts the picture
    with av.open(str(path)) as container:
        places = sorted(packet.pos for packet in container.demux() if packet.pos)
    path.write_bytes(path.read_bytes()[: places[len(places) * 2 // 5]])
    reason, message = remark(probe(path))
    assert reason == "truncated"
    assert message is not None
    assert message.startswith("the header states 5")


@pytest.mark.parametrize("audio_s", [None, 2.0])
def test_a_film_that_begins_late_is_not_truncated(tmp_path: Path, audio_s: float | None) -> None:
    path = make_film(tmp_path / "film.mkv", [Shot("bikes.1", 50)], audio_s=audio_s, start_s=20.0).path
    assert remark(probe(path)) == (None, None)


def test_a_missing_file_and_a_folder_are_rows(tmp_path: Path) -> None:
    assert run(tmp_path / "nowhere.mp4")[1]["reason"] == "missing"
    (tmp_path / "folder.mp4").mkdir()
    assert run(tmp_path / "folder.mp4")[1]["reason"] == "not_a_file"


def test_a_pipe_is_a_row_and_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    monkeypatch.setattr("builtins.open", lambda path, mode: pytest.fail("nobody ever writes to it"))
    assert run(tmp_path / "pipe.mp4")[1]["reason"] == "not_a_file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read the file")
def test_an_unreadable_file_is_a_row(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(film("bikes.mp4").read_bytes())
    secret.chmod(0)
    stage = SourceStage(SETTINGS)
    os.seteuid(65534)
    try:
        (report,) = stage.run(secret)
    finally:
        os.seteuid(0)
    assert isinstance(report, SourceReport)
    assert (report.row["status"], report.row["reason"]) == ("failed", "unreadable")


def test_noise_in_the_middle_costs_only_what_it_hits(films: Path) -> None:
    segments, row = run(films / "corrupt.mp4")
    assert seconds_close(row)
    clips = [clip for segment in segments for clip in segment.clips]
    for clip in clips:  # what is kept can be played
        with av.open(io.BytesIO(bytes(clip.data))) as container:
            assert sum(1 for _ in container.decode(video=0)) == clip.row["frames"]
    assert row["status"] in ("ok", "failed")
    assert row["status"] == "ok" or row["reason"]


def test_clips_whose_pictures_are_damaged_are_lost_by_name(tmp_path: Path) -> None:
    """The decoder hides what bit errors do to H.264, and the clip would play all the same."""
    path = make_film(tmp_path / "a.mp4", (Shot("bikes.1", 60), Shot("bikes.3", 60), Shot("bunny", 60)), crf=16).path
    assert run(path)[1]["reason"] is None
    damage(path, at_frame=90)
    _, row = run(path)
    assert (row["status"], row["reason"], row["clips"]) == ("ok", "damaged_frames", 2)
    assert "damaged at" in row["message"]
    assert seconds_close(row)
    assert row["lost_error_s"] == pytest.approx(60 / 25)


def test_clips_carry_their_rows_and_play(films: Path) -> None:
    segments, row = run(films / "also-good.mp4")
    clips = [clip for segment in segments for clip in segment.clips]
    for clip in clips:
        assert clip.row.keys() <= set(CLIPS.names)
        assert clip.row["source_id"] == row["source_id"]
        assert clip.row["clip_id"] == clip_id(row["source_id"], clip.row["start_pts"], clip.row["end_pts"], "smart")
        assert (clip.row["motion_coarse"] is None) != (clip.row.get("motion_coarse_error") is None)
        with av.open(io.BytesIO(bytes(clip.data))) as container:
            assert sum(1 for _ in container.decode(video=0)) == clip.row["frames"]
        with av.open(io.BytesIO(bytes(clip.thumbnail))) as container:
            assert next(container.decode(video=0)).width == 320
    assert len({clip.row["clip_id"] for clip in clips}) == len(clips) > 0


def test_frames_for_the_text_stage_are_first_middle_and_last(films: Path) -> None:
    segments, _ = run(films / "good.mp4", SourceSettings(min_s=1.0, max_s=4.0, key_frames=True))
    clip = segments[0].clips[0]
    with av.open(io.BytesIO(bytes(clip.data))) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    expected = [decoded[0], decoded[(len(decoded) - 1) // 2], decoded[-1]]
    for picture, frame in zip(clip.frames, expected, strict=True):
        assert np.abs(picture.astype(int) - frame.astype(int)).mean() < 6  # the clip's edges may be encoded anew


def test_a_gate_stops_a_clip_and_keeps_its_frames_back(films: Path) -> None:
    gate = parse_rule("motion.coarse", {"min": 1e9})
    segments, _ = run(films / "good.mp4", SourceSettings(min_s=1.0, max_s=4.0, key_frames=True, gates=(gate,)))
    for clip in segments[0].clips:
        assert clip.row["gate"] == "motion.coarse"
        assert clip.frames == []
        assert clip.row["motion_coarse"] is not None


def test_a_gate_keeps_a_clip_whose_score_is_the_bound(films: Path) -> None:
    stored = run(films / "good.mp4", SETTINGS)[0][0].clips[0].row["motion_coarse"]
    bound = round(stored, 6)  # as it is printed
    for side in ("min", "max"):
        gate = parse_rule("motion.coarse", {side: bound})
        segments, _ = run(films / "good.mp4", replace(SETTINGS, gates=(gate,)))
        assert segments[0].clips[0].row["gate"] is None, side


def test_segments_are_bounded_and_say_the_same(films: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.mp4"
    make_film(long, [Shot("bikes.1", 60), Shot("bunny", 60), Shot("bikes.2", 60)], gop=25)
    whole, _ = run(long, SourceSettings(min_s=0.5, max_s=1.0))
    parts, row = run(long, SourceSettings(min_s=0.5, max_s=1.0, segment_clips=2))
    assert [len(segment.clips) for segment in parts[:-1]] == [2] * (len(parts) - 1)
    assert len(parts) > 2
    ids = [clip.row["clip_id"] for segment in whole for clip in segment.clips]
    assert [clip.row["clip_id"] for segment in parts for clip in segment.clips] == ids
    small, _ = run(long, SourceSettings(min_s=0.5, max_s=1.0, segment_bytes=1))
    assert all(len(segment.clips) == 1 for segment in small)
    assert row["clips"] == len(ids)


def test_the_same_source_gives_the_same_bytes(films: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for segment in run(films / "good.mp4")[0]:
            write_segment(Storage(tmp_path / folder), segment)
    written = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(written) == 2
    for path in written:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_a_mistake_of_ours_is_a_row_too(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("one by nought")

    monkeypatch.setattr(source_module, "plan", broken)
    _, row = run(films / "good.mp4")
    assert (row["status"], row["reason"]) == ("failed", "internal_error")
    assert "one by nought" in row["message"]
    assert row["duration_s"] > 0
    assert seconds_close(row)


def test_a_film_whose_frames_break_off_keeps_the_clips_before(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = source_module.cut_clips

    def breaks_off(*args: Any, **kwargs: Any) -> Any:
        yield next(iter(real(*args, **kwargs)))
        raise CannotDecode("corrupt", "the film ends in noise")

    monkeypatch.setattr(source_module, "cut_clips", breaks_off)
    _, row = run(films / "good.mp4")
    assert (row["status"], row["reason"], row["clips"]) == ("ok", "corrupt", 1)
    assert row["lost_error_s"] > 0
    assert seconds_close(row)


def test_identity_follows_content_and_sampling_sees_both_ends() -> None:
    size = (SAMPLES + 3) * SAMPLE_BYTES + 5
    data = bytearray(np.random.default_rng(1).bytes(size))
    name = source_id(io.BytesIO(data), size)
    assert name == source_id(io.BytesIO(bytes(data)), size)
    for place in (0, size - 1):
        other = bytearray(data)
        other[place] ^= 1
        assert source_id(io.BytesIO(other), size) != name
    assert source_id(io.BytesIO(data[:-1]), size - 1) != name
    short = bytes(1000)
    assert source_id(io.BytesIO(short), 1000) != source_id(io.BytesIO(short[:-1] + b"x"), 1000)
