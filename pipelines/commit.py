"""What makes a source part of the dataset, and what gives the finished dataset its one canonical form.

The driver alone commits: a source's row goes into `sources/` when its report and a receipt for each of its segments
are in. `compact` then merges the many small files of a run. Its result depends on which sources are committed and on
nothing else, neither the order in which they finished nor how often the job was killed, except for the processor
times in `sources/` (the columns `*_s` of `TIMINGS`), which are measurements.

A merge replaces several files, which no file system does at once. So the new files are first written under names that
no reader looks at; then `clips/.compaction.json` says what is to be renamed and deleted. From there on a kill does not
matter: `finish_compaction`, called first by every run, carries on.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.schema import CLIPS, SOURCES
from curation.segment import parquet_bytes
from curation.source import failed_row
from pipelines.contents import Contents
from pipelines.dataset import COMPACTION, NEXT, Dataset

TIMINGS = ("probe_s", "cuts_s", "clips_s", "scores_s", "flow_s", "captions_s", "images_s", "text_s")
_SMALL_FILES = 64
ROWS_PER_FILE = 122_880  # one DuckDB row group, so that a query over millions of clips reads few large pieces


@dataclass
class _Pending:
    """A source on its way: which segments are stored, and the report once it is in."""

    stored: dict[int, dict[str, float]] = field(default_factory=dict)  # segment -> processor seconds of its stages
    report: dict[str, Any] | None = None


class Committer:
    """Collects messages of the graph and commits the sources that are complete."""

    def __init__(self, dataset: Dataset, *, flush_rows: int = 256, flush_s: float = 5.0) -> None:
        self._dataset = dataset
        self._flush_rows, self._flush_s = flush_rows, flush_s
        self._pending: dict[str, _Pending] = {}
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()
        self._contents = Contents(dataset)
        live = [name for name in dataset.part_files("sources") if name.startswith("part-live-")]
        self._small: list[str] = []  # files of this run that are to be merged
        self._merged: list[str] = []  # files whose rows are in a later one too
        self._next_part = 1 + max((int(name[len("part-live-") : -len(".parquet")]) for name in live), default=-1)

    def receipt(self, uri: str, index: int, timings: dict[str, float] | None = None) -> dict[str, Any] | None:
        """A segment is stored; `timings`: its processor seconds by column. Returns the source's row if that completes
        it."""
        self._pending.setdefault(uri, _Pending()).stored[index] = timings or {}
        return self._settle(uri)

    def report(self, uri: str, row: dict[str, Any], segments: int) -> dict[str, Any] | None:
        """A source is through. Returns its row if its segments are stored too."""
        self._pending.setdefault(uri, _Pending()).report = {"row": row, "segments": segments}
        return self._settle(uri)

    def add(self, row: dict[str, Any]) -> None:
        """Commit a row that needs no segment: a failure or a duplicate."""
        self._pending.pop(row["source_uri"], None)
        self._rows.append(row)
        if len(self._rows) >= self._flush_rows or time.monotonic() - self._flushed_at >= self._flush_s:
            self.flush()

    def forget_unfinished(self) -> None:
        """Drop what is known of sources that did not complete; they start again from nothing."""
        self._pending.clear()

    def flush(self) -> None:
        """Write the rows that are complete: from now on those sources are part of the dataset."""
        self._flushed_at = time.monotonic()
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=SOURCES)
        self._small.append(self._write(table))
        self._rows = []
        self._contents.stored()
        if len(self._small) >= _SMALL_FILES:
            self._merge()

    def _write(self, rows: pa.Table) -> str:
        name = f"part-live-{self._next_part:06d}.parquet"
        self._dataset.storage.write(f"sources/{name}", parquet_bytes(rows))
        self._next_part += 1
        return name

    def _merge(self) -> None:
        """One file of many small ones, so that a job of millions of sources does not have tens of thousands to read.

        The small ones stay until the next merge: somebody may be reading them. Rows twice do not matter.
        """
        for name in self._merged:
            self._dataset.storage.remove(f"sources/{name}")
        self._merged, rows = (
            self._small,
            pa.concat_tables(self._dataset.read_table(f"sources/{n}") for n in self._small),
        )
        name = self._write(rows)
        self._small = [name] if rows.num_rows < ROWS_PER_FILE else []

    def _settle(self, uri: str) -> dict[str, Any] | None:
        pending = self._pending[uri]
        if pending.report is None or len(pending.stored) < pending.report["segments"]:
            return None
        row: dict[str, Any] = pending.report["row"]
        for spent in pending.stored.values():
            for name, seconds in spent.items():
                row[name] = row.get(name, 0.0) + seconds
        first = self._contents.first(row["source_id"], uri) if row["status"] == "ok" else uri
        if first != row["source_uri"]:  # sources whose size was not known could not be compared before
            row = duplicate_row(row["source_uri"], first, row.get("size_bytes"))
        self.add(row)
        return row


def duplicate_row(uri: str, original: str, size: int | None) -> dict[str, Any]:
    """The row of a source whose content another one has that is curated."""
    row = failed_row(uri, "duplicate", f"has the content of {original}", size_bytes=size, duplicate_of=original)
    return row | {"status": "duplicate"}


Complete = Callable[[pa.Table], pa.Table]
"""Fills columns of clips in that depend on the other clips of the dataset."""


def compact(dataset: Dataset, complete: Complete = lambda clips: clips) -> None:
    """Give a dataset whose sources are all committed its canonical files, and delete what belongs to no source."""
    finish_compaction(dataset)
    _compact_sources(dataset)
    _compact_clips(dataset, complete)
    _remove_orphans(dataset)


def _compact_sources(dataset: Dataset) -> None:
    """One file, sorted by uri. Written before the small files go: a kill in between leaves rows twice, and
    `Dataset.sources` takes one of them."""
    table = dataset.sources()
    for name, start in _numbered(table.num_rows):
        dataset.storage.write(f"sources/{name}", parquet_bytes(table.slice(start, ROWS_PER_FILE).combine_chunks()))
    keep = {name for name, _ in _numbered(table.num_rows)}
    for name in dataset.part_files("sources"):
        if name not in keep:
            dataset.storage.remove(f"sources/{name}")


def _numbered(rows: int) -> list[tuple[str, int]]:
    """Canonical file names and the row that each starts with. An empty table is one empty file."""
    return [(f"part-{k:05d}.parquet", k * ROWS_PER_FILE) for k in range(max(1, -(-rows // ROWS_PER_FILE)))]


def _is_compacted(name: str) -> bool:
    return len(name) == len("part-00000.parquet") and name[5:10].isdigit()


def _compact_clips(dataset: Dataset, complete: Complete) -> None:
    storage = dataset.storage
    committed = dataset.committed_ids()
    old = dataset.part_files("clips")
    pieces = [_pieces(dataset, [name for name in old if _is_compacted(name)], committed)]
    pieces.append(_pieces(dataset, [name for name in old if not _is_compacted(name)], committed))
    names: list[str] = []
    for number, table in enumerate(_rechunk(merge(*pieces, key=lambda piece: piece[0]))):
        names.append(f"part-{number:05d}.parquet")
        storage.write(f"clips/{NEXT}{names[-1]}", parquet_bytes(complete(table)))
    plan = {"rename": names, "delete": [name for name in old if name not in names]}
    storage.write(COMPACTION, json.dumps(plan).encode())
    finish_compaction(dataset)


def _pieces(dataset: Dataset, names: list[str], committed: set[str]) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    """The rows of these files by source, in order: ((source_id, first pts), rows)."""
    for name in sorted(names):
        table = dataset.read_table(f"clips/{name}")
        ids = table["source_id"].to_pylist()
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or ids[end] != ids[start]:
                if ids[start] in committed:
                    piece = table.slice(start, end - start)
                    yield (ids[start], piece["start_pts"][0].as_py()), piece
                start = end


def _rechunk(pieces: Iterator[tuple[tuple[str, int], pa.Table]]) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS_PER_FILE, the last one shorter; one empty table for none."""
    held: list[pa.Table] = []
    rows = written = 0
    for _, piece in pieces:
        held.append(piece)
        rows += piece.num_rows
        while rows >= ROWS_PER_FILE:
            table = pa.concat_tables(held)
            yield table.slice(0, ROWS_PER_FILE).combine_chunks()
            held, rows, written = [table.slice(ROWS_PER_FILE)], rows - ROWS_PER_FILE, written + 1
    if rows or not written:
        yield pa.concat_tables([CLIPS.empty_table(), *held]).combine_chunks()


