"""A language model merges the spatial and the temporal caption into one (Stable Video Diffusion, section 3.1).

The prompt is fixed and versioned: its version is part of the model's name in the dataset. What comes back is checked,
because a small model likes to comment on its task. Where the likeliest answer fails the check, the best of a few others
(beam search) that passes it is taken; where none does, one of the two captions stands instead, and the reason is
recorded. The better caption is the one that the language model itself finds more probable, per token. A
small model that adds a beach to every table is allowed no content word that is in neither caption.
Stage contract:

    name
    merge([(spatial, temporal), ...]) -> [MergedCaption | CannotScore, ...]; either caption may be None
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.batching import Batches
from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.videoblip import refuse_missing
from curation.weights import SMOLLM2, WeightsUnavailable

PROMPT_VERSION = 2
"""Of the prompt and of how it is answered. By tests/benchmarks/caption_merge.py SmolLM2-135M got 13 of 20 pairs of
captions through the check in version 1, some of them nonsense; in version 2 it is 20, and 8 of 8 held-out pairs."""
TASK = "Merge the two captions of a video clip into one sentence that keeps the facts of both."
# Examples do more for a small model than instructions: SmolLM2-135M comments on the captions without them.
# They keep the words of the captions and join them in few ways, so that it can follow.
EXAMPLES = (
    (
        "a woman standing in a kitchen",
        "a person cuts vegetables with a knife",
        "a woman standing in a kitchen cuts vegetables with a knife",
    ),
    ("a brown dog on a beach", "the dog runs after a ball", "a brown dog on a beach runs after a ball"),
    ("an aerial view of a harbour", "boats move slowly past", "an aerial view of a harbour as boats move slowly past"),
    (
        "two men at a table with a chess board",
        "a man moves a piece",
        "two men at a table with a chess board as one man moves a piece",
    ),
    ("a cup of coffee on a desk", "a hand picks up the cup", "a hand picks up a cup of coffee on a desk"),
)
QUESTION = "First: {spatial}\nSecond: {temporal}"
MAX_WORDS = 50
_BEAMS = 4
_REPEAT = 3  # words
_COMMENT = re.compile(
    r"^(sure|certainly|of course|here('s| is| are)|okay|ok\b|as an ai|i('m| am| can|'d)|note\b|the (combined|merged) )"
    r"|caption[s]?\b|\bsentence\b|\bthe (first|second)\b|^\W*$",
    re.IGNORECASE,
)
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be by down for from has have her his in into is it its of off on one or out over she that
        the their them there they this to two up was were while who with""",
    )
)


@dataclass(frozen=True)
class MergedCaption:
    """A caption for a clip.

    Attributes:
        text: the caption.
        source: `merged`, or `spatial` or `temporal` where one of the two stands instead.
        reason: why it was not merged: `one_caption`, `same`, `too_long`, `empty`, `comment`, `repeats`, `lost_facts`,
            `new_facts`;
            None for a merged one.
    """

    text: str
    source: str
    reason: str | None


