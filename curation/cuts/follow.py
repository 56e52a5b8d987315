"""Follows a film along a plan, in one forward pass, and looks at each GOP until it has shown enough."""

from collections.abc import Iterator

import numpy as np

from curation.cuts import sparse
from curation.cuts.pairs import thumb
from curation.cuts.shots import Limits, Run
from curation.decode import SKIPS
from curation.frames import FilmFrames, least
from curation.probe import VideoInfo

_CHUNK_FRAMES = 1500  # decoded frames examined together
_LEAST_FPS = 16  # films of fewer frames a second are seen whole
_APART_S = 0.2  # I- and P-frames that lie further apart, most of them, are too few to scout by
CONTEXT_S = 5.0  # of one chunk repeated in the next: more than the longest transition and its surroundings
_AGAIN_S = 0.5  # a picture that does not yet agree with the next key frame is compared again after this time

Chunk = tuple[np.ndarray, np.ndarray, bool]
"""Frame numbers (N,), thumbs (N, THUMB_BYTES), and whether the stretch of consecutive frames ends here."""


class Follower:
    """Gives the frames of a plan's GOPs, and notes where cuts are that need no examination.

    Args:
        leave: whether the rest of a GOP that has shown enough is not even decoded. Where somebody else needs frames of
            it later, it is cheaper to decode it now.

    Attributes:
        seen: stretches [first, stop) of consecutive frames that were given out, so far.
        key_cuts: (frame, difference) of hard cuts at the ends of GOPs that were left before.
    """

    def __init__(
        self,
        info: VideoInfo,
        film: FilmFrames,
        plan: sparse.Plan,
        limits: Limits,
        steadiness: sparse.Steadiness,
        *,
        leave: bool,
    ) -> None:
        self._info, self._film, self._plan = info, film, plan
        self._limits, self._steadiness = limits, steadiness
        self._leave = leave
        self._goes_on = False  # the next chunk belongs to the same stretch
        self._resume_at = 0  # frames before this one are not looked at any more
        self.seen: list[tuple[int, int]] = []
        self.key_cuts: list[tuple[int, float]] = []

    def chunks(self, spared: np.ndarray) -> Iterator[Chunk]:
        """The frames of the plan's GOPs in chunks; of long stretches, in overlapping ones."""
        info, looks = self._info, self._plan.looks
        times = np.append(info.times_s, info.duration_s)
        wanted = np.zeros(info.frames + 1, bool)
        for look in looks:
            beyond = times[look.stop] + self._steadiness.beyond_s
            wanted[look.first : max(look.stop, int(np.searchsorted(info.times_s, beyond)))] = True
        stretch = np.cumsum(np.diff(wanted.astype(np.int8), prepend=0) > 0)
        most = max(_CHUNK_FRAMES, round(2 * CONTEXT_S * info.frames / info.duration_s))
        held: list[int] = []
        rows: list[np.ndarray] = []
        at, compare_from = -1, 0
        decode_from = (lambda: self._resume_at) if self._leave else None
        skip, dense = self._levels()
        for look in looks:
            if not look.scout:
                skip[look.first : look.stop] = dense
        skip[spared] = SKIPS.index("nothing")
        for number, frame in self._film.draft(np.flatnonzero(wanted), skip, decode_from, keep_small=not self._leave):
            if not wanted[number] or number < self._resume_at:
                continue
            if held and (stretch[number] != stretch[held[-1]] or held[-1] < self._resume_at):
                yield self._chunk(held, rows, True)
                held, rows = [], []
            elif len(held) >= most:
                yield self._chunk(held, rows, False)
                keep = int(np.searchsorted(info.times_s[held], info.times_s[held[-1]] - CONTEXT_S))
                held, rows = held[keep:], rows[keep:]
            held.append(number)
            rows.append(thumb(frame))
            while at + 1 < len(looks) and number >= looks[at + 1].first:
                at += 1
                until = looks[at].until
                compare_from = info.frames if until is None else until
            look = looks[at]
            enough = number == look.stop - 1 and self._ends_sharply(look, held, rows)
            if not enough and compare_from <= number < look.stop:
                enough = self._enough(look, rows[-1])
                compare_from = int(np.searchsorted(info.times_s, info.times_s[number] + _AGAIN_S))
            if enough:
                self._resume_at = looks[at + 1].first if at + 1 < len(looks) else info.frames
        if held:
            yield self._chunk(held, rows, True)

    def _levels(self) -> tuple[np.ndarray, int]:
        """What of the film the decoder may leave out where a look only scouts, and where it is close (see SKIPS)."""
        info = self._info
        if info.frames < _LEAST_FPS * info.duration_s:
            return np.full(info.frames, SKIPS.index("nothing"), np.int8), SKIPS.index("nothing")
        close = SKIPS.index("nonref")
        apart_s = np.diff(info.times_s[info.anchors])
        if self._leave and len(apart_s) and np.median(apart_s) <= _APART_S:  # else frames are wanted all over the film
            return least(info), close
        return np.full(info.frames, close, np.int8), close

    def _chunk(self, held: list[int], rows: list[np.ndarray], is_last: bool) -> Chunk:
        first = self.seen.pop()[0] if self._goes_on else held[0]
        self.seen.append((first, held[-1] + 1))
        self._goes_on = not is_last
        return np.array(held), np.stack(rows), is_last

    def _enough(self, look: sparse.Look, now: np.ndarray) -> bool:
        """Whether the rest of a GOP can be left after this picture."""
        if look.stop >= self._info.frames:
            return True
        keys = self._plan.keys
        run = Run(np.stack([keys[look.first], now, keys[look.stop]]), np.arange(3.0), self._limits)
        if run.difference(1, 2) < self._steadiness.alike and not (look.early and run.looks_moved(1, 2)):
            return True
        if look.clear and run.difference(0, 1) < self._steadiness.alike:
            self.key_cuts.append((look.stop, run.difference(0, 2)))
            return True
        return False

    def _ends_sharply(self, look: sparse.Look, held: list[int], rows: list[np.ndarray]) -> bool:
        """Whether after a GOP's last picture a hard cut makes it needless to look on.

        What comes after a flash is no cut, so that picture must have been there for longer than one.
        """
        if not look.sharp or look.stop >= self._info.frames:
            return False
        times = self._info.times_s[held]
        earlier = rows[max(0, int(np.searchsorted(times, times[-1] - self._steadiness.flash_s, side="right")) - 1)]
        run = Run(np.stack([earlier, rows[-1], self._plan.keys[look.stop]]), np.arange(3.0), self._limits)
        if run.difference(0, 1) >= 1 or run.difference(1, 2) < self._steadiness.clear or run.plain[1:].any():
            return False
        self.key_cuts.append((look.stop, run.difference(1, 2)))
        return True
