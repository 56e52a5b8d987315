"""Shards hold the kept clips, open in plain webdataset, come out the same every time, and are never half there."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import fsspec
import pyarrow.parquet as pq
import pytest
import webdataset

from model.training.config_file import parse_config
from model.training.stage_data import stage_data
from pipelines.dashboard.export_dialog import Cancelled, Export
from pipelines.dataset import Dataset
from pipelines.decide import DatasetError, decide
from pipelines.export import ERRORS, INDEX, Exported, export
from tests.synthetic import make_dataset

RULES: dict[str, Any] = {"motion.coarse": {"drop_lowest": "25%"}, "text_area": {"max": 0.2}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_dataset(tmp_path_factory.mktemp("export") / "data")
    decide(str(root), RULES, "default")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def content(root: Path, name: str = "default") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "shards" / name).iterdir())}


def kept(root: Path, name: str = "default") -> list[str]:
    rows = pq.read_table(root / f"decisions/{name}.parquet").to_pylist()
    return [row["clip_id"] for row in rows if row["keep"]]


def samples(root: Path, name: str = "default") -> Iterator[dict[str, Any]]:
    urls = [str(path) for path in sorted((root / "shards" / name).glob("*.tar"))]
    yield from webdataset.WebDataset(urls, shardshuffle=False).decode()


def test_webdataset_opens_the_shards_and_gives_every_kept_clip_once(root: Path) -> None:
    summary = export(str(root), "default", shard_clips=7)
    found = list(samples(root))
    assert [sample["__key__"] for sample in found] == kept(root)
    assert len(summary["shardlist"]) == -(-len(found) // 7) > 1
    assert summary["clips"] == len(found) > 7
    for sample in found:
        assert {"mp4", "json", "txt"} <= sample.keys()
        assert sample["txt"] == ""  # no caption: there all the same, so that to_tuple works
        with av.open(io.BytesIO(sample["mp4"])) as film:
            assert sum(1 for _ in film.decode(video=0)) == 6


def test_the_json_member_is_the_clips_row_without_pointers_into_the_media(root: Path) -> None:
    export(str(root), "default")
    rows = {row["clip_id"]: row for row in Dataset(root).clips().to_pylist()}
    for sample in samples(root):
        row, meta = rows[sample["__key__"]], sample["json"]
        assert meta["motion_coarse"] == pytest.approx(row["motion_coarse"])
        assert meta["rate_fps"] == 24.0
        assert meta["decision"] == "default"
        assert not {"media_file", "media_offset", "thumbnail_size", "place"} & meta.keys()


def test_captions_of_every_kind_reach_the_trainer(tmp_path: Path) -> None:
    def captioned(i: int, row: dict[str, Any]) -> None:
        row |= {f"caption_{kind}": f"{kind} {i}" for kind in ("spatial", "temporal", "merged")}

    root = make_dataset(tmp_path / "data", change=captioned)
    decide(str(root), {}, "all")
    export(str(root), "all")
    stages = "stages: [{preset: video-256, tiny: true}]"
    config = parse_config(f"{{output: {tmp_path}/run, data: {{shards: [{root}/shards/all]}}, {stages}}}")
    data = stage_data(config.data, config.stages[0], seed=0, size_multiple=8)
    read = [data.dataset.read(data.dataset.sources[0], i, i).caption for i in range(len(data.table))]
    assert len(read) == 40
    assert {caption.split()[0] for caption in read} == {"spatial", "temporal", "merged"}
    assert {sample["txt"].split()[0] for sample in samples(root, "all")} == {"merged"}


def test_the_index_finds_every_member_without_the_tar_module(root: Path) -> None:
    export(str(root), "default", shard_clips=7)
    for path in sorted((root / "shards/default").glob("*.tar")):
        table = pq.read_table(path.with_suffix(".index.parquet"))
        assert table.schema.remove_metadata().equals(INDEX.remove_metadata())
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert len(members) == 3 * table.num_rows
        for row in table.to_pylist():
            for kind in ("mp4", "json", "txt"):
                piece = data[row[f"{kind}_offset"] : row[f"{kind}_offset"] + row[f"{kind}_size"]]
                assert piece == members[f"{row['clip_id']}.{kind}"]


def test_a_shard_stays_below_its_target_size(root: Path) -> None:
    export(str(root), "default", shard_bytes=20_000)
    tars = list((root / "shards/default").glob("*.tar"))
    assert len(tars) > 3
    for path in tars:
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert path.stat().st_size <= 20_000 + tarfile.RECORDSIZE or len(names) == 3


def test_a_second_export_writes_nothing_and_a_fresh_one_writes_the_same_bytes(root: Path) -> None:
    export(str(root), "default", shard_clips=7)
    first = content(root)
    times = {path.name: path.stat().st_mtime_ns for path in (root / "shards/default").glob("0*")}
    export(str(root), "default", shard_clips=7)
    assert content(root) == first
    assert times == {path.name: path.stat().st_mtime_ns for path in (root / "shards/default").glob("0*")}
    shutil.rmtree(root / "shards")
    export(str(root), "default", shard_clips=7)
    assert content(root) == first


def test_an_export_that_was_killed_is_carried_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(str(root), "default", shard_clips=7)
    whole = content(root)
    shutil.rmtree(root / "shards")
    reads = 0
    storage = Dataset(root).storage.fs
    original = type(storage).cat_ranges

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(storage), "cat_ranges", dies)
    with pytest.raises(KeyboardInterrupt):
        export(str(root), "default", shard_clips=7)
    monkeypatch.undo()
    left = content(root)
    assert {name for name in left if name.endswith(".tar")} == {"000000.tar", "000001.tar"}
    assert "index.json" not in left
    assert all(whole[name] == data for name, data in left.items())
    export(str(root), "default", shard_clips=7)
    assert content(root) == whole


def test_an_export_that_is_cancelled_says_how_far_it_was_and_is_carried_on(root: Path) -> None:
    whole = export(str(root), "default", shard_clips=7)
    wanted = content(root)
    shutil.rmtree(root / "shards")
    watched = Export(Dataset(root), "default")
    seen: list[Exported] = []

    def show(done: Exported) -> None:
        seen.append(done)
        if done.clips >= 7:
            watched.cancel()
        watched.note(done)

    with pytest.raises(Cancelled):
        export(str(root), "default", shard_clips=7, show=show)
    assert [(done.clips, done.total) for done in seen] == [(0, whole["clips"]), (7, whole["clips"])]
    assert seen[1].bytes == len(wanted["000000.tar"])
    assert sorted(content(root)) == ["000000.index.parquet", "000000.tar"]
    export(str(root), "default", shard_clips=7)
    assert content(root) == wanted


def test_another_decision_of_the_same_name_leaves_no_old_shards_behind(root: Path) -> None:
    export(str(root), "default", shard_clips=3)
    decide(str(root), {"motion.coarse": {"drop_lowest": "80%"}}, "default")
    export(str(root), "default", shard_clips=3)
    assert [sample["__key__"] for sample in samples(root)] == kept(root)
    listed = json.loads((root / "shards/default/index.json").read_text())["shardlist"]
    assert {entry["url"] for entry in listed} == {path.name for path in (root / "shards/default").glob("*.tar")}


@pytest.mark.parametrize("damage", ["content", "header", "index"])
def test_a_damaged_shard_is_written_again_when_asked_to_verify(root: Path, damage: str) -> None:
    export(str(root), "default", shard_clips=7)
    clean = content(root)
    name = "000001.index.parquet" if damage == "index" else "000001.tar"
    path = root / "shards/default" / name
    data = bytearray(path.read_bytes())
    at = {"content": 2000, "header": 0, "index": len(data) - 200}[damage]
    data[at : at + 100] = bytes(100)
    path.write_bytes(data)
    whole = root / "shards/default/000000.tar"
    before = whole.stat().st_mtime_ns
    export(str(root), "default", shard_clips=7, verify=True)
    assert content(root) == clean
    assert whole.stat().st_mtime_ns == before, "what is whole is not written again"


def test_missing_media_is_a_row_with_a_reason_and_no_broken_shard(root: Path) -> None:
    (root / "media/part-00000.tar").unlink()
    summary = export(str(root), "default")
    assert summary["clips"] == 0
    assert summary["shardlist"] == []
    errors = pq.read_table(root / "shards/default/errors.parquet")
    assert errors.schema.remove_metadata().equals(ERRORS.remove_metadata())
    assert errors["clip_id"].to_pylist() == kept(root)
    assert set(errors["reason"].to_pylist()) == {"media_missing"}


@pytest.mark.parametrize("damage", ["truncated", "other_member", "zeroed_header"])
def test_changed_media_costs_only_the_clips_it_touches(root: Path, damage: str) -> None:
    victim = kept(root)[3]
    row = next(row for row in Dataset(root).clips().to_pylist() if row["clip_id"] == victim)
    media = root / "media/part-00000.tar"
    data = bytearray(media.read_bytes())
    header = row["media_offset"] - 512
    if damage == "truncated":
        del data[row["media_offset"] + 100 :]
    elif damage == "other_member":
        other = tarfile.TarInfo("someone-else.mp4")
        other.size = row["media_size"]
        data[header : header + 512] = other.tobuf(tarfile.USTAR_FORMAT)
    else:
        data[header : header + 512] = bytes(512)
    media.write_bytes(data)
    summary = export(str(root), "default")
    errors = pq.read_table(root / "shards/default/errors.parquet").to_pylist()
    assert victim in {error["clip_id"] for error in errors}
    assert {error["reason"] for error in errors} == {"media_changed"}
    assert summary["clips"] + len(errors) == len(kept(root))
    if damage != "truncated":
        assert len(errors) == 1
    found = list(samples(root))
    assert victim not in {sample["__key__"] for sample in found}
    assert len(found) == summary["clips"]


def test_media_that_is_back_is_exported_by_the_next_run(root: Path) -> None:
    whole = export(str(root), "default")
    clean = content(root)
    shutil.rmtree(root / "shards")
    (root / "media/part-00000.tar").rename(root / "away.tar")
    export(str(root), "default")
    (root / "away.tar").rename(root / "media/part-00000.tar")
    assert export(str(root), "default") == whole
    assert content(root) == clean


def test_an_fsspec_url_gives_the_same_shards(root: Path) -> None:
    export(str(root), "default", shard_clips=7)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for folder in ("sources", "clips", "media", "decisions"):
        for path in (root / folder).iterdir():
            memory.pipe_file(f"/bucket/data/{folder}/{path.name}", path.read_bytes())
    memory.pipe_file("/bucket/data/job.yaml", b"")
    decide("memory://bucket/data", RULES, "default")
    export("memory://bucket/data", "default", shard_clips=7)
    remote = {Path(path).name: memory.cat_file(path) for path in memory.ls("/bucket/data/shards/default", detail=False)}
    assert remote == content(root)


def test_a_decision_that_is_not_there_is_refused_with_the_ones_that_are(root: Path) -> None:
    with pytest.raises(DatasetError, match="no decision called 'other'; there are: default"):
        export(str(root), "other")
    with pytest.raises(DatasetError, match="cannot name a decision"):
        export(str(root), "../../etc")


def test_a_decision_on_clips_that_are_gone_asks_to_decide_again(root: Path) -> None:
    (root / "clips/part-00001.parquet").unlink()
    with pytest.raises(DatasetError, match="no longer has: decide again"):
        export(str(root), "default")


def test_nothing_kept_gives_an_empty_but_complete_export(root: Path) -> None:
    decide(str(root), {"motion.coarse": {"min": 1e9}}, "none")
    summary = export(str(root), "none")
    assert summary["clips"] == 0
    assert [path.name for path in (root / "shards/none").iterdir()] == ["index.json"]
