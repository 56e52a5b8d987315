"""B-frames are called optional only where leaving them out changes no other frame."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from curation.cuts.cascade import CascadeDetector
from curation.decode import decode
from curation.frames import FilmFrames
from curation.probe import VideoInfo, packets_of, probe
from curation.references import BFrameReferences
from tests.media import film

ONE = "ref=1:bframes=3"


def encoded(folder: Path, params: str, *options: str, suffix: str = ".mp4") -> VideoInfo:
    """The bikes film as x264 makes it with `params`."""
    path = folder / f"film{suffix}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(film("bikes.mp4")), "-t", "5"]
    command += ["-vf", "scale=320:-2", "-c:v", "libx264", "-preset", "veryfast", *options, "-x264-params", params]
    subprocess.run([*command, str(path)], check=True)
    return probe(path)


def without_b_frames(info: VideoInfo) -> dict[int, np.ndarray]:
    """Luma of the frames that are left once all B-frames are skipped."""
    return {number: frame.to_ndarray()[: info.height] for number, frame in decode(info, skip="bidir")}


@pytest.mark.parametrize(
    "params",
    [
        ONE,
        f"{ONE}:b-pyramid=strict",
        f"{ONE}:b-pyramid=none",
        f"{ONE}:weightp=2",
        f"{ONE}:weightp=1:weightb=1:b-adapt=2",
        f"{ONE}:open-gop=1:keyint=24",
        f"{ONE}:cabac=0:slices=4",
        f"{ONE}:cqm=jvt:8x8dct=1",
        f"{ONE}:keyint=infinite:bframes=8",
        f"{ONE}:nal-hrd=vbr:vbv-maxrate=400:vbv-bufsize=400:aud=1",
        "ref=1:bframes=0",
        "ref=4:bframes=0",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_optional_b_frames_can_be_left_out(tmp_path: Path, params: str, suffix: str) -> None:
    info = encoded(tmp_path, params, suffix=suffix)
    assert info.b_frames_optional
    kept = without_b_frames(info)
    assert set(info.anchors.tolist()) <= set(kept)
    for number, frame in decode(info):
        if number in kept:
            assert np.array_equal(frame.to_ndarray()[: info.height], kept[number]), number


@pytest.mark.parametrize(
    "params", [ONE, f"{ONE}:keyint=infinite:scenecut=0", f"{ONE}:open-gop=1:keyint=24", f"{ONE}:bframes=8:weightb=1"]
)
def test_single_b_frames_come_out_right_among_others_that_are_left_out(tmp_path: Path, params: str) -> None:
    info = encoded(tmp_path, params)
    assert info.b_frames_optional
    every = {number: frame.to_ndarray() for number, frame in decode(info, loop_filter=False)}
    for wanted in range(3, info.frames, 7):
        for number, frame in FilmFrames(info).exact(np.array([wanted])):
            assert number == wanted
            assert np.array_equal(frame.to_ndarray(), every[number]), number


def test_frames_kept_for_motion_are_whole(tmp_path: Path) -> None:
    """Those that the cut detector leaves behind are what a fresh decode gives, but for the loop filter."""
    info = encoded(tmp_path, ONE)
    film = FilmFrames(info)
    CascadeDetector().detect(info, film)
    pts, kept = film.small(film.grid(2.0))
    rest = dict(decode(info, loop_filter=False))
    for at, picture in zip(pts.tolist(), kept, strict=True):
        fresh = film._shrink(rest[int(np.searchsorted(info.pts, at))])
        assert np.abs(picture.astype(int) - fresh).mean() < 1


@pytest.mark.parametrize("params", ["ref=3:bframes=3:b-pyramid=normal", "ref=2:bframes=8:b-pyramid=normal:keyint=24"])
def test_frames_that_refer_to_b_frames_come_out_wrong_without_them(tmp_path: Path, params: str) -> None:
    info = encoded(tmp_path, params)
    assert not info.b_frames_optional
    kept = without_b_frames(info)
    assert any(
        not np.array_equal(frame.to_ndarray()[: info.height], kept[number])
        for number, frame in decode(info)
        if number in kept
    )


def test_what_cannot_be_told_is_not_optional(tmp_path: Path) -> None:
    assert not encoded(tmp_path, f"{ONE}:interlaced=1").b_frames_optional
    assert not encoded(tmp_path, ONE, suffix=".avi").b_frames_optional  # it has no timestamps of presentation
    assert not BFrameReferences(b"\x01\x64").optional
    assert not BFrameReferences(b"\x00\x00\x00\x01\x67").optional


def test_parameter_sets_that_change_on_the_way_are_noticed(tmp_path: Path) -> None:
    """FLV carries new ones beside the packets, not in them."""
    first, second = (Path(encoded(tmp_path, f"ref={n}:bframes=3", suffix=f".{n}.flv").path) for n in (1, 2))
    joined = tmp_path / "joined.flv"
    joined.write_bytes(first.read_bytes() + b"".join(_video_tags(second.read_bytes(), delay_ms=6000)))
    assert probe(first).b_frames_optional
    info = probe(joined)
    assert info.frames > 200
    assert not info.b_frames_optional


def _video_tags(flv: bytes, delay_ms: int) -> Iterator[bytes]:
    """The video tags of an FLV file, later by `delay_ms`, each with its length behind it."""
    at = 13  # after the header and the first length
    while at + 11 <= len(flv):
        size = 11 + int.from_bytes(flv[at + 1 : at + 4], "big")
        time_ms = int.from_bytes(flv[at + 4 : at + 7], "big") + delay_ms
        if flv[at] == 9:
            yield flv[at : at + 4] + time_ms.to_bytes(3, "big") + flv[at + 7 : at + size] + size.to_bytes(4, "big")
        at += size + 4


def test_any_damage_is_survived(tmp_path: Path) -> None:
    info = encoded(tmp_path, ONE)
    with av.open(info.path) as container:
        stream = container.streams.video[0]
        extradata = stream.codec_context.extradata
        packets = [bytes(packet) for packet in packets_of(container, stream) if packet.size]
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        references = BFrameReferences(extradata if rng.random() < 0.5 else _damaged(rng, extradata or b""))
        for packet in packets[:20]:
            references.see(_damaged(rng, packet) if rng.random() < 0.2 else packet)
        told += references.optional
    assert told < 300


def _damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Some of the first bytes changed, or the end cut off."""
    changed = bytearray(data)
    for _k in range(int(rng.integers(1, 4))):
        changed[int(rng.integers(min(40, len(changed))))] = int(rng.integers(256))
    return bytes(changed[: int(rng.integers(1, len(changed) + 1))] if rng.random() < 0.3 else changed)
