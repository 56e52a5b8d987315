"""Caption of the middle frame by CoCa through open_clip (Stable Video Diffusion, section 3.1: the spatial caption).

Decoding is greedy, batched, in the published tokenizer, with open_clip's minimum of five tokens. Stage contract of a
captioner (this one takes middle frames, `curation.videoblip` takes clips):

    name                              recorded with the caption
    frame_short_side_px
    caption(frames) -> [str | CannotScore, ...]      one per frame, in order
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curation.batching import Batches
from curation.clip import load_open_clip, preprocess
from curation.errors import CannotScore

_START, _END, _PAD = 49406, 49407, 0  # of CLIP's tokenizer
_MIN_SIDE_PX = 32


class CocaCaptioner:
    """CoCa captions.

    Args:
        weights: a folder in the hub's layout, or one checkpoint file of a named architecture.
        architecture: open_clip's name of it; not used for a folder, whose configuration says it.
        batch: frames per call.
        max_tokens: longest caption, start and end included (open_clip's `seq_len`).
    """

    def __init__(
        self,
        *,
        weights: Sequence[Path],
        architecture: str = "coca_ViT-L-14",
        device: str = "cpu",
        batch: int = 32,
        min_tokens: int = 5,
        max_tokens: int = 30,
    ) -> None:
        import torch

        self._model, self._tokenizer = load_open_clip(weights[0], architecture)
        if not hasattr(self._model, "text_decoder"):
            raise ValueError(f"{architecture} is not a CoCa model: it has no text decoder")
        self._model.to(device)
        self._device = torch.device(device)
        self.name = f"{architecture.lower().replace('-', '_')}_greedy"
        size = self._model.visual.image_size
        self._size_px = int(size[0] if isinstance(size, tuple | list) else size)
        self.frame_short_side_px = self._size_px
        settings = self._model.visual.preprocess_cfg
        self._mean, self._std = settings["mean"], settings["std"]
        self._min_tokens, self._max_tokens = min_tokens, max_tokens
        self._batches = Batches(batch, self.name)

    def caption(self, frames: Sequence[NDArray[np.uint8]]) -> list[str | CannotScore]:
        """One caption per RGB frame; a frame that cannot be captioned is its CannotScore."""
        answers: list[str | CannotScore | None] = [None] * len(frames)
        usable = []
        for index, frame in enumerate(frames):
            if min(frame.shape[:2]) < _MIN_SIDE_PX:
                answers[index] = CannotScore("too_small", f"{frame.shape[1]}x{frame.shape[0]} px: too small to caption")
            else:
                usable.append(index)
        tokens = self._batches.map(lambda batch: self._generate([frames[index] for index in batch]), usable)
        for index, sequence in zip(usable, tokens, strict=True):
            answers[index] = checked_caption(self._tokenizer.decode(sequence))
        return [answer for answer in answers if answer is not None]

    def _generate(self, frames: Sequence[NDArray[np.uint8]]) -> list[list[int]]:
        """Token numbers between start and end of each frame's caption."""
        import torch

        half = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            pictures = torch.cat([preprocess(f, self._size_px, self._mean, self._std, self._device) for f in frames])
            features = self._model(pictures)
            text = torch.full((len(frames), 1), _START, dtype=torch.long, device=self._device)
            done = torch.zeros(len(frames), dtype=torch.bool, device=self._device)
            while text.shape[1] < self._max_tokens - 1 and not bool(done.all()):
                logits = self._model(
                    None,
                    text,
                    image_latent=features["image_features"],
                    image_embs=features["image_embs"],
                    output_labels=False,
                )["logits"][:, -1].float()
                if text.shape[1] < self._min_tokens:
                    logits[:, _END] = -torch.inf
                chosen = logits.argmax(-1).masked_fill(done, _PAD)
                done |= (chosen == _END) | (chosen == _PAD)
                text = torch.cat([text, chosen[:, None]], 1)
        sequences = []
        for row in text[:, 1:].tolist():
            end = next((k for k, token in enumerate(row) if token in (_END, _PAD)), len(row))
            sequences.append(row[:end])
        return sequences


def checked_caption(text: str) -> str | CannotScore:
    """The caption without markers and surplus space; a CannotScore where nothing, or one word again and again, is
    left."""
    caption = re.sub(r"\s+", " ", re.sub(r"<\w+_of_text>", " ", text)).strip(" \t\n.,")
    words = caption.split()
    if not words:
        return CannotScore("empty_caption", "the captioner wrote nothing")
    if len(words) >= 6 and len(set(words)) <= len(words) // 4:
        return CannotScore("degenerate_caption", f"the captioner repeats itself: {caption[:80]!r}")
    return caption
