"""Frames of a finished clip, decoded from its own mp4: what a model on another machine than the cuts needs.

A clip's bytes travel anyway and are some hundred times smaller than its frames, so a GPU stage decodes them again
instead of being sent raw frames. Times, rotation and pixel shape are handled as in the source (`curation.frames`).
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curation.errors import CannotDecode
from curation.frames import FilmFrames
from curation.probe import probe


def sample_clip(
    data: bytes | memoryview, rate_fps: float, short_side_px: int, *, threads: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Frames at a rate, (N, H, W, 3) RGB upright with at most this short side, and their times in seconds (N,).

    Raises:
        CannotDecode: the bytes are not a film, or no frame of it can be decoded.
    """
    with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(data)
        info = probe(path)
        frames = FilmFrames(info, small_short_side_px=short_side_px, threads=threads)
        used, pictures = frames.small(frames.grid(rate_fps))
    if len(pictures) == 0:
        raise CannotDecode("no_frames", "no frame of the clip can be decoded")
    used, first = np.unique(used, return_index=True)
    return pictures[first], (used - info.pts[0]) * float(info.time_base)
