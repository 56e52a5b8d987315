"""What a run has to do, found with memory for a part of the sources at a time."""

import errno
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.inputs
import pipelines.survey
from curation.schema import SOURCES
from curation.segment import parquet_bytes
from pipelines.commit import Committer
from pipelines.contents import Contents
from pipelines.curate import prepare
from pipelines.dataset import Dataset
from pipelines.inputs import SourceFile, find_sources
from pipelines.preflight import Refused
from pipelines.spec import parse_spec
from pipelines.spool import Spool, parts_of
from pipelines.survey import gather, survey


def store(dataset: Dataset, *rows: dict[str, Any], name: str = "part-00000") -> None:
    table = pa.Table.from_pylist([{"status": "ok"} | row for row in rows], SOURCES)
    dataset.storage.write(f"sources/{name}.parquet", parquet_bytes(table))


def hold_few(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    class Small(Spool[Any]):
        def __init__(self) -> None:
            super().__init__(few)

    monkeypatch.setattr(pipelines.survey, "Spool", Small)


PAIRS = st.lists(st.tuples(st.text(max_size=3), st.none() | st.integers(0, 9)), max_size=40)


@settings(deadline=None, max_examples=60)
@given(PAIRS, PAIRS, st.integers(1, 10))
def test_a_spool_gives_back_what_it_got_with_the_pairs_of_a_key_together(
    pairs: list[Any], others: list[Any], few: int
) -> None:
    spool, other = Spool[int | None](few), Spool[int | None](1000)
    spool.add(pairs)
    other.add(others)
    assert (len(spool), spool.in_memory) == (len(pairs), len(pairs) < few)
    assert sorted(spool.part(None), key=repr) == sorted(pairs, key=repr)
    seen: set[str] = set()
    for part in parts_of(spool, other):
        mine, theirs = list(spool.part(part)), list(other.part(part))
        keys = {key for key, _ in mine + theirs}
        assert not keys & seen
        seen |= keys
        for key in keys:  # in the order in which they were added
            assert [pair for pair in mine if pair[0] == key] == [pair for pair in pairs if pair[0] == key]
    assert seen == {key for key, _ in pairs + others}


@pytest.mark.parametrize("few", [3, 1000])
def test_a_run_does_what_has_no_row_or_another_size(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_few(monkeypatch, few)
    dataset = Dataset(tmp_path)
    store(dataset, {"source_uri": "done", "size_bytes": 5, "clips": 2, "source_id": "d"})
    store(dataset, {"source_uri": "grown", "size_bytes": 6, "clips": 3}, name="part-live-000000")
    store(dataset, {"source_uri": "failed", "size_bytes": 7, "status": "failed"}, name="part-live-000001")
    store(dataset, {"source_uri": "grown", "size_bytes": 8, "clips": 4}, name="part-live-000002")
    sources = [("new", 8), ("grown", 9), ("done", 5), ("new", 1), ("failed", None), ("unknown", None), ("twin", 5)]
    found = survey(gather(SourceFile(*each) for each in sources), dataset)
    assert sorted(found.todo(), key=str) == [("grown", 9), ("new", 8), ("twin", 5), ("unknown", None)]
    assert (found.sources, found.pending, found.size) == (6, 4, 8 + 9 + 5)
    assert (found.clips, found.failed) == (2 + 4, 1)
    assert sorted(found.alike) == [("done", 5), ("twin", 5)]
    assert found.curated == {"done"}
    rounds = list(found.rounds(2, without={"unknown"}))
    assert [len(some) for some in rounds] == [2, 1]
    assert {uri: size for some in rounds for uri, size in some.items()} == {"grown": 9, "new": 8, "twin": 5}


def test_few_sources_come_in_order(tmp_path: Path) -> None:
    found = survey(gather(SourceFile(name, None) for name in "cab"), Dataset(tmp_path))
    assert [uri for uri, _ in found.todo()] == ["a", "b", "c"]


def test_a_temporary_folder_that_is_full_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hold_few(monkeypatch, 3)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"{k}.mp4\n" for k in range(5)))
    spec = {"input": {"uris": [str(tmp_path / "list.csv")]}, "output": str(tmp_path / "out"), "scores": {"text": "off"}}
    with pytest.raises(Refused, match=r"no room for the list of sources \(No space left on device\); name another"):
        prepare(parse_spec(spec, "test"))


def test_names_that_are_not_unicode_pass_through(tmp_path: Path) -> None:
    spool = Spool[None](few=1)
    spool.add([("film-\udcff.mp4", None)])
    assert list(spool.part(None)) == [("film-\udcff.mp4", None)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_is_not_held_in_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory for a list, and for what is done of it, hardly grows with it."""
    hold_few(monkeypatch, 5000)
    monkeypatch.setattr(pipelines.inputs, "LONG_LIST", 5000)

    def peak(number: int) -> int:
        path, dataset = tmp_path / f"{number}.{kind}", Dataset(tmp_path / f"{number}")
        uris = [f"s3://films/{'x' * 50}-{k:07d}.mp4" for k in range(number)]
        if kind == "csv":
            path.write_text("uri\n" + "\n".join(uris))
        else:
            pa.parquet.write_table(pa.table({"uri": uris}), path, row_group_size=5000)
        done = {"source_uri": uris[: number // 2], "source_id": uris[: number // 2], "status": ["ok"] * (number // 2)}
        for start in range(0, number // 2, 5000):
            columns = {name: values[start : start + 5000] for name, values in done.items()}
            table = pa.table([columns.get(field.name) or pa.nulls(len(columns["status"]), field.type)
                              for field in SOURCES], SOURCES)  # fmt: skip
            dataset.storage.write(f"sources/part-{start:05d}.parquet", parquet_bytes(table))
        del uris, done
        tracemalloc.start()
        found = survey(gather(find_sources([str(path)])), dataset)
        Committer(dataset)
        assert sum(len(some) for some in found.rounds(4096, without=())) == number // 2
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    small, large = peak(70_000), peak(170_000)
    assert large < small + 100_000 * 32  # a list would take 150 bytes and more for each


def test_content_that_is_there_is_known_by_its_first_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(tmp_path)
    store(dataset, {"source_uri": "a", "source_id": "1"}, {"source_uri": "x", "source_id": "2", "status": "failed"})
    contents = Contents(dataset)
    assert contents.first("1", "b") == "a"
    assert contents.first("2", "c") == "c"
    assert contents.first("2", "d") == "c"
    store(dataset, {"source_uri": "c", "source_id": "2"}, name="part-live-000000")
    monkeypatch.setattr("pipelines.contents._MANY", 0)
    contents.stored()
    assert contents.first("2", "e") == "c"
    assert contents.first("1", "e") == "a"


def test_two_contents_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.contents.hash", lambda _: 7, raising=False)
    dataset = Dataset(tmp_path)
    store(dataset, {"source_uri": "a", "source_id": "1"})
    contents = Contents(dataset)
    assert (contents.first("2", "b"), contents.first("1", "c")) == ("b", "a")
