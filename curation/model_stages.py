"""What the models add to the rows of clips: flow, embeddings, aesthetics, NSFW, captions and their similarity, flaws.

Each stage holds models that fit one worker, and fills columns in, in place, for every clip that no gate has stopped. A
clip that a model cannot take gets the reason in `<column>_error`, and the others of its batch are untouched; the
model's name stands in `<column>_model` either way. For the pipeline, in this order (the text stage, which drops the
frames, last):

    FlowStage(load(choices["flow"]))                              decodes the clips at 2 fps itself
    ImageStage(similarity=..., aesthetic=..., nsfw=...)           needs clip.frames (first, middle, last)
    CaptionStage(spatial=..., temporal=..., merge=..., similarity=...)     after ImageStage, for its embeddings

    stage.apply(clips: Sequence[FinishedClip]) -> None

The text stage has the boxes that a watermark is measured on: row |= watermark_columns(frames, detector.detect(frames),
detector.name).

`SCORES` and `FIELDS` are the columns, for `curation.schema`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.clip import caption_similarity
from curation.clip_frames import sample_clip
from curation.errors import CannotDecode, CannotScore
from curation.flaws import find_flaws
from curation.motion import MotionScore
from curation.schema import Score
from curation.segment import FinishedClip
from curation.text_area import Polygon
from curation.watermark import watermark_ratio

FLOW_FPS = 2.0
CAPTIONS = ("spatial", "temporal", "merged")

SCORES: tuple[Score, ...] = (
    Score("motion.flow", "number", "px of the 16-px field per 0.5 s", "mean magnitude of learned optical flow"),
    Score("aesthetic", "per_frame", "see the model", "how good the frame looks; NIQE: lower is better"),
    Score("nsfw", "per_frame", "probability", "the frame is not safe for work"),
    Score("similarity.spatial", "per_frame", "cosine", "the frame and the caption of the middle frame"),
    Score("similarity.temporal", "per_frame", "cosine", "the frame and the caption of the clip"),
    Score("similarity.merged", "per_frame", "cosine", "the frame and the merged caption"),
    Score("watermark", "number", "share of the frame", "text that stays at one place while the picture changes"),
    Score("black", "number", "share of the frames", "black frames at 2 fps"),
    Score("frozen", "number", "share of the time", "pairs of frames 0.5 s apart without any change"),
    Score("picture_area", "number", "share of the frame", "picture inside the bars of a letterbox; 1 without bars"),
)


def _field(name: str, kind: pa.DataType, doc: str, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"doc": doc, "unit": unit})


FIELDS: tuple[pa.Field, ...] = (
    _field("embedding", pa.list_(pa.float16()), "image embeddings of first, middle and last frame, one after another"),
    _field("embedding_model", pa.string(), "what made the embeddings"),
    *[
        field
        for kind in CAPTIONS
        for field in (
            _field(f"caption_{kind}", pa.string(), f"{kind} caption"),
            _field(f"caption_{kind}_error", pa.string(), f"why there is no {kind} caption"),
            _field(f"caption_{kind}_model", pa.string(), f"what wrote the {kind} caption"),
        )
    ],
    _field("caption_merged_reason", pa.string(), "why the merged caption is one of the two; null if it was merged"),
    _field("crop_left", pa.float32(), "left edge of the picture inside its bars", "share of the width"),
    _field("crop_top", pa.float32(), "top edge of the picture inside its bars", "share of the height"),
    _field("crop_right", pa.float32(), "right edge of the picture inside its bars", "share of the width"),
    _field("crop_bottom", pa.float32(), "bottom edge of the picture inside its bars", "share of the height"),
)


def _waiting(clips: Sequence[FinishedClip]) -> list[FinishedClip]:
    return [clip for clip in clips if clip.row.get("gate") is None]


class FlowStage:
    """Learned motion score, and flaws of the picture, which need the same frames.

    Args:
        motion: a model of the role `flow` (`score_many`, `frame_short_side_px`), or None for flaws only.
        threads: decoding threads.
    """

    def __init__(self, motion: Any | None, *, threads: int = 1) -> None:
        self._motion = motion
        self._short_side_px = 96 if motion is None else motion.frame_short_side_px
        self._threads = threads

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in `motion_flow`, `black`, `frozen`, `picture_area` and the crop rectangle."""
        decoded: list[tuple[FinishedClip, tuple[NDArray[np.uint8], NDArray[np.float64]]]] = []
        for clip in _waiting(clips):
            names = ["black", "frozen", "picture_area"] + (["motion_flow"] if self._motion else [])
            if self._motion is not None:
                clip.row["motion_flow_model"] = self._motion.name
            try:
                frames = sample_clip(clip.data, FLOW_FPS, self._short_side_px, threads=self._threads)
            except CannotDecode as error:
                clip.row |= {f"{name}_error": error.reason for name in names}
                continue
            clip.row |= flaw_columns(frames[0])
            decoded.append((clip, frames))
        if self._motion is None or not decoded:
            return
        results = self._motion.score_many([frames for _, frames in decoded])
        for (clip, _), result in zip(decoded, results, strict=True):
            if isinstance(result, MotionScore):
                clip.row["motion_flow"] = result.score
            else:
                clip.row["motion_flow_error"] = result.reason