class CaptionMerger:
    """An instruction-tuned language model through transformers.

    Args:
        weights: a GGUF file (the packaged SmolLM2, looked for if left out) or a folder with a model.
        name: recorded with the caption; from the model's configuration if left out. The prompt's version is added.
        batch: clips per call.
        new_words: share of the content words of a merged caption that may be in neither caption.
    """

    def __init__(
        self,
        *,
        weights: Sequence[Path] | None = None,
        device: str = "cpu",
        batch: int = 16,
        name: str | None = None,
        new_words: float = 0.5,
    ) -> None:
        import torch

        path = weights[0] if weights else SMOLLM2.path()
        self._device = torch.device(device)
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._model, self._tokenizer = _load(path, dtype)
        self._model.to(self._device)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.name = f"{name or (path.stem if path.is_file() else path.name)}_prompt_v{PROMPT_VERSION}"
        self._new_words = new_words
        self._batches = Batches(batch, self.name)

    def merge(self, pairs: Sequence[tuple[str | None, str | None]]) -> list[MergedCaption | CannotScore]:
        """One caption per pair; a clip with neither caption is a CannotScore (`no_caption`)."""
        answers: list[MergedCaption | CannotScore | None] = [None] * len(pairs)
        both: list[int] = []
        for index, (spatial, temporal) in enumerate(pairs):
            if spatial and temporal:
                if spatial.casefold() == temporal.casefold():
                    answers[index] = MergedCaption(spatial, "spatial", "same")
                else:
                    both.append(index)
            elif spatial or temporal:
                answers[index] = MergedCaption(
                    spatial or temporal or "", "spatial" if spatial else "temporal", "one_caption"
                )
            else:
                answers[index] = CannotScore("no_caption", "neither captioner described this clip")
        asked = [(str(pairs[index][0]), str(pairs[index][1])) for index in both]
        for index, answer in zip(both, self._merged(asked), strict=True):
            answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _merged(self, pairs: Sequence[tuple[str, str]]) -> list[MergedCaption]:
        """Of each pair the likeliest answer, a less likely one where that cannot be used, or one of the two."""
        found = [self._usable(*each) for each in zip(self._batches.map(self._write, pairs), pairs, strict=True)]
        refused = [index for index, (_, reason) in enumerate(found) if reason is not None]
        others = self._batches.map(lambda some: self._write(some, _BEAMS), [pairs[index] for index in refused])
        for index, texts in zip(refused, others, strict=True):
            sentence, reason = self._usable(texts, pairs[index])
            if reason is None:
                found[index] = sentence, None
        return [
            MergedCaption(sentence, "merged", None) if reason is None else self._instead(pair, reason)
            for (sentence, reason), pair in zip(found, pairs, strict=True)
        ]

    def _usable(self, texts: Sequence[str], pair: tuple[str, str]) -> tuple[str, str | None]:
        """The first of these answers that passes the check, or the first one and why it does not."""
        checked = [check_merged(text, *pair, new_words=self._new_words) for text in texts]
        return next((each for each in checked if each[1] is None), checked[0])

    def _instead(self, pair: tuple[str, str], reason: str) -> MergedCaption:
        surprise = self.surprise(pair)
        source = "spatial" if surprise[0] <= surprise[1] else "temporal"
        return MergedCaption(pair[0] if source == "spatial" else pair[1], source, reason)

    def surprise(self, texts: Sequence[str]) -> list[float]:
        """Mean negative log likelihood per token, in nats, of each text: low for a sentence, high for scrambled
        words."""
        import torch
        import torch.nn.functional as F

        values = []
        for text in texts:
            tokens = self._tokenizer(text, return_tensors="pt")["input_ids"].to(self._device)
            if tokens.shape[1] < 2:
                values.append(math.inf)
                continue
            with torch.inference_mode():
                logits = self._model(input_ids=tokens).logits[0, :-1].float()
            values.append(float(F.cross_entropy(logits, tokens[0, 1:])))
        return values

    def _write(self, pairs: Sequence[tuple[str, str]], beams: int = 1) -> list[list[str]]:
        """Per pair the `beams` likeliest answers that as many beams find."""
        import torch

        prompts = [self._prompt(spatial, temporal) for spatial, temporal in pairs]
        tokens = self._tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(self._device)
        with torch.inference_mode():
            written = self._model.generate(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                max_new_tokens=MAX_WORDS + 14,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        answers = written[:, tokens["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [texts[k : k + beams] for k in range(0, len(texts), beams)]

    def _prompt(self, spatial: str, temporal: str) -> str:
        turns = [(QUESTION.format(spatial=a, temporal=b), merged) for a, b, merged in EXAMPLES]
        question = QUESTION.format(spatial=spatial, temporal=temporal)
        if self._tokenizer.chat_template is None:
            shown = "\n\n".join(f"{asked}\nMerged: {merged}" for asked, merged in turns)
            return f"{TASK}\n\n{shown}\n\n{question}\nMerged:"
        messages = [{"role": "system", "content": TASK}]
        for asked, merged in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": merged}]
        messages.append({"role": "user", "content": question})
        prompt: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return prompt


def check_merged(text: str, spatial: str, temporal: str, *, new_words: float = 0.5) -> tuple[str, str | None]:
    """The sentence in an answer, and why it cannot be used (None if it can).

    A merged caption is one to MAX_WORDS words without comment on the task and without three words in a row that come
    twice; it keeps a content word of each caption that the other has not, and at most a share of `new_words` of its
    content words come from neither.
    """
    first = text.strip().splitlines()[0] if text.strip() else ""
    sentence = re.sub(r"\s+", " ", first).strip().strip('"').strip()
    if not sentence:
        return sentence, "empty"
    if _COMMENT.search(sentence):
        return sentence, "comment"
    if len(sentence.split()) > MAX_WORDS:
        return sentence, "too_long"
    spoken = re.findall(r"[\w'-]+", sentence.lower())
    rows = list(zip(*(spoken[k:] for k in range(_REPEAT)), strict=False))
    if len(set(rows)) < len(rows):
        return sentence, "repeats"
    if not _says_both(sentence, spatial, temporal):
        return sentence, "lost_facts"
    words, of_spatial, of_temporal = (_content(each) for each in (sentence, spatial, temporal))
    if len(words - of_spatial - of_temporal) > new_words * len(words):
        return sentence, "new_facts"
    return sentence, None


def _says_both(text: str, spatial: str, temporal: str) -> bool:
    """Whether a text keeps a content word of each caption, of those that only this caption has where there are such."""
    words, of_spatial, of_temporal = (_content(each) for each in (text, spatial, temporal))
    for mine, other in ((of_spatial, of_temporal), (of_temporal, of_spatial)):
        if mine and not words & ((mine - other) or mine):
            return False
    return True


def _content(text: str) -> set[str]:
    """Stems of the words that carry meaning: rough, but the same for `sit` and `sitting`, `ride` and `riding`."""
    return {_stem(word) for word in set(re.findall(r"[a-z]+", text.lower())) - _STOP_WORDS}


def _stem(word: str) -> str:
    if len(word) > 3:
        word = re.sub(r"(ing|ed|es|s|e)$", "", word)
    return re.sub(r"([bdglmnprst])\1$", r"\1", word)


def _load(path: Path, dtype: Any) -> tuple[Any, Any]:
    ensure_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where: dict[str, Any] = {"local_files_only": True}
    folder = path
    if path.is_file():
        where["gguf_file"] = path.name
        folder = path.parent
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **where)
        tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise WeightsUnavailable(f"{path} is not a language model: {str(error).splitlines()[0]}") from error
    if not path.is_file():
        refuse_missing(report, path)
    return model.eval(), tokenizer
