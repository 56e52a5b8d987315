"""The frames that stages share: right pictures at the right times, each stretch decoded once."""

import subprocess
from fractions import Fraction
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from curation.frames import FilmFrames
from curation.probe import probe
from tests.media import Join, Shot, film, make_film

SHOTS = (Shot("bikes.1", 40), Shot("bunny", 40))


def by_ffmpeg(path: Path, number: int, size: tuple[int, int]) -> np.ndarray:
    """One frame as ffmpeg shows it (turned upright), RGB."""
    width, height = size
    chosen = ["-vf", f"select=eq(n\\,{number}),scale={width}:{height}:flags=area", "-frames:v", "1"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), *chosen, *raw]
    run = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(run.stdout, np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize(
    "encoding",
    [
        {},
        {"rotation": 90},
        {"rotation": 270, "sar": Fraction(4, 3)},
        {"flipped": True},
        {"rotation": 90, "flipped": True},
        {"rotation": 180, "flipped": True},
        {"rotation": 270, "flipped": True},
        {"codec": "libx265", "ten_bit": True},
        {"codec": "libvpx-vp9"},
    ],
)
def test_small_and_full_pictures_look_as_ffmpeg_shows_them(tmp_path: Path, encoding: dict[str, object]) -> None:
    name = "film.webm" if encoding.get("codec") == "libvpx-vp9" else "film.mp4"
    path = make_film(tmp_path / name, SHOTS, [Join()], **encoding).path  # type: ignore[arg-type]
    info = probe(path)
    frames = FilmFrames(info)
    _, (small,) = frames.small(info.pts[[50]])
    ((_, full),) = frames.full([int(info.pts[50])])
    assert full.shape[1::-1] == info.display_size
    assert min(small.shape[:2]) == 90
    for picture in (small, full):
        expected = by_ffmpeg(path, 50, (picture.shape[1], picture.shape[0]))
        assert np.abs(picture.astype(int) - expected).mean() < 4
        assert np.abs(picture.astype(int) - expected[::-1, ::-1]).mean() > 20  # the measure can tell


def test_grids_nest_and_keep_the_rate() -> None:
    frames = FilmFrames(probe(film("bikes.mp4")))
    one, two, four = (set(frames.grid(rate).tolist()) for rate in (1.0, 2.0, 4.0))
    assert one < two < four
    assert (len(one), len(two), len(four)) == (11, 21, 41)
    begin, end = int(frames.info.pts[50]), int(frames.info.pts[100])
    assert [p for p in sorted(two) if begin <= p < end] == frames.grid(2.0, begin, end).tolist()


def test_nothing_is_decoded_twice() -> None:
    info = probe(film("bikes.mp4"))
    frames = FilmFrames(info)
    frames.small(frames.grid(2.0))
    decoded = frames.decoded_frames
    used, pictures = frames.small(frames.grid(1.0))
    assert frames.decoded_frames == decoded > 0
    assert used.tolist() == frames.grid(1.0).tolist()
    assert len(pictures) == len(used)


def test_one_pass_serves_small_and_full() -> None:
    info = probe(film("bikes.mp4"))
    frames = FilmFrames(info)
    grid, shown = frames.grid(2.0), [int(info.pts[k]) for k in (0, 120, 249)]
    frames.prefetch(grid, shown, 120)
    decoded = frames.decoded_frames
    assert decoded <= info.frames
    assert len(frames.small(grid)[0]) == len(grid)
    assert [(pts, picture.shape[0]) for pts, picture in frames.full(shown, short_side_px=120)] == [
        (pts, 120) for pts in shown
    ]
    assert frames.decoded_frames == decoded


def test_memory_is_bounded() -> None:
    info = probe(film("bikes.mp4"))
    frames = FilmFrames(info, cache_bytes=100 * 90 * 212 * 3)
    used, pictures = frames.small(info.pts)
    assert len(used) == len(pictures) == info.frames
    assert len(frames._cache) <= 100


def test_stream_gives_every_frame_once_at_any_size() -> None:
    info = probe(film("carphone_pristine.mp4"))
    seen = [(number, picture.shape) for number, picture in FilmFrames(info).stream(size=(48, 27))]
    assert seen == [(number, (27, 48, 3)) for number in range(info.frames)]


def test_frames_near_damage_are_replaced_not_lost(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mkv", SHOTS, [Join()], gop=10).path
    info = probe(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    used, pictures = FilmFrames(info).small(info.pts[[0, 79]])
    assert used[0] == info.pts[0]
    assert len(pictures) == 2
    assert used[1] < info.pts[79]


def test_previews_are_what_was_decoded_anyway() -> None:
    info = probe(film("bikes.mp4"))
    frames = FilmFrames(info, preview_short_side_px=120)
    first, last = int(info.pts[0]), int(info.pts[100])
    assert frames.preview(first, last) is None  # nothing was decoded
    frames.prefetch(frames.grid(2.0, first, last), [], None)
    decoded = frames.decoded_frames
    shown = frames.preview(first, last)
    assert shown is not None
    picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(shown, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    ((_, expected),) = FilmFrames(info).full([int(info.pts[50])], short_side_px=120)
    assert np.abs(picture.astype(int) - expected).mean() < 5
    assert frames.preview(first, last) is None  # forgotten
    assert frames.decoded_frames == decoded
