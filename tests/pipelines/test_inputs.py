"""Every way of naming sources gives the same sorted list, and what cannot be a source is refused or becomes a row."""

import errno
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.inputs
from curation.errors import CannotDecode
from curation.identity import SAMPLE_BYTES, SAMPLES
from curation.location import local_uri
from pipelines.inputs import InputError, SourceFile, find_duplicates, find_sources
from workers.source import local_copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "films" / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a.MKV", "deep/c.webm", "notes.txt", "poster.jpg"):
        (tmp_path / "films" / name).write_bytes(name.encode())
    return tmp_path / "films"


def found(*uris: object, **options: str) -> list[SourceFile]:
    """What a job is told to work on: each source once, sorted."""
    tables = find_sources(map(str, uris), **options)
    rows = [SourceFile(row["uri"].decode(), row["size"]) for table in tables for row in table.to_pylist()]
    return sorted({row.uri: row for row in rows}.values())


def names(sources: list[SourceFile], folder: Path) -> list[str]:
    return [str(Path(source.uri).relative_to(folder)) for source in sources]


def test_a_folder_is_searched_for_videos(folder: Path) -> None:
    sources = found(str(folder))
    assert names(sources, folder) == ["a.MKV", "b.mp4", "deep/c.webm"]
    assert [source.size for source in sources] == [5, 5, 11]


def test_a_folder_that_cannot_be_read_is_said_and_hides_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, scandir = str(folder / "deep"), os.scandir

    def locked(path: str) -> object:  # chmod would not keep root out
        if path == closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert found(folder) == [
        SourceFile(str(folder / "a.MKV"), 5),
        SourceFile(str(folder / "b.mp4"), 5),
        SourceFile(closed, None),
    ]
    with pytest.raises(InputError, match="deep: permission denied"):
        found(closed)


def test_files_globs_and_overlapping_inputs_name_each_source_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(found(f"{folder}/*.mp4"), folder) == ["b.mp4"]
    assert names(found(f"{folder}/**/*.webm"), folder) == ["deep/c.webm"]
    assert names(found(f"{folder}/notes.txt"), folder) == ["notes.txt"]  # named, so tried
    monkeypatch.chdir(folder)
    assert names(found("b.mp4", str(folder), "./deep"), folder) == ["a.MKV", "b.mp4", "deep/c.webm"]


def test_lists_name_sources_relative_to_themselves(folder: Path) -> None:
    table = pa.table({"film": ["b.mp4", "deep/c.webm", "gone.mp4", None], "title": ["B", "C", "G", "N"]})
    pq.write_table(table, folder / "list.parquet")
    (folder / "list.csv").write_text("title,film\nB,b.mp4\nC,deep/c.webm\nG,gone.mp4\nN,\n")
    for path in ("list.parquet", "list.csv"):
        sources = found(str(folder / path), column="film")
        assert names(sources, folder) == ["b.mp4", "deep/c.webm", "gone.mp4"]
        assert sources[2].size is None  # missing: it becomes a row that says so
        with pytest.raises(InputError, match=r"no column 'uri'; columns: .*film.* \(set input.column\)"):
            found(str(folder / path))


@pytest.mark.parametrize("uri", ["nowhere", "films/*.avi", "nosuchprotocol://x/y.mp4"])
def test_an_input_that_names_nothing_is_refused_in_one_line(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        found(uri if "://" in uri else str(tmp_path / uri))
    assert "\n" not in str(error.value)


def test_a_missing_film_that_is_named_becomes_a_source(tmp_path: Path) -> None:
    assert found(str(tmp_path / "gone.mp4")) == [SourceFile(str(tmp_path / "gone.mp4"), None)]


def test_a_torn_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="not a readable parquet file"):
        found(str(tmp_path / "list.parquet"))


def test_a_column_that_holds_no_names_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": [["a.mp4", "b.mp4"]]}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match="not a readable parquet file"):
        found(str(tmp_path / "list.parquet"))


