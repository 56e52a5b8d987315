"""From cuts to clip spans: shots without their transitions, split to length, with every second accounted for.

Modes differ in where a span may begin and end:

- `smart`, `exact`: at any frame.
- `keyframe` (arXiv 2311.15127, appendix C): each boundary snaps to the nearest key frame that does not cross the cut,
  so a shot begins at its first key frame and ends at its last. Two things follow from copying packets: an end at an
  open GOP's key frame moves before the leading frames that are stored after it, and a piece of a shot whose GOPs are
  longer than the maximum length ends where the copied packets form a whole (an end needs no key frame to be decodable).

All arithmetic is in pts units, so that kept and lost seconds add up exactly.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from curation.clips.clip import MODES, ClipSpan, Mode
from curation.clips.keys import entry_frames
from curation.clips.layout import copied_end
from curation.probe import VideoInfo

if TYPE_CHECKING:  # the detectors behind it are slow to import
    from curation.cuts.cut import Cut


@dataclass(frozen=True)
class Plan:
    """Spans and yield of a film. seconds_in = seconds in spans + the three losses."""

    spans: list[ClipSpan]
    seconds_in: float
    lost_transition_s: float  # inside gradual transitions
    lost_short_s: float  # in shots, or remainders of shots, below the minimum length
    lost_keyframe_s: float  # between a cut and the key frame it was snapped to; before the film's first key frame
    lost_transition_pts: int
    lost_short_pts: int
    lost_keyframe_pts: int

    @property
    def kept_pts(self) -> int:
        return sum(span.end_pts - span.start_pts for span in self.spans)


def plan(
    info: VideoInfo, cuts: "Sequence[Cut]", *, mode: Mode = "smart", min_s: float = 2.0, max_s: float = 20.0
) -> Plan:
    """Divide a film into clip spans.

    Args:
        cuts: shot boundaries in any order; gradual ones may overlap others.
        min_s, max_s: allowed lengths. Long shots are split evenly; when even pieces would fall below `min_s`, as many
            pieces of `max_s` as fit are taken and the rest is lost as short. A single frame that lasts longer than
            `max_s` is a span of its own.

    Raises:
        ValueError: lengths that cannot be met, or an unknown mode.
        CannotDecode: `keyframe` reads the packets of an H.264 film, and the file is gone.
    """
    if mode not in MODES:
        raise ValueError(f"no clipping mode is called {mode!r}; known: {', '.join(MODES)}")
    if not 0 <= min_s <= max_s or max_s <= 0:
        raise ValueError(f"clip lengths must satisfy 0 <= min_s <= max_s, got min_s={min_s}, max_s={max_s}")
    film = _Film(info, min_s, max_s)
    spans: list[ClipSpan] = []
    lost_transition = lost_short = lost_keyframe = 0
    first_key = _first_decodable(info)
    shots, transitions = _shots(info.frames, cuts)
    for start, end in transitions:
        lost_transition += film.length(start, end)
    for shot, (start, end) in enumerate(shots):
        whole = film.length(start, end)
        if not film.long_enough(start, end):
            lost_short += whole
            continue
        begin = min(max(start, first_key), end)  # frames before the first key frame cannot be decoded
        if mode == "keyframe":
            pieces = film.split_at_keys(begin, end)
            kept = sum(film.length(a, b) for a, b in pieces)
            lost_keyframe += whole - kept
        else:
            lost_keyframe += film.length(start, begin)
            pieces = film.split(begin, end) if film.long_enough(begin, end) else []
            kept = sum(film.length(a, b) for a, b in pieces)
            lost_short += film.length(begin, end) - kept
        spans += [ClipSpan(film.at(a), film.at(b), a, b, shot) for a, b in pieces]
    seconds = lambda pts: float(pts * info.time_base)  # noqa: E731
    return Plan(
        spans=spans,
        seconds_in=info.duration_s,
        lost_transition_s=seconds(lost_transition),
        lost_short_s=seconds(lost_short),
        lost_keyframe_s=seconds(lost_keyframe),
        lost_transition_pts=lost_transition,
        lost_short_pts=lost_short,
        lost_keyframe_pts=lost_keyframe,
    )


def _first_decodable(info: VideoInfo) -> int:
    """The first frame that can be decoded: the first key frame, or frame 0 of an mp4 whose key frame is hidden by an
    edit list (it is still there to decode from)."""
    keys = np.flatnonzero(info.keyframe)
    starts_hidden = info.container.startswith("mov") and not info.keyframe[int(np.argmin(info.decode_rank))]
    if starts_hidden:
        return 0
    return int(keys[0]) if len(keys) else info.frames


def _shots(frames: int, cuts: "Sequence[Cut]") -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(shots, transitions) as frame ranges that together cover the film, none empty."""
    shots: list[tuple[int, int]] = []
    transitions: list[tuple[int, int]] = []
    at = 0  # everything before is accounted for
    for cut in sorted(cuts, key=lambda cut: (cut.start_frame, cut.end_frame)):
        start, end = min(max(cut.start_frame, at), frames), min(max(cut.end_frame, at), frames)
        if start > at:
            shots.append((at, start))
        if end > start:
            transitions.append((start, end))
        at = max(at, start, end)
    if at < frames:
        shots.append((at, frames))
    return shots, transitions


