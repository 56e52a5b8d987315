"""What the models add to the rows of clips: flow, embeddings, aesthetics, NSFW, captions and their similarity.

Each stage holds models that fit one worker, and fills columns in, in place, for every clip that no gate has stopped. A
clip that a model cannot take gets the reason in `<column>_error`, and the others of its batch are untouched; the
model's name stands in `<column>_model` either way. In this order, and before the text stage:

    FlowStage       learned motion; takes the source's small frames where they are large enough, else decodes the clip
    CaptionStage    needs the middle one of clip.frames; decodes the clip for the caption of the whole of it
    ImageStage      needs clip.frames (first, middle, last); after CaptionStage, whose captions it compares with them,
                    so that the similarity model, both of its towers, is loaded once

`curation.stages` says what a stage is and how it is run.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.clip import caption_similarity
from curation.clip_frames import sample_clip
from curation.errors import CannotDecode, CannotScore
from curation.motion import MotionScore
from curation.schema import CAPTIONS, clip_caption
from curation.segment import FinishedClip
from curation.stages import per_clip

FLOW_FPS = 2.0
NON_FINITE = "non_finite"
"""The reason of a clip that a network overflowed on. Whatever compares all embeddings takes finite ones only."""


class FlowStage:
    """Learned motion score.

    Args:
        motion: a model of the role `flow` (`score_many`, `frame_short_side_px`).
        threads: decoding threads.
    """

    def __init__(self, motion: Any, *, threads: int = 1) -> None:
        self._motion = motion
        self._threads = threads
        self.models = {"motion_flow": motion.name}

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in `motion_flow`."""
        seen: list[tuple[FinishedClip, tuple[NDArray[np.uint8], NDArray[np.float64]]]] = []
        for clip in clips:
            clip.row["motion_flow_model"] = self._motion.name
            try:
                seen.append((clip, self._frames(clip)))
            except CannotDecode as error:
                clip.row["motion_flow_error"] = error.reason
        results = self._motion.score_many([frames for _, frames in seen])
        for (clip, _), result in zip(seen, results, strict=True):
            if isinstance(result, MotionScore):
                clip.row["motion_flow"] = result.score
            else:
                clip.row["motion_flow_error"] = result.reason

    def _frames(self, clip: FinishedClip) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        small = clip.small
        if small is not None and min(small[0].shape[1:3]) >= self._motion.frame_short_side_px:
            return small
        return sample_clip(clip.data, FLOW_FPS, self._motion.frame_short_side_px, threads=self._threads)


