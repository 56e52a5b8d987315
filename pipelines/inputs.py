"""From what a spec names as input to its sources: files, folders, globs, lists; local or by URL.

Lists are read in a streaming way: they may name more sources than memory holds.
"""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from curation.identity import source_id
from curation.input_policy import Forbidden, enforce, from_environment
from curation.location import file_system, local_path, local_uri

_SUFFIXES = "3g2 3gp asf avi divx flv m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf ogm ogv qt ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""What a folder is searched for. A file that is named, or that a glob or a list names, is tried whatever its name."""

_LISTS = ("csv", "parquet")
_AT_ONCE = 50_000
LONG_LIST = 100_000
"""A list with more sources is not asked about each of them: that would take longer than to begin. Their sizes are then
unknown, so that copies of a source are found when they are read, not before."""


class InputError(Exception):
    """An input that names nothing that could be a source. One line for a person."""


class SourceFile(NamedTuple):
    """A source to be. `size` is None where it is unknown (missing, in a long list, or a server that does not say)."""

    uri: str
    size: int | None


FOUND = pa.schema([("uri", pa.binary()), ("size", pa.int64())])
"""Sources as tables. Uris are UTF-8."""


def find_sources(uris: Iterable[str], *, column: str = "uri", exclude: str | None = None) -> Iterator[pa.Table]:
    """The sources that the inputs name (`FOUND`), in their order; one that two of them name comes twice.

    Args:
        uris: inputs as `pipelines.spec.Input.uris` describes them.
        column: the column of CSV and Parquet lists that names a source; paths in it are relative to the list.
        exclude: a folder that is skipped when a folder is searched: the job's own output.

    Raises:
        InputError: an input that is neither there nor looks like the name of a video, or a list without the column.
    """
    policy = enforce()
    skip = absolute(exclude).rstrip("/") + "/" if exclude else None
    for uri in uris:
        try:
            if policy is not None:
                policy.check(absolute(uri))
        except Forbidden as error:
            raise InputError(f"input: {error}") from None
        for found in _expand(absolute(uri), column):
            yield found if skip is None else found.filter(pc.invert(pc.starts_with(found["uri"], os.fsencode(skip))))


def find_duplicates(sources: Iterable[SourceFile], curated: Collection[str] = ()) -> dict[str, str]:
    """Sources whose content another source has too: uri -> uri of the one that is curated.

    That is the one that is curated already (its uri is in `curated`), or else the first in sorted order. Only files of
    equal size can be equal, so only those are read: 16 MiB each at most.
    """
    by_size: dict[int, list[SourceFile]] = defaultdict(list)
    for source in sorted(sources):
        if source.size:
            by_size[source.size].append(source)
    suspects = [source for group in by_size.values() if len(group) > 1 for source in group]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(_read_id, suspects))
    first: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    known = sorted(zip(suspects, ids, strict=True), key=lambda pair: (pair[0].uri not in curated, pair[0]))
    for source, identity in known:
        if identity is None:
            continue
        original = first.setdefault(identity, source.uri)
        if original != source.uri:
            duplicates[source.uri] = original
    return duplicates


def _read_id(source: SourceFile) -> str | None:
    """None when the file cannot be read; the job finds out why."""
    try:
        fs, path = file_system(source.uri)
        with fs.open(path, "rb") as file:
            return source_id(file, source.size or 0)
    except Exception:  # HTTP, object stores and archives have their own kinds
        return None


def absolute(uri: str) -> str:
    """Local paths absolute and without `~`, as `curation.location` writes them; URLs as they are."""
    path = local_path(uri)
    if path is None:
        return uri
    if not path.startswith("/") or "//" in path or "/." in path or path.endswith("/"):
        path = os.path.abspath(os.path.expanduser(path))  # slow, and lists are long
    return local_uri(path)


def _expand(uri: str, column: str) -> Iterator[pa.Table]:
    try:
        fs, path = file_system(uri)
    except Exception as error:  # no such protocol, its package is missing, an archive that is none
        raise InputError(f"input: {uri}: {error or type(error).__name__}") from None
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    pattern = any(character in path for character in "*?[")
    try:
        if pattern and not fs.exists(path):
            matches = [entry for entry in fs.glob(path, detail=True).values() if entry["type"] == "file"]
            if not matches:
                raise InputError(f"input: {uri}: the glob matches no file")
            yield from _tables(_source(fs, entry) for entry in matches)
        elif fs.isdir(path):
            yield from _tables(_searched(fs, path))
        elif suffix in _LISTS:
            yield from _listed(fs, path, uri, suffix, column)
        else:
            yield from _tables([_source(fs, fs.info(path))])
    except InputError:
        raise
    except Exception as error:  # HTTP, object stores and archives have their own kinds
        if suffix not in VIDEO_SUFFIXES or pattern:
            raise InputError(f"input: {uri}: {_reason(error)}") from None
        yield from _tables([SourceFile(uri, None)])


