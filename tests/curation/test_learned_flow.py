"""Learned flow: RIFE with its real weights on known moves; RAFT's numbers equal torchvision's on the same weights."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from camera_moves import camera_move, film_frames, shifts, times

from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.motion import CoarseMotion, MotionScore
from curation.raft import RaftMotion
from curation.rife import RifeMotion
from curation.weights import WeightsUnavailable


@pytest.fixture(scope="module")
def still() -> np.ndarray:
    return film_frames("bikes.mp4", 2, step=200)[1]


@pytest.fixture(scope="module")
def rife() -> RifeMotion:
    torch.set_num_threads(1)
    return RifeMotion(batch=4)


def test_rife_measures_a_pan_in_the_same_unit_as_farneback(rife: RifeMotion, still: np.ndarray) -> None:
    frames = camera_move(still, shifts([(5 * i, 0) for i in range(4)]))
    expected = 5 * 16 / frames.shape[1]
    score = rife.score(frames, times(4))
    assert score.score == pytest.approx(expected, rel=0.15)
    assert score.mean_dx == pytest.approx(expected, rel=0.15)
    assert score.camera == CoarseMotion().score(frames, times(4)).camera == "horizontal"


def test_rife_orders_still_slow_and_fast(rife: RifeMotion, still: np.ndarray) -> None:
    clips = [(camera_move(still, shifts([(speed * i, 0) for i in range(3)])), times(3)) for speed in (0, 2, 8, 30)]
    scores = [result.score for result in rife.score_many(clips) if isinstance(result, MotionScore)]
    assert len(scores) == 4
    assert scores == sorted(scores)
    assert scores[0] < 0.1


def test_clips_of_a_batch_do_not_touch_each_other(rife: RifeMotion, still: np.ndarray) -> None:
    pan = (camera_move(still, shifts([(6 * i, 0) for i in range(4)])), times(4))
    bad = (np.zeros((1, 90, 160, 3), np.uint8), times(1))
    small = (np.zeros((3, 16, 16, 3), np.uint8), times(3))
    tall = (np.ascontiguousarray(np.swapaxes(pan[0], 1, 2)), times(4))
    together = rife.score_many([bad, pan, small, tall])
    assert isinstance(together[0], CannotScore)
    assert together[0].reason == "too_short"
    assert isinstance(together[2], CannotScore)
    assert together[2].reason == "too_small"
    alone = rife.score(*pan)
    assert isinstance(together[1], MotionScore)
    assert together[1].score == pytest.approx(alone.score, rel=1e-3)
    assert isinstance(together[3], MotionScore)
    assert together[3].camera == "vertical"
    with pytest.raises(CannotScore):
        rife.score(*bad)


def test_rife_refuses_another_file(tmp_path: Path) -> None:
    torch.save({"module.block0.conv0.0.0.weight": torch.zeros(1)}, tmp_path / "flownet.pkl")
    with pytest.raises(WeightsUnavailable, match=r"flownet\.pkl does not hold RIFE 4\.0's flow weights"):
        RifeMotion(weights=[tmp_path / "flownet.pkl"])


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in torchvision's published layout, with random weights."""
    ensure_torchvision()
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft_small.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


def test_raft_equals_torchvision_on_the_same_weights(raft_file: Path, still: np.ndarray) -> None:
    from torchvision.models.optical_flow import raft_small

    reference = raft_small(weights=None).eval()
    reference.load_state_dict(torch.load(raft_file, weights_only=True))
    pictures = [cv2.resize(picture, (800, 450)) for picture in (still, still[:, ::-1])]
    frames = [torch.from_numpy(picture).permute(2, 0, 1)[None].float() for picture in pictures]
    padded = [F.pad(2 * frame / 255 - 1, (0, 0, 0, 6), mode="replicate") for frame in frames]
    raft = RaftMotion(weights=[raft_file], size="small", updates=2)
    with torch.inference_mode():
        expected = reference(*padded, num_flow_updates=2)[-1][..., :450, :]
        found = raft._flow(*frames)
    assert torch.allclose(found, expected, atol=1e-3)
    assert raft.name == "raft_small"


def test_raft_runs_at_800x450_and_keeps_other_shapes(raft_file: Path) -> None:
    raft = RaftMotion(weights=[raft_file], size="small", updates=1)
    assert raft._size(720, 1280) == (450, 800)
    assert raft._size(180, 320) == (450, 800)
    for height, width in ((1280, 720), (400, 1600), (576, 768)):
        rows, columns = raft._size(height, width)
        assert rows * columns == pytest.approx(800 * 450, rel=0.01)
        assert columns / rows == pytest.approx(width / height, rel=0.01)
    result = raft.score(np.zeros((2, 64, 256, 3), np.uint8), times(2))  # 4:1
    assert np.isfinite(result.score)


def test_raft_refuses_the_other_sizes_file(raft_file: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="raft_large"):
        RaftMotion(weights=[raft_file], size="large")
