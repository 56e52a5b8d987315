"""Floors under the cost of a detector that decodes with FFmpeg: what decoding alone takes, on one thread.

`references` decodes every frame that another refers to, and looks at none. `told` knows where the transitions are and
decodes what it takes to see them: the key frames, and of GOPs with a transition that does not fall on a key frame, the
way up to its end. Nobody is told: before decoding there are packet sizes and key frames, and there motion may look like
a dissolve.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from curation.decode import Skip, decode
from curation.probe import VideoInfo, probe
from tests.benchmarks.cut_scoring import Span


def references(path: Path, truth: Sequence[Span]) -> list[Span]:
    """Decodes all reference frames. Finds nothing."""
    _decode(probe(path), None, "nonref")
    return []


def told(path: Path, truth: Sequence[Span]) -> list[Span]:
    """Decodes key frames and the way to each transition. Finds what it was told."""
    info = probe(path)
    wanted = np.zeros(info.frames, bool)
    for span in truth:
        if span.kind == "gradual" or not info.keyframe[span.start]:
            wanted[max(0, span.start - 1) : span.end + 1] = True
    _decode(info, np.flatnonzero(info.keyframe), "nonkey")
    _decode(info, np.flatnonzero(wanted), "nonref")
    return list(truth)


def _decode(info: VideoInfo, wanted: np.ndarray | None, skip: Skip) -> None:
    for _ in decode(info, wanted, skip=skip, loop_filter=False):
        pass


FLOORS: dict[str, Callable[[Path, Sequence[Span]], list[Span]]] = {"references": references, "told": told}