def _searched(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[SourceFile]:
    """The video files of a folder, and those of its folders that cannot be read, which become rows that say so.

    Raises:
        OSError: the folder itself cannot be read.
    """
    if not isinstance(fs, LocalFileSystem):
        yield from (_source(fs, entry) for entry in fs.find(path, detail=True).values() if _is_film(entry["name"]))
        return
    closed: list[OSError] = []
    for folder, _, names in os.walk(path, onerror=closed.append):  # fsspec leaves out what it cannot read
        for name in filter(_is_film, names):
            yield _stat(local_uri(os.path.join(folder, name)))
    for error in closed:
        if error.filename == path:
            raise error
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile
            yield SourceFile(local_uri(error.filename), None)


def _is_film(name: str) -> bool:
    return name.rpartition(".")[2].lower() in VIDEO_SUFFIXES


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    if isinstance(error, PermissionError):
        return "permission denied"
    return f"cannot be read ({type(error).__name__}: {error})"


def _source(fs: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> SourceFile:
    name = str(entry["name"])
    uri = local_uri(name) if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
    return SourceFile(uri, entry.get("size"))


def _tables(sources: Iterable[SourceFile]) -> Iterator[pa.Table]:
    left = iter(sources)
    while some := list(islice(left, _AT_ONCE)):
        uris, sizes = [source.uri.encode() for source in some], [each.size for each in some]
        yield pa.table([pa.array(uris, pa.binary()), pa.array(sizes, pa.int64())], FOUND)


def _listed(fs: fsspec.AbstractFileSystem, path: str, uri: str, suffix: str, column: str) -> Iterator[pa.Table]:
    """The sources that a CSV or Parquet file names."""
    folder = (local_path(uri) or uri).rpartition("/")[0]
    read = _column_of_parquet if suffix == "parquet" else _column_of_csv

    def uris() -> Iterator[pa.Array]:
        try:
            with fs.open(path, "rb") as file:
                for names in read(file, uri, column):
                    yield _absolute(names, folder)
        except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"input: {uri}: not a readable {suffix} file ({error})") from None

    found, number = uris(), 0
    first: list[pa.Array] = []
    while number <= LONG_LIST and (some := next(found, None)) is not None:
        first.append(some)
        number += len(some)
    if number > LONG_LIST:
        yield from (pa.table([each, pa.nulls(len(each), pa.int64())], FOUND) for each in chain(first, found))
    else:
        with ThreadPoolExecutor(16) as pool:
            yield from _tables(pool.map(_stat, [name.decode() for some in first for name in some.to_pylist()]))


def _absolute(names: pa.Array, folder: str) -> pa.Array:
    """Uris, as bytes, of the names in a list in this folder; without those that are empty."""
    names = pc.utf8_trim_whitespace(names.drop_null())
    names = names.filter(pc.not_equal(names, ""))
    url = pc.and_not(pc.match_substring(names, "://"), pc.starts_with(names, "file://"))
    odd = pc.or_(pc.match_substring_regex(names, "//|/[.]|/$"), pc.invert(pc.starts_with(names, "/")))
    if not pc.all(
        pc.or_(url, pc.invert(odd)), min_count=0
    ).as_py():  # long lists are of plain uris, for which Python is slow
        whole = (name if "://" in name or name.startswith("/") else f"{folder}/{name}" for name in names.to_pylist())
        names = pa.array([absolute(name) for name in whole], pa.string())
    return names.cast(pa.binary())


def _column_of_csv(file: IO[bytes], uri: str, column: str) -> Iterator[pa.Array]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text)
        at = _place_of(column, next(rows, []), uri)
        while some := list(islice(rows, _AT_ONCE)):
            yield pa.array([row[at] for row in some if len(row) > at], pa.string())


def _column_of_parquet(file: IO[bytes], uri: str, column: str) -> Iterator[pa.Array]:
    table = pq.ParquetFile(file)
    _place_of(column, table.schema_arrow.names, uri)
    for batch in table.iter_batches(columns=[column]):
        yield batch.column(0).cast(pa.string())


def _place_of(column: str, columns: list[str], uri: str) -> int:
    if column not in columns:
        raise InputError(f"input: {uri}: no column {column!r}; columns: {', '.join(columns)} (set input.column)")
    if columns.count(column) > 1:
        raise InputError(f"input: {uri}: more than one column is called {column!r}; rename the others")
    return columns.index(column)


def _stat(uri: str) -> SourceFile:
    """A listed source; one that is not there, or may not be read, stays in the list and becomes a row that says so."""
    try:
        if (policy := from_environment()) is not None:
            policy.check(uri)
        fs, path = file_system(uri)
        return SourceFile(uri, fs.info(path).get("size"))
    except Exception:  # HTTP, object stores and archives have their own kinds
        return SourceFile(uri, None)
