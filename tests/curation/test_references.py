"""B-frames are called optional only where leaving them out changes no other frame."""

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from curation.decode import decode
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
    assert not BFrameReferences(b"\x01\x64").optional
    assert not BFrameReferences(b"\x00\x00\x00\x01\x67").optional


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
