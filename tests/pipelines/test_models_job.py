"""Jobs with models: the offline profile with packaged weights, the paper profile on small checkpoints; every column."""

import itertools
import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
import webdataset

from curation import presets, schema
from curation.compat import ensure_torchvision
from model.data.shards import CAPTION_COLUMNS
from pipelines.curate import curate
from pipelines.dataset import Dataset
from pipelines.decide import decide, open_scores
from pipelines.spec import Spec, parse_spec
from tests.curation import tiny_language_model, tiny_open_clip, tiny_video_blip
from tests.media import film

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(900),  # wall seconds on a busy machine
]

MEASURED = {"motion.coarse", "camera", "text_area", "watermark", "near_duplicate", "black", "frozen", "picture_area"}


def write(path: Path, frames: list[np.ndarray], size: tuple[int, int]) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for frame in frames:
            picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shots, one of them a second time, smaller; and one film too small for every model."""
    folder = tmp_path_factory.mktemp("models") / "films"
    folder.mkdir()
    frames = {}
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        with av.open(str(film(name))) as container:
            frames[name] = [each.to_ndarray(format="rgb24") for each in itertools.islice(container.decode(video=0), 62)]
    street, car = frames.values()
    write(folder / "a.mp4", street[40:62], (640, 272))
    write(folder / "b.mp4", street[41:61], (448, 192))
    write(folder / "c.mp4", car[:22], (352, 288))
    write(folder / "tiny.mp4", street[40:62], (16, 16))
    return folder


def job(films: list[Path], out: Path, models: dict[str, Any], text: str) -> Spec:
    data: dict[str, Any] = {"input": {"uris": [str(path) for path in films]}, "output": str(out), "models": models}
    data |= {"scores": {"text": text}, "clips": {"min": "0.5 s", "max": "2 s"}}
    return parse_spec(data, "test")


def by_name(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row["source_uri"].rpartition("/")[2]: row for row in dataset.clips().to_pylist()}


def assert_every_column(dataset: Dataset, scores: set[str], captions: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Each of the scores is a value or an error with its model, in every row, and has its place in the report."""
    for row in dataset.clips().to_pylist():
        for column in {schema.score(name).column for name in scores} | {f"caption_{kind}" for kind in captions}:
            assert (row[column] is None) != (row[f"{column}_error"] is None), column
            assert row[f"{column}_model"], column
    page = (dataset.storage.local("report.html")).read_text()
    for name in scores:
        assert f"<h3>{name}</h3>" in page, name
    for kind in captions:
        rows = dataset.clips().to_pylist()
        if any(row[f"caption_{kind}"] for row in rows):
            assert f"<h2>Captions: {kind}</h2>" in page
            assert f"have one, by {rows[0][f'caption_{kind}_model']}" in page
        if any(row[f"caption_{kind}_error"] for row in rows):
            assert f"<td>caption.{kind}</td>" in page
    for row in dataset.clips().to_pylist() if "merged" in captions else ():
        assert row["merge_fallback"] is None or f"unmerged ({row['merge_fallback']} 1" in page
    unmeasured = {score.name for score in schema.SCORES} - scores
    assert not [name for name in unmeasured if f"<h3>{name}</h3>" in page]