def finish_compaction(dataset: Dataset) -> None:
    """Carry out a compaction that is written down; without one, delete files that an earlier one left half done."""
    storage = dataset.storage
    if (plan := dataset.compaction()) is not None:
        for name in plan["rename"]:
            if storage.exists(f"clips/{NEXT}{name}"):
                storage.rename(f"clips/{NEXT}{name}", f"clips/{name}")
        for name in plan["delete"]:
            storage.remove(f"clips/{name}")
        storage.remove(COMPACTION)
    for name in storage.list("clips"):
        if name.startswith(NEXT):
            storage.remove(f"clips/{name}")


def _remove_orphans(dataset: Dataset) -> None:
    """Delete media of sources that are not committed, and temporary files of killed writers."""
    committed = dataset.committed_ids()
    for name in dataset.storage.list("media"):
        if name.startswith("part-") and name.split("-")[1] not in committed:
            dataset.storage.remove(f"media/{name}")
    for folder in ("clips", "media", "sources"):
        dataset.storage.remove_leftovers(folder)


def without_timings(sources: pa.Table) -> pa.Table:
    """The part of `sources` that two runs of a job agree in."""
    return sources.drop_columns([name for name in TIMINGS if name in sources.column_names])


def seconds_close(sources: pa.Table) -> bool:
    """Whether seconds in equal seconds kept and lost, for every source."""
    lost = [sources[name] for name in ("lost_transition_s", "lost_short_s", "lost_keyframe_s", "lost_error_s")]
    total = sources["kept_s"]
    for column in lost:
        total = pc.add(total, column)
    gap = pc.max(pc.abs(pc.subtract(total, sources["duration_s"]))).as_py()
    return gap is None or gap < 1e-6