class _Unwell(BaseHTTPRequestHandler):
    """Says how large files are, and breaks off when they are read; below /500/ it fails altogether."""

    def do_HEAD(self) -> None:
        self.send_response(500 if self.path.startswith("/500/") else 200)
        self.send_header("Content-Length", "100")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"half of it")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def unwell() -> Iterator[str]:
    """The address of a server that is not well."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Unwell) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_fails_costs_its_films_and_no_others(unwell: str, tmp_path: Path) -> None:
    failing, nowhere = f"{unwell}/500/a.mp4", "http://127.0.0.1:9/b.mp4"
    both = sorted([SourceFile(failing, None), SourceFile(nowhere, None)])
    assert found(failing, nowhere) == both
    (tmp_path / "list.csv").write_text(f"uri\n{failing}\n{nowhere}\n")
    assert found(str(tmp_path / "list.csv")) == both
    broken = [SourceFile(f"{unwell}/{name}.mp4", 100) for name in "ab"]
    assert find_duplicates(broken) == {}
    for uri in (failing, broken[0].uri):
        with pytest.raises(CannotDecode) as error, local_copy(uri):
            pass
        assert error.value.reason == "fetch_failed"


@pytest.mark.parametrize("uri", ["{}/500/list.csv", "{}/500/*.mp4", "zip://film.mp4::/nowhere.zip"])
def test_what_cannot_be_asked_is_refused_in_one_line(uri: str, unwell: str) -> None:
    with pytest.raises(InputError) as error:
        found(uri.format(unwell))
    assert uri.format(unwell) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_output_folder_is_no_input(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "clip.mp4").write_bytes(b"clip")
    assert names(found(str(folder), exclude=str(folder / "out")), folder) == ["a.MKV", "b.mp4", "deep/c.webm"]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def test_urls_are_inputs_too(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/films/x.mp4", b"x")
    memory.pipe_file("/films/deep/y.mov", b"yy")
    assert found("memory://films") == [
        SourceFile("memory:///films/deep/y.mov", 2),
        SourceFile("memory:///films/x.mp4", 1),
    ]


def test_duplicates_belong_to_the_first_name_and_only_equal_sizes_are_read(tmp_path: Path) -> None:
    for name, data in {"b": b"same", "a": b"same", "c": b"else", "z": b"another size", "e": b"", "f": b""}.items():
        (tmp_path / f"{name}.mp4").write_bytes(data)
    sources = found(str(tmp_path))
    (tmp_path / "z.mp4").unlink()  # not read: nothing has its size
    first, second = str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")
    assert find_duplicates(sources) == {second: first}
    assert find_duplicates(sources, {second}) == {first: second}  # what an earlier run has curated stays


def test_large_files_are_told_apart_by_samples(tmp_path: Path) -> None:
    size = (SAMPLES + 2) * SAMPLE_BYTES
    for name, last in {"a": b"x", "b": b"x", "c": b"y"}.items():
        with (tmp_path / f"{name}.mp4").open("wb") as file:
            file.truncate(size - 1)
            file.seek(size - 1)
            file.write(last)
    assert find_duplicates(found(str(tmp_path))) == {str(tmp_path / "b.mp4"): str(tmp_path / "a.mp4")}


def test_a_long_list_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.inputs, "LONG_LIST", 3)

    def asked(uri: str) -> None:
        raise AssertionError(f"{uri} was looked at")

    monkeypatch.setattr(pipelines.inputs, "_stat", asked)
    (tmp_path / "list.csv").write_text("n,uri\n" + "".join(f"{k},s3://films/{k}.mp4\n" for k in range(5)) + "short\n")
    listed = found(str(tmp_path / "list.csv"))
    assert [(each.uri, each.size) for each in listed] == [(f"s3://films/{k}.mp4", None) for k in range(5)]


def test_names_that_are_not_unicode_are_named_by_any_input(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xfflms")
    folder.mkdir()
    (folder / "a 100%.mp4").write_bytes(b"a")
    (folder / "list.csv").write_text("uri\na 100%.mp4\n")
    expected = [SourceFile(f"file://{tmp_path}/f%FFlms/a 100%25.mp4", 1)]
    for uri in (folder, folder / "*.mp4", folder / "list.csv", expected[0].uri, tmp_path):
        assert found(local_uri(str(uri))) == expected
    assert found(str(folder), exclude=str(folder)) == []


def test_a_list_with_the_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,uri\na.mp4,b.mp4\n")
    with pytest.raises(InputError, match=r"list\.csv: more than one column is called 'uri'"):
        list(find_sources([str(tmp_path / "list.csv")]))