def flaw_columns(frames: NDArray[np.uint8]) -> dict[str, Any]:
    """The columns of `curation.flaws` for the frames of one clip at 2 fps."""
    models = {f"{name}_model": "flaws" for name in ("black", "frozen", "picture_area")}
    try:
        flaws = find_flaws(frames)
    except CannotScore as error:
        return models | {f"{name}_error": error.reason for name in ("black", "frozen", "picture_area")}
    frozen: dict[str, Any] = {"frozen": flaws.frozen} if len(frames) > 1 else {"frozen_error": "too_short"}
    return (
        models
        | frozen
        | {"black": flaws.black, "picture_area": flaws.crop.area, "crop_left": flaws.crop.left}
        | {"crop_top": flaws.crop.top, "crop_right": flaws.crop.right, "crop_bottom": flaws.crop.bottom}
    )


def watermark_columns(
    frames: Sequence[NDArray[np.uint8]], boxes: Sequence[Sequence[Polygon]], model: str
) -> dict[str, Any]:
    """The columns of `curation.watermark`, from what the text stage's `detect(frames)` found for one clip."""
    try:
        return {"watermark": watermark_ratio(frames, boxes), "watermark_model": model}
    except CannotScore as error:
        return {"watermark_error": error.reason, "watermark_model": model}


