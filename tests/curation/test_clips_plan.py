"""Plans: every second is in a clip or in a named loss, and no span crosses a cut."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clips import plan
from curation.cuts.cut import Cut
from curation.probe import VideoInfo


def film(steps: list[int], keys: list[int], *, rank: list[int] | None = None, start: int = 0) -> VideoInfo:
    """A film of frames lasting `steps` ms. VP9, so that every key frame counts without reading packets."""
    pts = start + np.concatenate([[0], np.cumsum(steps)[:-1]]).astype(np.int64)
    keyframe = np.zeros(len(steps), dtype=bool)
    keyframe[keys] = True
    return VideoInfo(
        path="synthetic",
        container="matroska",
        codec="vp9",
        profile="",
        pixel_format="yuv420p",
        bit_depth=8,
        width=64,
        height=48,
        rotation=0,
        sample_aspect_ratio=Fraction(1),
        color_range="tv",
        color_space="1",
        time_base=Fraction(1, 1000),
        nominal_rate=Fraction(25),
        pts=pts,
        packet_size=np.ones(len(steps), dtype=np.int64),
        keyframe=keyframe,
        decode_rank=np.arange(len(steps)) if rank is None else np.array(rank),
        end_pts=int(pts[-1]) + steps[-1],
        audio=None,
    )


def hard(frame: int) -> Cut:
    return Cut(frame, frame / 25, "hard", frame, frame, 1.0, 1.0)


def gradual(start: int, end: int) -> Cut:
    return Cut(end, end / 25, "gradual", start, end, 1.0, 1.0)


@st.composite
def films_and_cuts(draw: st.DrawFn) -> tuple[VideoInfo, list[Cut]]:
    count = draw(st.integers(1, 400))
    even = draw(st.booleans())
    steps = [40] * count if even else draw(st.lists(st.integers(1, 200), min_size=count, max_size=count))
    keys = sorted(draw(st.sets(st.integers(0, count - 1), max_size=12)) | ({0} if draw(st.booleans()) else set()))
    edges = draw(st.lists(st.integers(0, count), max_size=8))
    lengths = draw(st.lists(st.integers(0, 30), min_size=len(edges), max_size=len(edges)))
    cuts = [
        gradual(at, min(at + length, count)) if length else hard(at) for at, length in zip(edges, lengths, strict=True)
    ]
    return film(steps, keys, start=draw(st.integers(-500, 500))), cuts


@settings(max_examples=150, deadline=None)
@given(films_and_cuts(), st.sampled_from(["smart", "keyframe", "exact"]), st.floats(0, 3), st.floats(0.05, 6))
def test_seconds_add_up_and_no_span_crosses_a_cut(
    made: tuple[VideoInfo, list[Cut]], mode: str, min_s: float, longer_s: float
) -> None:
    info, cuts = made
    max_s = min_s + longer_s
    planned = plan(info, cuts, mode=mode, min_s=min_s, max_s=max_s)  # type: ignore[arg-type]
    lost = planned.lost_transition_pts + planned.lost_short_pts + planned.lost_keyframe_pts
    assert planned.kept_pts + lost == info.end_pts - int(info.pts[0])
    assert min(planned.lost_transition_pts, planned.lost_short_pts, planned.lost_keyframe_pts) >= 0
    assert planned.seconds_in == pytest.approx(
        planned.kept_pts / 1000 + planned.lost_transition_s + planned.lost_short_s + planned.lost_keyframe_s
    )
    edges = np.append(info.pts, info.end_pts)
    mixed = np.zeros(info.frames, dtype=bool)
    for cut in cuts:
        mixed[cut.start_frame : cut.end_frame] = True
    at = 0
    for each in planned.spans:
        assert at <= each.start_frame < each.end_frame <= info.frames
        at = each.end_frame
        assert (each.start_pts, each.end_pts) == (edges[each.start_frame], edges[each.end_frame])
        length = each.end_pts - each.start_pts
        assert length / 1000 >= min_s - 1e-6
        assert length / 1000 <= max_s + 1e-6 or each.frames == 1
        assert not mixed[each.start_frame : each.end_frame].any()
        assert not any(each.start_frame < cut.start_frame < each.end_frame for cut in cuts)
        assert info.keyframe[: each.start_frame + 1].any(), "nothing can be decoded before the first key frame"
        if mode == "keyframe":
            assert info.keyframe[each.start_frame]


def test_a_long_shot_is_split_evenly() -> None:
    spans = plan(film([40] * 1100, [0]), [], min_s=2, max_s=20).spans  # 44 s
    assert [each.frames for each in spans] == [367, 366, 367]
    assert [each.shot for each in spans] == [0, 0, 0]


def test_where_even_pieces_would_be_too_short_as_many_long_ones_as_fit_are_taken() -> None:
    planned = plan(film([40] * 80, [0]), [], min_s=2, max_s=3)  # 3.2 s: halves are below 2 s
    assert [each.frames for each in planned.spans] == [75]
    assert planned.lost_short_s == pytest.approx(0.2)


def test_transitions_are_cut_out_and_counted() -> None:
    planned = plan(film([40] * 300, [0]), [gradual(100, 120), gradual(110, 130), hard(200)], min_s=1)
    assert [(each.start_frame, each.end_frame, each.shot) for each in planned.spans] == [
        (0, 100, 0),
        (130, 200, 1),
        (200, 300, 2),
    ]
    assert planned.lost_transition_s == pytest.approx(30 * 0.04)


def test_a_fade_out_at_the_end_leaves_no_shot_behind_it() -> None:
    planned = plan(film([40] * 200, [0]), [gradual(0, 10), gradual(180, 200)], min_s=1)
    assert [(each.start_frame, each.end_frame) for each in planned.spans] == [(10, 180)]


def test_keyframe_mode_snaps_to_key_frames_inside_the_shot() -> None:
    info = film([40] * 300, [0, 60, 120, 180, 240])
    planned = plan(info, [hard(100), hard(200)], mode="keyframe", min_s=1)
    assert [(each.start_frame, each.end_frame) for each in planned.spans] == [(0, 60), (120, 180), (240, 300)]
    assert planned.lost_keyframe_s == pytest.approx((40 + 20 + 20 + 40) * 0.04)
    assert planned.lost_short_s == 0


def test_keyframe_mode_loses_a_film_with_one_key_frame_that_smart_keeps() -> None:
    info = film([40] * 300, [0])
    assert plan(info, [hard(100)], mode="keyframe").spans == []
    assert plan(info, [hard(100)], mode="keyframe").lost_keyframe_s == pytest.approx(12)
    assert len(plan(info, [hard(100)]).spans) == 2


def test_keyframe_mode_ends_before_the_leading_frames_of_an_open_gop() -> None:
    # Decoding order I0 P3 B1 B2 | I6 B4 B5 P9 B7 B8: frames 4 and 5 are stored after key frame 6.
    info = film([500] * 10, [0, 6], rank=[0, 2, 3, 1, 5, 6, 4, 8, 9, 7])
    spans = plan(info, [hard(6)], mode="keyframe", min_s=1).spans
    assert [(each.start_frame, each.end_frame) for each in spans] == [(0, 4), (6, 10)]


def test_a_film_that_begins_before_its_first_key_frame_loses_that_part_by_name() -> None:
    planned = plan(film([40] * 200, [30]), [], min_s=1)
    assert [(each.start_frame, each.end_frame) for each in planned.spans] == [(30, 200)]
    assert planned.lost_keyframe_s == pytest.approx(1.2)


def test_impossible_lengths_and_modes_are_refused() -> None:
    info = film([40] * 10, [0])
    with pytest.raises(ValueError, match="min_s=5"):
        plan(info, [], min_s=5, max_s=4)
    with pytest.raises(ValueError, match="smart, keyframe, exact"):
        plan(info, [], mode="fast")  # type: ignore[arg-type]
