"""NIQE image quality (Mittal et al. 2013, Making a "Completely Blind" Image Quality Analyzer): lower is better.

The distance between the statistics of a frame's 96 px blocks and those of pristine photographs. It knows nothing of
beauty; it stands in the `aesthetic` role of the offline profile under its own name, because its parameters come with a
package. The order it gives is right for frames of 720 lines and more and unreliable on small ones, so frames below
twice the block size are refused. Contract: see `curation.aesthetic`; this one takes frames.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from curation.errors import CannotScore
from curation.weights import NIQE

_BLOCK_PX = 96
_MIN_SIDE_PX = 2 * _BLOCK_PX


class NiqeQuality:
    """NIQE of frames.

    Args:
        weights: the package's parameter file; looked for if left out.
        device: ignored, this runs on the CPU.
    """

    name = "niqe"
    takes = "frames"
    score_name = "niqe"
    frame_short_side_px = 480

    def __init__(self, *, weights: Sequence[Path] | None = None, device: str = "cpu") -> None:
        from scipy.io import loadmat

        parameters = loadmat(str(weights[0] if weights else NIQE.path()))
        self._mean = np.ravel(parameters["pop_mu"]).astype(np.float64)
        self._covariance = np.asarray(parameters["pop_cov"], np.float64)

    def score(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N,) NIQE of N RGB frames; lower is better.

        Raises:
            CannotScore: `too_small`, or `flat` for a frame without any texture.
        """
        return np.array([self._one(frame) for frame in frames], np.float32)

    def _one(self, frame: NDArray[np.uint8]) -> float:
        height, width = frame.shape[:2]
        if min(height, width) < _MIN_SIDE_PX:
            raise CannotScore("too_small", f"{width}x{height} px: NIQE needs {_MIN_SIDE_PX} px a side")
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        grey = grey[: height // _BLOCK_PX * _BLOCK_PX, : width // _BLOCK_PX * _BLOCK_PX].astype(np.float32)
        half = np.asarray(
            Image.fromarray(grey).resize((grey.shape[1] // 2, grey.shape[0] // 2), Image.Resampling.BICUBIC)
        )
        features = np.hstack(
            [_block_features(_normalised(grey), _BLOCK_PX), _block_features(_normalised(half), _BLOCK_PX // 2)]
        )
        features = features[np.isfinite(features).all(axis=1)]
        if len(features) < 2:
            raise CannotScore("flat", "no texture that NIQE could measure")
        difference = features.mean(axis=0) - self._mean
        pooled = (np.cov(features.T) + self._covariance) / 2
        return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference))


def _normalised(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean-subtracted, contrast-normalised coefficients (equation 1), 7x7 Gaussian window."""
    mean = cv2.GaussianBlur(image, (7, 7), 7 / 6, borderType=cv2.BORDER_CONSTANT)
    square = cv2.GaussianBlur(image * image, (7, 7), 7 / 6, borderType=cv2.BORDER_CONSTANT)
    deviation = np.sqrt(np.abs(square - mean * mean))
    return (image - mean) / (deviation + 1)


def _block_features(coefficients: NDArray[np.float32], block_px: int) -> NDArray[np.float64]:
    """(blocks, 18): shape and spread of the coefficients, and four numbers for each of four products of neighbours."""
    rows, columns = coefficients.shape[0] // block_px, coefficients.shape[1] // block_px
    blocks = coefficients.reshape(rows, block_px, columns, block_px).swapaxes(1, 2).reshape(-1, block_px, block_px)
    shape, left, right, _ = _asymmetric_gaussian(blocks)
    features = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right, mean = _asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        diagonal = shift[0] and shift[1]
        # The package's parameters were fitted with the left scale in both places on the diagonals.
        features += [shape, mean, left, left if diagonal else right]
    return np.stack(features, axis=1)


@lru_cache(maxsize=1)
def _gamma_table() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Shape alpha from 0.2 to 10, the moment ratio that gives it away, and sqrt(G(1/a) / G(3/a))."""
    from scipy.special import gamma

    alpha = np.arange(0.2, 10, 0.001)
    ratio = gamma(2 / alpha) ** 2 / (gamma(1 / alpha) * gamma(3 / alpha))
    return alpha, ratio, np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))


def _asymmetric_gaussian(
    blocks: NDArray[np.float32],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Fit of an asymmetric generalised Gaussian to each block by its moments: shape, left and right scale, mean."""
    from scipy.special import gamma

    values = blocks.reshape(len(blocks), -1).astype(np.float64)
    square = values**2
    negative = values < 0
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt((square * negative).sum(1) / negative.sum(1))
        right = np.sqrt((square * ~negative).sum(1) / (~negative).sum(1))
        skew = left / right
        measured = np.abs(values).mean(1) ** 2 / square.mean(1) * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    alphas, ratios, scales = _gamma_table()
    at = np.searchsorted(ratios, np.nan_to_num(measured)).clip(1, len(ratios) - 1)
    at -= np.abs(ratios[at - 1] - measured) <= np.abs(ratios[at] - measured)
    alpha, scale = alphas[at], scales[at]
    left, right = left * scale, right * scale
    mean = (right - left) * gamma(2 / alpha) / gamma(1 / alpha)
    return alpha, left, right, mean
