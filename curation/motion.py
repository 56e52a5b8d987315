"""Motion score of a clip: mean magnitude of coarse optical flow (Stable Video Diffusion, section 3.1 and App. C).

Dense Farneback flow between frames sampled at 2 fps, the field reduced to 16 px on its shortest side, and the mean over
space and time of its *magnitude*; signed means would let a pan there and back cancel out.

The unit of every displacement here is one pixel of the reduced field per 0.5 s, that is 1/16 of the frame's short side
in half a second. It depends neither on the film's resolution nor on its frame rate: a film and its downscale score
alike. (The paper's example of a static clip scores 0.043.) The actual times of the frames are used, so that frames
that are not exactly 0.5 s apart, as in films of variable frame rate, score like those that are.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.camera import camera_label, fit_global_motion
from curation.errors import CannotScore

PAIR_S = 0.5
"""Time between the frames of a pair at the paper's 2 fps: the unit of time of every displacement."""

FIELD_SHORT_SIDE_PX = 16

# Resolution and parameters of Farneback, chosen by tests/benchmarks/motion_resolution.py: known warps of real frames,
# error at the reduced field against CPU time. Finer is not better, because the window then covers less of the picture
# and fast motion is lost: the mean error of a shift by 10 % of the short side is 0.14 px at 64 px (1.3 ms a pair on
# one core), 0.39 px at 144 (7.8 ms) and 1.19 px at 216 (14.8 ms). 64 px is the smallest size at which OpenCV's
# pyramid, which ends at 32 px, has two levels; wider windows than 21 px smear a small moving object over the still
# picture around it.
FLOW_SHORT_SIDE_PX = 64
PYRAMID_SCALE, LEVELS, WINDOW_PX, ITERATIONS, POLY_N, POLY_SIGMA = 0.5, 4, 21, 3, 5, 1.1

MIN_SIDE_PX = 32  # below, Farneback's window is larger than the picture
PHASE_RESPONSE = 0.1  # a phase correlation peak lower than this is noise
PHASE_GAIN = 0.7  # the shift must take away this much of the difference between the frames
PHASE_SHIFT = 0.06  # share of the short side beyond which Farneback alone starts to lose a moving picture


@dataclass(frozen=True)
class MotionScore:
    """Motion of one clip. Displacements in px of the reduced field per 0.5 s, rates per 0.5 s.

    Attributes:
        score: mean over space and time of the flow's magnitude.
        mean_dx, mean_dy: signed mean of the flow, to the right and down (a pan to the right moves the picture left).
        divergence, curl: signed means of the global fit; zooming in and turning clockwise are positive.
        residual: mean magnitude of flow minus global fit: what moves against the camera.
        camera: one of `curation.camera.LABELS`.
    """

    score: float
    mean_dx: float
    mean_dy: float
    divergence: float
    curl: float
    residual: float
    camera: str


def score_fields(
    fields: NDArray[np.floating], gaps_s: NDArray[np.floating], confidence: NDArray[np.floating] | None = None
) -> MotionScore:
    """Aggregate reduced flow fields to one score; the same for every flow implementation.

    Args:
        fields: (P, h, w, 2) reduced fields in px of the field, per pair (not yet normalised in time).
        gaps_s: (P,) time between the frames of each pair.
        confidence: (P, h, w) in [0, 1] for the camera fit; the score itself is the plain mean.

    Raises:
        CannotScore: `non_finite` flow.
    """
    if not np.isfinite(fields).all():
        raise CannotScore("non_finite", "optical flow is not finite")
    # Each pair counts for the time it spans: the mean over time of an irregularly sampled clip.
    weight = gaps_s / gaps_s.sum()
    rates = np.asarray(fields, np.float64) * (PAIR_S / gaps_s)[:, None, None, None]
    magnitude = np.linalg.norm(rates, axis=-1).mean(axis=(1, 2))
    mean_flow = rates.mean(axis=(1, 2))
    fit = fit_global_motion(rates, confidence)
    return MotionScore(
        score=float(weight @ magnitude),
        mean_dx=float(weight @ mean_flow[:, 0]),
        mean_dy=float(weight @ mean_flow[:, 1]),
        divergence=float(weight @ fit.divergence),
        curl=float(weight @ fit.curl),
        residual=float(weight @ fit.residual),
        camera=camera_label(fit, weight),
    )


def reduce_field(flow: NDArray[np.floating], short_side_px: int = FIELD_SHORT_SIDE_PX) -> NDArray[np.float32]:
    """Average a (H, W, 2) flow over the cells of a field with this shortest side, and express it in the field's
    pixels."""
    height, width = flow.shape[:2]
    scale = short_side_px / min(height, width)
    small = cv2.resize(
        np.asarray(flow, np.float32), scaled_size(height, width, short_side_px), interpolation=cv2.INTER_AREA
    )
    return small * np.float32(scale)


