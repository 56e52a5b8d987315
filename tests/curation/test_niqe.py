"""NIQE: worse pictures score higher at 720 lines, and what it cannot judge is an error."""

import cv2
import numpy as np
import pytest
from camera_moves import film_frames

from curation.errors import CannotScore
from curation.niqe import NiqeQuality


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return film_frames("bigbuckbunny.mp4", 2, step=60)[1]


def worse(frame: np.ndarray) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 15, frame.shape)
    block = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_COLOR)
    return {
        "blur": cv2.GaussianBlur(frame, (0, 0), 2),
        "noise": np.clip(frame + noise, 0, 255).astype(np.uint8),
        "blocks": block,
    }


@pytest.mark.parametrize("how", ["blur", "noise", "blocks"])
def test_a_damaged_frame_scores_higher(frame: np.ndarray, how: str) -> None:
    clean, damaged = NiqeQuality().score([frame, worse(frame)[how]])
    assert damaged > clean + 0.5


def test_value_is_that_of_the_reference(frame: np.ndarray) -> None:
    """scikit-video's own NIQE, run on this frame outside the tests, gives 11.534 (its code needs an older numpy)."""
    assert NiqeQuality().score([frame])[0] == pytest.approx(11.534, rel=0.005)


def test_small_and_flat_frames_are_errors(frame: np.ndarray) -> None:
    with pytest.raises(CannotScore) as caught:
        NiqeQuality().score([frame[:100, :100]])
    assert caught.value.reason == "too_small"
    with pytest.raises(CannotScore) as caught:
        NiqeQuality().score([np.zeros((480, 854, 3), np.uint8)])
    assert caught.value.reason == "flat"
