"""Small shards for the trainer's tests: clips of moving squares with known motion, as `export` writes them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def encode(frames: np.ndarray, rate: int = 12, form: str = "mp4", codec: str = "libx264") -> bytes:
    """RGB uint8 (T, H, W, 3) as an mp4 (or `form`) with closed GOPs of 6 frames and B-frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        options = {"crf": "16", "g": "6", "bf": "2", "threads": "1"}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, rate)
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def moving_square(seed: int, frames: int = 14, height: int = 48, width: int = 64, dx: float = 2.0) -> np.ndarray:
    """A bright square over a smooth background, moving dx px per frame, (T, H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    colours = random.integers(30, 120, (2, 2, 3)).astype(float)
    y, x = np.mgrid[0:height, 0:width]
    u, v = (y / height)[..., None], (x / width)[..., None]
    ground = (1 - u) * ((1 - v) * colours[0, 0] + v * colours[0, 1]) + u * ((1 - v) * colours[1, 0] + v * colours[1, 1])
    square = random.integers(150, 255, 3)
    top, left = int(random.integers(4, height - 20)), float(random.integers(0, width - 16))
    result = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        picture = ground.copy()
        at = round(left + dx * t) % (width - 14)
        picture[top : top + 14, at : at + 14] = square
        result[t] = picture.round().astype(np.uint8)
    return result


def write_shard(path: Path, samples: Sequence[tuple[str, bytes, dict[str, Any], str]], extension: str = "mp4",
                form: int = tarfile.USTAR_FORMAT) -> Path:  # fmt: skip
    """A tar of (key, media bytes, json, caption)."""
    with tarfile.open(path, "w", format=form) as tar:
        for key, media, meta, caption in samples:
            members = ((extension, media), ("json", json.dumps(meta).encode()), ("txt", caption.encode()))
            for kind, data in members:
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def clip(seed: int, *, frames: int = 14, rate: int = 12, size: tuple[int, int] = (48, 64), **meta: Any) -> Any:
    """One sample: (key, mp4, json, caption)."""
    dx = meta.pop("dx", 2.0)
    pictures = moving_square(seed, frames, *size, dx=dx)
    facts = {
        "frames": frames,
        "rate_fps": float(rate),
        "width": size[1],
        "height": size[0],
        "motion_coarse": abs(dx) / 4,
    }
    facts |= {"camera": "static", "caption_spatial": f"square {seed}", "caption_temporal": f"moves {dx}"} | meta
    return f"clip{seed:04d}", encode(pictures, rate), facts, f"a square number {seed}"


def make_shards(folder: Path, shards: int = 3, clips: int = 4, **options: Any) -> Path:
    """A folder of shards; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for s in range(shards):
        write_shard(folder / f"{s:06d}.tar", [clip(s * clips + i, **options) for i in range(clips)])
    return folder
