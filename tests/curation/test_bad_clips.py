"""Clips that a model cannot take, for every model of the registry: an error in the row, never a number; and a GPU whose
memory is too small for the batch.

A new implementation fails here until it has a line in STAGES.
"""

import copy
import io
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import tiny_language_model
import tiny_open_clip
import tiny_video_blip
import torch
from camera_moves import film_frames

from curation.batching import Batches
from curation.compat import ensure_torchvision
from curation.errors import CannotScore
from curation.implementations import IMPLEMENTATIONS
from curation.model_stages import CaptionStage, FlowStage, ImageStage
from curation.registry import choose, load
from curation.segment import FinishedClip
from curation.stages import Stage, run
from curation.text_stage import TextStage

FRAMES = 20  # at 25 fps: three at 2 fps


def play(role: str, name: str, weights: Path | None = None) -> Any:
    wanted = {"implementation": name} | ({} if weights is None else {"weights": str(weights)})
    return load(choose("off", {role: wanted})[role])


@pytest.fixture(autouse=True)
def _small_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAFT brings every clip to one size; a ninth of it will do where no number is looked at."""
    monkeypatch.setattr("curation.raft.PIXELS", 128 * 300)


def raft(at: Path) -> Stage:
    ensure_torchvision()
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), at / "raft.pth")
    return FlowStage(play("flow", "raft_small", at / "raft.pth"))


def clip(at: Path) -> Any:
    return play("similarity", "clip_vit_l14_openai", tiny_open_clip.folder(at / "clip", tiny_open_clip.CLIP))


def coca(at: Path) -> Any:
    return play("caption_spatial", "coca_vit_l14", tiny_open_clip.folder(at / "coca", tiny_open_clip.COCA))


def video_blip(at: Path) -> Any:
    return play("caption_temporal", "videoblip_opt_2_7b", tiny_video_blip.folder(at / "videoblip", "opt"))


def aesthetic(at: Path) -> Stage:
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(1, 48), "bias": torch.ones(1)}, at / "head.pth")
    return ImageStage(similarity=clip(at), aesthetic=play("aesthetic", "laion_linear_vit_l14", at / "head.pth"))


class Writer:
    """A captioner of frames or of clips that can read and write, which small random checkpoints cannot."""

    name, frame_count, frame_short_side_px = "writer", 4, 64

    def __init__(self, words: str) -> None:
        self._words = words

    def caption(self, shown: Sequence[Any]) -> list[str | CannotScore]:
        return [self._words if min(np.shape(each)[-3:-1]) >= 32 else CannotScore("too_small", "") for each in shown]


def merged(at: Path) -> Stage:
    merger = play("caption_merge", "smollm2_135m", tiny_language_model.folder(at / "llm"))
    return CaptionStage(spatial=Writer("w1 w2 w3 w4"), temporal=Writer("w9 w8"), merge=merger)


STAGES: dict[str, Callable[[Path], Stage]] = {
    "curation.text_area:CraftTextArea": lambda at: TextStage(play("text", "craft")),
    "curation.text_area:PPOCRTextArea": lambda at: TextStage(play("text", "ppocr")),
    "curation.rife:RifeMotion": lambda at: FlowStage(play("flow", "rife")),
    "curation.raft:RaftMotion": raft,
    "curation.farneback_torch:FarnebackTorchMotion": lambda at: FlowStage(play("flow", "farneback_torch")),
    "curation.conse:ConseSimilarity": lambda at: ImageStage(similarity=play("similarity", "conse")),
    "curation.clip:ClipSimilarity": lambda at: ImageStage(similarity=clip(at)),
    "curation.niqe:NiqeQuality": lambda at: ImageStage(aesthetic=play("aesthetic", "niqe")),
    "curation.aesthetic:LaionAesthetic": aesthetic,
    "curation.nsfw:OpenNsfw": lambda at: ImageStage(nsfw=play("nsfw", "open_nsfw")),
    "curation.captions:CocaCaptioner": lambda at: CaptionStage(spatial=coca(at)),
    "curation.videoblip:VideoBlipCaptioner": lambda at: CaptionStage(temporal=video_blip(at)),
    "curation.caption_merge:CaptionMerger": merged,
}
EVERY = {each.loads: each for of_role in IMPLEMENTATIONS.values() for each in of_role.values()}

UNDECODABLE, STAMP, ONE_FRAME, STRIP = range(4)
REASONS: dict[str, dict[int, str]] = {
    "motion_flow": {UNDECODABLE: "not_a_video", STAMP: "too_small", ONE_FRAME: "too_short"},
    "caption_temporal": {UNDECODABLE: "not_a_video", STAMP: "too_small", ONE_FRAME: "too_short"},
    "caption_merged": {UNDECODABLE: "no_caption", STAMP: "no_caption"},
    "aesthetic": {UNDECODABLE: "no_embedding", STAMP: "no_embedding"},
    "watermark": {UNDECODABLE: "no_frames", STAMP: "too_small", ONE_FRAME: "too_short"},
    "niqe": {UNDECODABLE: "no_frames", STAMP: "too_small", STRIP: "too_small"},
}
"""Of the columns whose reasons are not those of all others, which look at single frames."""
OTHERS = {UNDECODABLE: "no_frames", STAMP: "too_small"}
SCRIBBLE = ("degenerate_caption", "empty_caption")
"""What small random checkpoints may write about any clip."""


def finished(frames: Sequence[np.ndarray]) -> FinishedClip:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    shown = [frames[k] for k in sorted({0, len(frames) // 2, len(frames) - 1})]
    return FinishedClip({"clip_id": "x", "duration_s": len(frames) / 25}, buffer.getvalue(), b"", shown)


@pytest.fixture(scope="module")
def shot() -> list[np.ndarray]:
    return list(film_frames("bikes.mp4", 40 + FRAMES)[40:])


def resized(shot: Sequence[np.ndarray], width: int, height: int) -> list[np.ndarray]:
    return [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in shot]


def test_every_model_of_the_registry_is_here() -> None:
    assert STAGES.keys() == EVERY.keys()


@pytest.mark.parametrize("loads", STAGES)
def test_what_a_model_cannot_take_is_an_error_and_never_a_number(
    loads: str, shot: list[np.ndarray], tmp_path: Path
) -> None:
    stage = STAGES[loads](tmp_path)
    undecodable = FinishedClip({"clip_id": "x", "duration_s": 1.0}, b"not a film", b"", [])
    clips = [
        undecodable,
        finished(resized(shot, 16, 16)),
        finished(resized(shot[:1], 480, 204)),
        finished(resized(shot, 256, 64)),
    ]
    good = finished(resized(shot, 480, 204))
    run(stage, [*clips, good])
    for column, model in stage.models.items():
        expected = REASONS.get(column, OTHERS)
        if model == "writer":
            expected = {UNDECODABLE: "no_frames" if column == "caption_spatial" else "not_a_video", STAMP: "too_small"}
        for k, each in enumerate([*clips, good]):
            value, error = each.row.get(column), each.row.get(f"{column}_error")
            assert (value is None) != (error is None), column
            assert error == expected.get(k) or error in SCRIBBLE, column
            assert each.row[f"{column}_model"] == model
            numbers = value if isinstance(value, list) else [value]
            assert all(math.isfinite(number) for number in numbers if isinstance(number, float)), column


@pytest.mark.parametrize("loads", [name for name, each in EVERY.items() if each.gpu and each.role != "aesthetic"])
def test_out_of_gpu_memory_halves_the_batch_says_so_and_changes_no_score(
    loads: str,
    shot: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = STAGES[loads](tmp_path)
    small = resized(shot, 240, 102)
    plenty = [finished(small), finished(small[:15])]
    scarce = copy.deepcopy(plenty)  # x264 does not give the same bytes twice
    run(stage, plenty)
    roomy = Batches.map

    def cramped(self: Batches, call: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        def one(batch: Sequence[Any]) -> Any:
            if len(batch) > 1:
                raise torch.cuda.OutOfMemoryError("no room")
            return call(batch)

        return roomy(self, one, items)

    monkeypatch.setattr(Batches, "map", cramped)
    with caplog.at_level(logging.WARNING, logger="curation"):
        run(stage, scarce)
    assert "out of GPU memory with a batch of" in caplog.text
    for one, other in zip(plenty, scarce, strict=True):
        assert one.row.keys() == other.row.keys()
        for name, value in one.row.items():
            same = other.row[name]
            assert value == same if isinstance(value, str | None) else np.allclose(value, same, atol=2e-3), name
