"""What of a film must be decoded to find its cuts: a cascade over decoding.

Key frames alone cost a 30th of a full pass, packet sizes cost nothing, and both tell where a transition can hide.
Inside a shot the sizes of the packets hold steady. A cut that the encoder did not give a key frame needs one huge
packet, and a transition of many frames costs extra for as long as it lasts, in all a good part of what a key frame
costs. So of a GOP whose two key frames show the same shot, or clearly do not (and then the cut is where the encoder
put the second one), only the part up to its last unsteady packets is decoded and examined, and the last picture of
that part must agree with the next key frame. Everything else is examined whole.
"""

from dataclasses import dataclass

import numpy as np

from curation.cuts.pairs import luma
from curation.cuts.shots import Limits, Run
from curation.probe import VideoInfo

LEAST_KEYS = 3  # with fewer, everything is decoded
_LEAST_SECONDS = 4  # that say whether a film's rate is held
_LEAST_ANCHORS = 4  # in a GOP whose packets are compared
_USUAL_INTERVAL = 240  # frames: x264's and x265's is 250, others choose less and are met often


@dataclass(frozen=True)
class Steadiness:
    """When packet sizes count as steady. Conservative: the test suite holds it to losing no labelled transition."""

    window_s: float = 0.25  # sizes are averaged over this time
    held_rate: float = 0.17  # deviation of the bytes a second: rate-controlled films .05 to .15, others .18 and more
    swell: float = 1.5  # highest average over the GOP's median, where key frames differ
    swell_alike: float = 1.8  # ... where they are alike
    even: float = 2.3  # largest packet of a P-frame over their median: below it there may be no transition ...
    light: float = 0.65  # ... if this times what the three largest are of a key frame also stays below
    dip: float = 0.4  # lowest average over the median
    spike: float = 2.5  # one packet over the larger quarter of the GOP's
    cost: float = 0.25  # what swells by less than this share of a key frame in a second is no transition
    alike: float = 0.6  # difference of key frames that surely show one shot
    clear: float = 1.3  # difference of key frames that surely show two
    flash_s: float = 0.4  # the longest flash
    undone: float = 0.6  # share of a key frame's packet from which on one after it may be the end of a flash
    settle_s: float = 0.5  # after a cut the encoder may need this long to become steady
    follows: float = 0.45  # share of a key frame's packet from which on one after it may begin yet another shot
    long_s: float = 0.5  # shorter GOPs may lie wholly inside a transition
    margin_s: float = 0.6  # examined after the last unsteady packets of a GOP
    beyond_s: float = 2.5  # examined after a GOP whose end may lie inside a transition
    dark: float = 40.0  # mean luma of a first frame that may be part of a fade in


@dataclass(frozen=True)
class Look:
    """A GOP, frames [first, stop), to decode and examine.

    From frame `until` on its packets are steady, and it need be followed only until its picture agrees with the next
    key frame's; or, where that one clearly shows another shot, is still that of the GOP's own.
    """

    first: int
    stop: int
    until: int | None = None  # None: to its end, and beyond
    clear: bool = False
    scout: bool = False  # all that may hide in it is unlikely: every few frames will do, to begin with
    sharp: bool = False  # the next key frame shows no flash: if it looks unlike the picture before, there is a cut
    early: bool = False  # the next key frame came before it was due: the encoder saw a cut, perhaps of alike colours


@dataclass(frozen=True)
class Plan:
    """What to decode, and hard cuts that are certain without."""

    looks: list[Look]
    key_cuts: list[tuple[int, float]]  # (key frame's number, difference)
    keys: dict[int, np.ndarray]  # thumbs of the key frames by number


def spared_frames(info: VideoInfo, jump: float = 3.0) -> np.ndarray:
    """Bool per frame: frames that no other refers to, and yet worth decoding, since a hard cut may fall among them.

    Those between the two neighbouring frames in whose decoding order a packet several times larger than its
    surroundings, or a key frame, comes.
    """
    sizes = info.packet_size.astype(float)
    rate = info.frames / max(info.duration_s, 1e-6)
    reach = max(4, round(0.5 * rate))
    padded = np.pad(np.where(info.keyframe, 0, sizes), reach, mode="reflect" if info.frames > reach else "edge")
    # B-packets are small; reference frames are compared with the larger quarter.
    usual = np.quantile(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), 0.75, axis=1) + 1.0
    spared = np.zeros(info.frames, bool)
    anchors = info.anchors
    for at in np.flatnonzero((sizes > jump * usual) | info.keyframe):
        k = int(np.searchsorted(anchors, at))
        spared[anchors[k - 1] + 1 if k else 0 : anchors[k] if k < len(anchors) else None] = True
    return spared


