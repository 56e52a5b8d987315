"""A dataset directory: where its files are, and its tables as a reader may see them at any time.

    job.yaml                  the resolved spec
    sources/part-*.parquet    one row per source; a source is part of the dataset once its row is here
    clips/part-*.parquet      one row per clip; rows of sources that are not committed do not count
    media/part-*.tar          the clips' bytes

While a job runs, `sources/` grows by small files (`part-live-*.parquet`) and `clips/` by one file per segment
(`part-<source_id>-<k>.parquet`). At the end `pipelines.commit.compact` gives both their canonical form.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.schema import CLIPS, SOURCES
from curation.storage import Storage

COMPACTION = "clips/.compaction.json"
NEXT = ".next-"
"""The plan of a compaction, and what the new files are called until it is carried out: see `pipelines.commit`."""


class Dataset:
    """One dataset, at a local path or an fsspec URL."""

    def __init__(self, root: str | Path) -> None:
        self.storage = Storage(root)

    def __str__(self) -> str:
        return self.storage.root

    def sources(self) -> pa.Table:
        """One row per source (`schema.SOURCES`), sorted by uri. Of two rows for a uri the one written last counts."""
        table = pa.concat_tables([SOURCES.empty_table(), *self.source_parts(SOURCES.names)])
        written = pa.array(range(table.num_rows), pa.int64())
        order = [("source_uri", "ascending"), ("written", "ascending")]
        table = table.append_column("written", written).sort_by(order).drop_columns("written")
        uris = table["source_uri"]
        last = pc.not_equal(uris.slice(1), uris.slice(0, max(0, len(uris) - 1))).to_pylist() + [True] * bool(len(uris))
        return table.filter(pa.array(last, pa.bool_()))

    def source_parts(self, columns: list[str]) -> Iterator[pa.Table]:
        """These columns of the files of `sources/`, one after the other as they were written: where there are two rows
        for a uri, the later one counts. Columns that an older file lacks are empty."""
        schema = pa.schema([SOURCES.field(name) for name in columns])
        for name in sorted(self.part_files("sources"), key=lambda name: (name.startswith("part-live-"), name)):
            file = pq.ParquetFile(io.BytesIO(self.storage.read(f"sources/{name}")))
            table = file.read([name for name in columns if name in file.schema_arrow.names])
            rows = table.num_rows
            arrays = [
                table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(rows, field.type)
                for field in schema
            ]
            yield pa.table(arrays, schema)

    def clips(self, columns: list[str] | None = None) -> pa.Table:
        """One row per clip of the committed sources (`schema.CLIPS`), sorted by source and time."""
        names = None if columns is None else list(dict.fromkeys([*columns, "source_id", "start_pts"]))
        tables = [self.read_table(f"clips/{name}", names) for name in self.part_files("clips")]
        if not tables:
            return CLIPS.empty_table().select(names or CLIPS.names)
        table = pa.concat_tables(tables)
        table = table.filter(pc.is_in(table["source_id"], pa.array(sorted(self.committed_ids()), pa.string())))
        return table.sort_by([("source_id", "ascending"), ("start_pts", "ascending")])

    def clip_bytes(self, row: dict[str, Any]) -> bytes:
        """The mp4 of a clip, given its row."""
        return self.storage.read_range(f"media/{row['media_file']}", row["media_offset"], row["media_size"])

    def committed_ids(self) -> set[str]:
        """Ids of the sources whose clips count."""
        table = self.sources()
        return set(table.filter(pc.equal(table["status"], "ok"))["source_id"].to_pylist())

    def part_files(self, folder: str) -> list[str]:
        """Names of the folder's Parquet parts: every row once, also while a compaction is under way."""
        if folder == "clips" and (planned := self.compaction()) is not None:
            there = set(self.storage.list("clips"))
            return [NEXT + name if NEXT + name in there else name for name in planned["rename"]]
        return [name for name in self.storage.list(folder) if name.startswith("part-") and name.endswith(".parquet")]

    def compaction(self) -> dict[str, list[str]] | None:
        """The compaction of `clips/` that has been decided on and not been finished, if there is one."""
        try:
            plan: dict[str, list[str]] = json.loads(self.storage.read(COMPACTION))
        except FileNotFoundError:
            return None
        return plan

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file of the dataset."""
        return pq.read_table(io.BytesIO(self.storage.read(name)), columns=columns)
