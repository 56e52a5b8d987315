"""WebDataset shards of a decision: the kept clips' bytes, copied out of the media tars by offset. No frame is decoded.

    shards/NAME/000000.tar            per clip <clip_id>.mp4, .json, .txt, in this order (USTAR, no dates, no owners)
    shards/NAME/000000.index.parquet  one row per clip (`INDEX`): where its three members' bytes are in the tar
    shards/NAME/index.json            the shards with their sizes, written last: an export without it is not complete
    shards/NAME/errors.parquet        clips that could not be exported and why (`ERRORS`); only when there are any

Order: ascending clip_id. A clip_id is a hash, so neighbours come from unrelated sources: the order is a shuffle, and
the same one every time. A shard is closed before it would exceed the target size or number of clips.

`.json` holds the clip's row of `curation.schema.CLIPS` without the embedding and the columns that point into the media
tars, plus `decision`: all of its captions among them, from which the trainer chooses. `.txt` is the caption that goes
with the clip (`curation.schema.clip_caption`) and is always there, empty when the clip has none, so that every sample
has the same three members and `to_tuple("mp4", "txt")` works on all of them.

Running an export again writes the same bytes and skips shards that are complete. That they still hold what was written
is looked at on demand only: who carries a large export on does not want to read again what is done.
"""

import hashlib
import io
import json
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curation import schema
from curation.score_table import text
from pipelines.dataset import Dataset
from pipelines.decide import DatasetError, check_name, open_clips, read_decision

INDEX: pa.Schema = pa.schema(
    [
        pa.field("clip_id", pa.string(), metadata={"doc": "key of the sample"}),
        pa.field("duration_s", pa.float64(), metadata={"doc": "length of the clip", "unit": "s"}),
        pa.field("frames", pa.int32(), metadata={"doc": "frames in the clip"}),
        *[
            pa.field(f"{kind}_{what}", pa.int64(), metadata={"doc": f"{doc} of the .{kind} member", "unit": "B"})
            for kind in ("mp4", "json", "txt")
            for what, doc in (("offset", "first byte in the tar"), ("size", "bytes"))
        ],
        *[
            pa.field(f"{kind}_crc32", pa.uint32(), metadata={"doc": f"CRC-32 of the .{kind} member"})
            for kind in ("mp4", "json", "txt")
        ],
    ],
    metadata={"clipmill_schema": str(schema.VERSION)},
)

ERRORS: pa.Schema = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("media_file", pa.string()),
        pa.field("reason", pa.string(), metadata={"doc": "media_missing, media_changed or media_unreadable"}),
        pa.field("message", pa.string(), metadata={"doc": "the reason for a person"}),
    ],
    metadata={"clipmill_schema": str(schema.VERSION)},
)

_POINTERS = ("media_file", "media_offset", "media_size", "thumbnail_offset", "thumbnail_size")
_BLOCK = tarfile.BLOCKSIZE
_READ_BYTES = 64 << 20  # media fetched at once: enough to keep an object store busy, little enough for memory


@dataclass
class _Sample:
    """A kept clip: its row, and the two text members made of it."""

    row: dict[str, Any]
    meta: bytes
    caption: bytes

    @property
    def tar_bytes(self) -> int:
        sizes = (self.row["media_size"], len(self.meta), len(self.caption))
        return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK for size in sizes)


class MediaChanged(Exception):
    """The media tar does not hold the clip where its row says it does."""


@dataclass(frozen=True)
class Exported:
    """How far an export is: clips and bytes that are in shards, clips that could not be, and clips in all."""

    clips: int
    errors: int
    bytes: int
    total: int