def unsteady(
    info: VideoInfo, first: int, stop: int, limits: Steadiness, *, swell: float, dips: bool
) -> tuple[int, int] | None:
    """(first, last) frames of the GOP [first, stop) around which the packets do not keep their size, or None.

    A swell that costs less than a share of the key frames at the GOP's ends is none; `dips` count where asked for.
    """
    rate = info.frames / max(info.duration_s, 1e-6)
    window = max(3, round(limits.window_s * rate))
    sizes = info.packet_size[first + 1 : stop].astype(float)
    if len(sizes) < 2 * window:
        return first, stop - 1
    sums = np.concatenate([[0.0], np.cumsum(sizes)])
    averages = (sums[window:] - sums[:-window]) / window + 20.0
    median = float(np.median(averages))
    swollen = averages >= swell * median
    least = limits.cost * min(info.packet_size[first], info.packet_size[min(stop, info.frames - 1)])
    if stop < info.frames:  # at the film's end a fade to black may cost next to nothing
        extra = np.concatenate([[0.0], np.cumsum(np.maximum(averages - median, 0))])
        half = max(1, round(rate / 2))
        at = np.arange(len(averages))
        spent = extra[np.minimum(at + half, len(averages))] - extra[np.maximum(at - half, 0)]
        swollen &= spent >= least
    bad = np.flatnonzero(swollen | (averages <= limits.dip * median) if dips else swollen)
    # A cut that got no key frame is one large packet, which an average over more of them may hide.
    large = np.flatnonzero(sizes >= max(least, limits.spike * float(np.quantile(sizes, 0.75))))
    at = np.concatenate([bad, bad + window - 1, large])
    return (first + 1 + int(at.min()), first + 1 + int(at.max())) if len(at) else None


def even(info: VideoInfo, first: int, stop: int, limits: Steadiness) -> bool:
    """Whether the packets of the GOP's P-frames are all alike, and none is as heavy as the mixtures of two shots are.

    Averages over all frames also rise where the encoder chooses more P-frames, as it does where things move faster.
    """
    low, high = np.searchsorted(info.anchors, (first + 1, stop))
    sizes = np.sort(info.packet_size[info.anchors[low:high]])
    if len(sizes) < _LEAST_ANCHORS:
        return False
    key = info.packet_size[[first, stop] if stop < info.frames else [first]].min()
    peak = sizes[-1] / max(1.0, float(np.median(sizes)))
    return bool(peak < limits.even and peak * sizes[-3:].mean() < limits.light * key)


