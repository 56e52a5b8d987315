"""How detected cuts are counted against labels: one rule for every detector.

A detection is a point in frames: a hard cut's first new frame; the middle of a gradual span. A hard label is hit by a
point within one frame of it. A gradual label, mixed frames [start, end), is hit by a point inside [start, end] (a
detector that marks only where the new shot begins hits it with the first pure frame). Each label takes one
detection, the nearest; each detection serves one label; every surplus detection is a false positive of its own kind.
(TRECVID's shot boundary task counts alike: overlap with the reference, one to one.)

Detectors without a notion of gradual transitions report only hard cuts: their surplus counts against hard cuts, and
their precision for gradual ones is 1 by construction, which favours them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Frames = float
Kind = Literal["hard", "gradual"]


@dataclass(frozen=True)
class Span:
    """A label, or a detection: frames [start, end); start == end for a hard cut."""

    kind: Kind
    start: Frames
    end: Frames

    @property
    def point(self) -> Frames:
        return self.start if self.kind == "hard" else (self.start + self.end) / 2


@dataclass(frozen=True)
class Counts:
    """Hits, misses and surplus of one kind; they add up over films."""

    hit: int = 0
    missed: int = 0
    surplus: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.hit + other.hit, self.missed + other.missed, self.surplus + other.surplus)

    @property
    def precision(self) -> float:
        return self.hit / (self.hit + self.surplus) if self.hit + self.surplus else 1.0

    @property
    def recall(self) -> float:
        return self.hit / (self.hit + self.missed) if self.hit + self.missed else 1.0

    @property
    def f1(self) -> float:
        both = 2 * self.hit + self.missed + self.surplus
        return 2 * self.hit / both if both else 1.0


def _distance(label: Span, detection: Span) -> Frames | None:
    """How far the detection is from the label, None if it does not hit."""
    if label.kind == "hard":
        away = abs(detection.point - label.start)
        return away if away <= 1 else None
    inside = label.start <= detection.point <= label.end
    return abs(detection.point - label.point) if inside else None


def count(labels: Sequence[Span], detections: Sequence[Span]) -> dict[Kind, Counts]:
    """Hits, misses and surplus by kind."""
    hits, surplus = match(labels, detections)
    found = {id(label) for label, _ in hits}
    return {
        kind: Counts(
            sum(label.kind == kind for label, _ in hits),
            sum(label.kind == kind and id(label) not in found for label in labels),
            sum(detection.kind == kind for detection in surplus),
        )
        for kind in ("hard", "gradual")
    }


def match(labels: Sequence[Span], detections: Sequence[Span]) -> tuple[list[tuple[Span, Span]], list[Span]]:
    """(pairs of label and detection, surplus detections)."""
    pairs = sorted(
        (away, i, j)
        for i, label in enumerate(labels)
        for j, detection in enumerate(detections)
        if (away := _distance(label, detection)) is not None
    )
    taken_labels: set[int] = set()
    taken: dict[int, int] = {}
    for _, i, j in pairs:
        if i not in taken_labels and j not in taken:
            taken_labels.add(i)
            taken[j] = i
    hits = [(labels[i], detections[j]) for j, i in sorted(taken.items())]
    return hits, [detection for j, detection in enumerate(detections) if j not in taken]


def coverage(pairs: Sequence[tuple[Span, Span]]) -> float:
    """Share of the mixed frames of found gradual labels that the detected spans cover (clips stay clear of these)."""
    gradual = [(label, found) for label, found in pairs if label.kind == "gradual"]
    mixed = sum(label.end - label.start for label, _ in gradual)
    covered = sum(max(0.0, min(a.end, b.end) - max(a.start, b.start)) for a, b in gradual)
    return covered / mixed if mixed else 1.0
