"""Watermark: text that stays at the same place while the picture behind it changes.

Takes the frames and the text boxes that the text stage found (first, middle and last frame), so it costs no model. Text
in the scene moves with the scene; a logo or a station's name does not. In a shot where nothing moves the two cannot be
told apart, and that is an error, not a number. Stage contract:

    watermark_ratio(frames, boxes) -> float, share of the frame under lasting text; raises CannotScore
    watermark_columns(frames, boxes) -> value or error, as columns of a clip's row
"""

import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.errors import CannotScore
from curation.text_area import Polygon

_SHORT_SIDE_PX = 240
STILL_BELOW = 4.0
"""Mean absolute change of the picture outside the text, in grey levels of 255, below which nothing moves."""
SAME_ABOVE = 0.6
"""Correlation of the edges inside a box between two frames above which it holds the same text; a title that is replaced
by another, or scene text that happens to overlap, stays below."""


def watermark_ratio(frames: Sequence[NDArray[np.uint8]], boxes: Sequence[Sequence[Polygon]]) -> float:
    """Share of the frame, in [0, 1], under text that is there, unchanged, in every frame.

    Args:
        frames: at least two RGB frames of one size, far apart in time.
        boxes: the text boxes of each frame, as corners in its pixels.

    Raises:
        CannotScore: `too_short` (fewer than two frames), `still` (there is lasting text, and nothing else moves).
    """
    if len(frames) < 2:
        raise CannotScore("too_short", f"{len(frames)} frame(s): a watermark shows between two")
    height, width = frames[0].shape[:2]
    scale = min(1.0, _SHORT_SIDE_PX / min(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = [cv2.resize(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for f in frames]
    exact = [_mask(polygons, size, scale) for polygons in boxes]
    # Grown by 1 % of the height for the comparison: a detector's boxes tremble from frame to frame.
    reach = 2 * max(1, round(size[1] * 0.01)) + 1
    masks = [cv2.dilate(mask, np.ones((reach, reach), np.uint8)) for mask in exact]
    lasting = np.bitwise_and.reduce(masks)
    if not lasting.any():
        return 0.0
    edges = [_edges(frame) for frame in grey]
    count, labels = cv2.connectedComponents(lasting, connectivity=8)
    kept = np.zeros_like(lasting)
    for label in range(1, count):
        region = labels == label
        if region.sum() >= 16 and all(_alike(a[region], b[region]) for a, b in itertools.pairwise(edges)):
            kept |= region.astype(np.uint8)
    if not kept.any():
        return 0.0
    elsewhere = np.bitwise_or.reduce(masks) == 0
    changes = [
        float(cv2.absdiff(a, b)[elsewhere].mean()) if elsewhere.any() else 0.0 for a, b in itertools.pairwise(grey)
    ]
    if max(changes) < STILL_BELOW:
        raise CannotScore("still", "nothing moves: text in the scene and a watermark look the same")
    # What is reported is not grown: where at least half of the frames have a box.
    return float((kept.astype(bool) & (2 * np.sum(exact, axis=0) >= len(exact))).mean())


def watermark_columns(frames: Sequence[NDArray[np.uint8]], boxes: Sequence[Sequence[Polygon]]) -> dict[str, Any]:
    """`watermark`, or `watermark_error`."""
    try:
        return {"watermark": watermark_ratio(frames, boxes)}
    except CannotScore as error:
        return {"watermark_error": error.reason}


def _mask(polygons: Sequence[Polygon], size: tuple[int, int], scale: float) -> NDArray[np.uint8]:
    mask = np.zeros((size[1], size[0]), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round(np.asarray(polygon) * scale).astype(np.int32).reshape(-1, 1, 2)], 1)
    return mask


def _edges(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What is left of a picture without its slow changes: it keeps the letters of a half-transparent mark."""
    picture = grey.astype(np.float32)
    return picture - cv2.GaussianBlur(picture, (0, 0), 3)


def _alike(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    spread = float(a.std() * b.std())
    return spread > 0 and float(np.mean((a - a.mean()) * (b - b.mean()))) / spread > SAME_ABOVE
