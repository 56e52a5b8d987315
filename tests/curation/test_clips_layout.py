"""Layouts: what is copied is whole in decoding order, whatever the GOP structure."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clips.clip import ClipSpan
from curation.clips.layout import copied_end, smart_layout
from curation.clips.mux import decoding_times
from tests.curation.test_clips_plan import film


@st.composite
def gops(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """(key frames, decode rank per frame) of a film of GOPs with B-frames and, where open, leading frames."""
    order: list[int] = []  # frame numbers in decoding order
    keys: list[int] = []
    at = 0
    for _ in range(draw(st.integers(1, 4))):
        leading = draw(st.integers(0, 3)) if keys else 0
        key = at + leading
        keys.append(key)
        order += [key, *draw(st.permutations(range(at, key)))]
        at = key + 1
        for _ in range(draw(st.integers(0, 4))):
            between = draw(st.integers(0, 3))
            order += [at + between, *draw(st.permutations(range(at, at + between)))]
            at += between + 1
    rank = np.argsort(np.array(order)).tolist()
    return keys, rank


@settings(max_examples=200, deadline=None)
@given(gops(), st.data())
def test_copied_packets_are_the_longest_whole_run(made: tuple[list[int], list[int]], data: st.DataObject) -> None:
    keys, rank = made
    info = film([40] * len(rank), keys, rank=rank)
    key = data.draw(st.sampled_from(keys))
    end = data.draw(st.integers(key + 1, len(rank)))
    by_rank = np.argsort(rank)
    best, run = key, set()
    for number in by_rank[rank[key] :]:  # by the definition: packet after packet, until one is foreign
        if number >= end:
            break
        if number >= key:
            run.add(int(number))
            if run == set(range(key, key + len(run))):
                best = key + len(run)
    assert copied_end(info, key, end) == best


@settings(max_examples=200, deadline=None)
@given(gops(), st.data())
def test_a_smart_clip_is_its_span_and_nothing_else(made: tuple[list[int], list[int]], data: st.DataObject) -> None:
    keys, rank = made
    info = film([40] * len(rank), keys, rank=rank)
    start = data.draw(st.integers(0, len(rank) - 1))
    end = data.draw(st.integers(start + 1, len(rank)))
    layout = smart_layout(ClipSpan(0, 0, start, end, 0), info, np.array(keys), True)
    pieces = [*range(layout.copy_start, layout.copy_end)]
    for a, b in layout.encoded:
        pieces += range(a, b)
    assert sorted(pieces) == list(range(start, end))
    if layout.copied:
        assert layout.copy_start == min(key for key in keys if key >= start), "the first key frame is used"


@settings(max_examples=100, deadline=None)
@given(gops())
def test_decoding_times_rise_and_never_come_after_showing(made: tuple[list[int], list[int]]) -> None:
    pts = np.argsort(made[1]) * 40
    dts = decoding_times(pts)
    assert (np.diff(dts) > 0).all()
    assert (dts <= pts).all()
    assert (dts == pts).any(), "no later than needed"


def test_codecs_that_cannot_be_spliced_are_copied_whole_or_not_at_all() -> None:
    info = dataclasses.replace(film([40] * 30, [0, 10, 20]), codec="av1")
    keys = np.array([0, 10, 20])
    assert smart_layout(ClipSpan(0, 0, 10, 25, 0), info, keys, False).copied == 15
    assert smart_layout(ClipSpan(0, 0, 9, 25, 0), info, keys, False).copied == 0
