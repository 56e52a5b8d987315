"""Which frames of a span are copied as packets and which are re-encoded. Pure: works on the packet index alone.

Decoding order is not presentation order. Packets are copied from a key frame onwards only as far as they form a whole:
the copied packets must be exactly the frames of one stretch of film, so that nothing of another shot is present, not
even hidden behind an edit list, and every frame's references are there.

    presentation   ... B B I B B P B B P | B B I        span ends at |
    decoding       ... I b b P B B P B B | I B B        b: leading frames of an open GOP, they need the GOP before
"""

import functools
from dataclasses import dataclass

import numpy as np

from curation.clips.clip import ClipSpan
from curation.probe import VideoInfo


@dataclass(frozen=True)
class Layout:
    """Frame ranges of a span: [start, copy_start) is re-encoded, [copy_start, copy_end) copied, the rest re-encoded."""

    start: int
    copy_start: int
    copy_end: int
    end: int

    @property
    def encoded(self) -> list[tuple[int, int]]:
        """The non-empty ranges to re-encode."""
        return [(a, b) for a, b in ((self.start, self.copy_start), (self.copy_end, self.end)) if b > a]

    @property
    def copied(self) -> int:
        return self.copy_end - self.copy_start


def copied_end(info: VideoInfo, key: int, end: int) -> int:
    """How far packets can be copied from key frame `key` without reaching `end` (frame numbers).

    The copied packets are the longest run in decoding order that shows exactly the frames [key, result).
    Leading frames of `key` (shown before it, stored after it) are left out: nothing else refers to them.
    """
    last_rank = int(info.decode_rank[key:end].max()) if end > key else int(info.decode_rank[key])
    by_rank = _by_rank(info)[int(info.decode_rank[key]) : last_rank + 1]
    beyond = np.flatnonzero(by_rank >= end)
    run = by_rank[: beyond[0]] if len(beyond) else by_rank
    run = run[run >= key]
    if len(run) == 0:
        return key
    whole = np.maximum.accumulate(run) - key == np.arange(len(run))
    return key + int(np.flatnonzero(whole)[-1]) + 1


def exact_layout(start: int, end: int) -> Layout:
    """Everything re-encoded."""
    return Layout(start, end, end, end)


def keyframe_layout(span: ClipSpan, info: VideoInfo, entries: np.ndarray) -> Layout:
    """Everything copied, as far as packets go; the caller refuses spans that this does not fill."""
    stop = copied_end(info, span.start_frame, span.end_frame) if span.start_frame in entries else span.start_frame
    return Layout(span.start_frame, span.start_frame, stop, span.end_frame)


def smart_layout(span: ClipSpan, info: VideoInfo, entries: np.ndarray, can_splice: bool) -> Layout:
    """Copies from the first usable key frame; re-encodes before it and after the last whole run of packets.

    Args:
        entries: frame numbers, ascending, that copied packets may begin at (`keys.entry_frames`).
        can_splice: whether re-encoded and copied packets may share a clip in this codec at all.
    """
    start, end = span.start_frame, span.end_frame
    after = entries[np.searchsorted(entries, start) :]
    key = int(after[0]) if len(after) else end
    if key >= end or (key > start and not can_splice):
        return exact_layout(start, end)
    stop = copied_end(info, key, end)
    if stop < end and not can_splice:
        return exact_layout(start, end)
    return Layout(start, key, stop, end)


@functools.lru_cache(maxsize=4)
def _by_rank(info: VideoInfo) -> np.ndarray:
    """Frame number by position in decoding order."""
    return np.argsort(info.decode_rank)
