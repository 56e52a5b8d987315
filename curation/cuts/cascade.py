"""The cascade: passes at 1, 2 and 4 fps, each with its own threshold, each inside what the earlier ones left.

After section 2 of the paper (cuts at several frame rates, so that slow transitions show too). A pass compares
neighbouring frames of its grid by PySceneDetect's ContentDetector; where the score passes the threshold, the frames
around are examined at native rate: a step is a hard cut, a mixture is a gradual transition, and anything else
(camera motion, passers-by, flashes) is thrown out. What is confirmed splits the film for the next pass.

Decoding is a cascade of its own: key frames first; of the GOPs that these and the packets' sizes leave open
(sparse.py), I- and P-frames, or all frames that others refer to; every frame only around what was found on too few.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from curation.cuts import sparse
from curation.cuts.cut import Cut, Seen, cut_time_s, unseen
from curation.cuts.follow import CONTEXT_S, Chunk, Follower
from curation.cuts.pairs import THUMB_BYTES, ContentScore, plain_steps, thumb
from curation.cuts.shots import Boundary, Limits, Run
from curation.errors import CannotDecode
from curation.frames import FilmFrames
from curation.probe import VideoInfo


@dataclass(frozen=True)
class Pass:
    """One pass: frames `rate_fps` apart count as changed from `threshold` on (ContentDetector's units)."""

    rate_fps: float
    threshold: float


# The sweep (SWEEP.md) loses no labelled transition of the tuning half up to 24 in any pass; these stay below, for
# darker film. The faster the pass, the less motion there is between its frames, and the lower its threshold may be.
PASSES = (Pass(1.0, 20.0), Pass(2.0, 18.0), Pass(4.0, 16.0))

KEY_PASS_FPS = 0.0  # pass_fps of a cut that key frames and packet sizes alone made certain

_WINDOW_S, _HOP_S, _MARGIN_S = 5.0, 2.5, 1.0  # windows in which gradual transitions are searched
_TOUCHING_S = 0.1  # pieces of one transition lie no further apart
_INSIDE = 5  # more steps than these tell a transition well enough, however far apart they are
_FEW = 4  # steps that are too few to tell a mixture from a cut in motion, where frames between were left out
_SPARSE_S = 0.1  # between frames seen: what is found there is looked at again, with all frames
_NEAR_S = 1.5  # known on either side of a close look
_AROUND_S = 0.4  # seen on either side of one of which fewer were: a flash is no longer
_KEYS_SHARE = 0.3  # of the time that a film takes, roughly, until its key frames are decoded
_PLAIN_S = 1.0  # two boundaries around black or white are one transition if no further apart


class CascadeDetector:
    """Cuts by a cascade of sampling rates over frames of which as few as can be are decoded."""

    name = "cascade"

    def __init__(
        self,
        limits: Limits | None = None,
        passes: Sequence[Pass] = PASSES,
        steadiness: sparse.Steadiness | None = sparse.Steadiness(),  # noqa: B008 (frozen)
    ) -> None:
        """`steadiness` says when a GOP need not be decoded; None decodes the whole film."""
        self.steadiness = steadiness
        self.limits = limits or Limits()
        self.passes = tuple(passes)
        self._content = ContentScore()

    def detect(self, info: VideoInfo, frames: FilmFrames | None = None, seen: Seen = unseen) -> list[Cut]:
        """See `CutDetector`. Of a film lent to others more is decoded, as they need it, and so more is seen: a
        transition on the edge may be found in one of the two cases alone.
        """
        film = frames or FilmFrames(info)
        decoded = film.decoded_frames
        todo = self._plan(info, film, seen) if self.steadiness else sparse.whole(info)
        spared = sparse.spared_frames(info)
        follower = Follower(info, film, todo, self.limits, self.steadiness or sparse.Steadiness(), leave=frames is None)
        found = self._examine(info, film, _told(info, follower.chunks(spared), seen))
        for first, stop in list(follower.seen):
            if first > 0 and any(c.kind == "gradual" and first <= c.start_frame <= first + 3 for c in found):
                # a transition that was under way where a stretch began has begun before
                keys = np.flatnonzero(info.keyframe[:first])
                plan = sparse.Plan([sparse.Look(int(keys[-1]) if len(keys) else 0, stop)], [], {})
                again = Follower(info, film, plan, self.limits, sparse.Steadiness(beyond_s=0.0), leave=True)
                wider = self._examine(info, film, again.chunks(spared))
                follower.seen += again.seen
                wider = [c for c in wider if c.end_frame >= first]
                found = [c for c in found if not first <= c.start_frame < stop and not _clash(c, wider)] + wider
        touching = round(_TOUCHING_S * float(info.nominal_rate))
        certain = [(at, score) for at, score in (*todo.key_cuts, *follower.key_cuts)]
        found += [
            Cut(at, cut_time_s(info, at), "hard", at, at, score, KEY_PASS_FPS)
            for at, score in certain
            if not any(first < at < stop for first, stop in follower.seen)  # examined
            and not any(c.start_frame <= at <= c.end_frame + touching for c in found)  # its end
        ]
        if film.decoded_frames == decoded:
            raise CannotDecode("no_frames", f"{info.path}: not one frame could be decoded")
        return sorted(found, key=lambda cut: cut.frame)

    def _plan(self, info: VideoInfo, film: FilmFrames, seen: Seen) -> sparse.Plan:
        keys = np.flatnonzero(info.keyframe)
        if len(keys) < sparse.LEAST_KEYS or self.steadiness is None:
            return sparse.whole(info)
        found = []
        for number, frame in film.keyframes():
            found.append((number, thumb(frame)))
            seen(_KEYS_SHARE * number / info.frames)
        if len(found) < len(keys):
            return sparse.whole(info)  # damaged key frames: look at everything that can be read
        numbers, rows = zip(*found, strict=True)
        return sparse.plan(info, np.array(numbers), np.stack(rows), self.limits, self.steadiness)

    def _examine(self, info: VideoInfo, film: FilmFrames, chunks: Iterator[Chunk]) -> list[Cut]:
        """Cuts in stretches of consecutive frames that come in chunks."""
        cuts: list[Cut] = []
        for numbers, thumbs, is_last in chunks:
            until = info.times_s[numbers[-1]] - (0 if is_last else CONTEXT_S / 2)
            begin = -1 if not cuts else cuts[-1].frame
            for cut in self._cuts(info, film, numbers, thumbs):
                if cut.start_frame > begin and (is_last or cut.time_s <= until):
                    cuts.append(cut)
        return cuts

    def _cuts(self, info: VideoInfo, film: FilmFrames, numbers: np.ndarray, thumbs: np.ndarray) -> list[Cut]:
        """Cuts in consecutive frames of which some were not decoded; these are now, where that leaves a doubt."""
        cuts, doubts = self._located(info, numbers, thumbs)
        steps = {  # hard cuts between frames that others lie between: the frame before
            cut: before
            for cut in cuts
            for before in [int(numbers[np.searchsorted(numbers, cut.frame) - 1])]
            if cut.kind == "hard" and cut.frame - before > 1 and not any(_within(cut, *doubt) for doubt in doubts)
        }
        missing = np.setdiff1d(_all_of([*doubts, *((before, cut.frame) for cut, before in steps.items())]), numbers)
        if not len(missing):
            return cuts
        seen = dict(zip(numbers.tolist(), thumbs, strict=True))
        seen |= {n: thumb(frame) for n, frame in film.exact(missing)}
        cuts = [_at_largest_step(info, cut, steps[cut], seen) if cut in steps else cut for cut in cuts]
        times = info.times_s
        for first, last in doubts:
            near = np.array([n for n in sorted(seen) if times[first] - _NEAR_S <= times[n] <= times[last] + _NEAR_S])
            closely, _ = self._located(info, near, np.stack([seen[n] for n in near.tolist()]))
            cuts = [c for c in cuts if not _within(c, first, last)] + [c for c in closely if _within(c, first, last)]
        return sorted(cuts, key=lambda cut: cut.frame)

    def _located(
        self, info: VideoInfo, numbers: np.ndarray, thumbs: np.ndarray
    ) -> tuple[list[Cut], list[tuple[int, int]]]:
        """Cuts between the frames `numbers`, and ranges of frames to see all of before these are believed."""
        numbers, times, thumbs = _with_black_ends(info, numbers, thumbs)
        run = Run(thumbs, times, self.limits)
        first, last = int(numbers[0] < 0), len(numbers) - 1 - int(numbers[-1] >= info.frames)
        found = _merged(self._passes(run, first, last), run)
        cuts = []
        for boundary, rate in found:
            before, after = int(numbers[boundary.before]), int(numbers[boundary.after])
            start = after if boundary.kind == "hard" else before + 1
            cuts.append(Cut(after, cut_time_s(info, after), boundary.kind, start, after, boundary.score, rate))
        apart = (np.diff(times) > _SPARSE_S) & (np.diff(numbers) > 2)
        few = [b for b, _ in found if numbers[b.after] - numbers[b.before] > b.after - b.before <= _INSIDE]
        wide = [(b.before, b.after) for b in few if apart[b.before : b.after].any()] + run.unsure_steps(apart)
        short = [(b.before, b.after) for b in few if b.kind == "gradual" and b.after - b.before <= _FEW]
        ends = [
            np.searchsorted(info.times_s, (times[a] - around_s, times[b] + around_s))
            for ranges, around_s in ((wide, _AROUND_S), (short, 0.0))
            for a, b in ranges
        ]
        return cuts, _joined([(int(low), min(int(high), info.frames - 1)) for low, high in ends])

    def _passes(self, run: Run, first: int, last: int) -> list[tuple[Boundary, float]]:
        found: list[tuple[Boundary, float]] = []
        segments = [(0, len(run.times_s) - 1)]
        for step in self.passes:
            left = []
            for low, high in segments:
                new = self._boundaries(run, low, high, step, first, last)
                found += [(boundary, step.rate_fps) for boundary in new]
                edges = [low, *(edge for b in new for edge in (b.before, b.after)), high]
                left += [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
            segments = left
        return sorted(found, key=lambda item: item[0].before)

    def _boundaries(self, run: Run, low: int, high: int, step: Pass, first: int, last: int) -> list[Boundary]:
        """Boundaries in one segment that a pass nominates and the native frames confirm."""
        nominated = self._nominated(run, low, high, step)
        abrupt = [
            b
            for a, z in _joined([*nominated, *((k, k + 1) for k in run.lone_steps(low, high))])
            for b in run.abrupt(max(a, first), min(z, last))
            if low <= b.before and b.after <= high
        ]
        sure = [b for b in abrupt if b.lone]
        edges = [low, *(edge for b in sure for edge in (b.before, b.after)), high]
        found: list[Boundary] = []
        for a, z in zip(edges[::2], edges[1::2], strict=True):
            for begin, end in _windows(run.times_s, nominated, a, z):
                found += [b for b in run.gradual(begin, end) if not any(_overlap(b, other) for other in found)]
        found += [b for b in abrupt if not any(_overlap(b, other) for other in found)]
        return sorted(found, key=lambda b: b.before)

    def _nominated(self, run: Run, low: int, high: int, step: Pass) -> list[tuple[int, int]]:
        """Ranges of positions between neighbouring grid frames that differ, adjacent ones joined."""
        times = run.times_s
        ticks = (
            np.arange(np.ceil(times[low] * step.rate_fps), np.floor(times[high] * step.rate_fps) + 1) / step.rate_fps
        )
        inner = np.searchsorted(times[low : high + 1], ticks) + low
        grid = np.unique(np.concatenate([[low], np.minimum(inner, high), [high]]))
        if len(grid) < 2:
            return []
        scores = self._content.series(run.thumbs[grid], grey=run.grey)
        thresholds = step.threshold * np.maximum(run.contrast[grid[:-1]], run.contrast[grid[1:]])
        return _joined([(int(grid[k]), int(grid[k + 1])) for k in np.flatnonzero(scores >= thresholds)])


def _told(info: VideoInfo, chunks: Iterator[Chunk], seen: Seen) -> Iterator[Chunk]:
    """The chunks; `seen` hears where in the film they end."""
    for chunk in chunks:
        seen(_KEYS_SHARE + (1 - _KEYS_SHARE) * int(chunk[0][-1]) / info.frames)
        yield chunk


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of positions in order, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for a, b in sorted(ranges):
        if joined and a <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(b, joined[-1][1]))
        else:
            joined.append((a, b))
    return joined


def _clash(cut: Cut, others: list[Cut]) -> bool:
    return any(_within(cut, c.start_frame, c.end_frame) for c in others)


def _overlap(one: Boundary, other: Boundary) -> bool:
    return one.before < other.after and other.before < one.after


def _windows(times: np.ndarray, nominated: list[tuple[int, int]], low: int, high: int) -> Iterator[tuple[int, int]]:
    """Windows of a few seconds inside low..high that cover the nominated ranges and their surroundings."""
    covered = -1.0
    for a, b in nominated:
        if b <= low or a >= high:
            continue
        begin = max(times[low], times[a] - _MARGIN_S, covered - _HOP_S)
        until = min(times[high], times[b] + _MARGIN_S)
        while begin < until and covered < until:
            end = min(until, begin + _WINDOW_S)
            yield (
                max(low, int(np.searchsorted(times, begin))),
                min(high, int(np.searchsorted(times, end, side="right")) - 1),
            )
            covered = end
            begin += _HOP_S


def _with_black_ends(
    info: VideoInfo, numbers: np.ndarray, thumbs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(numbers, times, thumbs) with a black frame before the film's first and after its last: what it fades from."""
    black = np.full((1, THUMB_BYTES), 128, np.uint8)
    black[:, : THUMB_BYTES * 2 // 3] = 0 if info.color_range == "pc" else 16
    tick = info.duration_s / info.frames
    times = info.times_s[numbers]
    if numbers[0] == 0:
        numbers, times = np.concatenate([[-1], numbers]), np.concatenate([[times[0] - tick], times])
        thumbs = np.concatenate([black, thumbs])
    if numbers[-1] == info.frames - 1:
        numbers, times = np.concatenate([numbers, [info.frames]]), np.concatenate([times, [times[-1] + tick]])
        thumbs = np.concatenate([thumbs, black])
    return numbers, times, thumbs


def _merged(found: list[tuple[Boundary, float]], run: Run) -> list[tuple[Boundary, float]]:
    """A fade out and the fade in after it become one transition; so do pieces of a gradual one that touch."""
    merged: list[tuple[Boundary, float]] = []
    for boundary, rate in found:
        if merged:
            earlier, earlier_rate = merged[-1]
            gap_s = run.times_s[boundary.before] - run.times_s[earlier.after]
            lasts_s = run.times_s[boundary.after] - run.times_s[earlier.after]
            is_shot = boundary.kind == earlier.kind == "hard" and lasts_s > run.limits.around_s  # of a single frame
            if (gap_s <= _TOUCHING_S and not is_shot and not _outdoes(run, earlier, boundary)) or (
                gap_s <= _PLAIN_S and run.plain[earlier.after : boundary.before + 1].any()
            ):
                score = max(earlier.score, boundary.score)
                after = max(earlier.after, boundary.after)
                merged[-1] = (Boundary(earlier.before, after, "gradual", score), min(rate, earlier_rate))
                continue
        merged.append((boundary, rate))
    return merged


def _outdoes(run: Run, *two: Boundary) -> bool:
    """Whether one of two is a hard cut that changes more than the gradual transition beside it ever does, and so is no
    piece of it: as where a title comes up before a cut.
    """
    hard, gradual = sorted(two, key=lambda boundary: boundary.kind == "gradual")
    if gradual.kind == hard.kind or not hard.lone:
        return False
    pure, *mixed = run.thumbs[gradual.before : gradual.after + 1]
    changed = max(plain_steps(np.stack([pure, one]))[0] for one in mixed)  # not at its end: a fade comes back
    return bool(run.steps[hard.before] > changed)


def _at_largest_step(info: VideoInfo, cut: Cut, before: int, seen: dict[int, np.ndarray]) -> Cut:
    """The hard cut between `before` and its frame, moved to the largest step between them."""
    known = [n for n in range(before, cut.frame + 1) if n in seen]
    at = known[1 + int(np.argmax(plain_steps(np.stack([seen[n] for n in known]))))]
    return replace(cut, frame=at, time_s=cut_time_s(info, at), start_frame=at, end_frame=at)


def _all_of(ranges: list[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b + 1) for a, b in ranges)])


def _within(cut: Cut, first: int, last: int) -> bool:
    return cut.start_frame <= last and first <= cut.end_frame
