"""Shot boundaries in a run of decoded frames: abrupt ones as steps, gradual ones as mixtures.

Works on the thumbs of the frames that were decoded, which need not be all; positions below count in those.
"""

from dataclasses import dataclass, field

import numpy as np

from curation.cuts.cut import Kind
from curation.cuts.gradual import MixtureLimits, coarse, mixtures, off_line_share, ramp, squared_distances
from curation.cuts.pairs import histogram, is_grey, luma, plain_steps, spreads, unexplained, unexplained_share

_STEPS = 8  # in which the motion through a gradual transition is followed


@dataclass(frozen=True)
class Limits:
    """Thresholds of the analysis at native rate, chosen by the sweep (SWEEP.md)."""

    step: float = 12.0  # least change of an abrupt cut, grey levels (luma + chroma)
    outlier: float = 2.0  # ... and at least this many times the median step around it
    unsure: float = 1.2  # ... where frames were left out, from here on these are looked at
    unexplained: float = 8.0  # what block matching leaves between two different shots, grey levels
    histogram: float = 0.12  # colour histogram distance between two different shots
    around_s: float = 0.5  # neighbourhood of a step
    flash_s: float = 0.35  # a picture that comes back within this time was interrupted, not cut
    lone: float = 1.9  # a step so many times the largest around it is a cut, whatever the colours on either side
    lone_unexplained: float = 0.75  # ... if block matching leaves this share of `unexplained`
    grey: float = 0.5  # of `histogram` is enough where there are no colours to tell shots by
    plain: float = 5.0  # contrast (standard deviation of luma) of a frame of one flat colour: black, white
    # Of pictures of less contrast than this, `unexplained`, the passes' thresholds and a mixture's change are reduced
    # in proportion, but no further than to the least share: then noise and a change of exposure begin to count.
    contrast: float = 40.0
    least_contrast: float = 0.35
    one_step: float = 0.75  # a step that makes this share of the change is a hard cut, whatever moves beside it
    insert_s: float = 0.1  # ... unless what interrupts it is a shot: lasts so long, between two steps,
    insert_like: float = 0.5  # ... and looks less like it than this (correlation), as a lit or dimmed picture does not
    mixture: MixtureLimits = field(default_factory=MixtureLimits)


@dataclass(frozen=True)
class Boundary:
    """Positions: the last frame before, and the first after. Hard if they are neighbours and the step was one."""

    before: int
    after: int
    kind: Kind
    score: float
    lone: bool = False  # a hard cut that is one step between two pictures: surely no part of a longer transition


