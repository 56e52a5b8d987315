"""Images and films in, films out: what people's files really are."""

import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from model.video_io import VideoFileError, film_frames, probe_film, read_image, to_bytes, write_video
from tests.media import Shot, make_film


def test_transparent_parts_are_black_whatever_lies_below_them(tmp_path):
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, :4, 3] = 0  # left half: transparent white
    pixels[:, 4:, :3] = (200, 100, 50)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).convert("LA").save(tmp_path / "grey.png")
    Image.fromarray(pixels).quantize(4).save(tmp_path / "palette.gif", transparency=0)
    shown = to_bytes(read_image(tmp_path / "a.png"))[0]
    assert not shown[:, :4].any()
    assert (shown[:, 4:] == (200, 100, 50)).all()
    assert not to_bytes(read_image(tmp_path / "grey.png"))[0, :, :4].any()
    assert read_image(tmp_path / "palette.gif").shape == (1, 3, 8, 8)


@pytest.mark.parametrize("format", ["png", "jpeg", "gif", "webp", "tiff", "bmp"])
def test_damaged_images_are_named(tmp_path, format):
    """Every tenth of the file overwritten in turn: an image, or an error of ours."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(whole, format=format)
    data = whole.getvalue()
    step = max(1, len(data) // 40)
    refused = 0
    for at in range(0, len(data), step):
        for name, broken in (("cut", data[:at]), ("scrambled", data[:at] + b"\xff" * step + data[at + step :])):
            path = tmp_path / f"{name}.{format}"
            path.write_bytes(broken)
            try:
                read_image(path, (16, 16))
            except VideoFileError as error:
                refused += str(path) in str(error)
    assert refused


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("1", (400, 400)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(VideoFileError, match=r"big\.png: too large .*scale it down"):
        read_image(tmp_path / "big.png")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_shades(tmp_path, suffix):
    ramp = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"grey.{suffix}")
    expected = torch.tensor([0, 1, 128, 255]) / 255 * 2 - 1
    torch.testing.assert_close(read_image(tmp_path / f"grey.{suffix}")[0, 1, 0], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_of_no_known_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(VideoFileError, match=r"a\.tif: pixels of 32 bits.*8 or 16"):
        read_image(tmp_path / "a.tif")


def film(path: Path, frames: int, rotation: int = 0) -> Path:
    """A film of 48 x 32 whose upper left quarter is bright."""
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24] = 250
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_are_counted_without_decoding_and_read_one_by_one(tmp_path, name):
    path = film(tmp_path / name, 7)
    assert probe_film(path).frames == 7
    assert probe_film(path).fps == 10
    assert probe_film(path, max_frames=3).frames == 3
    assert len(list(film_frames(path))) == 7
    assert [tuple(frame.shape) for frame in film_frames(path, size=(16, 8), max_frames=3)] == [(3, 8, 16)] * 3


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_films_are_turned_as_players_turn_them(tmp_path, rotation, corner):
    """Counterclockwise by the display matrix: the bright quarter goes from the upper left to `corner`."""
    frame = next(film_frames(film(tmp_path / "a.mp4", 2, rotation)))
    assert tuple(frame.shape) == ((3, 32, 48) if rotation == 180 else (3, 48, 32))
    bright = [(y, x) for y, x in itertools.product((0, -1), repeat=2) if frame[0, y, x] > 0.5]
    assert bright == [corner]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_mirrored_films_are_shown_as_players_show_them(tmp_path, rotation):
    make_film(tmp_path / "a.mp4", [Shot("bikes.1", 2)], size=(96, 64), rotation=rotation, flipped=True)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    expected = np.rot90(stored[::-1], -rotation // 90).astype(int)
    shown = (next(film_frames(tmp_path / "a.mp4")) + 1) * 127.5
    assert np.abs(shown.permute(1, 2, 0).numpy() - expected).mean() < 2


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    make_film(tmp_path / "a.mp4", [Shot("bikes.1", 2)], size=(96, 64), sar=Fraction(4, 3))
    assert tuple(next(film_frames(tmp_path / "a.mp4")).shape) == (3, 64, 128)


def test_films_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    for name in ("text.mp4", "missing.mp4"):
        with pytest.raises(VideoFileError, match=name):
            probe_film(tmp_path / name)
    # A film that breaks off while another is made of it: the message is about the one that is read.
    path = film(tmp_path / "a.mp4", 7)

    def broken():
        yield from film_frames(path)
        yield from film_frames(tmp_path / "text.mp4")

    with pytest.raises(VideoFileError, match=r"text\.mp4: not a video that can be read"):
        write_video(broken(), tmp_path / "out.mp4", fps=7)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("name", ["v.mp4", "v.gif", "v"])
def test_frames_one_by_one_make_the_same_file(tmp_path, name):
    frames = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_video(frames, tmp_path / "a" / name, fps=7)
    write_video((frame for frame in frames), tmp_path / "b" / name, fps=7)
    files = [sorted(path.rglob("*.*")) for path in (tmp_path / "a", tmp_path / "b")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*files, strict=True))
