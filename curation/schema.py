"""The dataset's tables: every column with its unit. Curation, dashboard and trainer share this and nothing else.

A score is three columns: the value, `<column>_error` (why there is none) and `<column>_model` (what measured it).
Exactly one of value and error is set once a stage has looked at a clip; neither is set when the stage was off or a
gate stopped the clip before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

VERSION = 1


@dataclass(frozen=True)
class Score:
    """One measured property of a clip."""

    name: str  # as rules and pages write it
    kind: Literal["number", "per_frame", "label"]  # per_frame: one value for the first, middle and last frame
    unit: str
    doc: str

    @property
    def column(self) -> str:
        return self.name.replace(".", "_")

    def fields(self) -> list[pa.Field]:
        value = {"number": pa.float32(), "per_frame": pa.list_(pa.float32()), "label": pa.string()}[self.kind]
        return [
            pa.field(self.column, value, metadata={"unit": self.unit, "doc": self.doc, "score": self.name}),
            pa.field(f"{self.column}_error", pa.string(), metadata={"doc": f"why {self.name} could not be scored"}),
            pa.field(f"{self.column}_model", pa.string(), metadata={"doc": f"what measured {self.name}"}),
        ]


SCORES: tuple[Score, ...] = (
    Score("motion.coarse", "number", "px of the 16-px field per 0.5 s", "mean magnitude of coarse optical flow"),
    Score("motion.flow", "number", "px of the 16-px field per 0.5 s", "mean magnitude of learned optical flow"),
    Score("camera", "label", "", "static, horizontal, vertical, zooming, rotating or complex"),
    Score("text_area", "per_frame", "share of the frame", "area of the union of text boxes"),
    Score("watermark", "number", "share of the frame", "text that stays at one place while the picture changes"),
    Score("aesthetic", "per_frame", "points, about 1 to 10", "how good the frame looks"),
    Score("niqe", "per_frame", "distance", "NIQE: how far the frame is from pristine photographs; lower is better"),
    Score("nsfw", "per_frame", "probability", "the frame is not safe for work"),
    Score("similarity", "per_frame", "cosine", "the frame and the caption that goes with the clip (`CAPTIONS`)"),
    Score("similarity.spatial", "per_frame", "cosine", "the frame and the caption of the middle frame"),
    Score("similarity.temporal", "per_frame", "cosine", "the frame and the caption of the whole clip"),
    Score("near_duplicate", "number", "cosine", "likeness to the most alike clip that is kept before this one"),
    Score("black", "number", "share of the time", "black frames at 2 fps"),
    Score("frozen", "number", "share of the time", "pairs of frames 0.5 s apart without any change"),
    Score("picture_area", "number", "share of the frame", "picture inside the bars of a letterbox; 1 without bars"),
)

CAPTIONS = ("merged", "spatial", "temporal")
"""The captions that a clip can have, as `caption_<kind>`. The first one that is there goes with the clip (its `.txt` in
a shard). Of the paper's two captioners the spatial one came out better (appendix E.2.2)."""


def clip_caption(row: Mapping[str, Any]) -> str | None:
    """The caption that goes with a clip, from its row."""
    return next((row[f"caption_{kind}"] for kind in CAPTIONS if row.get(f"caption_{kind}")), None)


def score(name: str) -> Score:
    """The score called `name`. Raises KeyError naming the known scores."""
    for candidate in SCORES:
        if candidate.name == name:
            return candidate
    raise KeyError(f"no score is called {name!r}; known: {', '.join(s.name for s in SCORES)}")


def _field(name: str, kind: pa.DataType, doc: str, unit: str = "") -> pa.Field:
    return pa.field(name, kind, metadata={"doc": doc, "unit": unit})


def _table(fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"clipmill_schema": str(VERSION)})


