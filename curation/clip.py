"""CLIP embeddings by open_clip: image tower on frames, text tower on captions (Stable Video Diffusion, App. C).

The paper takes the first, centre and last frame and the cosine to every caption; the same image embeddings feed the
aesthetic head, search and near-duplicate detection, stored as float16. Stage contract: see `curation.conse`.

Weights are a file (OpenAI's published TorchScript archives, or an open_clip checkpoint) of a named architecture, or a
folder in the layout of the hub: `open_clip_config.json` beside `open_clip_model.safetensors` or
`open_clip_pytorch_model.bin`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.batching import Batches
from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.weights import WeightsUnavailable

_MIN_SIDE_PX = 32


class ClipSimilarity:
    """open_clip's image and text towers.

    Args:
        weights: one file or folder, see above.
        architecture: open_clip's name of it; not used for a folder, whose configuration says it.
        name: recorded with the column; the architecture if left out.
        batch: images, or texts, per call.
    """

    def __init__(
        self,
        *,
        weights: Sequence[Path],
        architecture: str = "ViT-L-14-quickgelu",
        name: str | None = None,
        device: str = "cpu",
        batch: int = 64,
    ) -> None:
        import torch

        self._model, self._tokenizer = load_open_clip(weights[0], architecture)
        self._model.to(device)
        self._device = torch.device(device)
        self.name = name or f"clip_{architecture}"
        size = self._model.visual.image_size
        self._size_px = int(size[0] if isinstance(size, tuple | list) else size)
        self.frame_short_side_px = self._size_px
        settings = self._model.visual.preprocess_cfg
        self._mean, self._std = settings["mean"], settings["std"]
        self.dimension = _text_width(self._model)
        self._images = Batches(batch, self.name)
        self._texts = Batches(batch, self.name)

    def embed_images(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, dimension) unit vectors of N RGB frames of any sizes. Raises CannotScore: `too_small`."""
        import torch

        for frame in frames:
            if min(frame.shape[:2]) < _MIN_SIDE_PX:
                size = f"{frame.shape[1]}x{frame.shape[0]}"
                raise CannotScore("too_small", f"{size} px: the image encoder needs {_MIN_SIDE_PX} px a side")

        def run(batch: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
            with torch.inference_mode():
                pictures = torch.cat([self._pictures(frame) for frame in batch])
                with self._autocast():
                    features = self._model.encode_image(pictures, normalize=False)
                return list(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())

        return np.stack(self._images.map(run, frames)) if frames else np.zeros((0, self.dimension), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, dimension) unit vectors of N texts; what is longer than the text tower's context is cut off."""
        import torch

        def run(batch: Sequence[str]) -> list[NDArray[np.float32]]:
            tokens = self._tokenizer(list(batch)).to(self._device)
            with torch.inference_mode(), self._autocast():
                features = self._model.encode_text(tokens, normalize=False)
            return list(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())

        return np.stack(self._texts.map(run, texts)) if texts else np.zeros((0, self.dimension), np.float32)

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda")

    def _pictures(self, frame: NDArray[np.uint8]) -> Any:
        """(1, 3, S, S), what open_clip's own preprocessing gives: bicubic to the short side, centre crop, normalise."""
        return preprocess(frame, self._size_px, self._mean, self._std, self._device)


def preprocess(frame: NDArray[np.uint8], size_px: int, mean: Sequence[float], std: Sequence[float], device: Any) -> Any:
    """(1, 3, size, size) float tensor of an RGB frame, resized on the device as PIL's antialiased bicubic does."""
    import torch
    import torch.nn.functional as F

    picture = torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1)[None].float()
    height, width = picture.shape[2:]
    rows, columns = (size_px * side // min(height, width) for side in (height, width))
    if (rows, columns) != (height, width):
        picture = F.interpolate(picture, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False)
        picture = picture.round().clamp(0, 255)  # PIL's result has 8 bits
    top, left = round((rows - size_px) / 2), round((columns - size_px) / 2)
    picture = picture[..., top : top + size_px, left : left + size_px] / 255
    return (picture - picture.new_tensor(mean)[:, None, None]) / picture.new_tensor(std)[:, None, None]


def load_open_clip(path: Path, architecture: str) -> tuple[Any, Any]:
    """Model in evaluation mode and tokenizer, from a folder in the hub's layout or from one checkpoint file.

    Raises:
        WeightsUnavailable: the file does not hold this architecture.
    """
    ensure_torchvision()
    import open_clip
    import torch

    if path.is_dir():
        try:
            model = open_clip.create_model(f"local-dir:{path}", require_pretrained=True)
        except (RuntimeError, FileNotFoundError, KeyError) as error:
            raise WeightsUnavailable(f"{path} is not a model folder of open_clip: {error}") from error
        return model.eval(), open_clip.get_tokenizer(f"local-dir:{path}")
    # The random model is filled at once, strictly; `pretrained_text` would look for a hub.
    model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False)
    try:
        if _is_torchscript(path):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
            for key in ("input_resolution", "context_length", "vocab_size"):
                state.pop(key, None)
            model.load_state_dict({key: value.float() for key, value in state.items()})
        else:
            open_clip.load_checkpoint(model, str(path), weights_only=True)
    except (RuntimeError, KeyError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsUnavailable(f"{path} does not hold the weights of open_clip's {architecture}: {first}") from error
    return model.eval(), open_clip.get_tokenizer(architecture)


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def _text_width(model: Any) -> int:
    """Length of the shared embedding."""
    text = getattr(model, "text", model)
    projection = text.text_projection
    return int(projection.shape[1] if hasattr(projection, "shape") else projection.out_features)


def caption_similarity(images: NDArray[np.floating[Any]], captions: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(captions, frames) cosines of unit vectors (F, D) and (C, D)."""
    return np.asarray(captions @ images.T, np.float32)
