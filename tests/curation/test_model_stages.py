"""Model stages: columns for good clips, a reason for each bad one, and models wired with real packaged weights."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
import tiny_open_clip
from camera_moves import film_frames

from curation.captions import CocaCaptioner
from curation.clip_frames import sample_clip
from curation.conse import ConseSimilarity
from curation.errors import CannotDecode, CannotScore
from curation.flaws import flaw_columns
from curation.model_stages import CaptionStage, FlowStage, ImageStage
from curation.niqe import NiqeQuality
from curation.nsfw import OpenNsfw
from curation.rife import RifeMotion
from curation.schema import CLIPS
from curation.segment import FinishedClip
from curation.stages import run
from curation.watermark import watermark_columns


def mp4(frames: np.ndarray, rate: int = 25) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shot() -> np.ndarray:
    return film_frames("bikes.mp4", 75)[30:75]


@pytest.fixture(scope="module")
def shot_bytes(shot: np.ndarray) -> bytes:
    return mp4(shot)


def clip(data: bytes, frames: np.ndarray, **row: Any) -> FinishedClip:
    chosen = [frames[0], frames[len(frames) // 2], frames[-1]] if len(frames) else []
    return FinishedClip({"clip_id": "x", "duration_s": max(1, len(frames)) / 25, **row}, data, b"", chosen)


@pytest.fixture
def clips(shot: np.ndarray, shot_bytes: bytes) -> list[FinishedClip]:
    """Good, undecodable without frames, one frame, tiny, stopped by a gate."""
    tiny = np.zeros((30, 16, 16, 3), np.uint8)
    return [
        clip(shot_bytes, shot),
        clip(b"not a film", shot[:0]),
        clip(mp4(shot[:1]), shot[:1]),
        clip(mp4(tiny), tiny),
        clip(shot_bytes, shot, gate="motion.coarse"),
    ]


def assert_one_of_value_and_error(row: dict[str, Any], column: str) -> None:
    assert (row.get(column) is None) != (row.get(f"{column}_error") is None)
    assert row[f"{column}_model"]


def test_sampling_a_clip_gives_times_and_size(shot_bytes: bytes) -> None:
    frames, times = sample_clip(shot_bytes, 2.0, 96)
    assert frames.shape[1] == 96
    assert np.diff(times)[:-1] == pytest.approx(0.5, abs=0.03)  # the last one is what is left
    with pytest.raises(CannotDecode):
        sample_clip(b"not a film", 2.0, 96)


def test_flow_stage_scores_good_clips_and_says_why_not_the_others(clips: list[FinishedClip]) -> None:
    run(FlowStage(RifeMotion()), clips)
    good, undecodable, one_frame, tiny, gated = (each.row for each in clips)
    assert good["motion_flow"] > 0.05
    assert "motion_flow_error" not in good
    assert undecodable["motion_flow_error"] == "not_a_video"
    assert one_frame["motion_flow_error"] == "too_short"
    assert tiny["motion_flow_error"] == "too_small"
    assert "motion_flow_model" not in gated
    for row in (good, undecodable, one_frame, tiny):
        assert_one_of_value_and_error(row, "motion_flow")


def test_flow_stage_takes_the_small_frames_that_travel_where_they_are_large_enough(
    shot: np.ndarray, shot_bytes: bytes
) -> None:
    decoded, travelling, smaller = (clip(shot_bytes, shot) for _ in range(3))
    travelling.data = b"not a film"
    travelling.small = sample_clip(shot_bytes, 2.0, 128)
    smaller.small = sample_clip(shot_bytes, 2.0, 64)
    run(FlowStage(RifeMotion()), [decoded, travelling, smaller])
    assert travelling.row["motion_flow"] == pytest.approx(decoded.row["motion_flow"])
    assert smaller.row["motion_flow"] == pytest.approx(decoded.row["motion_flow"])


def test_flaws_are_columns_with_a_value_or_a_reason(shot: np.ndarray) -> None:
    good = flaw_columns(shot[::12], np.full(len(shot[::12]), 0.5))
    assert (good["black"], good["frozen"], good["picture_area"], good["crop_right"]) == (0.0, 0.0, 1.0, 1.0)
    short, none = flaw_columns(shot[:1], np.full(1, 0.5)), flaw_columns(shot[:0], np.zeros(0))
    assert short["frozen_error"] == "too_short"
    assert none["black_error"] == "no_frames"
    for columns in (good, short, none):
        for name in ("black", "frozen", "picture_area"):
            assert_one_of_value_and_error(columns, name)


def test_image_stage_scores_good_clips_and_says_why_not_the_others(
    clips: list[FinishedClip], conse: ConseSimilarity
) -> None:
    run(ImageStage(similarity=conse, aesthetic=NiqeQuality(), nsfw=OpenNsfw()), clips)
    good, undecodable, _, tiny, gated = (each.row for each in clips)
    assert len(good["embedding"]) == 3 * 384
    assert len(good["nsfw"]) == len(good["niqe"]) == 3
    assert undecodable["nsfw_error"] == undecodable["niqe_error"] == undecodable["embedding_error"] == "no_frames"
    assert tiny["nsfw_error"] == tiny["embedding_error"] == "too_small"
    assert tiny.get("embedding") is None
    assert "aesthetic" not in good  # NIQE is not what a rule on aesthetics means
    assert "nsfw_model" not in gated


def test_what_is_not_finite_is_an_error_and_no_value(clips: list[FinishedClip]) -> None:
    class Overflowing:
        name, takes, score_name = "overflowing", "frames", "aesthetic"

        def embed_images(self, frames: list[np.ndarray]) -> np.ndarray:
            return np.full((len(frames), 2), np.nan, np.float32)

        def score(self, frames: list[np.ndarray]) -> np.ndarray:
            return np.full(len(frames), np.inf, np.float32)

    run(ImageStage(similarity=Overflowing(), aesthetic=Overflowing()), clips)
    for column in ("embedding", "aesthetic"):
        assert_one_of_value_and_error(clips[0].row, column)
        assert clips[0].row[f"{column}_error"] == "non_finite"


def test_watermark_columns_are_a_value_or_a_reason(shot: np.ndarray) -> None:
    frames = [shot[0], shot[22], shot[44]]
    box = np.array([[20, 20], [120, 20], [120, 50], [20, 50]], np.float32)
    assert watermark_columns(frames, [[], [], []]) == {"watermark": 0.0}
    assert watermark_columns(frames[:1], [[box]]) == {"watermark_error": "too_short"}
    assert watermark_columns([shot[0]] * 3, [[box]] * 3) == {"watermark_error": "still"}


def test_an_embedding_head_needs_embeddings() -> None:
    class Head:
        takes, name = "embeddings", "head"

    with pytest.raises(ValueError, match="needs a similarity model"):
        ImageStage(aesthetic=Head())


class Scripted:
    """A temporal captioner and a merger that answer what the test says."""

    name, frame_count, frame_short_side_px = "scripted", 4, 64

    def caption(self, clips: list[list[np.ndarray]]) -> list[str | CannotScore]:
        return ["a person walks past bicycles" if len(c) > 1 else CannotScore("too_short", "") for c in clips]


def test_caption_stage_captions_and_compares(clips: list[FinishedClip], conse: ConseSimilarity, tmp_path: Path) -> None:
    coca = CocaCaptioner(weights=[tiny_open_clip.folder(tmp_path / "coca", tiny_open_clip.COCA)], max_tokens=7)
    run(CaptionStage(spatial=coca, temporal=Scripted()), clips)
    run(ImageStage(similarity=conse, captions=["spatial", "temporal"]), clips)
    good, undecodable, one_frame, tiny, gated = (each.row for each in clips)
    for row in (good, undecodable, one_frame, tiny):
        assert_one_of_value_and_error(row, "caption_spatial")
        assert_one_of_value_and_error(row, "caption_temporal")
    assert good["caption_temporal"] == "a person walks past bicycles"
    expected = conse.embed_images(clips[0].frames) @ conse.embed_texts([good["caption_temporal"]])[0]
    assert good["similarity_temporal"] == pytest.approx(expected, abs=1e-6)
    assert good["similarity"] == good["similarity_spatial" if "caption_spatial" in good else "similarity_temporal"]
    assert undecodable["similarity_temporal_error"] == undecodable["similarity_error"] == "no_caption"
    assert tiny["caption_spatial_error"] == "too_small"
    assert "caption_spatial_model" not in gated


def test_the_columns_can_be_stored(clips: list[FinishedClip], conse: ConseSimilarity) -> None:
    run(CaptionStage(temporal=Scripted()), clips)
    run(ImageStage(similarity=conse, nsfw=OpenNsfw(), captions=["temporal"]), clips)
    table = pa.Table.from_pylist([each.row for each in clips], schema=CLIPS)
    assert table["embedding"][0].as_py() == clips[0].row["embedding"]
    for each in clips:
        assert set(each.row) <= set(CLIPS.names)
