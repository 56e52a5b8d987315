"""Black, frozen and letterboxed film: made from real pictures, with known shares and rectangles."""

import cv2
import numpy as np
import pytest
from camera_moves import camera_move, film_frames, shifts

from curation.errors import CannotScore
from curation.flaws import Crop, Flaws
from curation.flaws import find_flaws as flaws_of_timed

WHOLE = Crop(0.0, 0.0, 1.0, 1.0)


def find_flaws(frames: np.ndarray) -> Flaws:
    """Of frames every 0.5 s."""
    return flaws_of_timed(frames, np.full(len(frames), 0.5))


@pytest.fixture(scope="module")
def film() -> np.ndarray:
    return film_frames("bikes.mp4", 8, step=15)


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_an_ordinary_film_has_no_flaws(name: str) -> None:
    flaws = find_flaws(film_frames(name, 6, step=15))
    assert (flaws.black, flaws.frozen, flaws.crop) == (0.0, 0.0, WHOLE)


def test_black_frames_are_counted(film: np.ndarray) -> None:
    frames = film.copy()
    frames[:2] = 16  # limited-range black that was decoded as full range
    assert find_flaws(frames).black == pytest.approx(0.25)
    assert find_flaws(frames).crop == WHOLE
    assert find_flaws(np.zeros_like(film)).black == 1.0
    assert find_flaws(np.zeros_like(film)).crop == WHOLE


def test_a_repeated_picture_is_frozen_and_a_tripod_shot_is_not(film: np.ndarray) -> None:
    still = np.stack([film[0]] * 6)
    assert find_flaws(still).frozen == 1.0
    assert find_flaws(camera_move(film[0], shifts([(0, 0)] * 6), noise=1.0)).frozen == 0.0
    half = np.concatenate([still[:5], film[4:8]])
    assert find_flaws(half).frozen == pytest.approx(4 / 8)


def test_a_frame_that_is_shown_for_longer_counts_for_as_long(film: np.ndarray) -> None:
    """As in the same film at a constant rate, which repeats it."""
    shown = np.array([1, 5, 1, 1, 3, 1, 1, 2])
    frames = film.copy()
    frames[1] = 16
    frames[6] = frames[5]
    timed, constant = flaws_of_timed(frames, shown * 0.5), find_flaws(np.repeat(frames, shown, axis=0))
    assert timed.black == constant.black == pytest.approx(5 / 15)
    # The last frame's repetitions are no pair of two frames that were decoded.
    assert timed.frozen == pytest.approx((4 + 2 + 1) / 13)
    assert constant.frozen == pytest.approx((4 + 2 + 1 + 1) / 14)


def test_a_frozen_picture_that_was_coded_again_is_frozen(film: np.ndarray) -> None:
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=24, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = film.shape[2], film.shape[1], "yuv420p"
        for index in range(97):
            frame = av.VideoFrame.from_ndarray(film[0], format="rgb24")
            frame.pts = index
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = [f.to_ndarray(format="rgb24") for k, f in enumerate(container.decode(video=0)) if k % 12 == 0]
    assert find_flaws(np.stack(decoded)).frozen >= 0.8


@pytest.mark.parametrize("level", [0, 16])
@pytest.mark.parametrize(("top", "side"), [(35, 0), (0, 80), (20, 40)])
def test_bars_give_the_crop_rectangle(film: np.ndarray, level: int, top: int, side: int) -> None:
    barred = np.stack(
        [cv2.copyMakeBorder(f, top, top, side, side, cv2.BORDER_CONSTANT, value=(level,) * 3) for f in film]
    )
    height, width = barred.shape[1:3]
    crop = find_flaws(barred).crop
    x, y, w, h = crop.pixels(width, height)
    assert (x, y) == pytest.approx((side, top), abs=2)
    assert (w, h) == pytest.approx((film.shape[2], film.shape[1]), abs=4)
    assert crop.area == pytest.approx(film[0].size / barred[0].size, abs=0.02)


@pytest.mark.parametrize("height", [720, 1080, 2160])
@pytest.mark.parametrize("level", [0, 16])
def test_a_crop_found_on_small_frames_fits_the_large_ones(film: np.ndarray, height: int, level: int) -> None:
    """Bars of 1.85:1 and wider, those that end inside a line of the small frames among them; nothing of them stays."""
    width = height * 16 // 9
    for bar in (round(share * height) for share in (0.0195, 0.056, 0.1213, 0.123, 0.125, 0.1278)):
        small = []
        for frame in film[:4]:
            picture = cv2.resize(frame, (width, height - 2 * bar), interpolation=cv2.INTER_CUBIC)
            large = cv2.copyMakeBorder(picture, bar, bar, 0, 0, cv2.BORDER_CONSTANT, value=(level,) * 3)
            small.append(cv2.resize(large, (round(width * 128 / height), 128), interpolation=cv2.INTER_AREA))
        x, y, w, h = find_flaws(np.stack(small)).crop.pixels(width, height)
        assert (x, w) == (0, width)
        assert bar <= y <= bar + 2
        assert height - bar - 2 <= y + h <= height - bar


def test_crop_is_the_same_on_a_small_copy(film: np.ndarray) -> None:
    barred = np.stack([cv2.copyMakeBorder(f, 60, 60, 0, 0, cv2.BORDER_CONSTANT) for f in film])
    small = np.stack([cv2.resize(f, (160, 98), interpolation=cv2.INTER_AREA) for f in barred])
    full, reduced = find_flaws(barred).crop, find_flaws(small).crop
    assert (full.top, full.bottom) == pytest.approx((reduced.top, reduced.bottom), abs=0.02)


def test_a_night_shot_is_not_letterboxed(film: np.ndarray) -> None:
    night = np.zeros_like(film)
    night[:, 120:135, 300:330] = 200  # a lamp
    assert find_flaws(night).crop == WHOLE


def test_what_cannot_be_measured_is_an_error() -> None:
    for shape, reason in (((0, 90, 160), "no_frames"), ((2, 8, 8), "too_small")):
        with pytest.raises(CannotScore) as caught:
            find_flaws(np.zeros(shape, np.uint8))
        assert caught.value.reason == reason