class ImageStage:
    """Scores of the first, middle and last frame.

    Args:
        similarity, aesthetic, nsfw: models of these roles, each or None. An aesthetic head that takes embeddings needs
            `similarity`.
    """

    def __init__(self, *, similarity: Any | None = None, aesthetic: Any | None = None, nsfw: Any | None = None) -> None:
        if aesthetic is not None and aesthetic.takes == "embeddings" and similarity is None:
            raise ValueError(f"{aesthetic.name} scores embeddings: it needs a similarity model")
        self._similarity, self._aesthetic, self._nsfw = similarity, aesthetic, nsfw

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in `embedding`, `aesthetic` and `nsfw`."""
        waiting = _waiting(clips)
        embedded: dict[int, NDArray[np.float32]] = {}
        if self._similarity is not None:
            for clip in waiting:
                clip.row["embedding_model"] = self._similarity.name
            for index, values in _per_clip(self._similarity.embed_images, waiting).items():
                if not isinstance(values, str):
                    embedded[index] = values
                    waiting[index].row["embedding"] = values.astype(np.float16).ravel().tolist()
        if self._aesthetic is not None:
            if self._aesthetic.takes == "embeddings":
                scores: dict[int, Any] = {k: self._aesthetic.score(values) for k, values in embedded.items()}
            else:
                scores = _per_clip(self._aesthetic.score, waiting)
            _write(waiting, "aesthetic", self._aesthetic.name, scores)
        if self._nsfw is not None:
            _write(waiting, "nsfw", self._nsfw.name, _per_clip(self._nsfw.score, waiting))


def _per_clip(model: Any, clips: Sequence[FinishedClip]) -> dict[int, Any]:
    """Per clip, the model's values for its frames, or the reason why there are none; clips share calls where they
    can."""
    seen = [index for index, clip in enumerate(clips) if clip.frames]
    answers: dict[int, Any] = {index: "no_frames" for index, clip in enumerate(clips) if not clip.frames}
    frames = [frame for index in seen for frame in clips[index].frames]
    try:
        values = model(frames) if frames else []
        at = 0
        for index in seen:
            count = len(clips[index].frames)
            answers[index] = values[at : at + count]
            at += count
    except CannotScore:  # one of them cannot be taken; find out which
        for index in seen:
            try:
                answers[index] = model(clips[index].frames)
            except CannotScore as error:
                answers[index] = error.reason
    return answers


def _write(clips: Sequence[FinishedClip], column: str, model: str, scores: Mapping[int, Any]) -> None:
    for index, clip in enumerate(clips):
        clip.row[f"{column}_model"] = model
        values = scores.get(index, "no_embedding")
        if isinstance(values, str):
            clip.row[f"{column}_error"] = values
        else:
            clip.row[column] = [float(value) for value in values]


class CaptionStage:
    """Captions and their similarity to the frames.

    Args:
        spatial, temporal, merge, similarity: models of these roles, each or None. Without a captioner the clip's row
        keeps
            the captions that it has already, and they are merged and compared.
    """

    def __init__(
        self,
        *,
        spatial: Any | None = None,
        temporal: Any | None = None,
        merge: Any | None = None,
        similarity: Any | None = None,
        threads: int = 1,
    ) -> None:
        self._spatial, self._temporal, self._merge, self._similarity = spatial, temporal, merge, similarity
        self._threads = threads

    def apply(self, clips: Sequence[FinishedClip]) -> None:
        """Fill in `caption_*` and `similarity_*`."""
        waiting = _waiting(clips)
        if self._spatial is not None:
            with_frames = [clip for clip in waiting if clip.frames]
            middles = [clip.frames[len(clip.frames) // 2] for clip in with_frames]
            _write_captions(with_frames, "spatial", self._spatial.name, self._spatial.caption(middles))
            without = [clip for clip in waiting if not clip.frames]
            missing = CannotScore("no_frames", "no frame was decoded")
            _write_captions(without, "spatial", self._spatial.name, [missing] * len(without))
        if self._temporal is not None:
            self._caption_motion(waiting)
        if self._merge is not None:
            pairs = [(clip.row.get("caption_spatial"), clip.row.get("caption_temporal")) for clip in waiting]
            for clip, answer in zip(waiting, self._merge.merge(pairs), strict=True):
                clip.row["caption_merged_model"] = self._merge.name
                if isinstance(answer, CannotScore):
                    clip.row["caption_merged_error"] = answer.reason
                else:
                    clip.row |= {"caption_merged": answer.text, "caption_merged_reason": answer.reason}
        if self._similarity is not None:
            for kind in CAPTIONS:
                self._compare(waiting, kind)

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

    def _compare(self, clips: Sequence[FinishedClip], kind: str) -> None:
        assert self._similarity is not None
        captioned = [clip for clip in clips if clip.row.get(f"caption_{kind}")]
        texts = self._similarity.embed_texts([clip.row[f"caption_{kind}"] for clip in captioned])
        for clip, text in zip(captioned, texts, strict=True):
            clip.row[f"similarity_{kind}_model"] = self._similarity.name
            if clip.row.get("embedding") is None or clip.row.get("embedding_model") != self._similarity.name:
                clip.row[f"similarity_{kind}_error"] = "no_embedding"
                continue
            images = np.asarray(clip.row["embedding"], np.float32).reshape(-1, len(text))
            images /= np.linalg.norm(images, axis=1, keepdims=True)
            clip.row[f"similarity_{kind}"] = caption_similarity(images, text[None])[0].tolist()
        for clip in clips:
            if clip.row.get(f"caption_{kind}_error"):
                clip.row |= {
                    f"similarity_{kind}_model": self._similarity.name,
                    f"similarity_{kind}_error": "no_caption",
                }


def _write_captions(clips: Sequence[FinishedClip], kind: str, model: str, answers: Sequence[str | CannotScore]) -> None:
    for clip, answer in zip(clips, answers, strict=True):
        clip.row[f"caption_{kind}_model"] = model
        if isinstance(answer, str):
            clip.row[f"caption_{kind}"] = answer
        else:
            clip.row[f"caption_{kind}_error"] = answer.reason
