"""Shards read by index: which bytes of which tar belong to which sample, and the numbers that choose among samples.

A shard is a WebDataset tar: `<key>.mp4 .json .txt` one after the other (`.latents` in precomputed shards, `.jpg`/`.png`
for images). Its index has one row per sample: offset, size and CRC-32 of every member, and what the trainer filters on.
`clipmill train index` writes it beside the tar (`000000.tar` -> `000000.samples.parquet`). Where there is none it is
made in memory: from the places and checksums that `clipmill export` left beside the tar (`000000.index.parquet`) and
the samples' json, or, for any other tar, by reading it once. Reading a sample is then one range read, on a local disk
or through fsspec.

Every read checks the tar header in front of the member, and the CRC where the index has one: a shard that was replaced,
truncated or damaged since it was indexed is an error that names the shard, never a wrong sample.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

MEDIA = {
    "mp4": "video", "webm": "video", "mkv": "video", "mov": "video",
    "jpg": "image", "jpeg": "image", "png": "image", "webp": "image",
    "latents": "latents",
}  # fmt: skip
BLOCK = 512
_MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's rule: folders may have dots, and may be `./`
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
FULL_INDEX, EXPORT_INDEX = ".samples.parquet", ".index.parquet"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("media", pa.string()),  # extension of the media member
        *[(f"{m}_{f}", t) for m in ("media", "json", "txt")
          for f, t in (("offset", pa.int64()), ("size", pa.int64()), ("crc32", pa.uint32()))],
        ("frames", pa.int32()),
        ("rate_fps", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("motion", pa.float32()),
        ("camera", pa.string()),
        ("captions", pa.list_(pa.string())),  # names of the captions that are there
        ("elevation_deg", pa.float32()),
    ]
)  # fmt: skip

# The names a caption goes by in a sample's json, by role (design section 4).
CAPTION_COLUMNS = {"spatial": "caption_spatial", "temporal": "caption_temporal", "merged": "caption_merged"}


class DataError(Exception):
    """The data cannot be used as asked: the message names the shard or sample and the way out."""


class ShardError(DataError):
    """A shard that is missing, truncated, or not what was indexed."""


class SampleError(DataError):
    """One sample that cannot be read."""


@dataclass(frozen=True)
class Shard:
    """One tar and its index."""

    url: str
    size: int
    table: pa.Table  # SCHEMA


def find_shards(urls: Iterable[str]) -> list[str]:
    """Tar files named by paths, folders or globs (fsspec), sorted.

    Raises:
        ShardError: nothing there, or the store cannot be asked.
    """
    found: list[str] = []
    for url in urls:
        try:
            fs, path = fsspec.core.url_to_fs(url)
            if any(c in path for c in "*?["):
                paths = fs.glob(path)
            elif fs.isdir(path):
                paths = fs.glob(path.rstrip("/") + "/*.tar")
            else:
                paths = [path] if fs.exists(path) else []
        except Exception as error:  # of whichever store it is: no credentials, no such protocol, its package missing
            raise ShardError(f"{url}: cannot be listed: {type(error).__name__}: {error}") from error
        if not paths:
            raise ShardError(
                f"{url}: no shard there. Name a .tar, a folder of .tar files or a glob: what `clipmill export` writes"
            )
        local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
        found += [os.path.abspath(p) if local else fs.unstrip_protocol(p) for p in paths]
    return sorted(set(found))


def open_shard(url: str) -> Shard:
    """The shard with its index: read from beside it where there is one that fits, else made.

    Raises:
        ShardError: the tar is missing, truncated or not a tar, or its size is not what was indexed.
    """
    size = _size(url)
    for suffix, known in ((FULL_INDEX, _full_index), (EXPORT_INDEX, _export_index)):
        index = url.removesuffix(".tar") + suffix
        fs, path = fsspec.core.url_to_fs(index)
        if not fs.exists(path):
            continue
        try:
            table = pq.read_table(io.BytesIO(fs.cat_file(path)))
        except pa.ArrowInvalid as error:
            raise ShardError(f"{index}: not a readable index ({error}); delete it to have it made again") from error
        try:
            recorded, make = known(url, table)
        except KeyError as error:
            raise ShardError(f"{index}: {error} is missing; delete it to have it made again") from error
        if recorded != size:
            raise ShardError(
                f"{url}: {size} bytes, but {recorded} when it was indexed: it was truncated or changed since. "
                f"Restore or export the shard again, or delete {index} if the new content is meant"
            )
        return Shard(url, size, make())
    return Shard(url, size, scan_tar(url))


def _full_index(url: str, table: pa.Table) -> tuple[int, Callable[[], pa.Table]]:
    """(size of the tar, the table) of an index written by `write_index`."""
    return int(table.schema.metadata[b"tar_size"]), lambda: table.select(SCHEMA.names).cast(SCHEMA)


def _export_index(url: str, table: pa.Table) -> tuple[int, Callable[[], pa.Table]]:
    """The same of the index that `clipmill export` writes: places and checksums only, so the samples' json is read."""
    size = int(json.loads(table.schema.metadata[b"clipmill_shard"])["filesize"])

    def make() -> pa.Table:
        rows = []
        for each in table.to_pylist():
            row: dict[str, Any] = {"key": each["clip_id"], "media": "mp4", "captions": []}
            for kind, member in (("media", "mp4"), ("json", "json"), ("txt", "txt")):
                row |= {f"{kind}_{what}": each[f"{member}_{what}"] for what in ("offset", "size")}
                row[f"{kind}_crc32"] = each.get(f"{member}_crc32")  # exports of early versions have none
            facts = read_member(url, f"{row['key']}.json", row["json_offset"], row["json_size"], row["json_crc32"])
            row |= _facts(facts, f"{url}: {row['key']}.json")
            if row["txt_size"] and not row["captions"]:
                row["captions"] = ["text"]
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    return size, make


