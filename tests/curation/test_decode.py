"""Decoding part of a film gives exactly the frames that decoding all of it gives, for less work."""

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from curation.decode import SKIPS, decode, decode_ranges
from curation.probe import probe
from tests.media import Join, Shot, make_film

SHOTS = (Shot("bikes.1", 50), Shot("bunny", 50, move="pan"))
ENCODINGS: list[tuple[str, dict[str, Any]]] = [
    ("a.mp4", {"bframes": 3, "gop": 25}),
    ("b.mp4", {"open_gop": True, "bframes": 3, "gop": 12, "scenecut": False}),
    ("c.mp4", {"codec": "libx265", "open_gop": True, "bframes": 3, "gop": 12}),
    ("d.webm", {"codec": "libvpx-vp9", "gop": 20}),
    ("e.mp4", {"codec": "libsvtav1", "gop": 32}),
    ("f.avi", {"codec": "mpeg4", "gop": 12, "bframes": 2}),
    ("g.ts", {"gop": 25, "start_s": 3.0}),
    ("h.mp4", {"gop": None, "bframes": 2}),
    ("i.mkv", {"vfr": True, "gop": 15}),
]


def film(tmp_path: Path, name: str, encoding: dict[str, Any]) -> Path:
    return make_film(tmp_path / name, SHOTS, [Join("dissolve", 10)], **encoding).path


@pytest.mark.parametrize(("name", "encoding"), ENCODINGS)
def test_wanted_frames_equal_those_of_a_full_decode(tmp_path: Path, name: str, encoding: dict[str, Any]) -> None:
    info = probe(film(tmp_path, name, encoding))
    everything = {number: frame.to_ndarray() for number, frame in decode(info)}
    assert list(everything) == list(range(info.frames))  # all, in presentation order
    wanted = np.array([0, 11, 12, 13, 40, 61, 62, info.frames - 1])
    some = {number: frame.to_ndarray() for number, frame in decode(info, wanted)}
    assert set(wanted.tolist()) <= set(some)
    for number in wanted.tolist():
        assert np.array_equal(some[number], everything[number])


def test_gops_with_nothing_wanted_are_not_decoded(tmp_path: Path) -> None:
    info = probe(film(tmp_path, "a.mp4", {"gop": 10, "bframes": 0, "scenecut": False}))
    decoded = [number for number, _ in decode(info, np.array([3, 52]))]
    assert decoded == [0, 1, 2, 3, 50, 51, 52]
    assert decode_ranges(info, np.array([3, 52])) == [(0, 4), (50, 53)]


@pytest.mark.parametrize("bframes", [0, 3])
def test_the_rest_of_a_gop_can_be_left(tmp_path: Path, bframes: int) -> None:
    info = probe(film(tmp_path, "a.mp4", {"gop": 20, "bframes": bframes, "scenecut": False}))
    decoded: list[int] = []
    for number, _ in decode(info, resume_at=lambda: 60 if 25 in decoded else 0):  # 60 is a key frame
        decoded.append(number)
    assert decoded == [*range(26), *range(60, info.frames)]


def test_keyframes_alone(tmp_path: Path) -> None:
    info = probe(film(tmp_path, "a.mp4", {"gop": 10, "bframes": 3}))
    keys = np.flatnonzero(info.keyframe)
    assert [number for number, _ in decode(info, keys, skip="nonkey")] == keys.tolist()


def test_frames_that_no_other_needs_can_be_left_out_or_spared(tmp_path: Path) -> None:
    info = probe(film(tmp_path, "a.mp4", {"gop": 50, "bframes": 3}))
    reference = [number for number, _ in decode(info, skip="nonref")]
    assert len(reference) < 0.8 * info.frames
    skip = np.full(info.frames, SKIPS.index("nonref"))
    skip[20:30] = SKIPS.index("nothing")
    with_spared = [number for number, _ in decode(info, skip=skip)]
    assert sorted(set(reference) | set(range(20, 30))) == with_spared


def _copied(film: Path, to: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    """`film` with its packets as they are, by ffmpeg."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *before, "-i", str(film), "-c", "copy"]
    subprocess.run([*ffmpeg, *options, str(to)], check=True)
    return to


def test_frames_before_the_first_key_frame_that_is_shown_are_decoded(tmp_path: Path) -> None:
    """Cut out of a film without re-encoding: an edit list hides the key frame that the first frames need."""
    path = film(tmp_path, "whole.mp4", {"gop": 30, "bframes": 2, "scenecut": False})
    info = probe(_copied(path, tmp_path / "part.mp4", before=("-ss", "0.52")))
    assert not info.keyframe[0]
    assert [number for number, _ in decode(info)] == list(range(info.frames))
    assert [number for number, _ in decode(info, np.array([4]), skip="nonref")][:1] == [0]


def test_of_two_frames_with_one_time_the_first_is_given(tmp_path: Path) -> None:
    path = film(tmp_path, "whole.mkv", {"gop": 25, "bframes": 0})
    info = probe(_copied(path, tmp_path / "twice.mkv", "-bsf:v", "setts=ts=if(eq(N\\,40)\\,TS-40\\,TS)"))
    assert info.frames == probe(path).frames - 1
    assert [number for number, _ in decode(info)] == list(range(info.frames))


def test_a_film_damaged_in_its_middle_gives_its_other_frames(tmp_path: Path) -> None:
    path = film(tmp_path, "a.mp4", {"gop": 10})
    info = probe(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(bytes(content))
    numbers = [number for number, _ in decode(info)]
    assert 0.5 * info.frames < len(numbers) <= info.frames
    assert numbers == sorted(numbers)
    assert numbers[-1] == info.frames - 1


def test_a_film_that_breaks_off_gives_what_is_there(tmp_path: Path) -> None:
    path = film(tmp_path, "a.mkv", {"gop": 10})
    info = probe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    numbers = [number for number, _ in decode(info)]
    assert 0 < len(numbers) < info.frames
    assert numbers == sorted(numbers)
    assert numbers[:-8] == list(range(len(numbers) - 8))  # the last ones may wait for frames that never come
