"""The whole job on Ray: bad sources, crashes, hangs, kills, object stores; always one row per source, nothing twice."""

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pytest
import ray
import webdataset

import pipelines.graph
from pipelines.commit import seconds_close, without_timings
from pipelines.curate import JobFailed, curate
from pipelines.dataset import Dataset
from pipelines.live import Progress
from pipelines.preflight import Pool
from pipelines.spec import Spec, parse_spec
from tests.bad_media import EXPECTED, write_bad_films
from tests.media import film
from tests.pipelines.conftest import Cluster
from workers.source import SourceActor

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(900),  # wall seconds on a busy machine
]


def job(folder: Path | str, out: Path | str, **changes: Any) -> Spec:
    data: dict[str, Any] = {"input": {"uris": [str(folder)]}, "output": str(out), "scores": {"text": "off"}}
    return parse_spec(data | {"clips": {"min": "1 s", "max": "4 s"}} | changes, "test")


def rows(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row["source_uri"].rpartition("/")[2]: row for row in dataset.sources().to_pylist()}


def content(dataset: Dataset) -> dict[str, Any]:
    """Everything of a dataset that must not depend on how the job went."""
    root = dataset.storage.local()
    files: dict[str, Any] = {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] in ("clips", "media", "shards", "decisions")
    }
    files["sources/"] = dataset.part_files("sources")
    files["sources"] = without_timings(dataset.sources())
    return files


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bad_films(tmp_path_factory.mktemp("job") / "films")


@pytest.fixture(scope="session")
def finished(films: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: object) -> Dataset:
    """A job over good and bad films, undisturbed."""
    return curate(job(films, tmp_path_factory.mktemp("job") / "out"))


def test_every_source_is_one_row_and_the_seconds_add_up(finished: Dataset, films: Path) -> None:
    expected = EXPECTED | {"good.mp4": ("duplicate", "duplicate"), "copy-of-good.mp4": ("ok", None)}
    found = rows(finished)
    assert {path.name for path in films.iterdir()} == found.keys()
    for name, outcome in expected.items():
        assert (found[name]["status"], found[name]["reason"]) == outcome, found[name]["message"]
    assert found["good.mp4"]["duplicate_of"] == str(films / "copy-of-good.mp4")
    assert seconds_close(finished.sources())
    clips = finished.clips()
    for row in found.values():
        mine = clips.filter(pa.compute.equal(clips["source_uri"], row["source_uri"])).to_pylist()
        assert len(mine) == row["clips"]
        assert sum(clip["duration_s"] for clip in mine) == pytest.approx(row["kept_s"], abs=1e-6)


