"""Farneback in torch agrees with OpenCV on real frames at equal parameters, and gives the same scores as the CPU
path."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from camera_moves import camera_move, film_frames, shifts, times

from curation.farneback_torch import FarnebackTorchMotion, common_shift, farneback
from curation.motion import CoarseMotion, MotionScore
from curation.motion import common_shift as common_shift_opencv


def grey_pairs(film: str, step: int, height: int) -> list[np.ndarray]:
    frames = film_frames(film, 5, step=step)
    scale = height / frames.shape[1]
    small = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames]
    return [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in small]


@pytest.mark.parametrize("film", ["bikes.mp4", "bigbuckbunny.mp4"])
@pytest.mark.parametrize("height", [64, 90, 144])
@pytest.mark.parametrize(
    "parameters", [(0.5, 4, 21, 3, 5, 1.1), (0.5, 3, 15, 3, 5, 1.2), (0.7, 5, 15, 2, 7, 1.5), (0.5, 0, 9, 1, 5, 1.1)]
)
def test_flow_agrees_with_opencv(film: str, height: int, parameters: tuple) -> None:
    frames = grey_pairs(film, 12, height)
    scale, levels, window, iterations, poly_n, poly_sigma = parameters
    found = farneback(
        torch.from_numpy(np.stack(frames[:-1])),
        torch.from_numpy(np.stack(frames[1:])),
        pyramid_scale=scale,
        levels=levels,
        window_px=window,
        iterations=iterations,
        poly_n=poly_n,
        poly_sigma=poly_sigma,
    )
    expected = np.stack(
        [cv2.calcOpticalFlowFarneback(a, b, None, *parameters, 0) for a, b in itertools.pairwise(frames)]
    )
    assert np.linalg.norm(expected, axis=-1).mean() > 0.3  # there is something to agree on
    difference = np.linalg.norm(found.permute(0, 2, 3, 1).numpy() - expected, axis=-1)
    assert difference.mean() < 0.01


def test_a_common_start_is_used_as_opencv_uses_it() -> None:
    frames = grey_pairs("bikes.mp4", 12, 96)[:2]
    initial = np.empty((*frames[0].shape, 2), np.float32)
    initial[:] = (7.5, -4.25)
    settings = (0.5, 4, 21, 3, 5, 1.1)
    expected = cv2.calcOpticalFlowFarneback(*frames, initial.copy(), *settings, cv2.OPTFLOW_USE_INITIAL_FLOW)
    first, second = (torch.from_numpy(f)[None] for f in frames)
    found = farneback(first, second, start=torch.tensor([[7.5, -4.25]]))[0].permute(1, 2, 0).numpy()
    assert np.linalg.norm(found - expected, axis=-1).mean() < 0.01


@pytest.mark.parametrize("speed", [0, 2, 12, -25])
def test_common_shift_agrees_with_opencv(speed: int) -> None:
    still = film_frames("bikes.mp4", 2, step=200)[1]
    frames = camera_move(still, shifts([(speed * i, speed * i / 5) for i in range(2)]))
    pair = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    found = common_shift(*(torch.from_numpy(f)[None].float() for f in pair))[0].numpy()
    expected = common_shift_opencv(*pair)
    assert found == pytest.approx((0, 0) if expected is None else expected, abs=0.3)
    assert (expected is None) == (abs(speed) < 8)


def test_scores_equal_the_cpu_path_on_real_and_moving_film() -> None:
    still = film_frames("bikes.mp4", 2, step=200)[1]
    clips = [
        (film_frames("bigbuckbunny.mp4", 6, step=12), times(6)),
        (film_frames("bikes.mp4", 6, step=12), times(6)),
        (camera_move(still, shifts([(20 * i, 0) for i in range(4)])), times(4)),
        (camera_move(still, shifts([(0, 0)] * 4)), times(4)),
    ]
    found = FarnebackTorchMotion(device="cpu", batch=7).score_many(clips)
    for clip, score in zip(clips, found, strict=True):
        expected = CoarseMotion().score(*clip)
        assert isinstance(score, MotionScore)
        assert score.score == pytest.approx(expected.score, rel=0.05, abs=0.01)
        assert score.mean_dx == pytest.approx(expected.mean_dx, rel=0.05, abs=0.02)
        assert score.camera == expected.camera