class _Film:
    """Lengths and split points of a film, in pts units."""

    def __init__(self, info: VideoInfo, min_s: float, max_s: float) -> None:
        self.info = info
        self.edges = np.append(info.pts, info.end_pts)
        tick = float(info.time_base)
        self.minimum = math.ceil(min_s / tick - 1e-6)
        self.maximum = max(1, math.floor(max_s / tick + 1e-6))

    def at(self, frame: int) -> int:
        return int(self.edges[frame])

    def length(self, start: int, end: int) -> int:
        return self.at(end) - self.at(start)

    def long_enough(self, start: int, end: int) -> bool:
        return end > start and self.length(start, end) >= self.minimum

    def _fits(self, start: int, end: int) -> bool:
        return self.length(start, end) <= self.maximum or end - start == 1

    def split(self, start: int, end: int) -> list[tuple[int, int]]:
        """Even pieces of [start, end) within the allowed lengths."""
        parts = max(1, -(-self.length(start, end) // self.maximum))
        while parts <= end - start:
            edges = [self._nearest(start, end, part, parts) for part in range(parts + 1)]
            pieces = list(itertools.pairwise(edges))
            if any(b <= a for a, b in pieces):
                break
            if all(self._fits(a, b) for a, b in pieces):
                if all(self.long_enough(a, b) for a, b in pieces):
                    return pieces
                break
            parts += 1
        return self._greedy(start, end)

    def _nearest(self, start: int, end: int, part: int, parts: int) -> int:
        """The frame edge nearest to `part` of `parts` of the stretch."""
        aim = self.at(start) + self.length(start, end) * part / parts
        after = int(np.clip(np.searchsorted(self.edges, aim), start, end))
        before = max(after - 1, start)
        return before if aim - self.edges[before] < self.edges[after] - aim else after

    def _longest(self, start: int, end: int) -> int:
        """The last edge not further than the maximum from `start`, at least one frame on."""
        reach = int(np.searchsorted(self.edges, self.at(start) + self.maximum, side="right")) - 1
        return int(np.clip(reach, start + 1, end))

    def _greedy(self, start: int, end: int) -> list[tuple[int, int]]:
        """Pieces as long as allowed, one after another; what is then too short is left out."""
        pieces = []
        while start < end:
            stop = self._longest(start, end)
            if self.long_enough(start, stop):
                pieces.append((start, stop))
            start = stop
        return pieces

    def split_at_keys(self, start: int, end: int) -> list[tuple[int, int]]:
        """Pieces of [start, end) that packets can be copied for: each begins at a key frame."""
        info = self.info
        entries = entry_frames(info)
        keys = entries[(entries >= start) & (entries < end)]
        if len(keys) == 0:
            return []
        first = int(keys[0])
        if (
            end == info.frames or info.keyframe[end]
        ):  # the end of the film is no cut: nothing of another shot lies behind it
            last = end
        else:
            last = int(keys[-1])
        if last <= first:
            return []
        marks = np.append(keys[keys < last], last)
        parts = max(1, -(-self.length(first, last) // self.maximum))
        aims = self.at(first) + self.length(first, last) * np.arange(1, parts + 1) / parts
        edges = sorted({first, *(int(marks[np.argmin(np.abs(self.edges[marks] - aim))]) for aim in aims), last})
        pieces = []
        if not all(self._fits(a, b) for a, b in itertools.pairwise(edges)):
            edges = [first]
            while edges[-1] < last:  # the furthest key frame within the maximum, or else the next one
                reach = marks[(marks > edges[-1]) & (self.edges[marks] <= self.at(edges[-1]) + self.maximum)]
                edges.append(int(reach[-1] if len(reach) else marks[marks > edges[-1]][0]))
        for a, b in itertools.pairwise(edges):
            stop = b if self._fits(a, b) else self._longest(a, b)
            stop = copied_end(info, a, stop)
            if self.long_enough(a, stop):
                pieces.append((a, stop))
        return pieces
