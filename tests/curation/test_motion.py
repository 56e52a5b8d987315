"""Coarse motion: known warps of real frames give known scores, and what cannot be scored is an error, never a
number."""

import cv2
import numpy as np
import pytest
from camera_moves import camera_move, film_frames, shifts, times

from curation.errors import CannotScore
from curation.motion import CoarseMotion, farneback, reduce_field


@pytest.fixture(scope="module")
def still() -> np.ndarray:
    return film_frames("bikes.mp4", 2, step=200)[1]


def test_pan_of_known_speed_has_that_score_and_sign(still: np.ndarray) -> None:
    frames = camera_move(still, shifts([(4 * i, 0) for i in range(8)]))  # 4 px of a 136 px short side
    score = CoarseMotion().score(frames, times(8))
    expected = 4 * 16 / frames.shape[1]
    assert score.score == pytest.approx(expected, rel=0.1)
    assert score.mean_dx == pytest.approx(expected, rel=0.1)
    assert abs(score.mean_dy) < 0.02
    assert score.residual < 0.1


def test_pan_there_and_back_does_not_cancel(still: np.ndarray) -> None:
    """A public reproduction averages signed flow: a pan to the right and back scores zero there."""
    there = [(4 * i, 0) for i in range(6)]
    score = CoarseMotion().score(camera_move(still, shifts(there + there[-2::-1])), times(11))
    assert abs(score.mean_dx) < 0.02
    assert score.score == pytest.approx(4 * 16 / 136, rel=0.1)


def test_fast_pan_scores_higher_than_a_slow_one(still: np.ndarray) -> None:
    """Farneback alone loses a picture that moves by a fifth of the frame between two frames, and calls it a still."""
    measured = [
        CoarseMotion().score(camera_move(still, shifts([(speed * i, 0) for i in range(4)])), times(4)).score
        for speed in (3, 12, 30)
    ]
    assert measured[0] < measured[1] < measured[2]
    assert measured[2] == pytest.approx(30 * 16 / 136, rel=0.15)


def test_a_film_and_its_downscale_score_alike() -> None:
    frames = film_frames("bigbuckbunny.mp4", 6, step=12)
    full = CoarseMotion().score(frames, times(6))
    for height in (360, 144, 72):
        small = np.stack([cv2.resize(f, (height * 16 // 9, height), interpolation=cv2.INTER_AREA) for f in frames])
        assert CoarseMotion().score(small, times(6)).score == pytest.approx(full.score, rel=0.1)


def test_grey_and_rgb_frames_score_alike() -> None:
    frames = film_frames("bikes.mp4", 4, step=6)
    grey = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames])
    assert CoarseMotion().score(grey, times(4)).score == pytest.approx(
        CoarseMotion().score(frames, times(4)).score, rel=1e-3
    )


def test_irregular_sampling_is_normalised_by_real_time(still: np.ndarray) -> None:
    """The same steady pan, seen at uneven times: speed, not displacement per pair, is what is scored."""
    at = np.array([0.0, 0.5, 0.75, 1.75, 2.0, 2.5])
    frames = camera_move(still, shifts([(8 * t, 0) for t in at]))
    score = CoarseMotion().score(frames, at)
    assert score.score == pytest.approx(4 * 16 / 136, rel=0.1)


def test_noise_on_a_still_picture_is_nearly_no_motion(still: np.ndarray) -> None:
    score = CoarseMotion().score(camera_move(still, shifts([(0, 0)] * 6), noise=3), times(6))
    assert score.score < 0.043  # the paper's example of a static clip


def test_reduced_field_is_in_its_own_pixels() -> None:
    flow = np.full((160, 320, 2), (10.0, -5.0), np.float32)
    field = reduce_field(flow)
    assert field.shape == (16, 32, 2)
    assert np.allclose(field, (1.0, -0.5))


def test_portrait_and_wide_frames_are_taken(still: np.ndarray) -> None:
    wide = camera_move(still, shifts([(3 * i, 0) for i in range(3)]))
    tall = np.ascontiguousarray(np.swapaxes(wide, 1, 2))
    across = CoarseMotion().score(wide, times(3))
    down = CoarseMotion().score(tall, times(3))
    assert down.mean_dy == pytest.approx(across.mean_dx, rel=0.1)


@pytest.mark.parametrize(
    ("shape", "at", "reason"),
    [
        ((1, 90, 160), [0.0], "too_short"),
        ((0, 90, 160), [], "too_short"),
        ((3, 16, 16), [0.0, 0.5, 1.0], "too_small"),
        ((3, 90, 160), [0.0, 0.5, 0.5], "bad_times"),
        ((3, 90, 160), [0.0, 0.5], "bad_times"),
        ((3, 90, 160), [0.0, 0.5, float("nan")], "bad_times"),
    ],
)
def test_what_cannot_be_scored_is_an_error_with_a_reason(shape: tuple, at: list, reason: str) -> None:
    with pytest.raises(CannotScore) as caught:
        CoarseMotion().score(np.zeros(shape, np.uint8), np.array(at))
    assert caught.value.reason == reason


def test_flow_that_is_not_finite_is_an_error() -> None:
    broken = CoarseMotion(flow=lambda a, b: np.full((*a.shape, 2), np.nan, np.float32))
    with pytest.raises(CannotScore, match="not finite") as caught:
        broken.score(np.zeros((2, 90, 160), np.uint8), times(2))
    assert caught.value.reason == "non_finite"


def test_black_frames_score_zero_not_an_error() -> None:
    score = CoarseMotion().score(np.zeros((3, 90, 160), np.uint8), times(3))
    assert score.score == 0.0
    assert score.camera == "static"


def test_a_wrong_array_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="uint8"):
        CoarseMotion().score(np.zeros((3, 90, 160), np.float32), times(3))


def test_flow_agrees_with_a_known_shift_where_opencv_alone_fails() -> None:
    grey = cv2.cvtColor(film_frames("bikes.mp4", 2, step=200)[1], cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (300, 128), interpolation=cv2.INTER_AREA)
    before, after = small[32:96, 60:180], small[32:96, 45:165]
    alone = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 4, 21, 3, 5, 1.1, 0)
    assert np.median(alone[8:-8, 8:-24, 0]) < 10
    assert np.median(farneback(before, after)[8:-8, 8:-24, 0]) == pytest.approx(15, abs=0.5)
