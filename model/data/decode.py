"""From the bytes of a clip to T frames at a chosen rate, on the size of the bucket.

The rate is drawn per sample: one of rate/1, rate/2, ... that lies in the asked range and for which the clip is long
enough. Micro-conditioning on fps (paper section 4, Appendix D) uses the rate *of the frames that were taken*, measured
from their timestamps. Only the stretch from the key frame before the first wanted frame to the last one is decoded.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from PIL import Image, ImageOps


class CannotRead(Exception):
    """A clip that does not give the frames asked for."""


@dataclass(frozen=True)
class Frames:
    """T frames, RGB uint8 (T, H, W, 3), and how they were taken."""

    pixels: np.ndarray
    fps: float  # of these frames; 0 for a single one
    first_s: float  # time of the first one in the clip


def read_clip(
    data: bytes,
    frames: int,
    size: tuple[int, int],
    *,
    rates_fps: tuple[float, float],
    choose: np.random.Generator,
    crop: np.random.Generator | None,
) -> Frames:
    """Decode `frames` frames from a clip.

    Args:
        data: the file.
        size: (height, width) in pixels: frames are scaled to cover it and cropped.
        rates_fps: least and greatest rate.
        choose: draws the rate and the start.
        crop: draws the place of the crop; None crops the centre.

    Raises:
        CannotRead: not a video, or too short for the frames at any rate in the range.
    """
    try:
        with av.open(io.BytesIO(data), mode="r") as container:
            if not container.streams.video:
                raise CannotRead("holds no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # loader workers are the parallelism
            base = float(stream.time_base or 0)
            pts = np.array(sorted(p.pts for p in container.demux(stream) if p.pts is not None), dtype=np.int64)
            wanted, fps = pick_frames(pts * base, frames, rates_fps, choose)
            pictures = _decode(container, stream, pts, wanted, size, crop)
            return Frames(pictures, fps, float((pts[wanted[0]] - pts[0]) * base))
    except av.FFmpegError as error:
        raise CannotRead(f"cannot be decoded ({error})") from error


def pick_frames(
    times_s: np.ndarray, frames: int, rates_fps: tuple[float, float], choose: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Which frames of a clip to take, (frames,) int64, and their rate.

    Args:
        times_s: presentation time of each frame, increasing.

    Raises:
        CannotRead: too few frames.
    """
    n = len(times_s)
    if n == 0:
        raise CannotRead("holds no frames")
    if frames == 1:
        return np.array([choose.integers(n)]), 0.0
    low, high = rates_fps
    duration = float(times_s[-1] - times_s[0])
    native = (n - 1) / duration if duration > 0 else 0.0
    # A hair of tolerance: 29.97 counts as 30, and the last frame of a clip that is just long enough counts.
    strides = [
        k for k in range(1, n // (frames - 1) + 1)
        if low * 0.99 <= native / k <= high * 1.01 and k * (frames - 1) <= n - 1
    ]  # fmt: skip
    if not strides:
        raise CannotRead(f"has {n} frames at {native:.2f} fps: {frames} frames at {low:g} to {high:g} fps do not fit")
    stride = strides[choose.integers(len(strides))]
    span_s = (frames - 1) * stride / native
    latest = int(np.searchsorted(times_s, times_s[-1] - span_s + 0.5 / native, side="right"))
    start = times_s[choose.integers(max(1, min(latest, n - (frames - 1) * stride)))]
    targets = start + np.arange(frames) * (stride / native)
    right = np.clip(np.searchsorted(times_s, targets), 1, n - 1)
    nearest = np.where(targets - times_s[right - 1] <= times_s[right] - targets, right - 1, right)
    taken = float(times_s[nearest[-1]] - times_s[nearest[0]])
    return nearest, (frames - 1) / taken if taken > 0 else native / stride


def _decode(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    pts: np.ndarray,
    wanted: np.ndarray,
    size: tuple[int, int],
    crop: np.random.Generator | None,
) -> np.ndarray:
    aspect = float(stream.sample_aspect_ratio or 1)
    needed = {int(p) for p in pts[wanted]}
    taken: dict[int, np.ndarray] = {}
    place: tuple[float, float] = (0.5, 0.5) if crop is None else (float(crop.random()), float(crop.random()))
    container.seek(int(pts[wanted[0]]), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.pts in needed:
            taken[frame.pts] = fit(frame, size, place, aspect)
            if len(taken) == len(needed):
                break
    if len(taken) < len(needed):
        raise CannotRead(f"gave {len(taken)} of the {len(needed)} frames wanted")
    return np.stack([taken[int(p)] for p in pts[wanted]])


def read_image(data: bytes, size: tuple[int, int], *, crop: np.random.Generator | None) -> Frames:
    """An image as a clip of one frame. Raises CannotRead when it is not an image."""
    picture = np.array(open_picture(io.BytesIO(data)))
    place = (0.5, 0.5) if crop is None else (float(crop.random()), float(crop.random()))
    return Frames(fit(av.VideoFrame.from_ndarray(picture, format="rgb24"), size, place)[None], 0.0, 0.0)


def open_picture(source: str | Path | IO[bytes]) -> Image.Image:
    """An image in RGB as it is trained on and sampled from: turned as its EXIF says, transparent parts on black.

    Raises:
        CannotRead: no image.
        FileNotFoundError
    """
    try:
        with Image.open(source) as opened:
            image = _eight_bits(ImageOps.exif_transpose(opened))
            if image.has_transparency_data:  # what lies below transparent pixels is arbitrary, often white or noise
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise CannotRead(f"too large ({error}); scale it down first") from error
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's readers of damaged files raise all of these
        raise CannotRead(f"not an image that can be read ({error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits. Pillow would cut it off, and numbers of no known range too.

    Raises:
        CannotRead: 32-bit numbers, which do not say what is white.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise CannotRead("pixels of 32 bits, of which nobody says what is white; save it with 8 or 16")
    return image


def fit(
    frame: av.VideoFrame, size: tuple[int, int], place: tuple[float, float], pixel_aspect: float = 1.0
) -> np.ndarray:
    """Scale a frame to cover (height, width), crop at `place`, turn as its display matrix says: uint8 (H, W, 3).

    Args:
        place: 0..1 down and right, in the stored picture.
        pixel_aspect: width of its pixels over their height.
    """
    height, width = reversed(size) if _quarters(frame) % 2 else size
    shown = frame.width * pixel_aspect
    scale = max(height / frame.height, width / shown)
    h, w = max(height, round(frame.height * scale)), max(width, round(shown * scale))
    # One thread: by default the scaler starts one per core for every frame, and loader workers are the parallelism.
    picture = frame.reformat(width=w, height=h, format="rgb24", interpolation="BICUBIC", threads=1).to_ndarray()
    top, left = int(place[0] * (h - height + 1)), int(place[1] * (w - width + 1))
    return turned(picture[min(top, h - height) :, min(left, w - width) :][:height, :width], frame)


def turned(picture: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """A stored picture (H, W, 3) turned, and mirrored, as the display matrix of its frame says."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = (float(each) for each in np.frombuffer(bytes(matrix), dtype=np.int32)[:5])
        picture = picture[::-1] if a * d < b * c else picture
    return np.rot90(picture, _quarters(frame))


def _quarters(frame: av.VideoFrame) -> int:
    """Quarter turns, counter-clockwise."""
    return round(frame.rotation / 90) % 4
