"""Text area: drawn text of known area, overlapping boxes, nothing to read, and real film, by both detectors."""

import cv2
import numpy as np
import pytest
from camera_moves import film_frames
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from curation.errors import CannotScore
from curation.text_area import CraftTextArea, PPOCRTextArea, union_ratio

LINE = "CLIPMILL 2026 sample"


@pytest.fixture(scope="module")
def craft() -> CraftTextArea:
    return CraftTextArea(threads=1)


@pytest.fixture(scope="module")
def pp_ocr() -> PPOCRTextArea:
    return PPOCRTextArea()


def with_text(frame: np.ndarray, height_share: float, at: tuple[float, float] = (0.1, 0.4)) -> tuple[np.ndarray, float]:
    """The frame with a line of text drawn on it, and the share of the frame that the line's bounding box covers."""
    height, width = frame.shape[:2]
    picture = Image.fromarray(frame)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=int(height * height_share))
    corner = (at[0] * width, at[1] * height)
    draw.text(corner, LINE, fill=(255, 255, 255), font=font)
    left, top, right, bottom = draw.textbbox(corner, LINE, font=font)
    return np.array(picture), (right - left) * (bottom - top) / (height * width)


def plain(height: int, grey: int = 60) -> np.ndarray:
    return np.full((height, height * 16 // 9, 3), grey, np.uint8)


@pytest.mark.parametrize("height", [360, 720, 1080])
def test_craft_finds_drawn_text_of_known_area(craft: CraftTextArea, height: int) -> None:
    drawn = [with_text(plain(height), share) for share in (0.03, 0.05, 0.1)]
    measured = craft.ratio([frame for frame, _ in drawn])
    for found, (_, true) in zip(measured, drawn, strict=True):
        assert found == pytest.approx(true, rel=0.25)


@pytest.mark.parametrize("height", [360, 720, 1080])
def test_pp_ocr_finds_drawn_text_of_known_area(pp_ocr: PPOCRTextArea, height: int) -> None:
    for share in (0.05, 0.1):
        frame, true = with_text(plain(height), share)
        assert pp_ocr.ratio([frame])[0] == pytest.approx(true, rel=0.33)


def test_both_detectors_put_the_box_where_the_text_is(craft: CraftTextArea, pp_ocr: PPOCRTextArea) -> None:
    frame, _ = with_text(plain(360), 0.1, at=(0.05, 0.75))
    for detector in (craft, pp_ocr):
        corners = np.concatenate(detector.boxes(frame))
        assert corners[:, 1].min() > 0.72 * 360
        assert corners[:, 0].min() < 0.08 * 640
        assert corners[:, 0].max() < 640


def test_title_on_real_film_stands_out_from_the_film(craft: CraftTextArea, pp_ocr: PPOCRTextArea) -> None:
    film = film_frames("bikes.mp4", 2, step=200)[1]
    titled, true = with_text(film, 0.12, at=(0.05, 0.1))
    for detector in (craft, pp_ocr):
        without, found = detector.ratio([film, titled])
        assert without < 0.01
        assert found - without == pytest.approx(true, rel=0.4)


@pytest.mark.parametrize(("name", "number"), [("bikes.mp4", 29), ("bigbuckbunny.mp4", 66)])
def test_wheels_and_branches_are_no_text(pp_ocr: PPOCRTextArea, name: str, number: int) -> None:
    frame = film_frames(name, 2, step=number)[1]
    assert pp_ocr.ratio([frame])[0] < 0.01


def test_no_text_is_zero(craft: CraftTextArea, pp_ocr: PPOCRTextArea) -> None:
    film = cv2.resize(film_frames("bigbuckbunny.mp4", 1)[0], (640, 360), interpolation=cv2.INTER_AREA)
    for detector in (craft, pp_ocr):
        assert detector.ratio([film])[0] == 0.0
        assert detector.boxes(film) == []


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_blank_frame_is_zero(craft: CraftTextArea, pp_ocr: PPOCRTextArea, grey: int) -> None:
    for detector in (craft, pp_ocr):
        assert detector.ratio([plain(180, grey)])[0] == 0.0


def test_frames_of_different_sizes_and_order_in_one_call(craft: CraftTextArea) -> None:
    small, _ = with_text(plain(180), 0.1)
    tall = np.ascontiguousarray(np.rot90(plain(180)))
    together = craft.ratio([small, tall, plain(360), small])
    assert together[0] == pytest.approx(craft.ratio([small])[0], rel=1e-3)
    assert together[0] == together[3] > 0
    assert together[1] == together[2] == 0


def test_a_strip_is_taken_and_a_stamp_is_refused(craft: CraftTextArea, pp_ocr: PPOCRTextArea) -> None:
    strip = np.tile(np.arange(640, dtype=np.uint8)[None, :, None] // 3, (160, 1, 3))  # 4:1
    for detector in (craft, pp_ocr):
        assert detector.ratio([strip])[0] == 0.0
        with pytest.raises(CannotScore) as caught:
            detector.ratio([np.zeros((16, 16, 3), np.uint8)])
        assert caught.value.reason == "too_small"
        with pytest.raises(ValueError, match="RGB"):
            detector.ratio([np.zeros((90, 160), np.uint8)])


def test_overlapping_boxes_count_once() -> None:
    left = np.array([[0, 0], [59, 0], [59, 49], [0, 49]], np.float32)
    right = left + np.array([40, 0], np.float32)
    assert union_ratio([left], 50, 200) == pytest.approx(60 / 200)
    assert union_ratio([left, right], 50, 200) == pytest.approx(100 / 200)
    assert union_ratio([left, left], 50, 200) == pytest.approx(60 / 200)
    assert union_ratio([], 50, 200) == 0.0


def test_a_box_that_leaves_the_frame_counts_only_inside() -> None:
    box = np.array([[-50, -50], [300, -50], [300, 300], [-50, 300]], np.float32)
    assert union_ratio([box], 50, 200) == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 60)] * 4), max_size=6))
def test_union_is_at_least_the_largest_and_at_most_the_sum(rectangles: list[tuple[int, int, int, int]]) -> None:
    polygons = [np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], np.float32) for x, y, w, h in rectangles]
    alone = [union_ratio([p], 64, 64) for p in polygons]
    together = union_ratio(polygons, 64, 64)
    assert max(alone, default=0) <= together <= min(1.0, sum(alone)) + 1e-12