CLIPS: pa.Schema = _table(
    [
        _field("clip_id", pa.string(), "hash of source_id, start_pts, end_pts and clipping mode"),
        _field("source_id", pa.string(), "hash of the source's content"),
        _field("source_uri", pa.string(), "where the source was read from"),
        _field("start_pts", pa.int64(), "first frame's pts in the source", "time_base"),
        _field("end_pts", pa.int64(), "pts at which the last frame's display ends, exclusive", "time_base"),
        _field("time_base", pa.float64(), "seconds per pts unit of the source", "s"),
        _field("start_s", pa.float64(), "start in the source, from its first frame", "s"),
        _field("duration_s", pa.float64(), "end_pts - start_pts", "s"),
        _field("start_frame", pa.int64(), "first frame in the source, counted from 0 in presentation order"),
        _field("frames", pa.int32(), "frames in the clip"),
        _field("rate_fps", pa.float32(), "frames / duration", "1/s"),
        _field("width", pa.int32(), "shown width (upright, square pixels)", "px"),
        _field("height", pa.int32(), "shown height (upright, square pixels)", "px"),
        _field("codec", pa.string(), "video codec of the clip"),
        _field("has_audio", pa.bool_(), "the clip carries sound"),
        _field("mode", pa.string(), "smart, keyframe or exact"),
        _field("shot", pa.int32(), "shot of the source, counted from 0"),
        _field("copied_s", pa.float64(), "footage copied without re-encoding", "s"),
        _field("media_file", pa.string(), "tar under media/ that holds the clip"),
        _field("media_offset", pa.int64(), "first byte of the mp4 in the tar", "B"),
        _field("media_size", pa.int64(), "bytes of the mp4", "B"),
        _field("thumbnail_offset", pa.int64(), "first byte of the JPEG thumbnail in the tar", "B"),
        _field("thumbnail_size", pa.int64(), "bytes of the thumbnail", "B"),
        _field("gate", pa.string(), "the gate that stopped the clip before the later stages, if any"),
        # Of the global fit to the flow, beside the score (camera LoRAs are trained on these).
        _field("flow_dx", pa.float32(), "mean horizontal flow", "px of the 16-px field per 0.5 s"),
        _field("flow_dy", pa.float32(), "mean vertical flow", "px of the 16-px field per 0.5 s"),
        _field("flow_divergence", pa.float32(), "divergence of the global fit", "1 per 0.5 s"),
        _field("flow_curl", pa.float32(), "curl of the global fit", "1 per 0.5 s"),
        _field("flow_residual", pa.float32(), "mean flow left after the global fit", "px of the 16-px field per 0.5 s"),
        *[field for each in SCORES for field in each.fields()],
        _field("crop_left", pa.float32(), "left edge of the picture inside its bars", "share of the width"),
        _field("crop_top", pa.float32(), "top edge of the picture inside its bars", "share of the height"),
        _field("crop_right", pa.float32(), "right edge of the picture inside its bars", "share of the width"),
        _field("crop_bottom", pa.float32(), "bottom edge of the picture inside its bars", "share of the height"),
        *[
            field
            for kind, doc in (
                ("spatial", "caption of the middle frame"),
                ("temporal", "caption of the whole clip"),
                ("merged", "both captions in one"),
            )
            for field in (
                _field(f"caption_{kind}", pa.string(), doc),
                _field(f"caption_{kind}_error", pa.string(), f"why there is no {kind} caption"),
                _field(f"caption_{kind}_model", pa.string(), f"what wrote the {kind} caption"),
            )
        ],
        _field("merge_fallback", pa.string(), "why the merged caption is one of the two; null if it was merged"),
        _field(
            "embedding", pa.list_(pa.float16()), "image embeddings of first, middle and last frame, one after another"
        ),
        _field("embedding_error", pa.string(), "why there is no embedding"),
        _field("embedding_model", pa.string(), "what made the embeddings"),
        _field("duplicate_of", pa.string(), "clip_id of the clip that is kept instead of this one"),
    ]
)

SOURCES: pa.Schema = _table(
    [
        _field("source_id", pa.string(), "hash of the content; null when it could not be read"),
        _field("source_uri", pa.string(), "where it was read from"),
        _field("status", pa.string(), "ok, failed or duplicate"),
        _field("reason", pa.string(), "stable slug of why it failed"),
        _field("message", pa.string(), "the reason for a person"),
        _field("duplicate_of", pa.string(), "uri of the source with the same content that was curated"),
        _field("size_bytes", pa.int64(), "", "B"),
        _field("container", pa.string(), ""),
        _field("codec", pa.string(), ""),
        _field("width", pa.int32(), "shown width", "px"),
        _field("height", pa.int32(), "shown height", "px"),
        _field("rate_fps", pa.float32(), "nominal frame rate", "1/s"),
        _field("frames", pa.int64(), ""),
        _field("duration_s", pa.float64(), "seconds in", "s"),
        _field("hard_cuts", pa.int32(), ""),
        _field("gradual_cuts", pa.int32(), ""),
        _field("clips", pa.int32(), "candidate clips"),
        _field("kept_s", pa.float64(), "seconds in candidate clips", "s"),
        _field("lost_transition_s", pa.float64(), "inside gradual transitions", "s"),
        _field("lost_short_s", pa.float64(), "in shots below the minimum length", "s"),
        _field("lost_keyframe_s", pa.float64(), "between a cut and the key frame it was snapped to", "s"),
        _field("lost_error_s", pa.float64(), "in clips that could not be written or decoded", "s"),
        _field("probe_s", pa.float64(), "processor time of fetching and probing", "s"),
        _field("cuts_s", pa.float64(), "processor time of cut detection", "s"),
        _field("clips_s", pa.float64(), "processor time of clipping", "s"),
        _field("scores_s", pa.float64(), "processor time of the frame scores", "s"),
        _field("flow_s", pa.float64(), "processor time of learned flow; null where it was off", "s"),
        _field("images_s", pa.float64(), "processor time of the models of frames; null where they were off", "s"),
        _field("captions_s", pa.float64(), "processor time of captions; null where they were off", "s"),
        _field("text_s", pa.float64(), "processor time of text detection; null where it was off", "s"),
    ]
)
