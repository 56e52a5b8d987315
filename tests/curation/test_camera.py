"""Camera labels: each kind of move, made by warping real frames, gets its name; an object that moves does not name
it."""

import cv2
import numpy as np
import pytest
from camera_moves import camera_move, film_frames, shifts, times

from curation.camera import LABELS, STATIC_BELOW, camera_label, fit_global_motion
from curation.motion import CoarseMotion, MotionScore

FILMS = ("bikes.mp4", "bigbuckbunny.mp4")


@pytest.fixture(scope="module", params=FILMS)
def picture(request: pytest.FixtureRequest) -> np.ndarray:
    frame = film_frames(request.param, 2, step=60)[1]
    return cv2.resize(frame, (640, frame.shape[0] * 640 // frame.shape[1]), interpolation=cv2.INTER_AREA)


def moved(picture: np.ndarray, transforms: list[np.ndarray]) -> MotionScore:
    return CoarseMotion().score(camera_move(picture, transforms), times(len(transforms)))


def about_centre(picture: np.ndarray, degrees: float, zoom: float) -> np.ndarray:
    height, width = picture.shape[:2]
    return cv2.getRotationMatrix2D((width / 2, height / 2), degrees, zoom)


@pytest.mark.parametrize("speed", [-9, -2, 2, 9])
def test_pan_is_horizontal(picture: np.ndarray, speed: int) -> None:
    score = moved(picture, shifts([(speed * (i - 4), 0) for i in range(9)]))
    assert score.camera == "horizontal"
    assert np.sign(score.mean_dx) == np.sign(speed)


@pytest.mark.parametrize("speed", [-6, -2, 2, 6])
def test_tilt_is_vertical(picture: np.ndarray, speed: int) -> None:
    score = moved(picture, shifts([(0, speed * (i - 4)) for i in range(9)]))
    assert score.camera == "vertical"
    assert np.sign(score.mean_dy) == np.sign(speed)


def test_pan_there_and_back_is_horizontal(picture: np.ndarray) -> None:
    there = [(5 * i, 0) for i in range(6)]
    assert moved(picture, shifts(there + there[-2::-1])).camera == "horizontal"


@pytest.mark.parametrize("rate", [0.96, 0.985, 1.015, 1.04])
def test_zoom_is_zooming_with_its_rate(picture: np.ndarray, rate: float) -> None:
    start = 1.0 if rate > 1 else 1.5
    score = moved(picture, [about_centre(picture, 0, start * rate**i) for i in range(7)])
    assert score.camera == "zooming"
    assert score.divergence == pytest.approx(2 * (rate - 1), rel=0.3)


@pytest.mark.parametrize("degrees", [-4, -1, 1, 4])
def test_roll_is_rotating_with_its_rate(picture: np.ndarray, degrees: float) -> None:
    score = moved(picture, [about_centre(picture, degrees * i, 1.1) for i in range(7)])
    assert score.camera == "rotating"
    # OpenCV turns counter-clockwise for positive degrees; the curl of a clockwise turn is positive here.
    assert score.curl == pytest.approx(-2 * np.deg2rad(degrees), rel=0.3)


def test_diagonal_pan_is_complex(picture: np.ndarray) -> None:
    assert moved(picture, shifts([(4 * i, 4 * i) for i in range(8)])).camera == "complex"


def test_tripod_shot_with_noise_is_static(picture: np.ndarray) -> None:
    assert moved(picture, shifts([(0, 0)] * 8)).camera == "static"


def test_tripod_shot_with_a_moving_object_is_static_yet_has_motion(picture: np.ndarray) -> None:
    frames = camera_move(picture, shifts([(0, 0)] * 8))
    height = frames.shape[1]
    side = height // 3
    patch = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    for index, frame in enumerate(frames):
        x = 10 + 8 * index
        frame[height // 2 - side // 2 :][:side, x : x + side] = patch
    score = CoarseMotion().score(frames, times(8))
    assert score.camera == "static"
    without = moved(picture, shifts([(0, 0)] * 8))
    assert score.score > max(0.06, 4 * without.score)
    assert score.residual == pytest.approx(score.score, rel=0.2)


def test_hand_held_shake_is_complex(picture: np.ndarray) -> None:
    """Sway about a fixed aim: positions are independent from one half second to the next."""
    sway = np.random.default_rng(3).normal(0, 4, (12, 2))
    assert moved(picture, shifts([tuple(p) for p in sway])).camera == "complex"


def test_shake_along_one_axis_is_not_a_pan(picture: np.ndarray) -> None:
    sway = np.random.default_rng(3).normal(0, 4, 12)
    assert moved(picture, shifts([(x, 0.0) for x in sway])).camera == "complex"


def test_pan_by_an_unsteady_hand_is_still_horizontal(picture: np.ndarray) -> None:
    sway = np.random.default_rng(3).normal(0, 0.8, (10, 2))
    assert moved(picture, shifts([(6 * (i - 5) + x, y) for i, (x, y) in enumerate(sway)])).camera == "horizontal"


def test_one_frame_full_of_motion_does_not_name_the_clip() -> None:
    fields = np.zeros((8, 16, 28, 2))
    fields[3, ..., 1] = 2.0
    assert camera_label(fit_global_motion(fields), np.full(len(fields), 1 / len(fields))) == "complex"


def test_a_motion_counts_for_as_long_as_it_lasts() -> None:
    """A film of variable rate: a pan of six seconds between two frames, and shake in many."""
    fields = np.zeros((9, 16, 28, 2))
    fields[:, ..., 0] = [[[each]] for each in (0.5, 0.4, -0.5, 0.4, -0.5, 0.4, -0.5, 0.4, -0.5)]
    motion = fit_global_motion(fields)
    assert camera_label(motion, np.full(9, 1 / 9)) == "complex"
    assert camera_label(motion, np.array([60, *[1] * 8]) / 68) == "horizontal"


@pytest.mark.parametrize(("factor", "label"), [(0.9, "static"), (1.1, "horizontal")])
def test_static_threshold_is_where_it_says(factor: float, label: str) -> None:
    fields = np.zeros((4, 16, 28, 2))
    fields[..., 0] = STATIC_BELOW * factor
    assert camera_label(fit_global_motion(fields), np.full(len(fields), 1 / len(fields))) == label


def test_fit_ignores_an_object_that_fills_two_fifths_of_the_picture() -> None:
    generator = np.random.default_rng(0)
    fields = generator.normal(0, 0.01, (2, 16, 28, 2))
    fields[..., 0] += 0.5
    fields[:, 3:14, 2:18] = (-1.0, 0.8)
    motion = fit_global_motion(fields)
    assert np.allclose(motion.dx, 0.5, atol=0.02)
    assert np.allclose(motion.dy, 0.0, atol=0.02)


def test_fit_recovers_an_exact_similarity() -> None:
    y, x = np.mgrid[0:16, 0:28].astype(float)
    x, y = x - 13.5, y - 7.5
    field = np.stack([0.3 + 0.01 * x - 0.02 * y, -0.1 + 0.02 * x + 0.01 * y], -1)[None]
    motion = fit_global_motion(field)
    assert motion.dx[0] == pytest.approx(0.3)
    assert motion.dy[0] == pytest.approx(-0.1)
    assert motion.divergence[0] == pytest.approx(0.02)
    assert motion.curl[0] == pytest.approx(0.04)
    assert motion.residual[0] == pytest.approx(0.0, abs=1e-6)


def test_every_label_is_listed(picture: np.ndarray) -> None:
    assert moved(picture, shifts([(0, 0)] * 3)).camera in LABELS
