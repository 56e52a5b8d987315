"""From what a spec names as input to a sorted list of sources: files, folders, globs, lists; local or by URL."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from curation.identity import source_id
from curation.input_policy import Forbidden, enforce, from_environment

_SUFFIXES = "3g2 3gp asf avi divx flv m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf ogm ogv qt ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""What a folder is searched for. A file that is named, or that a glob or a list names, is tried whatever its name."""

_LISTS = ("csv", "parquet")
LONG_LIST = 100_000
"""A list with more sources is not asked about each of them: that would take longer than to begin. Their sizes are then
unknown, so that copies of a source are found when they are read, not before."""


class InputError(Exception):
    """An input that names nothing that could be a source. One line for a person."""


@dataclass(frozen=True, order=True, slots=True)
class SourceFile:
    """A source to be. `size` is None where it is unknown (missing, in a long list, or a server that does not say)."""

    uri: str
    size: int | None


def find_sources(uris: Iterable[str], *, column: str = "uri", exclude: str | None = None) -> list[SourceFile]:
    """All sources that the inputs name, each once, sorted by uri.

    Args:
        uris: inputs as `pipelines.spec.Input.uris` describes them.
        column: the column of CSV and Parquet lists that names a source; paths in it are relative to the list.
        exclude: a folder that is skipped when a folder is searched: the job's own output.

    Raises:
        InputError: an input that is neither there nor looks like the name of a video, or a list without the column.
    """
    policy = enforce()
    found: dict[str, SourceFile] = {}
    skip = absolute(exclude).rstrip("/") + "/" if exclude else None
    for uri in uris:
        try:
            if policy is not None:
                policy.check(absolute(uri))
        except Forbidden as error:
            raise InputError(f"input: {error}") from None
        for source in _expand(absolute(uri), column):
            if skip is None or not source.uri.startswith(skip):
                found.setdefault(source.uri, source)
    return sorted(found.values())


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
        with fsspec.open(source.uri, "rb") as file:
            return source_id(file, source.size or 0)
    except OSError:
        return None


def absolute(uri: str) -> str:
    """Local paths absolute and without `~`; URLs as they are."""
    if "://" in uri and not uri.startswith("file://"):
        return uri
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def _expand(uri: str, column: str) -> list[SourceFile]:
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise InputError(f"input: {uri}: {error}") from None
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    try:
        if any(character in path for character in "*?[") and not fs.exists(path):
            matches = [_source(fs, entry) for entry in fs.glob(path, detail=True).values() if entry["type"] == "file"]
            if not matches:
                raise InputError(f"input: {uri}: the glob matches no file")
            return matches
        if fs.isdir(path):
            entries = fs.find(path, detail=True).values()
            films = [entry for entry in entries if entry["name"].rpartition(".")[2].lower() in VIDEO_SUFFIXES]
            return [_source(fs, entry) for entry in films]
        if suffix in _LISTS:
            return _listed(fs, path, uri, suffix, column)
        return [_source(fs, fs.info(path))]
    except FileNotFoundError:
        if suffix in VIDEO_SUFFIXES:
            return [SourceFile(uri, None)]
        raise InputError(f"input: {uri}: no such file or folder") from None
    except PermissionError:
        if suffix in VIDEO_SUFFIXES:
            return [SourceFile(uri, None)]
        raise InputError(f"input: {uri}: permission denied") from None


def _source(fs: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> SourceFile:
    name = str(entry["name"])
    uri = name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name)
    return SourceFile(uri, entry.get("size"))


def _listed(fs: fsspec.AbstractFileSystem, path: str, uri: str, suffix: str, column: str) -> list[SourceFile]:
    """The sources that a CSV or Parquet file names."""
    data = fs.cat_file(path)
    try:
        if suffix == "parquet":
            known = pq.read_schema(io.BytesIO(data)).names
            names = pq.read_table(io.BytesIO(data), columns=[column])[column].to_pylist() if column in known else None
        else:
            rows = csv.reader(io.StringIO(data.decode("utf-8-sig")))
            known = next(rows, [])
            at = known.index(column) if column in known else len(known)
            names = [row[at] for row in rows if len(row) > at] if column in known else None
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"input: {uri}: not a readable {suffix} file ({error})") from None
    if names is None:
        raise InputError(f"input: {uri}: no column {column!r}; columns: {', '.join(known)} (set input.column)")
    folder = uri.rpartition("/")[0]
    wanted = [str(name).strip() for name in names if name and str(name).strip()]
    uris = [name if "://" in name or name.startswith("/") else f"{folder}/{name}" for name in wanted]
    if len(uris) > LONG_LIST:
        return [SourceFile(absolute(each), None) for each in uris]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_stat, [absolute(each) for each in uris]))


def _stat(uri: str) -> SourceFile:
    """A listed source; one that is not there, or may not be read, stays in the list and becomes a row that says so."""
    try:
        if (policy := from_environment()) is not None:
            policy.check(uri)
        fs, path = fsspec.core.url_to_fs(uri)
        return SourceFile(uri, fs.info(path).get("size"))
    except (OSError, ImportError, ValueError, Forbidden):
        return SourceFile(uri, None)
