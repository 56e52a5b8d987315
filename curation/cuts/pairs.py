"""How different two frames are, with and without tolerance to motion.

All of it works on thumbs: 64x36 luma and two 32x18 chroma planes of a frame as one row of bytes, whatever the film's
size and aspect. Rows of a film stand in one array (N, THUMB_BYTES), so that most comparisons are one numpy call.
"""

import itertools

import cv2
import numpy as np
from av.video.frame import VideoFrame
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from curation.frames import shrunk_planes

WIDTH, HEIGHT = 64, 36
_LUMA = WIDTH * HEIGHT
_CHROMA = _LUMA // 4
THUMB_BYTES = _LUMA + 2 * _CHROMA

# Block matching works at half the thumb's size: blocks of 4x3 there, moved by up to a sixth of either side.
_HALF_W, _HALF_H = WIDTH // 2, HEIGHT // 2
_BLOCK_W, _BLOCK_H = 4, 3
_REACH_X, _REACH_Y = 5, 3


def thumb(frame: VideoFrame) -> np.ndarray:
    """(THUMB_BYTES,) uint8 of a decoded frame, as stored (not turned upright)."""
    half = (WIDTH // 2, HEIGHT // 2)
    planes = shrunk_planes(frame, (WIDTH, HEIGHT), half, most_rows=4 * HEIGHT)
    if planes is None:
        rgb = frame.to_ndarray(format="rgb24", width=WIDTH, height=HEIGHT, interpolation="AREA")
        y, u, v = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV))
        planes = [y, *(cv2.resize(plane, half, interpolation=cv2.INTER_AREA) for plane in (u, v))]
    return np.concatenate([plane.ravel() for plane in planes])


def luma(thumbs: np.ndarray) -> np.ndarray:
    """(..., 36, 64) luma of thumbs (..., THUMB_BYTES)."""
    return thumbs[..., :_LUMA].reshape(*thumbs.shape[:-1], HEIGHT, WIDTH)


def bgr(one: np.ndarray) -> np.ndarray:
    """One thumb as a BGR picture (36, 64, 3) for PySceneDetect's detectors."""
    half = (HEIGHT // 2, WIDTH // 2)
    chroma = one[_LUMA:].reshape(2, *half).repeat(2, axis=1).repeat(2, axis=2)
    picture = np.ascontiguousarray(np.stack([luma(one), chroma[1], chroma[0]], axis=-1))
    return cv2.cvtColor(picture, cv2.COLOR_YCrCb2BGR)


class ContentScore:
    """PySceneDetect's ContentDetector as a score of two thumbs: mean change of hue, saturation and brightness."""

    def __init__(self) -> None:
        self._colour, self._grey = ContentDetector(), ContentDetector(luma_only=True)

    def series(self, thumbs: np.ndarray, *, grey: bool = False) -> np.ndarray:
        """Score of each thumb against the one before it; (N - 1,) for (N, THUMB_BYTES).

        `grey`: of brightness alone; hue and saturation, which do not change, would take two thirds of the score away.
        """
        detector = self._grey if grey else self._colour
        detector._last_frame = None
        scores = [detector._calculate_frame_score(FrameTimecode(k, 25.0), bgr(one)) for k, one in enumerate(thumbs)]
        return np.array(scores[1:])


def plain_steps(thumbs: np.ndarray) -> np.ndarray:
    """Mean absolute change of luma plus that of chroma from each thumb to the next: (N - 1,) float."""
    light, colour = thumbs[:, :_LUMA], thumbs[:, _LUMA:]
    steps = [
        cv2.norm(light[k], light[k + 1], cv2.NORM_L1) / _LUMA
        + cv2.norm(colour[k], colour[k + 1], cv2.NORM_L1) / (2 * _CHROMA)
        for k in range(len(thumbs) - 1)
    ]
    return np.array(steps, np.float32)


def unexplained(first: np.ndarray, second: np.ndarray) -> float:
    """Mean luma difference left after every block of `second` took its best match nearby in `first` (0..255)."""
    halves = [cv2.resize(luma(one), (_HALF_W, _HALF_H), interpolation=cv2.INTER_AREA) for one in (first, second)]
    padded = cv2.copyMakeBorder(halves[0], _REACH_Y, _REACH_Y, _REACH_X, _REACH_X, cv2.BORDER_REFLECT)
    shifts = (2 * _REACH_X + 1) * (2 * _REACH_Y + 1)
    shape, line = (2 * _REACH_Y + 1, 2 * _REACH_X + 1, _HALF_H, _HALF_W), padded.strides[0]
    moved = np.ndarray(shape, np.uint8, padded, strides=(line, 1, line, 1)).reshape(shifts * _HALF_H, _HALF_W)
    still = np.broadcast_to(halves[1], (shifts, _HALF_H, _HALF_W)).reshape(shifts * _HALF_H, _HALF_W)
    left = cv2.absdiff(moved, still)
    blocks = (_HALF_W // _BLOCK_W, shifts * _HALF_H // _BLOCK_H)
    means = cv2.resize(left.astype(np.float32), blocks, interpolation=cv2.INTER_AREA)
    return float(means.reshape(shifts, -1).min(0).mean())


def unexplained_share(thumbs: np.ndarray) -> float:
    """The share of what changes from each thumb to the next that block matching leaves: little where things move,
    most where one picture is mixed into another. 1 where nothing changes.
    """
    pairs = list(itertools.pairwise(thumbs))
    changed = sum(cv2.norm(a[:_LUMA], b[:_LUMA], cv2.NORM_L1) for a, b in pairs) / _LUMA
    return sum(unexplained(a, b) for a, b in pairs) / changed if changed else 1.0


def histogram(one: np.ndarray) -> np.ndarray:
    """(1024,) square roots of the shares of 16 luma x 8 x 8 chroma bins: the dot product of two is 1 when alike."""
    light = luma(one)[::2, ::2].ravel() >> 4
    colours = one[_LUMA:].reshape(2, -1) >> 5
    bins = (light.astype(np.int64) << 6) + (colours[0].astype(np.int64) << 3) + colours[1]
    return np.sqrt(np.bincount(bins, minlength=1024) / len(bins))


def spreads(thumbs: np.ndarray) -> np.ndarray:
    """(N,) standard deviation of each picture's luma: its contrast; next to nothing in black or white frames."""
    return np.array([cv2.meanStdDev(luma(one))[1][0, 0] for one in thumbs])


def is_grey(thumbs: np.ndarray, spread: float = 2.5) -> bool:
    """Whether most of the pictures have one colour at most: black and white film, or tinted."""
    some = thumbs[:: max(1, len(thumbs) // 32), _LUMA:].astype(np.float32).reshape(-1, 2, _CHROMA)
    return bool(np.median(some.std(-1).max(-1)) < spread)
