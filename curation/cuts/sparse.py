"""What of a film must be decoded to find its cuts: a cascade over decoding.

Key frames alone cost a 30th of a full pass, packet sizes cost nothing, and both tell where a transition can hide:
inside a shot the sizes of the packets hold steady; a cut that the encoder did not give a key frame needs one huge
packet, and a transition of many frames costs extra (or, towards black, hardly anything) for as long as it lasts.
So a GOP is passed over when its sizes are steady and either its two key frames show the same shot, or they clearly
do not and the cut is where the encoder put the second one. Everything else is decoded and examined.
"""

from dataclasses import dataclass

import numpy as np

from curation.cuts.shots import Limits, Run
from curation.probe import VideoInfo

LEAST_KEYS = 3  # with fewer, everything is decoded


@dataclass(frozen=True)
class Steadiness:
    """When packet sizes count as steady. Conservative: the test suite holds it to losing no labelled transition."""

    window_s: float = 0.25  # sizes are averaged over this time
    swell: float = 1.5  # highest average over the GOP's median, where key frames differ
    swell_alike: float = 1.8  # ... where they are alike
    dip: float = 0.4  # lowest average over the median
    alike: float = 0.6  # difference of key frames that surely show one shot
    clear: float = 1.3  # difference of key frames that surely show two
    long_s: float = 1.0  # shorter GOPs may lie wholly inside a transition
    beyond_s: float = 2.5  # examined after a GOP whose end may lie inside a transition
    dark: float = 40.0  # mean luma of a first frame that may be part of a fade in


@dataclass(frozen=True)
class Plan:
    """Frames to decode, as ranges [first, stop) of frame numbers, and hard cuts that are certain without."""

    stretches: list[tuple[int, int]]
    key_cuts: list[tuple[int, float]]  # (key frame's number, difference)


def spared_frames(info: VideoInfo, jump: float = 3.0) -> np.ndarray:
    """Bool per frame: non-reference frames worth decoding, since a hard cut may fall among them.

    Those displayed just before or after a packet several times larger than its surroundings, and before a key frame.
    """
    sizes = info.packet_size.astype(float)
    rate = info.frames / max(info.duration_s, 1e-6)
    reach = max(4, round(0.5 * rate))
    padded = np.pad(np.where(info.keyframe, 0, sizes), reach, mode="reflect" if info.frames > reach else "edge")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1) + 1.0
    # B-packets are small, so the median is theirs; reference frames are compared with the larger quarter.
    upper = np.quantile(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), 0.75, axis=1) + 1.0
    large = (sizes > jump * np.maximum(around, upper)) | info.keyframe
    spared = np.zeros(info.frames, bool)
    for at in np.flatnonzero(large):
        spared[max(0, at - 5) : at + 2] = True
    return spared


def steady(info: VideoInfo, first: int, stop: int, limits: Steadiness, swell: float) -> bool:
    """Whether the packets of the GOP [first, stop), its key frame aside, keep their size."""
    rate = info.frames / max(info.duration_s, 1e-6)
    window = max(3, round(limits.window_s * rate))
    sizes = info.packet_size[first + 1 : stop].astype(float)
    if len(sizes) < 2 * window:
        return False
    sums = np.concatenate([[0.0], np.cumsum(sizes)])
    averages = (sums[window:] - sums[:-window]) / window + 20.0
    median = float(np.median(averages))
    return bool(averages.max() < swell * median and averages.min() > limits.dip * median)


def plan(info: VideoInfo, numbers: np.ndarray, thumbs: np.ndarray, limits: Limits, steadiness: Steadiness) -> Plan:
    """What to decode, from the key frames `numbers` that were decoded and their thumbs."""
    if len(numbers) < LEAST_KEYS or numbers[0] != 0:
        return whole(info)
    keys = Run(thumbs, info.times_s[numbers], limits)
    stops = np.append(numbers[1:], info.frames)
    lengths = np.append(np.diff(keys.times_s), info.duration_s - keys.times_s[-1])
    look = np.zeros(len(numbers), bool)
    cuts: dict[int, float] = {}
    for g, (first, stop) in enumerate(zip(numbers.tolist(), stops.tolist(), strict=True)):
        if g + 1 == len(numbers):
            look[g] = not steady(info, first, stop, steadiness, steadiness.swell)
            continue
        before, after = _outer(keys.times_s, g, steadiness.long_s)
        difference = max(keys.difference(g, g + 1), keys.difference(before, after))
        if difference < steadiness.alike:
            short = lengths[g] < steadiness.long_s  # too short to judge by its sizes, but the same shot all around
            look[g] = not (short or steady(info, first, stop, steadiness, steadiness.swell_alike))
            continue
        own = keys.difference(g, g + 1)
        returns = g + 2 < len(numbers) and keys.difference(g, g + 2) < 1
        plain = keys.plain[g] or keys.plain[g + 1]
        clean = (
            own >= steadiness.clear
            and not returns
            and not plain
            and min(lengths[g], lengths[g + 1]) >= steadiness.long_s
        )
        if clean and steady(info, first, stop, steadiness, steadiness.swell):
            cuts[g + 1] = own
        else:
            look[g] = True
    if thumbs[0][: thumbs.shape[1] * 2 // 3].mean() < steadiness.dark:
        look[0] = True
    for g in list(cuts):  # a cut beside something that is examined anyway is examined with it
        if look[g]:
            cuts.pop(g)
            look[g - 1] = True
    for g in sorted(cuts, reverse=True):
        if look[g]:
            cuts.pop(g)
            look[g - 1] = True
    stretches: list[tuple[int, int]] = []
    for g in np.flatnonzero(look).tolist():
        begin = int(numbers[g])
        after_s = info.times_s[stops[g]] + steadiness.beyond_s if stops[g] < info.frames else info.duration_s
        end = max(int(stops[g]), int(np.searchsorted(info.times_s, after_s)))
        if stretches and begin <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(end, stretches[-1][1]))
        else:
            stretches.append((begin, end))
    return Plan(stretches, [(int(numbers[g]), score) for g, score in sorted(cuts.items())])


def whole(info: VideoInfo) -> Plan:
    """Decode everything."""
    return Plan([(0, info.frames)], [])


def _outer(times: np.ndarray, g: int, reach_s: float) -> tuple[int, int]:
    """Key frames before and after GOP g that lie a while apart, so that a slow transition shows between short GOPs."""
    before, after = g, g + 1
    while before > 0 and times[g + 1] - times[before] < 2 * reach_s:
        before -= 1
    while after < len(times) - 1 and times[after] - times[g] < 2 * reach_s:
        after += 1
    return before, after
