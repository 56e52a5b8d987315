"""How like a sampled video is to the one that it should be: PSNR, LPIPS and CLIP-S (paper, figure 10a), per frame."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.evaluation.errors import EvaluationError
from model.video_io import from_bytes

Metric = Callable[[np.ndarray, np.ndarray], list[float]]
"""Of each pair of frames (T, H, W, 3) uint8."""
_CHUNK = 8  # frames at once in a network
_LPIPS_SIDE_PX = 31  # of smaller pictures AlexNet's last pooling leaves nothing


def psnr(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio in dB; infinite where the frames are equal."""
    error = ((one.astype(np.float32) - other.astype(np.float32)) ** 2).mean((1, 2, 3), dtype=np.float64)
    with np.errstate(divide="ignore"):
        found: list[float] = (10 * np.log10(255.0**2 / error)).tolist()
    return found


def load_lpips(backbone: Path, device: str = "cpu") -> Metric:
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924, version 0.1, AlexNet): lower is more alike.

    Args:
        backbone: torchvision's AlexNet (`alexnet-owt-7be5be79.pth`). The linear layers come with package lpips.

    Raises:
        EvaluationError: the package is not installed, or the file holds no AlexNet; and from the metric, frames that
            are too small.
    """
    from curation.compat import ensure_torchvision
    from curation.weights import WeightsUnavailable, read_state

    ensure_torchvision()
    try:
        import lpips
    except ImportError as error:
        raise EvaluationError("LPIPS needs its package: pip install --no-deps lpips==0.1.4") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision on how weights were asked for in 2018
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    try:
        state = {name.rpartition("features.")[2]: value for name, value in read_state(backbone).items()}
        for part in network.net.children():  # its slices of AlexNet's layers, which keep their numbers
            part.load_state_dict({name: state[name] for name in part.state_dict()})
    except (KeyError, RuntimeError, WeightsUnavailable) as error:
        raise EvaluationError(f"{backbone}: not torchvision's AlexNet ({error})") from error
    network.to(device).requires_grad_(False)

    def distance(one: np.ndarray, other: np.ndarray) -> list[float]:
        height, width = one.shape[1:3]
        if min(height, width) < _LPIPS_SIDE_PX:
            raise EvaluationError(
                f"LPIPS needs frames of at least {_LPIPS_SIDE_PX} pixels a side, not {width}x{height}"
            )
        return [float(each) for a, b in _chunks(one, other, device) for each in network(a, b).flatten()]

    return distance


def load_clip(model: Path, device: str = "cpu") -> Metric:
    """Cosine similarity of CLIP's image embeddings: 1 is most alike.

    Args:
        model: a directory of a model with an image encoder; that of the published ones is OpenCLIP's ViT-H/14.

    Raises:
        EvaluationError: it has none.
        ModelDirectoryError: it cannot be read.
    """
    from model.tasks.model_directory import load_image_encoder

    encoder = load_image_encoder(model, torch.float32)
    if encoder is None:
        raise EvaluationError(f"{model}: has no image_encoder/; CLIP-S takes that of an image-to-video model")
    if isinstance(encoder, torch.nn.Module):
        encoder.to(device)

    def similarity(one: np.ndarray, other: np.ndarray) -> list[float]:
        return [
            float(each)
            for a, b in _chunks(one, other, device)
            for each in torch.cosine_similarity(encoder(a).float(), encoder(b).float())
        ]

    return similarity


def _chunks(one: np.ndarray, other: np.ndarray, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Some frames of both at a time, as the networks take them: (n, 3, H, W) on [-1, 1]."""
    for start in range(0, len(one), _CHUNK):
        some = slice(start, start + _CHUNK)
        yield from_bytes(one[some]).to(device), from_bytes(other[some]).to(device)
