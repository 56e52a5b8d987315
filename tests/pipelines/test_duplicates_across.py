"""Near-duplicates of a dataset: the same columns whether its sources came at once or one after another."""

from pathlib import Path
from typing import Any

import numpy as np

from curation.segment import FinishedClip, Segment, write_segment
from pipelines.commit import Committer, compact
from pipelines.dataset import Dataset
from pipelines.duplicates import near_duplicates_of
from pipelines.spec import Spec, parse_spec

MODEL = "conse_test"
SOURCES = [f"{k:032x}" for k in range(4)]


def job(**models: Any) -> Spec:
    return parse_spec({"input": {"uris": ["x"]}, "models": {"roles": {"similarity": "conse"}} | models}, "test")


def clip(source: str, k: int) -> FinishedClip:
    """Clip 0 of every source shows the same, a little different each time; clip 1 could not be embedded."""
    common, own = (np.random.default_rng(seed).normal(size=(3, 8)) for seed in (0, int(source, 16) + 1))
    row = {"clip_id": f"{source}-{k}", "source_id": source, "source_uri": f"/films/{source}", "start_pts": k}
    row |= {"duration_s": 2.0 + int(source, 16), "embedding_model": MODEL}
    if k == 1:
        row["embedding_error"] = "too_small"
    else:
        values = common + 0.05 * own if k == 0 else own
        row["embedding"] = values.astype(np.float16).ravel().tolist()
    return FinishedClip(row, b"mp4", b"")


def work(root: Path, sources: list[str], spec: Spec) -> Dataset:
    """A job whose sources are these, in miniature."""
    dataset = Dataset(root)
    committer = Committer(dataset)
    for source in sources:
        if source not in dataset.committed_ids():
            write_segment(dataset.storage, Segment(source, 0, [clip(source, k) for k in range(3)]))
            row = {"source_id": source, "source_uri": f"/films/{source}", "status": "ok", "clips": 3}
            committer.report(row["source_uri"], row, 1)
            committer.receipt(row["source_uri"], 0, {"images_s": 1.0})
    committer.flush()
    compact(dataset, near_duplicates_of(spec, dataset))
    return dataset


def stored(dataset: Dataset) -> bytes:
    return dataset.storage.read("clips/part-00000.parquet")


def test_the_longest_of_alike_clips_is_kept_across_sources(tmp_path: Path) -> None:
    dataset = work(tmp_path, SOURCES, job())
    rows = {row["clip_id"]: row for row in dataset.clips().to_pylist()}
    for source in SOURCES:
        alike, failed, other = (rows[f"{source}-{k}"] for k in range(3))
        assert {row["near_duplicate_model"] for row in (alike, failed, other)} == {MODEL}
        assert (failed["near_duplicate"], failed["near_duplicate_error"]) == (None, "too_small")
        assert (other["duplicate_of"], other["near_duplicate_error"]) == (None, None)
        assert other["near_duplicate"] < 0.93
        if source == SOURCES[-1]:
            assert alike["duplicate_of"] is None
        else:
            assert alike["duplicate_of"] == f"{SOURCES[-1]}-0"
            assert alike["near_duplicate"] > 0.93
    assert dataset.sources()["images_s"].to_pylist() == [1.0] * 4


def test_sources_that_come_later_give_the_same_dataset(tmp_path: Path) -> None:
    spec = job()
    whole = stored(work(tmp_path / "whole", SOURCES, spec))
    first = work(tmp_path / "grown", SOURCES[:2], spec)
    kept = first.clips(["clip_id", "duplicate_of"]).to_pylist()
    assert kept[0]["duplicate_of"] == f"{SOURCES[1]}-0"
    assert stored(work(tmp_path / "grown", SOURCES, spec)) == whole
    assert stored(work(tmp_path / "grown", SOURCES, spec)) == whole  # nothing new: nothing is compared again


def test_a_job_without_it_leaves_the_columns_empty(tmp_path: Path) -> None:
    for name, spec in {"off": job(near_duplicates=False), "none": parse_spec({"input": {"uris": ["x"]}}, "x")}.items():
        clips = work(tmp_path / name, SOURCES[:2], spec).clips()
        assert clips["near_duplicate_model"].null_count == clips.num_rows