def write_index(shard: Shard) -> str:
    """Put the index beside the tar (temporary name, then rename); returns where."""
    url = shard.url.removesuffix(".tar") + FULL_INDEX
    fs, path = fsspec.core.url_to_fs(url)
    sink = io.BytesIO()
    pq.write_table(shard.table.replace_schema_metadata({"tar_size": str(shard.size)}), sink)
    fs.pipe_file(path + ".tmp", sink.getvalue())
    fs.mv(path + ".tmp", path)
    return url


def reindex(url: str) -> int:
    """Read a tar and write its full index beside it, whatever index there was; returns the number of samples."""
    shard = Shard(url, _size(url), scan_tar(url))
    write_index(shard)
    return int(shard.table.num_rows)


def scan_tar(url: str) -> pa.Table:
    """Index a tar by reading it once, front to back.

    Raises:
        ShardError: not a tar, truncated, or a sample without video.
    """
    samples: dict[str, dict[str, Any]] = {}
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                named = _MEMBER.match(member.name)
                key, extension = named.groups() if named else ("", "")
                kind = "media" if extension in MEDIA else extension
                if kind not in ("media", "json", "txt"):
                    continue
                content = tar.extractfile(member)
                data = content.read() if content is not None else b""
                if len(data) != member.size:
                    raise ShardError(f"{url}: truncated inside {member.name}")
                row = samples.setdefault(key, {"key": key, "captions": []})
                row |= {f"{kind}_offset": member.offset_data, f"{kind}_size": member.size}
                row[f"{kind}_crc32"] = zlib.crc32(data)
                if kind == "media":
                    row["media"] = extension
                elif kind == "json":
                    row |= _facts(data, f"{url}: {member.name}")
                elif data.strip():
                    row["captions"] = row["captions"] or ["text"]
    except (tarfile.TarError, EOFError) as error:
        packed = _compression(url)
        if packed:
            raise ShardError(f"{url}: compressed with {packed}; members are read in place: decompress it") from error
        raise ShardError(f"{url}: not a whole tar file ({error}); export it again") from error
    bare = [key for key, row in samples.items() if "media" not in row]
    if bare:
        raise ShardError(f"{url}: {len(bare)} samples have no video, image or latents, first {bare[0]}")
    if not samples:
        raise ShardError(f"{url}: an empty tar, or no member is called KEY.mp4 or the like ({', '.join(MEDIA)})")
    return pa.Table.from_pylist(list(samples.values()), schema=SCHEMA)


def _facts(text: bytes, where: str) -> dict[str, Any]:
    """What the trainer filters on, from a sample's json (a row of the clips table).

    Raises:
        ShardError: no JSON object, or a value of the wrong type.
    """
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise ShardError(f"{where}: not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise ShardError(f"{where}: a JSON object is needed, not a {type(meta).__name__}")
    facts: dict[str, Any] = {}
    for name in ("frames", "rate_fps", "width", "height", "motion", "camera", "elevation_deg"):
        key = "motion_coarse" if name == "motion" else name
        facts[name] = meta.get(key)
        try:
            pa.scalar(facts[name], SCHEMA.field(name).type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise ShardError(f"{where}: {key} {facts[name]!r}: no {SCHEMA.field(name).type}") from error
    captions = [role for role, column in CAPTION_COLUMNS.items() if meta.get(column)]
    return facts | ({"captions": captions} if captions else {})


def _compression(url: str) -> str | None:
    """What a file that is no tar was compressed with."""
    with fsspec.open(url, "rb") as file:
        start = file.read(8)
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def read_member(url: str, name: str, offset: int, size: int, crc32: int | None) -> bytes:
    """The content of a member, checked against its tar header and CRC.

    Raises:
        ShardError: the shard is missing, truncated, or holds something else there.
    """
    try:
        data = _read(url, offset - BLOCK, size + BLOCK)
    except FileNotFoundError as error:
        raise ShardError(f"{url}: the shard is gone since it was indexed") from error
    if len(data) != size + BLOCK:
        raise ShardError(f"{url}: truncated: {name} ends at byte {offset + size}")
    try:
        header = tarfile.TarInfo.frombuf(data[:BLOCK], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError as error:
        raise ShardError(f"{url}: changed since it was indexed: no member starts at {offset}") from error
    # A name that is long or not ASCII may stand in full in an earlier header only.
    if header.size != size or (header.name != name and len(name) <= 100 and name.isascii()):
        raise ShardError(
            f"{url}: changed since it was indexed: {header.name} ({header.size} bytes) lies where {name} ({size}) was"
        )
    content = data[BLOCK:]
    if crc32 is not None and zlib.crc32(content) != crc32:
        raise ShardError(f"{url}: damaged: the content of {name} is not what was indexed (CRC-32)")
    return content


def _size(url: str) -> int:
    fs, path = fsspec.core.url_to_fs(url)
    try:
        return int(fs.size(path))
    except FileNotFoundError as error:
        raise ShardError(f"{url}: the shard is missing") from error


def _read(url: str, start: int, length: int) -> bytes:
    if "://" not in url:
        return os.pread(_descriptor(url, os.getpid()), length, start)
    fs, path = fsspec.core.url_to_fs(url)
    data: bytes = fs.cat_file(path, start=start, end=start + length)
    return data


@lru_cache(maxsize=64)
def _opened(url: str, process: int) -> io.FileIO:
    return io.FileIO(url)


def _descriptor(url: str, process: int) -> int:
    """Few files stay open; each process opens its own (closed by the garbage collector when pushed out)."""
    return _opened(url, process).fileno()
