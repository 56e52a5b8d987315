"""Gradual transitions: spans of frames that are mixtures of the frame before and the frame after.

During a dissolve from a to b, m_t = (1 - alpha_t) a + alpha_t b with alpha rising from 0 to 1; a fade is the same
with a plain colour at one end. Projecting every frame of a window on the line from a to b gives alpha_t and how far
the frame lies off that line. A pan or a zoom also turns a into b, but by other pictures: its frames lie far off.
Everything follows from the matrix of squared distances between the frames of the window, at 16x9 so that small
motion inside either shot does not matter.
"""

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from curation.cuts.pairs import HEIGHT, WIDTH

_COARSE = (16, 9)


def coarse(thumbs: np.ndarray) -> np.ndarray:
    """(N, 432) float32: each thumb's planes averaged to 16x9."""
    n, light = len(thumbs), WIDTH * HEIGHT
    width, height = _COARSE

    def averaged(planes: np.ndarray, across: int, count: int) -> np.ndarray:
        tall = planes.reshape(-1, across).astype(np.float32)
        return cv2.resize(tall, (width, count * height), interpolation=cv2.INTER_AREA).reshape(n, -1)

    y = averaged(thumbs[:, :light], WIDTH, n)
    uv = averaged(thumbs[:, light:], WIDTH // 2, 2 * n)
    return np.concatenate([y, uv], axis=1)


def squared_distances(rows: np.ndarray) -> np.ndarray:
    """(N, N) mean squared distances between rows."""
    norms = (rows**2).sum(1)
    products = cv2.mulTransposed(rows, False)  # not BLAS, whose threads cost more than matrices this small
    return np.maximum(norms[:, None] + norms[None] - 2 * products, 0) / rows.shape[1]


@functools.lru_cache(maxsize=128)
def _pairs(n: int, apart: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) of all pairs among n positions that lie at least so far apart. Not to be written to."""
    starts, ends = np.triu_indices(n, apart)
    return starts, ends


def mixtures(distances: np.ndarray, times_s: np.ndarray, contrast: np.ndarray, limits: "MixtureLimits") -> np.ndarray:
    """(k, 2) spans of a window that a mixture of their ends explains: positions of the last and the first pure frame.

    Those with most change come first. Of spans that share much of what they cover, only the first is given.

    Args:
        distances: squared distances of the window's frames (n, n).
        times_s: their display times (n,).
        contrast: (n,) share of `limits.change` that counts as one in pictures of such contrast.
    """
    n = len(times_s)
    starts, ends = _pairs(n, 2)
    length = times_s[ends] - times_s[starts]
    total = distances[starts, ends]
    fits = (
        (length >= limits.shortest_s)
        & (length <= limits.longest_s)
        & (total > (limits.change * np.maximum(contrast[starts], contrast[ends])) ** 2)
    )
    starts, ends, length, total = starts[fits], ends[fits], length[fits, None], total[fits, None]
    from_start = distances[starts]
    alpha = (from_start + total - distances[ends]) / (2 * total)  # (pairs, n), by the law of cosines
    at = np.arange(n)
    between = (at > starts[:, None]) & (at < ends[:, None])
    count = ends - starts - 1
    off2 = np.where(between, np.maximum(from_start / total - alpha**2, 0), 0).sum(1) / count
    line = (times_s - times_s[starts][:, None]) / length
    bend = np.where(between, np.abs(alpha - line), 0).sum(1) / count
    good = np.flatnonzero((off2 <= limits.off_line**2) & (bend <= limits.bend))
    change = np.sqrt(total[good, 0]) * (1 - 2 * bend[good] - 0.5 * np.sqrt(off2[good]))
    order = good[np.argsort(-change, kind="stable")]
    starts, ends = starts[order], ends[order]
    chosen: list[tuple[int, int]] = []
    while len(starts):
        start, end = int(starts[0]), int(ends[0])
        chosen.append((start, end))
        shared = np.minimum(end, ends) - np.maximum(start, starts)
        other = shared <= limits.same * (np.maximum(end, ends) - np.minimum(start, starts))
        starts, ends = starts[other], ends[other]
    return np.array(chosen, np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class MixtureLimits:
    """What still counts as a mixture. The values are chosen by the sweep (SWEEP.md)."""

    shortest_s: float = 0.12
    longest_s: float = 3.0
    change: float = 14.0  # grey levels
    off_line: float = 0.45
    bend: float = 0.12
    search_fps: float = 12.5  # spans are searched at this rate and refined at the decoded one
    ramp_error: float = 0.12  # of alpha against its ramp, still margins included
    same: float = 0.7  # of two spans that share more of what they cover, the one with more change is tried
    sloppiness: float = 30.0  # of overlapping spans the one with most change * exp(-sloppiness * ramp error) stands
    # A span is believed if difference(ends) * exp(slack - doubt * off_line) >= 1: the further its frames lie off the
    # line, the more different the ends must be.
    slack: float = 0.6
    doubt: float = 4.2
    unexplained: float = 0.38  # least share of the change that block matching leaves; true mixtures have 0.40 and more


def _projected(distances: np.ndarray, start: int, ends: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, squared distance from the line / squared change), each (ends, inner), by the law of cosines."""
    total = np.maximum(distances[start, ends], 1e-3)[:, None]
    alpha = (distances[start, inner] + total - distances[np.ix_(ends, inner)]) / (2 * total)
    return alpha, np.maximum(distances[start, inner] / total - alpha**2, 0)


def off_line_share(distances: np.ndarray, start: int, end: int) -> float:
    """Root mean square distance of the frames between `start` and `end` from their line, as a share of the change."""
    _, off2 = _projected(distances, start, np.array([end]), np.arange(start + 1, end))
    return float(np.sqrt(off2.mean()))


def ramp(distances: np.ndarray, times_s: np.ndarray, low: int, high: int) -> tuple[int, int, float]:
    """Where alpha leaves 0 and where it reaches 1 between the pure frames `low` and `high` of a window.

    Least squares over "0 until start, straight to 1 at end, 1 after"; returns (start, end, root mean square error).
    """
    inner = np.arange(low, high + 1)
    alpha = _projected(distances, low, np.array([high]), inner)[0][0].astype(np.float64)
    t = times_s[inner] - times_s[low]
    starts, ends = _pairs(len(inner), 1)

    def between(values: np.ndarray) -> np.ndarray:
        """Sums of values over start < k < end, for all pairs."""
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return sums[ends] - sums[starts + 1]

    length = t[ends] - t[starts]
    slope = (between(alpha * t) - t[starts] * between(alpha)) / length
    square = (between(t * t) - 2 * t[starts] * between(t) + t[starts] ** 2 * (ends - starts - 1)) / length**2
    still = np.cumsum(alpha**2)[starts] + np.cumsum((1 - alpha[::-1]) ** 2)[::-1][ends]
    errors = (still + between(alpha**2) - 2 * slope + square) / len(inner)
    best = int(np.argmin(errors))
    return low + int(starts[best]), low + int(ends[best]), float(np.sqrt(max(0.0, errors[best])))