def plan(info: VideoInfo, numbers: np.ndarray, thumbs: np.ndarray, limits: Limits, steadiness: Steadiness) -> Plan:
    """What to decode, from the key frames `numbers` that were decoded and their thumbs."""
    if len(numbers) < LEAST_KEYS or numbers[0] != 0 or _held_rate(info) < steadiness.held_rate:
        return whole(info)
    keys = Run(thumbs, info.times_s[numbers], limits)
    gops = list(zip(numbers.tolist(), [*numbers[1:].tolist(), info.frames], strict=True))
    times = np.append(info.times_s, info.duration_s)
    short = [times[stop] - times[first] < steadiness.long_s for first, stop in gops]
    longest = _key_interval(gops)
    looks: dict[int, Look] = {}
    certain: dict[int, float] = {}  # GOP that a hard cut ends: difference

    def follow(
        g: int, swell: float, *, dips: bool = True, clear: bool = False, scout: bool = False, sharp: bool = False
    ) -> None:
        """Look at the GOP if it is unsteady, until shortly after it last is."""
        first, stop = gops[g]
        found = unsteady(info, first, stop, steadiness, swell=swell, dips=dips)
        if clear and even(info, first, stop, steadiness):
            return
        if found and not (g - 1 in certain and _settles(info, first, found[1], steadiness)):
            until = int(np.searchsorted(times, times[found[1]] + steadiness.margin_s))
            early = stop - first < longest and stop < info.frames
            looks[g] = Look(first, stop, until if until < stop else None, clear, scout, sharp, early)

    for g, (first, stop) in enumerate(gops[:-1]):
        own = keys.difference(g, g + 1)
        around = max(own, keys.difference(*_outer(keys.times_s, g, steadiness.long_s)))
        if around < steadiness.alike:
            if (stop - first < longest or short[g]) and keys.looks_moved(g, g + 1):
                looks[g] = Look(first, stop, scout=True)
            elif not short[g]:  # else too short to judge by its sizes, but the same shot all around
                follow(g, steadiness.swell_alike, dips=False, scout=True)
            continue
        # A key frame may show a flash, which is soon undone; and one that came when it was due says nothing.
        if _undone(info, stop, steadiness) or keys.plain[g] or keys.plain[g + 1] or short[g] or short[g + 1]:
            looks[g] = Look(first, stop)
            if g - 1 in certain:  # the cut that begins this GOP may be part of it
                looks[g - 1] = Look(*gops[g - 1])
        elif own < steadiness.clear or stop - first >= longest or info.leads[stop]:
            # the frames that lead into the key frame may already show what it shows
            sharp = own >= steadiness.clear
            follow(g, steadiness.swell, sharp=sharp)
            looks.setdefault(g, Look(first, stop, sharp=sharp))
        else:
            certain[g] = own
            follow(g, steadiness.swell, clear=True, scout=True, sharp=True)
    follow(len(gops) - 1, steadiness.swell, scout=True)
    if luma(thumbs[0]).mean() < steadiness.dark:
        looks.setdefault(0, Look(*gops[0]))
    cuts = [(gops[g][1], score) for g, score in certain.items() if g not in looks]
    return Plan([looks[g] for g in sorted(looks)], cuts, dict(zip(numbers.tolist(), thumbs, strict=True)))


def _held_rate(info: VideoInfo) -> float:
    """Deviation of the bytes of each second from their mean, as a share of it; small where the rate is held constant.

    By filler or a small buffer, as in broadcasts: there, sizes tell nothing of what is shown.
    """
    seconds = int(info.duration_s)
    if seconds < _LEAST_SECONDS:
        return float("inf")
    which = np.minimum(info.times_s.astype(np.int64), seconds)
    sums = np.bincount(which, weights=info.packet_size, minlength=seconds)[:seconds]
    return float(sums.std() / sums.mean())


def _key_interval(gops: list[tuple[int, int]]) -> int:
    """Frames after which the encoder makes a key frame whatever is shown, or more where no two GOPs are that long."""
    lengths = sorted(stop - first for first, stop in gops)
    alike = lengths[-1] - lengths[-2] <= 1
    return lengths[-1] if alike or lengths[-1] >= _USUAL_INTERVAL else lengths[-1] + 1


def _undone(info: VideoInfo, key: int, limits: Steadiness) -> bool:
    """Whether a packet soon after this key frame is so large that it may show another shot again."""
    soon = int(np.searchsorted(info.times_s, info.times_s[key] + limits.flash_s))
    return bool((info.packet_size[key + 1 : soon] > limits.undone * info.packet_size[key]).any())


def _settles(info: VideoInfo, key: int, last: int, limits: Steadiness) -> bool:
    """Whether packets that are unsteady up to `last` are so because a shot has just begun, and no other one follows."""
    soon = info.times_s[last] - info.times_s[key] <= limits.settle_s
    return bool(soon and (info.packet_size[key + 1 : last + 1] < limits.follows * info.packet_size[key]).all())


def whole(info: VideoInfo) -> Plan:
    """Decode everything."""
    return Plan([Look(0, info.frames)], [], {})


def _outer(times: np.ndarray, g: int, reach_s: float) -> tuple[int, int]:
    """Key frames before and after GOP g that lie a while apart, so that a slow transition shows between short GOPs."""
    before, after = g, g + 1
    while before > 0 and times[g + 1] - times[before] < 2 * reach_s:
        before -= 1
    while after < len(times) - 1 and times[after] - times[g] < 2 * reach_s:
        after += 1
    return before, after
