"""Caption of a whole clip by VideoBLIP (Stable Video Diffusion, section 3.1: the temporal caption).

VideoBLIP (`kpyu/video-blip-opt-2.7b-ego4d`, `kpyu/video-blip-flan-t5-xl-ego4d`) is BLIP-2 with one change: the Q-Former
attends to the concatenated patch tokens of all frames of the clip. Its checkpoints therefore load into transformers'
BLIP-2 classes; the change is made here, in the forward pass. Query outputs stand in front of the prompt's embeddings,
as when these checkpoints were trained (newer BLIP-2 files mark the place with an image token, which these do not
have). Stage contract:

    name, frame_count, frame_short_side_px
    caption(clips) -> [str | CannotScore, ...]     one per clip; a clip is a sequence of RGB frames of the whole clip
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.batching import Batches
from curation.captions import checked_caption
from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.weights import WeightsUnavailable

PROMPT = "Question: What is happening in the video? Answer:"
_MIN_SIDE_PX = 32


class VideoBlipCaptioner:
    """VideoBLIP captions.

    Args:
        weights: a folder with a published checkpoint: configuration, tokenizer, image processor, weights.
        batch: clips per call.
        frame_count: frames per clip, spread evenly over it.
        max_tokens: longest answer.
        name: recorded with the caption; the model's folder if left out.
    """

    def __init__(
        self,
        *,
        weights: Sequence[Path],
        device: str = "cpu",
        batch: int = 8,
        frame_count: int = 8,
        max_tokens: int = 40,
        prompt: str = PROMPT,
        name: str | None = None,
    ) -> None:
        import torch

        folder = weights[0]
        self._device = torch.device(device)
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._model, self._tokenizer, self._processor = _load(folder, self._dtype)
        self._model.to(self._device)
        self.name = name or f"videoblip_{self._model.config.text_config.model_type}"
        self.frame_count = frame_count
        self.frame_short_side_px = int(self._processor.size["height"])
        self._max_tokens = max_tokens
        self._prompt = prompt
        self._batches = Batches(batch, self.name)

    def caption(self, clips: Sequence[Sequence[NDArray[np.uint8]]]) -> list[str | CannotScore]:
        """One caption per clip; a clip that cannot be captioned is its CannotScore."""
        answers: list[str | CannotScore | None] = [None] * len(clips)
        usable = []
        for index, frames in enumerate(clips):
            if len(frames) < 2:
                answers[index] = CannotScore("too_short", f"{len(frames)} frame(s): a caption of motion needs two")
            elif min(min(frame.shape[:2]) for frame in frames) < _MIN_SIDE_PX:
                answers[index] = CannotScore("too_small", "frames are too small to caption")
            else:
                usable.append(index)
        texts = self._batches.map(lambda batch: self._answer([clips[index] for index in batch]), usable)
        for index, text in zip(usable, texts, strict=True):
            answers[index] = checked_caption(text)
        return [answer for answer in answers if answer is not None]

    def _answer(self, clips: Sequence[Sequence[NDArray[np.uint8]]]) -> list[str]:
        import torch

        with torch.inference_mode():
            queries = self._language_inputs(self._pixels(clips))
            prompt = self._tokenizer(self._prompt, return_tensors="pt")["input_ids"].to(self._device)
            words = self._model.get_input_embeddings()(prompt).expand(len(clips), -1, -1)
            embedded = torch.cat([queries.to(words.dtype), words], dim=1)
            mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=self._device)
            written = self._model.language_model.generate(
                inputs_embeds=embedded, attention_mask=mask, max_new_tokens=self._max_tokens, do_sample=False
            )
        texts: list[str] = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _pixels(self, clips: Sequence[Sequence[NDArray[np.uint8]]]) -> Any:
        """(B, T, 3, H, W); a clip with fewer frames than the others of its batch repeats some, evenly."""
        import torch

        count = min(self.frame_count, max(len(frames) for frames in clips))
        rows = []
        for frames in clips:
            chosen = [frames[k] for k in np.round(np.linspace(0, len(frames) - 1, count)).astype(int)]
            rows.append(self._processor(images=list(chosen), return_tensors="pt")["pixel_values"])
        return torch.stack(rows).to(self._device, self._dtype)

    def _language_inputs(self, pixels: Any) -> Any:
        """(B, queries, D) of (B, T, 3, H, W): the one place where VideoBLIP differs from BLIP-2."""
        import torch

        batch = pixels.shape[0]
        tokens = self._model.vision_model(pixel_values=pixels.flatten(0, 1), return_dict=True).last_hidden_state
        tokens = tokens.reshape(batch, -1, tokens.shape[-1])  # (B, T * tokens, D)
        mask = torch.ones(tokens.shape[:-1], dtype=torch.long, device=tokens.device)
        queries = self._model.qformer(
            query_embeds=self._model.query_tokens.expand(batch, -1, -1),
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            return_dict=True,
        ).last_hidden_state
        return self._model.language_projection(queries.to(self._model.language_projection.weight.dtype))


def _load(folder: Path, dtype: Any) -> tuple[Any, Any, Any]:
    ensure_torchvision()
    from transformers import AutoImageProcessor, AutoTokenizer, Blip2ForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, report = Blip2ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightsUnavailable(f"{folder} is not a VideoBLIP checkpoint: {str(error).splitlines()[0]}") from error
    refuse_missing(report, folder)
    return model.eval(), tokenizer, processor


def refuse_missing(report: dict[str, Any], folder: Path) -> None:
    """transformers fills parameters that a checkpoint lacks with random numbers and goes on. Here that is an error.

    Raises:
        WeightsUnavailable: naming the first of them.
    """
    lacking = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if lacking:
        raise WeightsUnavailable(f"{folder} lacks {len(lacking)} parameters of the model, among them {lacking[0]}")
