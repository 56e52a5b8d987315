"""Flaws that need no model: black and frozen pictures, and the bars around a letterboxed one with the crop rectangle.

Frames are those that were decoded for motion (2 fps, any size). Stage contract:

    find_flaws(frames (N, H, W[, 3]) uint8, shown_s (N,)) -> Flaws; raises CannotScore
    flaw_columns(frames, shown_s) -> the columns of a clip's row

`shown_s` is the time from each of these frames to the next, or to the clip's end: in a film of variable frame rate it
differs.

Units: shares of time (`black`, `frozen`) and of the frame (`Crop`), so that nothing depends on the size of the frames.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.errors import CannotScore
from curation.motion import PAIR_S

NAME = "flaws"
_SCORES = ("black", "frozen", "picture_area")

# ffmpeg's blackdetect calls a pixel black at 10 % of the luma range, and a picture at 98 % black pixels.
BLACK_LEVEL = 26
BLACK_SHARE = 0.98

FROZEN_BELOW = 0.15
"""Mean absolute difference, in grey levels of 255, between frames 0.5 s apart below which the picture is frozen. A
repeated frame that was coded again differs by less; sensor noise on a tripod shot by several times more."""

BAR_LEVEL = 30  # a bar's brightest pixel; limited-range black with coding noise stays below
_MIN_BAR = 0.015  # share of the side; a dark line at the border is not a bar, and those of 1.85:1 in 16:9 are 0.019
_MIN_SIDE_PX = 16


@dataclass(frozen=True)
class Crop:
    """The picture inside its bars, as shares of the frame: 0, 0, 1, 1 is the whole frame."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Share of the frame that is picture."""
        return (self.right - self.left) * (self.bottom - self.top)

    def pixels(self, width: int, height: int, *, even: bool = True) -> tuple[int, int, int, int]:
        """x, y, width, height in px of a frame of this size, inside the bars; even numbers suit 4:2:0 video."""
        step = 2 if even else 1
        x, y = (-(-round(share * size) // step) * step for share, size in ((self.left, width), (self.top, height)))
        right, bottom = round(self.right * width), round(self.bottom * height)
        return x, y, (right - x) // step * step, (bottom - y) // step * step


@dataclass(frozen=True)
class Flaws:
    """Flaws of a clip.

    Attributes:
        black: share of the time in which the picture is black.
        frozen: share of the pairs of frames 0.5 s apart without any change; 1 for a still picture. Where one frame is
            shown for longer, the pairs that a film of constant rate would have in that time.
        crop: the picture inside bars of black; the whole frame where there are none, or where all of it is black.
    """

    black: float
    frozen: float
    crop: Crop


def find_flaws(frames: NDArray[np.uint8], shown_s: NDArray[np.floating]) -> Flaws:
    """Measure (N, H, W) grey or (N, H, W, 3) RGB frames of one clip, each shown for `shown_s` (N,) seconds.

    Raises:
        CannotScore: `no_frames`, `too_small`.
    """
    if len(frames) == 0:
        raise CannotScore("no_frames", "no frame was decoded")
    if min(frames.shape[1:3]) < _MIN_SIDE_PX:
        raise CannotScore("too_small", f"{frames.shape[2]}x{frames.shape[1]} px: below {_MIN_SIDE_PX} px a side")
    grey = frames if frames.ndim == 3 else np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])
    black = (grey < BLACK_LEVEL).mean(axis=(1, 2)) >= BLACK_SHARE
    changes = sum(float(cv2.absdiff(a, b).mean()) >= FROZEN_BELOW for a, b in itertools.pairwise(grey))
    pairs = float(np.maximum(1, np.round(shown_s[:-1] / PAIR_S)).sum())
    return Flaws(
        black=float(shown_s[black].sum() / shown_s.sum()),
        frozen=1 - changes / pairs if pairs else 0.0,
        crop=_crop(grey[~black]),
    )


def flaw_columns(frames: NDArray[np.uint8], shown_s: NDArray[np.floating]) -> dict[str, Any]:
    """The columns `black`, `frozen`, `picture_area` and `crop_*` for the frames of one clip at 2 fps, or the errors."""
    try:
        flaws = find_flaws(frames, shown_s)
    except CannotScore as error:
        return no_flaws(error.reason)
    crop = flaws.crop
    columns: dict[str, Any] = {f"{name}_model": NAME for name in _SCORES}
    columns |= {"black": flaws.black, "picture_area": crop.area, "crop_left": crop.left, "crop_top": crop.top}
    columns |= {"crop_right": crop.right, "crop_bottom": crop.bottom}
    return columns | ({"frozen": flaws.frozen} if len(frames) > 1 else {"frozen_error": "too_short"})


def no_flaws(reason: str) -> dict[str, Any]:
    """The columns of a clip whose frames cannot be had."""
    return {f"{name}_model": NAME for name in _SCORES} | {f"{name}_error": reason for name in _SCORES}


def _crop(grey: NDArray[np.uint8]) -> Crop:
    """What is ever brighter than a bar. The brightest frame of the clip decides: a dark scene is not letterboxed."""
    whole = Crop(0.0, 0.0, 1.0, 1.0)
    if len(grey) == 0:
        return whole
    brightest, mean = grey.max(axis=0), grey.mean(axis=0)
    top, bottom = _inside(brightest, mean)
    left, right = _inside(brightest.T, mean.T)
    if bottom - top <= 0.2 or right - left <= 0.2:  # nearly everything is dark: that is a night shot, not bars
        return whole
    return Crop(left, top, right, bottom)


def _inside(brightest: NDArray[np.uint8], mean: NDArray[np.float64]) -> tuple[float, float]:
    """Where the picture begins and ends along the rows, as shares; bars come in pairs or alone, from the border."""
    lit = np.flatnonzero(np.percentile(brightest, 99, axis=1) > BAR_LEVEL)
    if len(lit) == 0:
        return 0.0, 0.0
    bars = _bar(mean, int(lit[0])) / len(mean), _bar(mean[::-1], len(mean) - 1 - int(lit[-1])) / len(mean)
    first, last = (bar if bar >= _MIN_BAR else 0.0 for bar in bars)
    return first, 1 - last


def _bar(rows: NDArray[np.float64], lit: int) -> float:
    """Rows that the bar above the first lit one fills. A row averages many of the film's, so the bar ends inside one.

    How much of a row is picture shows against the next: on H.264 of 1080p within 2 px, where whole rows were 6 px off.
    """
    if lit == 0 or lit + 1 == len(rows):
        return float(lit)
    above = rows[: max(1, lit - 1)].mean()
    picture = rows[lit + 1] - above
    energy = max(float(picture @ picture), 1e-9)
    return lit + 1 - sum(float(np.clip((row - above) @ picture / energy, 0, 1)) for row in rows[lit - 1 : lit + 1])