def test_the_shards_open_in_plain_webdataset_and_every_clip_plays(finished: Dataset) -> None:
    shards = sorted(str(path) for path in (finished.storage.local("shards/default")).glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert {sample["__key__"] for sample in samples} == set(finished.clips()["clip_id"].to_pylist())
    for sample in samples:
        with av.open(io.BytesIO(sample["mp4"])) as container:
            assert next(container.decode(video=0)).pts == 0


def test_media_members_are_addressable_by_offset(finished: Dataset) -> None:
    for row in finished.clips().to_pylist():
        with tarfile.open(finished.storage.local("media") / row["media_file"]) as tar:
            member = tar.getmember(f"{row['clip_id']}.mp4")
            assert (member.offset_data, member.size) == (row["media_offset"], row["media_size"])
            thumbnail = tar.getmember(f"{row['clip_id']}.jpg")
            assert (thumbnail.offset_data, thumbnail.size) == (row["thumbnail_offset"], row["thumbnail_size"])


def test_a_job_interrupted_and_continued_gives_the_same_dataset(finished: Dataset, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(progress: Progress) -> None:
        if progress.clips >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(job(films, out), show=interrupt)
    assert not (out / "report.html").exists()
    assert content(curate(job(films, out))) == content(finished)


def test_a_finished_job_run_again_does_no_work(finished: Dataset, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(finished)

    def work(*_: Any) -> None:
        raise AssertionError("a source was curated again")

    monkeypatch.setattr(pipelines.graph, "run", work)
    assert content(curate(job(films, finished.storage.root))) == before


def test_a_process_that_is_killed_can_be_continued(
    finished: Dataset, films: Path, tmp_path: Path, ray_cluster: Cluster
) -> None:
    """SIGKILL to the command, from outside, in the middle of the work."""
    out = tmp_path / "out"
    arguments = ["curate", str(films), "-o", str(out), "--address", ray_cluster.address]
    for change in ("clips.min=1 s", "clips.max=4 s", "scores.text=off"):
        arguments += ["--set", change]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 200
            while not list(out.glob("clips/part-*.parquet")):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert not (out / "report.html").exists()
    assert content(curate(job(films, out))) == content(finished)


class FragileActor(SourceActor):
    """Dies of some sources and hangs on others, as native decoders do."""

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        uri = batch["uri"][0].as_py()
        mark = Path(uri + ".tried")
        if "kills-always" in uri or ("kills-once" in uri and not mark.exists()):
            mark.write_text("")
            os._exit(11)
        return super().__call__(batch)

    def _messages(self, uri: str) -> Iterator[pa.Table]:
        if "hangs" in uri:
            yield from list(super()._messages(uri))[:1]  # a segment gets out first
            time.sleep(3600)
        yield from super()._messages(uri)


def test_sources_that_kill_or_hang_their_process_cost_only_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(pipelines.graph, "SourceActor", FragileActor)
    for number, name in enumerate(["a-kills-always", "b-good", "c-hangs", "d-kills-once", "e-good"]):
        # One more byte each, after the film, so that they are not duplicates.
        (tmp_path / f"{name}.mp4").write_bytes(film("bikes.mp4").read_bytes() + b"\0" * (8 + number))
    dataset = curate(job(tmp_path, tmp_path / "out", resources={"attempts": 2, "timeout": "30 s"}))
    outcomes = {name: (row["status"], row["reason"]) for name, row in rows(dataset).items()}
    assert outcomes == {
        "a-kills-always.mp4": ("failed", "crashed"),
        "b-good.mp4": ("ok", None),
        "c-hangs.mp4": ("failed", "timeout"),
        "d-kills-once.mp4": ("ok", None),
        "e-good.mp4": ("ok", None),
    }
    assert rows(dataset)["a-kills-always.mp4"]["message"] == "the worker process died 2 times on this source"
    assert seconds_close(dataset.sources())
    clips = dataset.clips()["clip_id"].to_pylist()
    assert len(clips) == len(set(clips)) == sum(row["clips"] for row in rows(dataset).values())
    stems = {path.name.split("-")[1] for path in (tmp_path / "out" / "media").iterdir()}
    assert stems == dataset.committed_ids()  # the hung source's segment is gone


class SlowActor:
    """A stage that marks whose process has worked, and is at it until a second one works, too."""

    def __init__(self, folder: str, *_: Any) -> None:
        self._folder = Path(folder)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        (self._folder / str(os.getpid())).touch()
        patience = time.monotonic() + 60
        while len(list(self._folder.iterdir())) < 2 and time.monotonic() < patience:
            time.sleep(0.1)
        yield batch


def test_a_pool_grows_where_work_waits_and_the_dataset_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    (tmp_path / "films").mkdir()
    for number in range(6):
        (tmp_path / "films" / f"{number}.mp4").write_bytes(film("bikes.mp4").read_bytes() + b"\0" * (8 + number))
    plain = curate(job(tmp_path / "films", tmp_path / "plain"))
    (tmp_path / "workers").mkdir()
    slow = Pool(1, 0.3, between=(1, 3))
    monkeypatch.setattr(pipelines.graph, "_scoring", lambda *_: [(SlowActor, (str(tmp_path / "workers"),), slow)])
    resources = {"source_actors": 1, "source_cpus": 0.5, "cpus": 2}
    grown = curate(job(tmp_path / "films", tmp_path / "grown", resources=resources))
    assert 2 <= len(list((tmp_path / "workers").iterdir())) <= 3
    assert content(grown) == content(plain)


def test_text_is_scored_and_gated_clips_are_not(tmp_path: Path) -> None:
    (tmp_path / "bikes.mp4").write_bytes(film("bikes.mp4").read_bytes())
    text = {"implementation": "ppocr", "cpus": 0.5}
    plain = curate(job(tmp_path / "bikes.mp4", tmp_path / "plain", scores={"text": text})).clips().to_pylist()
    bound = sorted(row["motion_coarse"] for row in plain)[len(plain) // 2]
    gates = {"motion.coarse": {"min": bound}}
    spec = job(tmp_path / "bikes.mp4", tmp_path / "gated", scores={"text": text}, gates=gates)
    gated = curate(spec).clips().to_pylist()
    assert [row["clip_id"] for row in gated] == [row["clip_id"] for row in plain]
    for before, after in zip(plain, gated, strict=True):
        assert before["gate"] is None
        assert len(before["text_area"]) == 3
        assert before["text_area_model"]
        assert after["motion_coarse"] == before["motion_coarse"]
        if before["motion_coarse"] < bound:
            assert (after["gate"], after["text_area"], after["text_area_model"]) == ("motion.coarse", None, None)
        else:
            assert (after["gate"], after["text_area"]) == (None, before["text_area"])
    assert {row["gate"] for row in gated} == {None, "motion.coarse"}


def test_object_stores_are_inputs_and_outputs(s3: Any, finished: Dataset, films: Path) -> None:
    for name in ("good.mp4", "text.mp4", "also-good.mp4"):
        s3.put_file(str(films / name), f"films/in/{name}")
    spec = job("s3://films/in", "s3://films/out")
    dataset = curate(spec)
    found = rows(dataset)
    assert {name: row["status"] for name, row in found.items()} == {
        "good.mp4": "ok", "text.mp4": "failed", "also-good.mp4": "ok",
    }  # fmt: skip
    local = {row["clip_id"]: row for row in finished.clips().to_pylist()}
    clips = dataset.clips().to_pylist()
    assert {row["clip_id"] for row in clips} <= local.keys()
    for row in clips:  # the same clips, byte by byte, as from a local folder
        assert dataset.clip_bytes(row) == finished.clip_bytes(local[row["clip_id"]])
    assert s3.exists("films/out/report.html")
    assert s3.exists("films/out/shards/default/000000.tar")
    listing = s3.find("films/out")
    curate(spec)
    s3.invalidate_cache()
    assert s3.find("films/out") == listing


def test_a_dataset_that_cannot_be_written_to_stops_the_job(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "media").mkdir(parents=True)
    spec = job(films, out)
    (out / "job.yaml").write_text(spec.as_yaml())
    (out / "media").rmdir()
    (out / "media").write_text("a file where a folder should be")
    with pytest.raises(JobFailed, match=f"cannot write to {out}"):
        curate(spec)