def scaled_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """(width, height) with the given shortest side, aspect kept."""
    scale = short_side_px / min(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def grey_frames(frames: NDArray[np.uint8], short_side_px: int) -> list[NDArray[np.uint8]]:
    """(N, H, W) or (N, H, W, 3) RGB frames as grey ones with at most this shortest side (never enlarged)."""
    small = []
    for frame in frames:
        if frame.ndim == 3:
            frame = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if min(frame.shape) > short_side_px:
            frame = cv2.resize(
                frame, scaled_size(frame.shape[0], frame.shape[1], short_side_px), interpolation=cv2.INTER_AREA
            )
        small.append(frame)
    return small


def check_frames(frames: NDArray[np.uint8], times_s: NDArray[np.floating]) -> NDArray[np.float64]:
    """Gaps in seconds between frames that flow can be computed on.

    Raises:
        CannotScore: `too_short` (fewer than two frames), `too_small`, `bad_times` (not increasing, or not one per
        frame).
        ValueError: an array that does not hold frames, which is the caller's mistake, not the clip's.
    """
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[3] != 3):
        raise ValueError(f"frames must be uint8 of shape (N, H, W) or (N, H, W, 3), got {frames.dtype} {frames.shape}")
    if len(frames) < 2:
        raise CannotScore("too_short", f"{len(frames)} frame(s) at 2 fps: optical flow needs two")
    if min(frames.shape[1:3]) < MIN_SIDE_PX:
        raise CannotScore(
            "too_small", f"{frames.shape[2]}x{frames.shape[1]} px: optical flow needs {MIN_SIDE_PX} px a side"
        )
    gaps = np.diff(np.asarray(times_s, np.float64))
    if len(times_s) != len(frames) or not (np.isfinite(gaps).all() and (gaps > 0).all()):
        raise CannotScore("bad_times", "frame times are not one per frame and increasing")
    return gaps


def texture(grey: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Confidence in [0, 1] of the flow in each cell: mean squared gradient, half at a gradient of 4 grey levels per
    px."""
    gradient = cv2.magnitude(cv2.Scharr(grey, cv2.CV_32F, 1, 0) / 32, cv2.Scharr(grey, cv2.CV_32F, 0, 1) / 32)
    energy = cv2.resize(gradient * gradient, size, interpolation=cv2.INTER_AREA)
    return energy / (energy + 16)


def farneback(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 2) flow between two grey frames in px, by OpenCV.

    The pyramid starts from a common shift found by phase correlation where the picture moved so far that Farneback
    alone would report next to nothing: without it a fast pan scores like a still.
    """
    shift = common_shift(before, after)
    flow, flags = None, 0
    if shift is not None:
        flow = np.empty((*before.shape, 2), np.float32)
        flow[:] = shift
        flags = cv2.OPTFLOW_USE_INITIAL_FLOW
    return cv2.calcOpticalFlowFarneback(
        before, after, flow, PYRAMID_SCALE, LEVELS, WINDOW_PX, ITERATIONS, POLY_N, POLY_SIGMA, flags
    )


def common_shift(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> tuple[float, float] | None:
    """(x, y) in px by which the whole picture moved between two grey frames, or None where it did not move far.

    The peak of a phase correlation may belong to an object that moves before a still background, so the shift counts
    only where it makes the two frames much more alike than they are without it.
    """
    height, width = before.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    (x, y), response = cv2.phaseCorrelate(before.astype(np.float32), after.astype(np.float32), window)
    if response < PHASE_RESPONSE or np.hypot(x, y) < PHASE_SHIFT * min(height, width):
        return None
    dx, dy = round(x), round(y)
    if abs(dx) >= width // 2 or abs(dy) >= height // 2:
        return None
    source = before[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
    target = after[max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)]
    shifted, unshifted = cv2.absdiff(source, target).mean(), cv2.absdiff(before, after).mean()
    return (x, y) if shifted < PHASE_GAIN * unshifted else None


class CoarseMotion:
    """Coarse motion score by Farneback flow on the CPU, about 1.5 ms a pair."""

    name = "farneback"

    def __init__(
        self,
        *,
        flow_short_side_px: int = FLOW_SHORT_SIDE_PX,
        field_short_side_px: int = FIELD_SHORT_SIDE_PX,
        flow: Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]] = farneback,
    ) -> None:
        self.flow_short_side_px = flow_short_side_px
        self.field_short_side_px = field_short_side_px
        self._flow = flow

    def score(self, frames: NDArray[np.uint8], times_s: NDArray[np.floating]) -> MotionScore:
        """Score frames sampled at 2 fps.

        Args:
            frames: (N, H, W) grey or (N, H, W, 3) RGB, uint8; 64 px on the short side are enough, larger are reduced.
            times_s: (N,) presentation times.

        Raises:
            CannotScore: see `check_frames`.
        """
        gaps = check_frames(frames, times_s)
        grey = grey_frames(frames, self.flow_short_side_px)
        fields, confidence = [], []
        for before, after in itertools.pairwise(grey):
            field = reduce_field(self._flow(before, after), self.field_short_side_px)
            fields.append(field)
            confidence.append(texture(before, (field.shape[1], field.shape[0])))
        return score_fields(np.stack(fields), gaps, np.stack(confidence))
