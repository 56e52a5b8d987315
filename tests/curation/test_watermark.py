"""Watermarks: a mark that stays while the picture changes, against text in the scene, titles and still shots."""

import cv2
import numpy as np
import pytest
from camera_moves import camera_move, film_frames, shifts
from PIL import Image, ImageDraw, ImageFont

from curation.errors import CannotScore
from curation.text_area import PPOCRTextArea
from curation.watermark import watermark_ratio


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    return film_frames("bikes.mp4", 3, step=45)


def written(frame: np.ndarray, text: str, at: tuple[float, float], alpha: float = 1.0, size: int = 26) -> np.ndarray:
    picture = Image.fromarray(frame)
    ImageDraw.Draw(picture).text(
        (at[0] * frame.shape[1], at[1] * frame.shape[0]), text, fill=(255, 255, 255), font=ImageFont.load_default(size)
    )
    return np.uint8(alpha * np.array(picture) + (1 - alpha) * frame)


def measured(frames: list[np.ndarray]) -> float:
    detector = PPOCRTextArea()
    return watermark_ratio(frames, [detector.boxes(frame) for frame in frames])


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_a_mark_that_stays_is_found_with_its_area(film: np.ndarray, alpha: float) -> None:
    frames = [written(frame, "CLIPMILL.TV", (0.6, 0.82), alpha) for frame in film]
    found = measured(frames)
    left, top, right, bottom = ImageFont.load_default(26).getbbox("CLIPMILL.TV")
    true = (right - left) * (bottom - top) / (film.shape[1] * film.shape[2])
    assert found == pytest.approx(true, rel=0.6)


def test_film_without_text_has_none(film: np.ndarray) -> None:
    assert measured(list(film)) == 0.0


def test_titles_that_change_are_no_watermark(film: np.ndarray) -> None:
    texts = ("FIRST TITLE", "ANOTHER ONE", "AND THE END")
    assert measured([written(f, t, (0.3, 0.5)) for f, t in zip(film, texts, strict=True)]) == 0.0


def test_a_mark_in_one_frame_only_is_no_watermark(film: np.ndarray) -> None:
    assert measured([written(film[0], "CLIPMILL.TV", (0.6, 0.82)), film[1], film[2]]) == 0.0


def test_text_in_a_moving_scene_is_no_watermark(film: np.ndarray) -> None:
    sign = written(film_frames("bikes.mp4", 2, step=200)[1], "GARAGE DOOR", (0.4, 0.4), size=40)
    assert measured(list(camera_move(sign, shifts([(30 * k, 0) for k in (-1, 0, 1)]), crop=0.1))) == 0.0


def test_text_in_a_still_shot_cannot_be_judged(film: np.ndarray) -> None:
    still = [written(film[0], "CLIPMILL.TV", (0.6, 0.82))] * 3
    with pytest.raises(CannotScore) as caught:
        measured(still)
    assert caught.value.reason == "still"


def test_one_frame_is_too_short(film: np.ndarray) -> None:
    with pytest.raises(CannotScore) as caught:
        watermark_ratio([film[0]], [[]])
    assert caught.value.reason == "too_short"


def test_size_of_the_film_does_not_matter(film: np.ndarray) -> None:
    frames = [written(frame, "CLIPMILL.TV", (0.6, 0.82)) for frame in film]
    large = [cv2.resize(f, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for f in frames]
    assert measured(large) == pytest.approx(measured(frames), rel=0.4)
