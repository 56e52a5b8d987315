"""LAION's aesthetic heads on CLIP image embeddings (Stable Video Diffusion, App. C: first, centre and last frame).

Both published formats are read, and told apart by their keys:

    linear          `weight` (1, d), `bias` (1)
    improved MLP    `layers.{0,2,4,6,7}` of 768-1024-128-64-16-1; between them only dropout, no activation ("linearMSE")

The head works on L2-normalised embeddings of the CLIP model that it was trained on, and of no other: the linear ones
exist for ViT-B/32, B/16 and L/14, the MLP for L/14. Contract of an aesthetic model:

    name, takes ("embeddings" here, "frames" for `curation.niqe`)
    score_name      the score that it gives, as `curation.schema` calls it: what is not the paper's has its own
    score(embeddings (N, d)) -> (N,) float32; raises CannotScore
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.weights import WeightsUnavailable, file_sha256, read_state

_MLP_LAYERS = (0, 2, 4, 6, 7)


class LaionAesthetic:
    """A LAION head, as one affine map per layer.

    Args:
        weights: one file in a published format.
        device: ignored; a head costs nothing.
        name: recorded with the column.
    """

    takes = "embeddings"
    score_name = "aesthetic"

    def __init__(self, *, weights: Sequence[Path], device: str = "cpu", name: str | None = None) -> None:
        path = weights[0]
        self._layers = _layers(read_state(path), path)
        self.dimension = int(self._layers[0][0].shape[1])
        kind = "mlp" if len(self._layers) > 1 else "linear"
        # The publishers give no checksum, so the one found here says which file it was.
        self.name = name or f"laion_{kind}_{self.dimension}d@{file_sha256(path)[:8]}"

    def score(self, embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """(N,) scores of (N, d) CLIP image embeddings, about 1 (bad) to 10 (good).

        Raises:
            ValueError: embeddings of another length, that is, of another CLIP model.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise ValueError(f"{self.name} takes embeddings of length {self.dimension}, got shape {embeddings.shape}")
        values = np.asarray(embeddings, np.float32)
        values = values / np.linalg.norm(values, axis=1, keepdims=True)
        for weight, bias in self._layers:
            values = values @ weight.T + bias
        return values[:, 0]


def _layers(state: Any, path: Path) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    try:
        if "weight" in state:
            names = [("weight", "bias")]
        else:
            names = [(f"layers.{index}.weight", f"layers.{index}.bias") for index in _MLP_LAYERS]
        layers = [(state[weight].float().numpy(), state[bias].float().numpy()) for weight, bias in names]
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsUnavailable(f"{path} is neither LAION's linear head nor its MLP: no {error}") from error
    if layers[-1][0].shape[0] != 1:
        raise WeightsUnavailable(f"{path} gives {layers[-1][0].shape[0]} numbers an image, an aesthetic head gives one")
    return layers
