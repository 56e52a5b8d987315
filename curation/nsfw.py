"""Probability that a frame is not safe for work: Yahoo's Open-NSFW (2016) as an ONNX file that comes with a package.

Its publisher calls scores below 0.2 safe and above 0.8 unsafe. The network was trained on JPEG files, so its
preprocessing goes through JPEG; left out, scores move by a few hundredths. Stage contract:

    name, frame_short_side_px
    score(frames) -> (N,) float32 in [0, 1]; raises CannotScore
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curation.errors import CannotScore
from curation.weights import OPEN_NSFW

_RESIZE_PX, _CROP_PX = 256, 224
_MEAN_BGR = np.array([104.0, 117.0, 123.0], np.float32)
_MIN_SIDE_PX = 32


class OpenNsfw:
    """Open-NSFW through onnxruntime.

    Args:
        weights: the package's file; looked for if left out.
        device: ignored, this runs on the CPU.
        threads: threads of this model's session; 1 by default, because workers are processes.
        batch: frames per call.
    """

    name = "open_nsfw"
    frame_short_side_px = _RESIZE_PX

    def __init__(
        self, *, weights: Sequence[Path] | None = None, device: str = "cpu", threads: int = 1, batch: int = 8
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        path = weights[0] if weights else OPEN_NSFW.path()
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._batch = batch

    def score(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N,) probabilities for N RGB frames. Raises CannotScore: `too_small`."""
        pictures = [_picture(frame) for frame in frames]
        scores = np.zeros(len(pictures), np.float32)
        for at in range(0, len(pictures), self._batch):
            batch = np.stack(pictures[at : at + self._batch])
            scores[at : at + len(batch)] = self._session.run(None, {self._input: batch})[0][:, 1]
        return scores


def _picture(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(224, 224, 3) BGR minus the training set's mean."""
    if min(frame.shape[:2]) < _MIN_SIDE_PX:
        raise CannotScore(
            "too_small", f"{frame.shape[1]}x{frame.shape[0]} px: Open-NSFW needs {_MIN_SIDE_PX} px a side"
        )
    resized = Image.fromarray(frame).resize((_RESIZE_PX, _RESIZE_PX), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    resized.save(buffer, format="JPEG")
    decoded = np.asarray(Image.open(buffer).convert("RGB"), np.float32)
    margin = (_RESIZE_PX - _CROP_PX) // 2
    return decoded[margin : margin + _CROP_PX, margin : margin + _CROP_PX, ::-1] - _MEAN_BGR
