"""What a run has to do, found with memory for a part of the sources at a time."""

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines.inputs
import pipelines.survey
from curation.schema import SOURCES
from curation.score_table import connect
from curation.segment import parquet_bytes
from pipelines.commit import Committer
from pipelines.contents import Contents
from pipelines.curate import prepare
from pipelines.dataset import Dataset
from pipelines.inputs import FOUND, find_sources
from pipelines.preflight import Refused
from pipelines.spec import parse_spec
from pipelines.survey import Named, gather, survey


def store(dataset: Dataset, *rows: dict[str, Any], name: str = "part-00000") -> None:
    table = pa.Table.from_pylist([{"status": "ok"} | row for row in rows], SOURCES)
    dataset.storage.write(f"sources/{name}.parquet", parquet_bytes(table))


def named(*sources: tuple[str, int | None]) -> Named:
    uris = pa.array([uri.encode("utf-8", "surrogateescape") for uri, _ in sources], pa.binary())
    return gather([pa.table([uris, pa.array([size for _, size in sources], pa.int64())], FOUND)])


def test_a_run_does_what_has_no_row_or_another_size(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    store(dataset, {"source_uri": "done", "size_bytes": 5, "clips": 2, "source_id": "d"})
    store(dataset, {"source_uri": "grown", "size_bytes": 6, "clips": 3}, name="part-live-000000")
    store(dataset, {"source_uri": "failed", "size_bytes": 7, "status": "failed"}, name="part-live-000001")
    store(dataset, {"source_uri": "grown", "size_bytes": 8, "clips": 4}, name="part-live-000002")
    sources = [("new", 8), ("grown", 9), ("done", 5), ("new", 1), ("failed", None), ("unknown", None), ("twin", 5)]
    found = survey(named(*sources), dataset)
    assert list(found.todo()) == [("grown", 9), ("new", 8), ("twin", 5), ("unknown", None)]
    assert (found.sources, found.pending, found.size) == (6, 4, 8 + 9 + 5)
    assert (found.clips, found.failed) == (2 + 4, 1)
    assert sorted(found.alike) == [("done", 5), ("twin", 5)]
    assert found.curated == {"done"}
    rounds = list(found.rounds(2, without={"unknown"}))
    assert [len(some) for some in rounds] == [2, 1]
    assert {uri: size for some in rounds for uri, size in some.items()} == {"grown": 9, "new": 8, "twin": 5}


def test_sources_come_in_order_with_names_that_are_not_unicode(tmp_path: Path) -> None:
    found = survey(named(("c", None), ("film-\udcff.mp4", 3), ("b", None)), Dataset(tmp_path))
    assert list(found.todo()) == [("b", None), ("c", None), ("film-\udcff.mp4", 3)]
    assert list(found.rounds(2, without=())) == [{"b": None, "c": None}, {"film-\udcff.mp4": 3}]
    assert (found.alike, found.curated) == ([], set())


SOME = st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(1, 3)), max_size=12)


@settings(deadline=None, max_examples=40)
@given(SOME, SOME)
def test_it_is_what_dictionaries_would_say(sources: list[Any], rows: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        dataset = Dataset(folder)
        store(dataset, *({"source_uri": uri, "size_bytes": size, "clips": 1} for uri, size in rows))
        found = survey(named(*sources), dataset)
    done = dict(rows)
    first = {uri: next((size for name, size in sources if name == uri and size), None) for uri, _ in sources}
    pending = {
        uri: size for uri, size in first.items()
        if uri not in done or (size is not None and done[uri] not in (None, size))
    }  # fmt: skip
    assert dict(found.todo()) == pending
    assert (found.sources, found.pending, found.clips) == (len(first), len(pending), len(done))
    sizes = [size for size in first.values() if size]
    assert sorted(found.alike) == sorted((u, size) for u, size in first.items() if size and sizes.count(size) > 1)


def test_a_temporary_folder_that_is_full_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**options: Any) -> duckdb.DuckDBPyConnection:
        con = connect(**options)
        con.execute("SET max_temp_directory_size = '1MB'")
        return con

    monkeypatch.setattr(pipelines.survey, "MEMORY", "8MB")
    monkeypatch.setattr(pipelines.survey, "connect", full)
    monkeypatch.setattr(pipelines.inputs, "LONG_LIST", 100)
    (tmp_path / "list.csv").write_text("uri\n" + "".join(f"{'x' * 100}{k}.mp4\n" for k in range(200_000)))
    spec = {"input": {"uris": [str(tmp_path / "list.csv")]}, "output": str(tmp_path / "out"), "scores": {"text": "off"}}
    with pytest.raises(Refused, match=r"no room for the list of sources \(.*\); name another .* TMPDIR"):
        prepare(parse_spec(spec, "test"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_is_not_held_in_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's memory for a list, and for what is done of it, hardly grows with it; DuckDB's is bounded."""
    monkeypatch.setattr(pipelines.inputs, "LONG_LIST", 5000)
    monkeypatch.setattr(pipelines.inputs, "_AT_ONCE", 5000)

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