def test_the_offline_profile_fills_every_column_that_it_has_a_model_for(films: Path, tmp_path: Path) -> None:
    dataset = curate(job([films], tmp_path / "out", {"profile": "offline"}, "ppocr"))
    assert_every_column(dataset, MEASURED | {"motion.flow", "niqe", "nsfw"})
    rows = by_name(dataset)
    assert rows["a.mp4"]["motion_flow_model"] == "rife_4_0"
    assert rows["a.mp4"]["motion_flow"] > 0.1
    assert len(rows["a.mp4"]["niqe"]) == 3
    for column in ("motion_flow", "niqe", "nsfw", "near_duplicate", "embedding", "motion_coarse", "text_area"):
        assert rows["tiny.mp4"][f"{column}_error"] == "too_small", column
    longer, copy = rows["a.mp4"], rows["b.mp4"]
    assert (longer["duplicate_of"], copy["duplicate_of"]) == (None, longer["clip_id"])
    assert longer["near_duplicate"] < 0.93 <= copy["near_duplicate"]
    assert rows["c.mp4"]["duplicate_of"] is None
    spent = dataset.sources().to_pylist()
    assert all(row["flow_s"] > 0 and row["images_s"] > 0 and row["text_s"] > 0 for row in spent)
    kept = decide(dataset, {"near_duplicate": {"max": 0.93, "on_error": "keep"}}, "unlike")
    assert kept["clips"] == {"candidates": 4, "kept": 3, "dropped": 1}
    _, left_out = presets.fitted("paper", open_scores(dataset))
    assert left_out == ["aesthetic", "similarity"]  # NIQE is not what the paper means, and there are no captions
    assert presets.fitted("offline", open_scores(dataset))[1] == []


def test_the_paper_profile_runs_on_small_checkpoints(films: Path, tmp_path: Path) -> None:
    ensure_torchvision()
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
    torch.save({"weight": torch.randn(1, 48), "bias": torch.ones(1)}, tmp_path / "head.pth")
    roles = {
        "flow": {"implementation": "raft_small", "weights": str(tmp_path / "raft.pth"), "batch": 1},
        "similarity": str(tiny_open_clip.folder(tmp_path / "clip", tiny_open_clip.CLIP)),
        "aesthetic": str(tmp_path / "head.pth"),
        "caption_spatial": str(tiny_open_clip.folder(tmp_path / "coca", tiny_open_clip.COCA)),
        "caption_temporal": str(tiny_video_blip.folder(tmp_path / "videoblip", "opt")),
        "caption_merge": str(tiny_language_model.folder(tmp_path / "llm")),
    }
    spec = job([films / "a.mp4", films / "tiny.mp4"], tmp_path / "out", {"profile": "paper", "roles": roles}, "ppocr")
    dataset = curate(spec)
    scores = {"motion.flow", "aesthetic", "nsfw", "similarity", "similarity.spatial", "similarity.temporal"}
    assert_every_column(dataset, MEASURED | scores, {"spatial", "temporal", "merged"})
    rows = by_name(dataset)
    row, tiny = rows["a.mp4"], rows["tiny.mp4"]
    for column, name in {
        "motion_flow": "raft_small@local-",
        "embedding": "clip_vit_l14_openai@local-",
        "aesthetic": "laion_linear_vit_l14@local-",
        "caption_spatial": "coca_vit_l14@local-",
        "caption_temporal": "videoblip_opt_2_7b@local-",
        "caption_merged": "qwen2_5_1_5b@local-",
    }.items():
        assert row[f"{column}_model"].startswith(name)
    assert len(row["embedding"]) == 3 * 48
    vectors = np.array(row["embedding"], np.float32).reshape(3, 48)
    head = torch.load(tmp_path / "head.pth", weights_only=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert row["aesthetic"] == pytest.approx((vectors @ head["weight"].numpy().T + 1)[:, 0], abs=5e-3)
    assert presets.fitted("paper", open_scores(dataset))[1] == []
    captions = [row[column] for column in CAPTION_COLUMNS.values()]
    assert any(captions)
    assert (tiny["caption_spatial_error"], tiny["embedding_error"]) == ("too_small", "too_small")
    assert tiny["similarity_error"] == "no_caption"
    shard = str(dataset.storage.local("shards/default/000000.tar"))
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(shard, shardshuffle=False)}
    sample = samples[row["clip_id"]]
    assert sample["txt"].decode() == next(text for text in captions[2:] + captions[:2] if text)
    written = json.loads(sample["json"])
    assert [written[column] for column in CAPTION_COLUMNS.values()] == captions
    assert "embedding" not in written