def export(
    dataset: str | Dataset,
    name: str,
    *,
    shard_bytes: int = 500 * 10**6,
    shard_clips: int = 1000,
    verify: bool = False,
    show: Callable[[Exported], None] = lambda done: None,
) -> dict[str, Any]:
    """Write the shards of decision `name`. Returns what index.json holds.

    `verify`: read shards that are there against their checksums, and write those again that are damaged.
    `show` is told after every shard. What it raises ends the export; the same call carries it on.

    Raises:
        DatasetError: there is no such dataset or decision.
        OSError: the shards cannot be written; those already complete stay and are not written again.
    """
    where = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    read_decision(where, check_name(name))
    folder = f"shards/{name}"
    storage = where.storage
    con, kept = _kept(where, name)
    total = _check_kept(where, name, con, kept)
    storage.remove(f"{folder}/index.json")
    storage.remove_leftovers(folder)
    shards: list[dict[str, Any]] = []
    done = Exported(0, 0, 0, total)
    show(done)
    with _Errors(where, f"{folder}/errors.parquet") as errors:
        for number, samples in enumerate(_plan(_samples(con, kept, name), shard_bytes, shard_clips)):
            shard = _shard(where, f"{folder}/{number:06d}", samples, errors, verify)
            if shard["nsamples"]:
                shards.append(shard)
            done = Exported(
                done.clips + shard["nsamples"],
                errors.count,
                done.bytes + bool(shard["nsamples"]) * shard["filesize"],
                total,
            )
            show(done)
    con.close()
    wanted = {"errors.parquet"} if errors.count else set()
    for shard in shards:
        wanted |= {shard["url"], shard["index"]}
    for stale in storage.list(folder):
        if stale not in wanted:
            storage.remove(f"{folder}/{stale}")
    summary = {
        # The first three keys are what webdataset's own index files have, so that its tools read this one.
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": shards,
        "decision": name,
        "clips": sum(shard["nsamples"] for shard in shards),
        "seconds": round(sum(shard["seconds"] for shard in shards), 6),
        "bytes": sum(shard["filesize"] for shard in shards),
        "errors": errors.count,
        "order": "clip_id",
    }
    storage.write(f"{folder}/index.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


class _Errors:
    """errors.parquet, written as errors come: a dataset without its media has one for every clip."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.count = 0
        self._dataset, self._name = dataset, name
        self._held: list[dict[str, Any]] = []
        self._open = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Errors":
        return self

    def append(self, error: dict[str, Any]) -> None:
        self.count += 1
        self._held.append(error)
        if len(self._held) >= 50_000:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            storage = self._dataset.storage
            path = self._open.enter_context(storage.writing(self._name))
            file = self._open.enter_context(storage.fs.open(path, "wb"))
            self._writer = self._open.enter_context(pq.ParquetWriter(file, ERRORS, compression="zstd"))
        self._writer.write_table(pa.Table.from_pylist(self._held, ERRORS))
        self._held = []

    def __exit__(self, *failure: Any) -> None:
        if self._held and failure[0] is None:
            self._flush()
        self._open.__exit__(*failure)


def _kept(dataset: Dataset, name: str) -> tuple[duckdb.DuckDBPyConnection, str]:
    """A connection with the relation `clips`, and the relation of the decision's rows."""
    con = open_clips(dataset)
    if dataset.storage.is_local:
        return con, f"read_parquet({text(dataset.storage.path(f'decisions/{name}.parquet'))})"
    con.register("decision", dataset.read_table(f"decisions/{name}.parquet"))
    return con, "decision"


def _check_kept(dataset: Dataset, name: str, con: duckdb.DuckDBPyConnection, kept: str) -> int:
    """How many clips the decision keeps. Raises DatasetError when some of them are gone."""
    known, found = con.execute(
        f"SELECT count(*), count(c.clip_id) FROM {kept} d LEFT JOIN clips c USING (clip_id) WHERE d.keep"
    ).fetchall()[0]
    if known != found:
        raise DatasetError(
            f"{dataset}: decision {name!r} keeps {known - found} clips that the dataset no longer has: decide again"
        )
    return int(known)


def _samples(con: duckdb.DuckDBPyConnection, kept: str, name: str) -> Iterator[_Sample]:
    """The kept clips in the order of the shards."""
    reader = con.sql(
        f"SELECT c.* EXCLUDE (place, embedding) FROM clips c JOIN {kept} d USING (clip_id) "
        "WHERE d.keep ORDER BY c.clip_id"
    ).to_arrow_reader(4096)
    for batch in reader:
        for row in batch.to_pylist():
            meta = {
                key: _plain(value)
                for key, value in row.items()
                if key not in _POINTERS and not isinstance(value, bytes)
            } | {"decision": name}
            data = json.dumps(meta, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
            yield _Sample(row, data.encode(), (schema.clip_caption(row) or "").encode())


def _plain(value: Any) -> Any:
    """What JSON can say: a number that is not finite was never a score and becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _plan(samples: Iterator[_Sample], shard_bytes: int, shard_clips: int) -> Iterator[list[_Sample]]:
    """Consecutive samples, as many to a shard as fit."""
    held: list[_Sample] = []
    size = 0
    for sample in samples:
        if held and (size + sample.tar_bytes > shard_bytes or len(held) >= shard_clips):
            yield held
            held, size = [], 0
        held.append(sample)
        size += sample.tar_bytes
    if held:
        yield held


def _shard(dataset: Dataset, stem: str, samples: list[_Sample], errors: _Errors, verify: bool) -> dict[str, Any]:
    """Write one shard and its index unless both are there. Appends to `errors`; returns the entry of index.json."""
    digest = hashlib.sha256()
    for sample in samples:
        place = (sample.row["media_file"], sample.row["media_offset"], sample.row["media_size"])
        digest.update(repr((sample.row["clip_id"], *place)).encode() + sample.meta + sample.caption)
    done = _complete(dataset, stem, digest.hexdigest(), verify)
    if done is None:
        done = _write(dataset, stem, samples, digest.hexdigest(), errors)
    return done


def _complete(dataset: Dataset, stem: str, digest: str, verify: bool) -> dict[str, Any] | None:
    """The entry of a shard that is complete and made from the same clips, else None.

    A shard in which clips are missing counts as incomplete: their media may be back.
    """
    storage = dataset.storage
    if not (storage.exists(f"{stem}.tar") and storage.exists(f"{stem}.index.parquet")):
        return None
    index = io.BytesIO(storage.read(f"{stem}.index.parquet"))
    try:
        table = pq.read_table(index)
        metadata = table.schema.metadata or {}
        entry: dict[str, Any] = json.loads(metadata.get(b"clipmill_shard", b"{}"))
    except (ValueError, OSError):  # it is in memory: nothing else than damage
        return None
    if metadata.get(b"clipmill_plan") != digest.encode() or entry.pop("errors", 1):
        return None
    if storage.fs.size(storage.path(f"{stem}.tar")) != entry["filesize"]:
        return None
    return entry if not verify or _intact(dataset, f"{stem}.tar", table.to_pylist()) else None


def _intact(dataset: Dataset, name: str, rows: list[dict[str, Any]]) -> bool:
    """Whether a shard's members are those that its index holds the checksums of."""
    with dataset.storage.fs.open(dataset.storage.path(name), "rb") as file:
        for row in rows:
            for kind in ("mp4", "json", "txt"):
                file.seek(row[f"{kind}_offset"] - _BLOCK)
                header, content = file.read(_BLOCK), file.read(row[f"{kind}_size"])
                if zlib.crc32(content) != row[f"{kind}_crc32"]:
                    return False
                try:
                    member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    return False
                if (member.name, member.size) != (f"{row['clip_id']}.{kind}", len(content)):
                    return False
    return True


def _write(dataset: Dataset, stem: str, samples: list[_Sample], digest: str, errors: _Errors) -> dict[str, Any]:
    storage = dataset.storage
    rows: list[dict[str, Any]] = []
    us, failed = 0, 0  # microseconds, as everywhere: their sum does not depend on how clips fall into shards
    storage.remove(f"{stem}.index.parquet")
    with (
        storage.writing(f"{stem}.tar") as path,
        storage.fs.open(path, "wb") as file,
        tarfile.open(fileobj=_Counting(file), mode="w|", format=tarfile.USTAR_FORMAT) as tar,  # type: ignore[call-overload]
    ):
        for sample, data in _fetch(dataset, samples):
            clip_id = sample.row["clip_id"]
            if isinstance(data, Exception):
                failed += 1
                reason, message = _why(sample.row["media_file"], data)
                errors.append(
                    {"clip_id": clip_id, "media_file": sample.row["media_file"], "reason": reason}
                    | {"message": message}
                )
                continue
            row = {key: sample.row[key] for key in ("clip_id", "duration_s", "frames")}
            for kind, content in (("mp4", data), ("json", sample.meta), ("txt", sample.caption)):
                member = tarfile.TarInfo(f"{clip_id}.{kind}")
                member.size, member.mode, member.mtime = len(content), 0o644, 0
                row |= {f"{kind}_offset": tar.offset + _BLOCK, f"{kind}_size": len(content)}
                row[f"{kind}_crc32"] = zlib.crc32(content)
                tar.addfile(member, io.BytesIO(content))
            rows.append(row)
            us += round(sample.row["duration_s"] * 1e6)
    leaf = stem.rpartition("/")[2]
    size = int(storage.fs.size(storage.path(f"{stem}.tar")))
    entry = {"url": f"{leaf}.tar", "nsamples": len(rows), "filesize": size}
    entry |= {"seconds": us / 1e6, "index": f"{leaf}.index.parquet"}
    table = pa.Table.from_pylist(rows, INDEX)
    notes = {"clipmill_plan": digest, "clipmill_shard": json.dumps(entry | {"errors": failed})}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**(INDEX.metadata or {}), **notes}), buffer, compression="zstd")
    storage.write(f"{stem}.index.parquet", buffer.getvalue())
    return entry


