"""Image-text similarity without CLIP: ConSE with packaged weights (the `offline` similarity).

ConSE (Norouzi et al. 2014, Zero-Shot Learning by Convex Combination of Semantic Embeddings) places an image among
sentences without training on pairs: an ImageNet classifier gives probabilities, and the image's vector is the
probability-weighted mean of the text vectors of the fifty likeliest class names. Classifier: EfficientNet-Lite0. Text
encoder: all-MiniLM-L6-v2, mean-pooled. It sees ImageNet nouns only, no actions, no styles; it is not CLIP, and is
recorded under its own name.

Stage contract of a similarity model (this one and `curation.clip`):

    name, dimension             recorded with the column, length of an embedding
    frame_short_side_px         frames at this size or larger, RGB
    embed_images(frames) -> (N, dimension) float32, unit length; raises CannotScore
    embed_texts(texts) -> (N, dimension) float32, unit length
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from curation.batching import Batches
from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.weights import EFFICIENTNET_LITE0, MINILM, WeightsUnavailable, read_state

CLASSES_KEPT = 50
_INPUT_PX = 224
_MIN_SIDE_PX = 32
_PROMPT = "a photo of a {}"


class ConseSimilarity:
    """ConSE embeddings.

    Args:
        weights: EfficientNet-Lite0 and MiniLM files of their packages; looked for if left out. MiniLM's tokenizer and
            configuration lie beside its weights.
        batch: images, or sentences, per call.
    """

    name = "conse_efficientnet_lite0_minilm_l6_v2"
    dimension = 384
    frame_short_side_px = _INPUT_PX

    def __init__(self, *, weights: Sequence[Path] | None = None, device: str = "cpu", batch: int = 32) -> None:
        import torch

        classifier_file, text_file = weights or (EFFICIENTNET_LITE0.path(), MINILM.path())
        self._device = torch.device(device)
        self._classifier = _efficientnet_lite0(classifier_file).to(self._device)
        self._tokenizer, self._text_model = _minilm(text_file)
        self._text_model.to(self._device)
        self._images = Batches(batch, self.name)
        self._texts = Batches(batch, self.name)
        names = imagenet_names()
        self._class_vectors = self.embed_texts([_PROMPT.format(name) for name in names])

    def embed_images(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, 384) unit vectors of N RGB frames of any sizes. Raises CannotScore: `too_small`."""
        probabilities = self.class_probabilities(frames)
        kept = np.argsort(-probabilities, axis=1)[:, :CLASSES_KEPT]
        shares = np.take_along_axis(probabilities, kept, axis=1)
        vectors = np.einsum("nk,nkd->nd", shares, self._class_vectors[kept])
        return _unit(vectors)

    def class_probabilities(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(N, 1000) ImageNet class probabilities."""
        import torch

        pictures = [centre_square(frame, _INPUT_PX, 0.875) for frame in frames]

        def run(batch: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
            stacked = torch.from_numpy(np.stack(batch)).to(self._device).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                return list(self._classifier((stacked - 127) / 128).softmax(1).float().cpu().numpy())

        return np.stack(self._images.map(run, pictures)) if pictures else np.zeros((0, 1000), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, 384) unit vectors of N sentences."""
        import torch

        def run(batch: Sequence[str]) -> list[NDArray[np.float32]]:
            tokens = self._tokenizer(list(batch), padding=True, truncation=True, max_length=256, return_tensors="pt")
            tokens = tokens.to(self._device)
            with torch.inference_mode():
                states = self._text_model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].float()
            return list(((states * mask).sum(1) / mask.sum(1)).cpu().numpy())

        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        # Sentences of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = np.empty((len(texts), self.dimension), np.float32)
        vectors[order] = np.stack(self._texts.map(run, [texts[index] for index in order]))
        return _unit(vectors)


def centre_square(frame: NDArray[np.uint8], side_px: int, share: float = 1.0) -> NDArray[np.uint8]:
    """The middle `share` of the largest central square of an RGB frame, at side_px x side_px.

    Raises:
        CannotScore: `too_small`.
    """
    height, width = frame.shape[:2]
    if min(height, width) < _MIN_SIDE_PX:
        raise CannotScore("too_small", f"{width}x{height} px: the image encoder needs {_MIN_SIDE_PX} px a side")
    side = round(min(height, width) * share)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > side_px else cv2.INTER_CUBIC
    return cv2.resize(square, (side_px, side_px), interpolation=how)


def imagenet_names() -> list[str]:
    """The first name of each of the thousand classes, in the order of the classifier's outputs."""
    ensure_torchvision()
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(1000)]


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _efficientnet_lite0(path: Path) -> Any:
    """timm's network of this architecture with the packaged weights.

    The file's parameters have other names but the same order; every shape is compared.
    """
    ensure_torchvision()
    import timm

    network = timm.create_model("efficientnet_lite0", pretrained=False, bn_eps=1e-3)
    wanted, found = network.state_dict(), read_state(path)
    if [v.shape for v in wanted.values()] != [v.shape for v in found.values()]:
        raise WeightsUnavailable(f"{path} does not hold the weights of EfficientNet-Lite0")
    network.load_state_dict(dict(zip(wanted, found.values(), strict=True)))
    return network.eval()


def _minilm(path: Path) -> tuple[Any, Any]:
    ensure_torchvision()
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a second's load inside a worker is no news
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, local_files_only=True)
        model = BertModel.from_pretrained(path.parent, local_files_only=True)
    except OSError as error:
        raise WeightsUnavailable(f"{path.parent} does not hold all-MiniLM-L6-v2: {error}") from error
    return tokenizer, model.eval()
