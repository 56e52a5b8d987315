"""Text area of a clip: the share of the frame under the union of detected text boxes.

Stable Video Diffusion (App. C) runs CRAFT on the first, middle and last frame and drops clips whose boxes cover more
than 7 % of the frame. Here the area is that of the *union*: boxes that overlap are not counted twice, and none of
three frames is added to another.

Two detectors with one interface. `CraftTextArea` is the paper's CRAFT with EasyOCR's published weights (about 1.1 CPU
seconds a frame); `PPOCRTextArea` is the light one (PP-OCRv6, 0.05 CPU seconds a frame), which also reads
Chinese better. Both take their weights from installed packages, nothing is downloaded.

Frames are reduced to a fixed number of pixels before detection, which bounds the cost for any film. From 360p to 1080p,
drawn text of 3 % of the frame's height and more is found, and the area that CRAFT gives is within a quarter of the true
one; PP-OCR's is within a third from 5 % of the height (tests/curation/test_text_area.py).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.weights import CRAFT, PP_OCR_DETECTOR, read_state

Polygon = NDArray[np.float32]
"""(K, 2) corners x, y in pixels of the frame."""

MIN_SIDE_PX = 32
_BLANK_RANGE = 8  # a frame whose brightest and darkest value differ by less than this holds nothing to read

# 512x288 and what has the same number of pixels. Drawn text of 3 % of the height is found at 512 px a row and missed at
# 384; 640 px cost 1.8 times as much and gain only text of 2 % of the height, whose area cannot reach the 7 %.
CANVAS_PX = 512 * 288


def union_ratio(polygons: Sequence[Polygon], height: int, width: int) -> float:
    """Share of a frame that lies under at least one polygon, in [0, 1]."""
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        # One polygon a call: a single call with several would take overlaps out again (even-odd rule).
        cv2.fillPoly(mask, [np.round(polygon).astype(np.int32).reshape(-1, 1, 2)], 1)
    return float(np.count_nonzero(mask)) / mask.size


def _check(frame: NDArray[np.uint8]) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame must be uint8 RGB of shape (H, W, 3), got {frame.dtype} {frame.shape}")
    if min(frame.shape[:2]) < MIN_SIDE_PX:
        raise CannotScore(
            "too_small", f"{frame.shape[1]}x{frame.shape[0]} px: text detection needs {MIN_SIDE_PX} px a side"
        )


def _is_blank(frame: NDArray[np.uint8]) -> bool:
    return int(frame.max()) - int(frame.min()) < _BLANK_RANGE


def _reduced(frame: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    scale = min(1.0, math.sqrt(pixels / (height * width)))
    if scale == 1.0:
        return frame
    size = max(MIN_SIDE_PX, round(width * scale)), max(MIN_SIDE_PX, round(height * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


class CraftTextArea:
    """CRAFT (Baek et al. 2019) with EasyOCR's weights and box post-processing.

    Args:
        weights: the package's file; looked for if left out.
        device: a torch device; on a GPU the network runs in bf16.
        threads: CPU threads of torch, for the whole process (torch knows no other); left as they are if None.
        canvas_px: number of pixels that a frame is reduced to.
    """

    name = "craft_mlt_25k"
    # EasyOCR's defaults for get_textbox.
    text_threshold, link_threshold, low_text = 0.7, 0.4, 0.4

    def __init__(
        self,
        *,
        weights: Sequence[Path] | None = None,
        device: str = "cpu",
        threads: int | None = None,
        canvas_px: int = CANVAS_PX,
    ) -> None:
        path = weights[0] if weights else CRAFT.path()
        ensure_torchvision()
        import torch
        from easyocr import craft

        if threads is not None:
            torch.set_num_threads(threads)
        state = read_state(path)
        network = craft.CRAFT(pretrained=False)
        network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        self._dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        self._network = network.eval().to(device, memory_format=torch.channels_last)
        self._device = device
        self._canvas_px = canvas_px

    def boxes(self, frame: NDArray[np.uint8]) -> list[Polygon]:
        """Text boxes of one RGB frame, as corners in its pixels.

        Raises:
            CannotScore: `too_small`.
        """
        return self.detect([frame])[0]

    def ratio(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """(N,) text area of N RGB frames, in [0, 1]; frames of one size share one forward pass.

        Raises:
            CannotScore: `too_small`.
        """
        found = self.detect(frames)
        return np.array([union_ratio(b, *f.shape[:2]) for b, f in zip(found, frames, strict=True)], np.float64)

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[list[Polygon]]:
        """Text boxes of each of N RGB frames. Raises CannotScore: `too_small`."""
        import torch
        from easyocr.craft_utils import getDetBoxes

        for frame in frames:
            _check(frame)
        found: list[list[Polygon]] = [[] for _ in frames]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            if not _is_blank(frame):
                by_size.setdefault(frame.shape, []).append(index)
        for (height, width, _), indices in by_size.items():
            reduced = [_reduced(frames[i], self._canvas_px) for i in indices]
            used_h, used_w = reduced[0].shape[:2]
            # The network halves its input five times. The margin is black before normalisation, as EasyOCR makes it.
            canvas = np.zeros((len(indices), -(-used_h // 32) * 32, -(-used_w // 32) * 32, 3), np.float32)
            for row, image in enumerate(reduced):
                canvas[row, :used_h, :used_w] = image
            canvas -= np.array([0.485, 0.456, 0.406], np.float32) * 255
            canvas /= np.array([0.229, 0.224, 0.225], np.float32) * 255
            batch = torch.from_numpy(canvas).permute(0, 3, 1, 2).to(self._device, memory_format=torch.channels_last)
            reduced_precision = self._dtype != torch.float32
            with torch.inference_mode(), torch.autocast(batch.device.type, self._dtype, enabled=reduced_precision):
                maps, _ = self._network(batch)
            # Heat maps are half the canvas, hence the factor 2 back to the frame.
            back = np.array([2 * width / used_w, 2 * height / used_h], np.float32)
            for index, heat in zip(indices, maps.float().cpu().numpy(), strict=True):
                boxes, _, _ = getDetBoxes(
                    heat[..., 0], heat[..., 1], self.text_threshold, self.link_threshold, self.low_text, False
                )
                found[index] = [np.asarray(box, np.float32) * back for box in boxes]
        return found


class PPOCRTextArea:
    """PP-OCRv6 small text detector (differentiable binarization) through onnxruntime.

    Args:
        weights: the package's file; looked for if left out.
        device: ignored, this one runs on the CPU.
        threads: threads of this detector's session; 1 by default, because workers are processes.
        canvas_px: number of pixels that a frame is reduced to.
    """

    name = "pp_ocr_v6_det_small"

    def __init__(
        self,
        *,
        weights: Sequence[Path] | None = None,
        device: str = "cpu",
        threads: int = 1,
        canvas_px: int = CANVAS_PX,
    ) -> None:
        path = weights[0] if weights else PP_OCR_DETECTOR.path()
        import onnxruntime
        from rapidocr.ch_ppocr_det.utils import DBPostProcess

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        # rapidocr grows boxes (unclip 1.6, dilation) to leave a recogniser its margin: 1.3 to 1.7 times the area of the
        # text. An area wants the text itself: 1.0 to 1.3 times, on drawn text of 5 to 20 % of the height.
        # On real film, boxes below 0.7 were wheels and branches, up to 47 % of a frame. Drawn text stays above 0.8.
        self._boxes_from_map = DBPostProcess(thresh=0.3, box_thresh=0.7, unclip_ratio=1.0, use_dilation=False)
        self._canvas_px = canvas_px

    def boxes(self, frame: NDArray[np.uint8]) -> list[Polygon]:
        """Text boxes of one RGB frame, as corners in its pixels.

        Raises:
            CannotScore: `too_small`.
        """
        _check(frame)
        if _is_blank(frame):
            return []
        reduced = _reduced(frame, self._canvas_px)
        height, width = reduced.shape[:2]
        size = max(32, round(width / 32) * 32), max(32, round(height / 32) * 32)
        image = cv2.resize(reduced, size, interpolation=cv2.INTER_LINEAR)[..., ::-1]  # trained on BGR
        batch = ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
        (probability,) = self._session.run(None, {self._input: np.ascontiguousarray(batch)})
        boxes, _ = self._boxes_from_map(probability, frame.shape[:2])
        return [np.asarray(box, np.float32).reshape(-1, 2) for box in boxes]

    def ratio(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """(N,) text area of N RGB frames, in [0, 1].

        Raises:
            CannotScore: `too_small`.
        """
        found = self.detect(frames)
        return np.array([union_ratio(b, *f.shape[:2]) for b, f in zip(found, frames, strict=True)], np.float64)

    def detect(self, frames: Sequence[NDArray[np.uint8]]) -> list[list[Polygon]]:
        """Text boxes of each of N RGB frames. Raises CannotScore: `too_small`."""
        return [self.boxes(frame) for frame in frames]