class Run:
    """Consecutive decoded frames of a film: thumbs (N, THUMB_BYTES) and display times (N,) in seconds."""

    def __init__(self, thumbs: np.ndarray, times_s: np.ndarray, limits: Limits) -> None:
        self.thumbs = thumbs
        self.times_s = times_s
        self.limits = limits
        self.steps = plain_steps(thumbs)
        self._gaps = np.maximum(np.diff(times_s), 1e-6)
        self.coarse = coarse(thumbs)
        spread = spreads(thumbs)
        self.contrast = np.clip(spread / limits.contrast, limits.least_contrast, 1.0)
        self.plain = spread < limits.plain * self.contrast.max()
        self.grey = is_grey(thumbs)
        self._histograms: dict[int, np.ndarray] = {}
        self._different: dict[tuple[int, int], float] = {}
        self._gradual: dict[tuple[int, int], list[Boundary]] = {}

    def difference(self, a: int, b: int) -> float:
        """How surely frames a and b show different shots, motion aside; from 1 on they do."""
        if (a, b) not in self._different:
            limit = self.limits.histogram * (self.limits.grey if self.grey else 1.0)
            colours = (1.0 - float(self._histogram(a) @ self._histogram(b))) / limit
            blocks = 0.0
            if colours >= 1:  # the cheap test first
                blocks = self._unexplained(a, b)
            self._different[a, b] = min(colours, blocks)
        return self._different[a, b]

    def looks_moved(self, a: int, b: int) -> bool:
        """Whether b shows other things than a, or the same ones far moved; their colours may agree."""
        return self._unexplained(a, b) >= self.limits.lone_unexplained

    def _unexplained(self, a: int, b: int) -> float:
        """What block matching leaves between frames a and b, as a share of what it leaves between two shots."""
        limit = self.limits.unexplained * max(self.contrast[a], self.contrast[b])
        return float(unexplained(self.thumbs[a], self.thumbs[b]) / limit)

    def _histogram(self, k: int) -> np.ndarray:
        if k not in self._histograms:
            self._histograms[k] = histogram(self.thumbs[k])
        return self._histograms[k]

    def abrupt(self, low: int, high: int) -> list[Boundary]:
        """Hard cuts (and transitions of a few frames) among the steps low..high-1."""
        found = []
        for first, last in self._runs_of_large_steps(low, high):
            kind: Kind
            peak = first + int(np.argmax(self.steps[first : last + 1]))
            if first < last and self._blends(first, last + 1):
                before, after, kind = first, last + 1, "gradual"
            else:
                before, after, kind = peak, peak + 1, "hard"
            lone = kind == "hard" and not (self.plain[before] or self.plain[after])
            score = self.difference(before, after)
            if score >= 1 and not self._interrupted(before, after):
                found.append(Boundary(before, after, kind, score, lone))
            elif lone and self._stands_alone(before):
                found.append(Boundary(before, after, kind, max(score, 1.0), lone))
        return found

    def lone_steps(self, low: int, high: int) -> list[int]:
        """Steps among low..high-1 that are far larger than any around them: k is between frames k and k + 1.

        Such is a cut, even between two pictures of the same colours; motion, shaking and flashes come as several
        steps.
        """
        found = []
        for k in (low + np.flatnonzero(self.steps[low:high] >= self.limits.step)).tolist():
            near = np.abs(self.times_s[:-1] - self.times_s[k]) <= self.limits.around_s
            near[k] = False
            near &= ~(self.plain[:-1] | self.plain[1:])  # steps from or to black are no motion
            if near.any():
                pair = sorted((k, int(np.flatnonzero(near)[np.argmax(self.steps[near])])))
                if pair[1] - pair[0] > 1 and self._is_insert(pair[0], pair[1] + 1):
                    near[pair] = False
            if not near.any() or self.steps[near].max() > self.limits.one_step * self.steps[k]:
                continue  # the other side of a flash
            if self.steps[k] >= self.limits.lone * max(1.0, float(self._as_over(k, near).max())):
                found.append(k)
        return found

    def _as_over(self, k: int, others: np.ndarray) -> np.ndarray:
        """The steps `others` (a mask), as they would be over as much time as step k takes.

        Frames may have been left out: the further apart frames are, the more motion is between them.
        """
        return self.steps[others] * np.sqrt(self._gaps[k] / self._gaps[others])

    def unsure_steps(self, among: np.ndarray) -> list[tuple[int, int]]:
        """(before, after) of the steps `among` (a mask) that may hide a cut, though they do not prove it."""
        return [
            (k, k + 1)
            for k in np.flatnonzero(among & (self.steps >= self.limits.step)).tolist()
            if self.steps[k] >= self.limits.unsure * self._usual(k) and self.difference(k, k + 1) >= 1
        ]

    def _usual(self, k: int) -> float:
        """The median step around step k, its neighbours left out."""
        near = np.abs(self.times_s[:-1] - self.times_s[k]) <= self.limits.around_s
        near[max(0, k - 1) : k + 2] = False
        return float(np.median(self._as_over(k, near))) if near.any() else 0.0

    def _stands_alone(self, k: int) -> bool:
        return self.looks_moved(k, k + 1) and self.lone_steps(k, k + 1) == [k]

    def _blends(self, before: int, after: int) -> bool:
        """Whether the few frames between are mixtures of the two, none of the steps being most of the way."""
        distances = squared_distances(self.coarse[before : after + 1])
        end = after - before
        if off_line_share(distances, 0, end) > self.limits.mixture.off_line:
            return False
        share = np.sqrt(distances[np.arange(end), np.arange(1, end + 1)] / distances[0, end])
        return bool(share.max() < self.limits.one_step)

    def _runs_of_large_steps(self, low: int, high: int) -> list[tuple[int, int]]:
        large = []
        for k in range(low, high):
            if self.steps[k] < self.limits.step:
                continue
            if self.steps[k] >= self.limits.outlier * self._usual(k):
                large.append(k)
        runs: list[tuple[int, int]] = []
        for k in large:
            if runs and k == runs[-1][1] + 1 and self._gaps[k] <= self.limits.around_s:  # else a shot of one frame
                runs[-1] = (runs[-1][0], k)
            else:
                runs.append((k, k))
        return runs

    def _interrupted(self, before: int, after: int) -> bool:
        """Whether the picture before comes back soon after, or that after was there shortly before (a flash)."""
        reach = self.limits.flash_s
        later = np.flatnonzero((self.times_s > self.times_s[after]) & (self.times_s <= self.times_s[after] + reach))
        earlier = np.flatnonzero((self.times_s < self.times_s[before]) & (self.times_s >= self.times_s[before] - reach))
        # Four looks either way are enough: what interrupts a picture for so short is gone in the last of them.
        later, earlier = later[:: -max(1, len(later) // 4)], earlier[:: max(1, len(earlier) // 4)]
        # What is nearer to the other picture is not this one: the cheap test first.
        for k in self._nearer(later, before, after):
            if self.difference(before, k) < 1 and not self._is_insert(before, k):
                return True
        for k in self._nearer(earlier, after, before):
            if self.difference(k, after) < 1 and not self._is_insert(k, after):
                return True
        return False

    def _is_insert(self, one: int, other: int) -> bool:
        """Whether a shot of a few frames lies between frames `one` and `other`, which show the same picture."""
        if other - one < 3:
            return False
        steps = self.steps[one:other]
        first, last = sorted(one + int(k) for k in np.argsort(steps)[-2:])  # the steps into it and out of it
        inside, edges = steps[first + 1 - one : last - one], min(self.steps[first], self.steps[last])
        if not len(inside) or self.times_s[last + 1] - self.times_s[first + 1] < self.limits.insert_s - 1e-6:
            return False  # seen once, or too short to tell it from a flash
        if np.delete(steps, [first - one, last - one]).max() > self.limits.one_step * edges / 2:
            return False
        if self.plain[first : last + 1].any():
            return False
        light = luma(self.thumbs[[first, (first + 1 + last) // 2]]).reshape(2, -1)
        return bool(np.corrcoef(light)[0, 1] < self.limits.insert_like)

    def _nearer(self, frames: np.ndarray, one: int, other: int) -> list[int]:
        """Those of the frames that look more like `one` than like `other`."""
        away = [((self.coarse[frames] - self.coarse[k]) ** 2).sum(1) for k in (one, other)]
        return frames[away[0] < away[1]].tolist()

    def gradual(self, low: int, high: int) -> list[Boundary]:
        """Gradual transitions among the frames low..high, a window of a few seconds inside one segment."""
        if (low, high) not in self._gradual:  # passes that found nothing new ask for the same windows
            self._gradual[low, high] = self._mixtures(low, high) if high - low >= 3 else []
        return self._gradual[low, high]

    def _mixtures(self, low: int, high: int) -> list[Boundary]:
        limits = self.limits.mixture
        distances, times = squared_distances(self.coarse[low : high + 1]), self.times_s[low : high + 1]
        every = max(1, round(len(times) / max(1e-6, float(times[-1] - times[0]) * limits.search_fps)))
        thin = np.unique(np.append(np.arange(0, len(times), every), len(times) - 1))
        spans: dict[tuple[int, int], tuple[float, float]] = {}  # refined spans: (how well they explain, belief)
        contrast = self.contrast[low : high + 1]
        for start, end in thin[mixtures(distances[np.ix_(thin, thin)], times[thin], contrast[thin], limits)].tolist():
            if self.difference(low + start, low + end) < 0.7:
                continue
            start, end, error = self._refined(distances, times, start, end, low)
            if (start, end) not in spans and end - start >= 2 and error <= limits.ramp_error:
                change = float(np.sqrt(distances[start, end]))
                belief = self._belief(distances, times, start, end, low)
                spans[start, end] = (change * float(np.exp(-limits.sloppiness * error)), belief)
        found: list[Boundary] = []
        for (start, end), (_, belief) in sorted(spans.items(), key=lambda item: -item[1][0]):
            boundary = Boundary(low + start, low + end, "gradual", belief)
            if belief < 1 or any(boundary.before < b.after and b.before < boundary.after for b in found):
                continue
            if not (self._interrupted(boundary.before, boundary.after) or self._moved(boundary.before, boundary.after)):
                found.append(boundary)
        return sorted(found, key=lambda b: b.before)

    def _belief(self, distances: np.ndarray, times: np.ndarray, start: int, end: int, offset: int) -> float:
        """What speaks for a refined span being a transition; from 1 on it is one."""
        limits = self.limits.mixture
        steps = np.sqrt(distances[np.arange(start, end), np.arange(start + 1, end + 1)] / distances[start, end])
        if times[end] - times[start] > limits.longest_s or steps.max() > self.limits.one_step:
            return 0.0
        before, after = offset + start, offset + end
        difference = self.difference(before, after)
        off_line = off_line_share(distances, start, end)
        belief = difference * float(np.exp(limits.slack - limits.doubt * off_line))
        return belief if min(difference, belief) >= 1 else 0.0

    def _moved(self, before: int, after: int) -> bool:
        """Whether motion explains most of the change between two frames, step by step: a crane shot looks like a wipe
        at 16x9, and the picture it ends on may be another one altogether.
        """
        steps = min(_STEPS, after - before)
        through = self.thumbs[np.linspace(before, after, steps + 1).astype(int)]
        return unexplained_share(through) < self.limits.mixture.unexplained

    def _refined(
        self, distances: np.ndarray, times: np.ndarray, start: int, end: int, offset: int
    ) -> tuple[int, int, float]:
        """Where the ramp begins and ends exactly, and how well it fits with the still frames on either side.

        Beside a plain end (of a fade) there is another ramp, so the margin there goes no further than it stays plain.
        """
        margin = max(0.25, 0.3 * float(times[end] - times[start]))
        low, high = start, end
        start_plain, end_plain = self.plain[offset + start], self.plain[offset + end]
        while low > 0 and times[start] - times[low - 1] <= margin:
            if start_plain and not self.plain[offset + low - 1]:
                break
            low -= 1
        while high < len(times) - 1 and times[high + 1] - times[end] <= margin:
            if end_plain and not self.plain[offset + high + 1]:
                break
            high += 1
        return ramp(distances, times, low, high)
