"""Videos as tensors, in and out: reading images and films, writing mp4, gif and PNG frames, contact sheets.

Frames are (T, 3, H, W), float32 on [-1, 1], RGB; films are read and written frame by frame, so their length is bounded
by the disk alone. Files appear complete under their name or not at all.
"""

import errno
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from model.data.decode import CannotRead, open_picture, turned

FORMATS = ("mp4", "gif", "png")
GIF_FPS = 50
"""Players show gif frames of less than 20 ms at a tenth of the speed."""
_FRAME = re.compile(r"\d{4,}\.png")  # of a folder of PNGs
_BYTES_PER_PIXEL = {"mp4": 0.25, "gif": 1.0, "png": 3.0}  # mp4: bikes.mp4 takes 0.04, pure noise 0.9


class VideoFileError(OSError):
    """A file cannot be read or written; the message names it and says what to do."""


def to_bytes(frames: Tensor) -> NDArray[np.uint8]:
    """Frames (T, 3, H, W) on [-1, 1] -> (T, H, W, 3) uint8, rounded to nearest."""
    unit = (frames.float().clamp(-1, 1) + 1) / 2
    array: NDArray[np.uint8] = (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array


def from_bytes(array: NDArray[np.uint8]) -> Tensor:
    """(T, H, W, 3) uint8 -> frames (T, 3, H, W) float32 on [-1, 1]."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255 * 2 - 1


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """An image as (1, 3, H, W) on [-1, 1]; turned as its EXIF says, transparent parts on black.

    Args:
        size: (width, height): scaled to cover it (Lanczos) and cropped at the centre; None keeps the image's own.

    Raises:
        VideoFileError: missing, or no image.
    """
    try:
        image = open_picture(path)
    except FileNotFoundError as error:
        raise VideoFileError(f"{path}: no such file") from error
    except CannotRead as error:
        raise VideoFileError(f"{path}: {error}") from error
    if size is not None and image.size != size:
        image = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
    return from_bytes(np.array(image)[None])


@dataclass(frozen=True)
class Film:
    """What a film says about itself, without being decoded."""

    frames: int
    fps: float
    """Mean frame rate."""


def probe_film(path: str | Path, *, max_frames: int | None = None) -> Film:
    """Count a film's frames (at most `max_frames`) by its packets.

    Raises:
        VideoFileError: missing, or no video stream.
    """
    with _opened(path) as container:
        rate = container.streams.video[0].average_rate
        packets = (packet for packet in container.demux(video=0) if packet.size)
        return Film(sum(1 for _ in itertools.islice(packets, max_frames)), float(rate or 25))


def film_frames(
    path: str | Path, *, size: tuple[int, int] | None = None, max_frames: int | None = None
) -> Iterator[Tensor]:
    """A film's first frames one by one, each (3, H, W) on [-1, 1], as they are shown: square pixels, upright.

    Args:
        size: (width, height), covered and cropped as in read_image.

    Raises:
        VideoFileError: missing, or no video stream that can be decoded.
    """
    with _opened(path) as container:
        aspect = float(container.streams.video[0].sample_aspect_ratio or 1)
        for frame in itertools.islice(container.decode(video=0), max_frames):
            image = frame.to_image()
            if aspect != 1:
                image = image.resize((round(image.width * aspect), image.height), Image.Resampling.LANCZOS)
            image = Image.fromarray(turned(np.array(image), frame))
            if size is not None:
                image = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
            yield from_bytes(np.array(image)[None])[0]


@contextmanager
def _opened(path: str | Path) -> Iterator[av.container.InputContainer]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoFileError(f"{path}: no video stream")
            yield container
    except av.FFmpegError as error:
        raise VideoFileError(f"{path}: not a video that can be read ({error})") from error


def write_video(frames: Iterable[Tensor], path: str | Path, *, fps: float, format: str | None = None) -> Path:
    """Write frames (T, 3, H, W) on [-1, 1]: mp4 (H.264), gif, or a folder of PNGs (format `png`).

    Args:
        frames: one tensor, or an iterator of (3, H, W): only one frame is in memory then (for a gif, one byte a pixel).
        format: one of FORMATS; default: the path's suffix, a path without one is a folder of PNGs.

    Raises:
        ValueError: an unknown format, or an odd size for mp4.
        VideoFileError: no space, no permission, or something else is in the way (`check_replaceable`).
    """
    path = Path(path)
    format = format or format_of(path)
    check_replaceable(path, format)
    pixels = (to_bytes(frame[None])[0] for frame in frames)
    writers: dict[str, Callable[[Path], None]] = {
        "mp4": lambda target: _write_mp4(pixels, target, fps),
        "gif": lambda target: _write_gif(pixels, target, fps),
        "png": lambda target: _write_pngs(pixels, target),
    }
    if format not in writers:
        raise ValueError(f"format {format!r}: {', '.join(FORMATS)}")
    _complete_or_nothing(path, writers[format], folder=format == "png")
    return path


def format_of(path: Path) -> str:
    """The format a path asks for by its suffix.

    Raises:
        ValueError: a suffix that is none of FORMATS.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("mp4", "gif", ""):
        raise ValueError(f"{path}: do not know how to write .{suffix}; use .mp4, .gif, or a folder for PNGs")
    return suffix or "png"


def contact_sheet(frames: Tensor, *, columns: int | None = None, gap: int = 2) -> Tensor:
    """Frames (T, 3, H, W) side by side on white, row by row: one image (1, 3, H', W')."""
    t, _, h, w = frames.shape
    columns = columns or min(t, 7)
    rows = -(-t // columns)
    sheet = torch.ones(1, 3, rows * (h + gap) + gap, columns * (w + gap) + gap)
    for i, frame in enumerate(frames):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[0, :, y : y + h, x : x + w] = frame
    return sheet


def write_image(image: Tensor, path: str | Path) -> Path:
    """Write one image (1, 3, H, W) on [-1, 1] as PNG.

    Raises:
        VideoFileError: no space, or no permission.
    """
    path = Path(path)
    _complete_or_nothing(path, lambda target: Image.fromarray(to_bytes(image)[0]).save(target, format="PNG"))
    return path


def check_writable(path: str | Path, frames: int, size: tuple[int, int]) -> None:
    """Find out before hours of sampling whether the result could be written: `frames` of `size` (width, height).

    Raises:
        VideoFileError: the folder does not exist and cannot be made, is not writable, or has no space; or something
            else is in the way.
    """
    path = Path(path)
    check_replaceable(path, format_of(path))
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoFileError(f"{folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise VideoFileError(f"{folder}: not writable; choose another output folder")
    bytes_needed = frames * size[0] * size[1] * _BYTES_PER_PIXEL[format_of(path)]
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise VideoFileError(
            f"{folder}: {free / 1e6:.1f} MB free, about {bytes_needed / 1e6:.1f} MB needed; "
            "free some space or choose another output folder"
        )


def check_replaceable(path: Path, format: str) -> None:
    """Earlier results may be replaced: a file by a file, a folder of numbered PNGs by another. Nothing else may.

    Raises:
        VideoFileError: a folder where a file is to be, a file or a link where a folder is to be, a folder with other
            files, or a folder that goes by no name of its own (`.`).
    """
    if path.name in ("", ".."):
        raise VideoFileError(
            f"{path}: give the folder for the PNGs a name, so that it can be put in place when complete"
        )
    if not path.exists():
        return
    if format != "png":
        if path.is_dir():
            raise VideoFileError(f"{path}: is a folder; give another name for the {format}")
    elif path.is_symlink() or not path.is_dir():
        kind = "link" if path.is_symlink() else "file"
        raise VideoFileError(f"{path}: is a {kind}; PNGs go into a folder of their own")
    else:
        other = sorted(entry.name for entry in path.iterdir() if not _FRAME.fullmatch(entry.name))
        if other:
            raise VideoFileError(
                f"{path}: holds other files ({', '.join(other[:3])}{' ...' if len(other) > 3 else ''}), which would be "
                "lost; give a new folder for the PNGs"
            )


def _complete_or_nothing(path: Path, write: Callable[[Path], None], *, folder: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise VideoFileError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        target = partial / path.name
        write(target)
        if folder and path.is_dir():  # replace the frames that an earlier run left
            shutil.rmtree(path)
        target.rename(path)
    except VideoFileError:  # of a film that is read while this one is written
        raise
    except (OSError, av.FFmpegError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise VideoFileError(f"{path}: no space left; free some or choose another output folder") from error
        raise VideoFileError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_mp4(pixels: Iterator[NDArray[np.uint8]], path: Path, fps: float) -> None:
    first = next(pixels)
    height, width = first.shape[:2]
    if width % 2 or height % 2:
        raise ValueError(f"{width} x {height}: mp4 (4:2:0) needs even sizes; write gif or png")
    with av.open(str(path), mode="w", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        # With AVX-512, x264's macroblock tree reads memory that nobody wrote, and the bytes differ between runs.
        options = {"crf": "12", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for array in itertools.chain([first], pixels):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def _write_gif(pixels: Iterator[NDArray[np.uint8]], path: Path, fps: float) -> None:
    images = (Image.fromarray(array) for array in pixels)
    shown_ms = round(1000 / min(fps, GIF_FPS))
    next(images).save(path, format="GIF", save_all=True, append_images=images, duration=shown_ms, loop=0)


def _write_pngs(pixels: Iterator[NDArray[np.uint8]], path: Path) -> None:
    path.mkdir()
    for i, array in enumerate(pixels):
        Image.fromarray(array).save(path / f"{i:04d}.png")