class ImageStage:
    """Scores of the first, middle and last frame.

    Args:
        similarity, aesthetic, nsfw: models of these roles, each or None. An aesthetic head that takes embeddings needs
            `similarity`. `aesthetic.score_name` is the column that it fills in.
        captions: the kinds of captions that the clips have been given (`spatial`, `temporal`), to be compared with the
            frames.
    """

    def __init__(
        self,
        *,
        similarity: Any | None = None,
        aesthetic: Any | None = None,
        nsfw: Any | None = None,
        captions: Collection[str] = (),
    ) -> None:
        if aesthetic is not None and aesthetic.takes == "embeddings" and similarity is None:
            raise ValueError(f"{aesthetic.name} scores embeddings: it needs a similarity model")
        self._similarity, self._aesthetic, self._nsfw = similarity, aesthetic, nsfw
        self._compared = ["similarity", *(f"similarity_{kind}" for kind in captions)] if captions else []
        self.models: dict[str, str] = {}
        if similarity is not None:
            self.models |= dict.fromkeys(["embedding", *self._compared], similarity.name)
        if aesthetic is not None:
            self.models[aesthetic.score_name] = aesthetic.name
        if nsfw is not None:
            self.models["nsfw"] = nsfw.name

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in `embedding`, `similarity*`, `aesthetic` or what the model calls it, and `nsfw`."""
        embedded: dict[int, NDArray[np.float32]] = {}
        if self._similarity is not None:
            for index, values in per_clip(self._similarity.embed_images, clips).items():
                row = clips[index].row
                row["embedding_model"] = self._similarity.name
                if isinstance(values, str):
                    row["embedding_error"] = values
                elif not np.isfinite(values).all():
                    row["embedding_error"] = NON_FINITE
                else:
                    embedded[index] = values
                    row["embedding"] = values.astype(np.float16).ravel().tolist()
            for column in self._compared:
                self._compare(clips, embedded, column)
        if self._aesthetic is not None:
            if self._aesthetic.takes == "embeddings":
                scores: dict[int, Any] = {k: self._aesthetic.score(values) for k, values in embedded.items()}
            else:
                scores = per_clip(self._aesthetic.score, clips)
            _write(clips, self._aesthetic.score_name, self._aesthetic.name, scores)
        if self._nsfw is not None:
            _write(clips, "nsfw", self._nsfw.name, per_clip(self._nsfw.score, clips))

    def _compare(self, clips: Sequence[FinishedClip], embedded: Mapping[int, NDArray[np.float32]], column: str) -> None:
        """Cosines of the frames and one caption per clip: the one of the column's kind, or the one that goes with
        it."""
        assert self._similarity is not None
        kind = column.partition("_")[2]
        captions = [clip.row.get(f"caption_{kind}") if kind else clip_caption(clip.row) for clip in clips]
        scores: dict[int, Any] = {index: "no_caption" for index, caption in enumerate(captions) if not caption}
        both = [index for index in embedded if captions[index]]
        texts = self._similarity.embed_texts([captions[index] for index in both])
        for index, text in zip(both, texts, strict=True):
            scores[index] = caption_similarity(embedded[index], text[None])[0]
        _write(clips, column, self._similarity.name, scores)


def _write(clips: Sequence[FinishedClip], column: str, model: str, scores: Mapping[int, Any]) -> None:
    for index, clip in enumerate(clips):
        clip.row[f"{column}_model"] = model
        values = scores.get(index, "no_embedding")
        if isinstance(values, str):
            clip.row[f"{column}_error"] = values
        elif not np.isfinite(values).all():
            clip.row[f"{column}_error"] = NON_FINITE
        else:
            clip.row[column] = [float(value) for value in values]


class CaptionStage:
    """Captions.

    Args:
        spatial, temporal, merge: models of these roles, each or None.
        threads: decoding threads.
    """

    def __init__(
        self,
        *,
        spatial: Any | None = None,
        temporal: Any | None = None,
        merge: Any | None = None,
        threads: int = 1,
    ) -> None:
        self._spatial, self._temporal, self._merge = spatial, temporal, merge
        self._threads = threads
        captioners = {"spatial": spatial, "temporal": temporal, "merged": merge}
        self.models = {f"caption_{kind}": model.name for kind, model in captioners.items() if model is not None}

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in `caption_*`."""
        if self._spatial is not None:
            self._caption_frames(clips)
        if self._temporal is not None:
            self._caption_motion(clips)
        if self._merge is not None:
            pairs = [(clip.row.get("caption_spatial"), clip.row.get("caption_temporal")) for clip in clips]
            for clip, answer in zip(clips, self._merge.merge(pairs), strict=True):
                clip.row["caption_merged_model"] = self._merge.name
                if isinstance(answer, CannotScore):
                    clip.row["caption_merged_error"] = answer.reason
                else:
                    clip.row |= {"caption_merged": answer.text, "merge_fallback": answer.reason}

    def _caption_frames(self, clips: Sequence[FinishedClip]) -> None:
        assert self._spatial is not None
        answers: list[str | CannotScore] = [CannotScore("no_frames", "no frame was decoded")] * len(clips)
        seen = [index for index, clip in enumerate(clips) if clip.frames]
        middles = [clips[index].frames[len(clips[index].frames) // 2] for index in seen]
        for index, answer in zip(seen, self._spatial.caption(middles), strict=True):
            answers[index] = answer
        _write_captions(clips, "spatial", self._spatial.name, answers)

    def _caption_motion(self, clips: Sequence[FinishedClip]) -> None:
        assert self._temporal is not None
        sampled: list[Any] = []
        answers: list[Any] = [None] * len(clips)
        for index, clip in enumerate(clips):
            try:
                rate = self._temporal.frame_count / max(clip.row["duration_s"], 1e-3)
                frames, _ = sample_clip(clip.data, rate, self._temporal.frame_short_side_px, threads=self._threads)
                sampled.append((index, list(frames)))
            except CannotDecode as error:
                answers[index] = CannotScore(error.reason, str(error))
        written = self._temporal.caption([frames for _, frames in sampled])
        for (index, _), answer in zip(sampled, written, strict=True):
            answers[index] = answer
        _write_captions(clips, "temporal", self._temporal.name, answers)


def _write_captions(clips: Sequence[FinishedClip], kind: str, model: str, answers: Sequence[str | CannotScore]) -> None:
    assert kind in CAPTIONS
    for clip, answer in zip(clips, answers, strict=True):
        clip.row[f"caption_{kind}_model"] = model
        if isinstance(answer, str):
            clip.row[f"caption_{kind}"] = answer
        else:
            clip.row[f"caption_{kind}_error"] = answer.reason
