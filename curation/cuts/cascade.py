"""The cascade of section 2 of the paper: passes at 1, 2 and 4 fps, each with its own threshold."""

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from curation.cuts.cut import Cut, cut_time_s
from curation.errors import CannotDecode
from curation.frames import FilmFrames
from curation.probe import VideoInfo

PASSES = ((1.0, 30.0), (2.0, 27.0), (4.0, 24.0))  # (fps, threshold of ContentDetector's score)


class CascadeDetector:
    """Cuts by a cascade of sampling rates."""

    name = "cascade"

    def detect(self, info: VideoInfo, frames: FilmFrames | None = None) -> list[Cut]:
        film = frames or FilmFrames(info)
        found: dict[int, Cut] = {}
        for rate, threshold in PASSES:
            pts, small = film.small(film.grid(rate))
            if len(pts) == 0:
                raise CannotDecode("no_frames", f"{info.path}: not one frame could be decoded")
            scores = _scores(small)
            numbers = np.searchsorted(info.pts, pts)
            for k in np.flatnonzero(scores > threshold):
                first, last = int(numbers[k - 1]), int(numbers[k])
                if any(first < at <= last for at in found):
                    continue
                _, native = film.small(info.pts[first : last + 1])
                steps = _scores(native)[1:]
                at = first + 1 + int(np.argmax(steps))
                if steps.max() > 0.6 * scores[k]:
                    found[at] = Cut(at, cut_time_s(info, at), "hard", at, at, float(steps.max()), rate)
                elif scores[k] > 60:
                    moving = np.flatnonzero(steps > 0.4 * steps.max())
                    start, end = first + 1 + int(moving[0]), min(info.frames - 1, first + 1 + int(moving[-1]))
                    found[end] = Cut(end, cut_time_s(info, end), "gradual", start, end, float(scores[k]), rate)
        return [found[at] for at in sorted(found)]


def _scores(images: np.ndarray) -> np.ndarray:
    """ContentDetector's score of each image against the one before (0 for the first)."""
    detector = ContentDetector()
    scores = np.zeros(len(images))
    for k, image in enumerate(images):
        scores[k] = detector._calculate_frame_score(FrameTimecode(k, 25.0), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return scores