def _why(media_file: str, error: Exception) -> tuple[str, str]:
    """The reason and the message of a clip whose bytes cannot be had."""
    if isinstance(error, FileNotFoundError):
        return "media_missing", f"media/{media_file} is missing"
    if isinstance(error, MediaChanged):
        return "media_changed", str(error)
    return "media_unreadable", f"media/{media_file}: {error}"


class _Counting:
    """A file that only writes, for tarfile's stream mode."""

    def __init__(self, file: Any) -> None:
        self.write = file.write


def _fetch(dataset: Dataset, samples: list[_Sample]) -> Iterator[tuple[_Sample, bytes | Exception]]:
    """Each sample with its clip's bytes, or with why they cannot be had. Fetches several ranges at once."""
    storage = dataset.storage
    start = 0
    while start < len(samples):
        end, size = start, 0
        while end < len(samples) and (end == start or size < _READ_BYTES):
            size += samples[end].row["media_size"] or 0
            end += 1
        chunk = samples[start:end]
        pieces = storage.fs.cat_ranges(
            [storage.path(f"media/{sample.row['media_file']}") for sample in chunk],
            [(sample.row["media_offset"] or _BLOCK) - _BLOCK for sample in chunk],
            [(sample.row["media_offset"] or _BLOCK) + (sample.row["media_size"] or 0) for sample in chunk],
            on_error="return",
        )
        for sample, piece in zip(chunk, pieces, strict=True):
            yield sample, piece if isinstance(piece, Exception) else _checked(sample.row, bytes(piece))
        start = end


def _checked(row: dict[str, Any], piece: bytes) -> bytes | Exception:
    """The clip's bytes out of a tar member with its header, when the header says that it is this clip."""
    where = f"media/{row['media_file']}"
    if len(piece) != _BLOCK + (row["media_size"] or 0):
        return MediaChanged(f"{where} ends before byte {(row['media_offset'] or 0) + (row['media_size'] or 0)}")
    try:
        member = tarfile.TarInfo.frombuf(piece[:_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return MediaChanged(f"{where} has no member at byte {row['media_offset']}")
    if member.name != f"{row['clip_id']}.mp4" or member.size != row["media_size"]:
        return MediaChanged(f"{where} holds {member.name!r} ({member.size} B) at byte {row['media_offset']}")
    return piece[_BLOCK:]
