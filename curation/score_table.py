"""The scores of every candidate clip, as DuckDB sees them: the Parquet rows, and a narrow numeric table beside them.

Relations in the connection:

    clips   the Parquet rows with every column of `curation.schema.CLIPS` (a column that an older dataset lacks is null)
    scores  one row per clip, in the order of the files: `us` (duration, microseconds), `gate` (0 or the number of the
            gate), `source` (hash of source_id), `place` (the row, counted over all files), `missing` (bit i: no value
            for the i-th known score), and per score its value columns: NAME for a number, NAME|low NAME|high NAME|mean
            for one value per frame, NAME as a code for a label

`scores` is a view of the arrays of `curation.score_columns`, which hold no value but finite numbers: DuckDB sees null
elsewhere. Seconds are summed as whole microseconds, so that sums do not depend on the order in which they are added.
"""

import os
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import schema
from curation.rules import Frames
from curation.score_columns import Columns, Provenance, Ranked, columns_of, from_table, read_files, read_table

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.125, 0.25, 0.5, 0.75, 0.875, 0.9, 0.95, 0.99, 1.0)
TOP = 0.995  # the quantile at which a histogram's axis ends

_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.int64(): "BIGINT",
    pa.int32(): "INTEGER",
    pa.float64(): "DOUBLE",
    pa.float32(): "FLOAT",
    pa.bool_(): "BOOLEAN",
    pa.list_(pa.float32()): "FLOAT[]",
    pa.list_(pa.string()): "VARCHAR[]",
}


class SchemaError(ValueError):
    """Rows that are not this version's. The message says which version they are and the way out."""


@dataclass(frozen=True)
class Measured:
    """How many clips have a score, have an error instead, or were never looked at; and how many have no score though
    no gate stopped them."""

    scored: int
    failed: int
    not_measured: int
    unscored: int


def quote(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """`value` as an SQL string."""
    return "'" + value.replace("'", "''") + "'"


def connect(*, memory_limit: str = "500MB", threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that never reaches for the network or for extensions."""
    con = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"},
    )
    con.execute(f"SET memory_limit = {text(memory_limit)}")
    con.execute(f"SET temp_directory = {text(os.path.join(tempfile.gettempdir(), f'clipmill-{os.getpid()}'))}")
    con.execute("SET preserve_insertion_order = true")
    if threads is not None:
        con.execute(f"SET threads = {int(threads)}")
    return con


def check_version(metadata: dict[bytes, bytes] | None, where: str) -> None:
    """Raises SchemaError unless the Parquet metadata is of this schema version."""
    found = (metadata or {}).get(b"clipmill_schema")
    if found is None:
        raise SchemaError(f"{where} is not a table of a Clipmill dataset (no clipmill_schema in its metadata)")
    if int(found) > schema.VERSION:
        raise SchemaError(
            f"{where} has schema version {int(found)}; this clipmill reads up to {schema.VERSION}: install a newer one"
        )
    if int(found) < schema.VERSION:
        raise SchemaError(
            f"{where} has the older schema version {int(found)} (this clipmill writes {schema.VERSION}): run "
            "`clipmill curate` on the same job into a new folder, or read it with the clipmill that wrote it"
        )


def _without_halves(table: pa.Table) -> pa.Table:
    """The table with half floats as floats: DuckDB reads them from Parquet, but not from Arrow."""
    fields = [
        field.with_type(pa.list_(pa.float32()))
        if pa.types.is_list(field.type) and field.type.value_type == pa.float16()
        else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields, table.schema.metadata))


def _padded(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Columns of a table, those that it lacks as null."""
    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.CLIPS.field(name).type))
    return table.select(list(names))


def _nullable(values: np.ndarray) -> pa.Array:
    """An array over the same memory whose nulls are NaN, or 0 for codes."""
    valid = values != 0 if values.dtype == np.uint8 else ~np.isnan(values)
    bits = np.packbits(valid, bitorder="little")
    buffers = [pa.py_buffer(bits), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), buffers)


_LOW = {"any": "low", "all": "high", "mean": "mean"}
_HIGH = {"any": "high", "all": "low", "mean": "mean"}


def low_column(score: schema.Score, frames: Frames) -> str:
    """The column of `scores` that a lower bound is compared with."""
    return f"{score.name}|{_LOW[frames]}" if score.kind == "per_frame" else score.name


def high_column(score: schema.Score, frames: Frames) -> str:
    """The column of `scores` that an upper bound is compared with."""
    return f"{score.name}|{_HIGH[frames]}" if score.kind == "per_frame" else score.name


def view_clips(con: duckdb.DuckDBPyConnection, clips: Sequence[str] | pa.Table) -> None:
    """Create the relation `clips` from local Parquet paths or a table. Raises SchemaError."""
    place = "row_number() OVER () - 1"
    if isinstance(clips, pa.Table) or not clips:
        table = clips if isinstance(clips, pa.Table) else schema.CLIPS.empty_table()
        check_version(table.schema.metadata, "the table of clips")
        con.register("clips_arrow", _without_halves(table))
        source = "clips_arrow"
    else:
        for path in clips:
            rows = con.execute("SELECT key, value FROM parquet_kv_metadata(?)", [path]).fetchall()
            check_version({bytes(key): bytes(value) for key, value in rows}, path)
        names = "[" + ", ".join(text(path) for path in clips) + "]"
        source = f"read_parquet({names}, union_by_name = true, filename = true, file_row_number = true)"
        starts = zip(clips, _starts(clips), strict=False)
        place = f"MAP {{{', '.join(f'{text(path)}: {start}' for path, start in starts)}}}[filename]"
        place = f"{place}::BIGINT + file_row_number"
    con.execute(f"CREATE VIEW clips AS {_select(con, source, place)}")


def _starts(files: Sequence[str]) -> np.ndarray:
    """The first row of each file, and the number of rows."""
    return np.cumsum([0, *(pq.read_metadata(path).num_rows for path in files)])


def _select(con: duckdb.DuckDBPyConnection, source: str, place: str) -> str:
    """SQL for the rows of a relation with every column of the schema, and `place`."""
    present = {row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    columns = []
    for field in schema.CLIPS:  # a type not listed, such as an embedding's, is read as it is
        value = quote(field.name) if field.name in present else "NULL"
        cast = f"::{_SQL_TYPES[field.type]}" if field.type in _SQL_TYPES else ""
        columns.append(f"{value}{cast} AS {quote(field.name)}")
    return f"SELECT {', '.join(columns)}, {place} AS place FROM {source}"


class ScoreTable:
    """The relations above, built once from Parquet files or an Arrow table."""

    columns: Columns
    starts: np.ndarray  # the first row of each file, and the number of rows

    def __init__(
        self,
        clips: Sequence[str] | pa.Table,
        *,
        con: duckdb.DuckDBPyConnection | None = None,
        scores: Sequence[schema.Score] = schema.SCORES,
    ) -> None:
        """`clips`: local Parquet paths, or a table. Raises SchemaError."""
        self.con = con if con is not None else connect()
        self.known = tuple(score for score in scores if score.kind in ("number", "per_frame", "label"))
        self.files: list[str] = []
        self._table: pa.Table | None = None
        self._ranked: dict[str, Ranked] = {}
        self._answers: dict[Hashable, Any] = {}
        self._open(clips)
        self._view()

    def _open(self, clips: Sequence[str] | pa.Table) -> None:
        view_clips(self.con, clips)
        if isinstance(clips, pa.Table) or not clips:
            self._table = clips if isinstance(clips, pa.Table) else schema.CLIPS.empty_table()
            self.starts = np.array([0, self._table.num_rows])
            self.columns = from_table(self._table, self.known)
        else:
            self.files = [str(path) for path in clips]
            self.starts = _starts(self.files)
            self.columns = read_files(self.files, self.known)

    def _view(self) -> None:
        """Everything that follows from the columns, and the relation `scores` over them."""
        columns = self.columns
        self.clips = len(columns)
        self.gates, self.labels = columns.gates, columns.labels
        self.ungated = self.clips - int(np.count_nonzero(columns.gate))  # clips that no gate stopped
        self.us = int(columns.us.sum())
        open_ = columns.missing[columns.gate == 0] if self.gates else columns.missing
        self.measured = {}
        for bit, score in enumerate(self.known):
            told = columns.provenance[score.name]
            unscored = int(np.count_nonzero(open_ & columns.missing.dtype.type(1 << bit)))
            self.measured[score.name] = Measured(
                told.scored, told.failed, self.clips - told.scored - told.failed, unscored
            )
        source = np.empty(self.clips, np.uint64)
        at = 0
        for batch in self.con.sql("SELECT hash(source_id) AS source FROM clips").to_arrow_reader(1 << 20):
            source[at : at + batch.num_rows] = batch["source"].to_numpy(zero_copy_only=False)
            at += batch.num_rows
        self.source = source
        flat = {"us": columns.us, "gate": columns.gate, "missing": columns.missing, "source": source}
        flat["place"] = np.arange(self.clips, dtype=np.uint32 if self.clips < 1 << 32 else np.uint64)
        arrays = {name: pa.array(values) for name, values in flat.items()}
        self._relation = pa.table(arrays | {name: _nullable(values) for name, values in columns.values.items()})
        self.con.register("scores", self._relation)

    def with_columns(self, relation: str, **columns: np.ndarray) -> None:
        """Register `scores` with more columns, without copying, as another relation."""
        table = self._relation
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        self.con.register(relation, table)

    def column(self, name: str) -> np.ndarray:
        """A value column of `scores`, `gate` or `missing`: (clips,)."""
        if name in ("gate", "missing"):
            found: np.ndarray = getattr(self.columns, name)
            return found
        return self.columns.values[name]

    @property
    def seconds(self) -> float:
        """Seconds of all candidate clips."""
        return self.us / 1e6

    def score(self, name: str) -> schema.Score:
        """The score called `name`. Raises KeyError naming the known ones."""
        for candidate in self.known:
            if candidate.name == name:
                return candidate
        raise KeyError(f"no score is called {name!r}; known: {', '.join(s.name for s in self.known)}")

    def ranked(self, column: str) -> Ranked:
        """The finite values of a numeric column of `scores` in order. Kept for the next call."""
        if column not in self._ranked:
            self._ranked[column] = Ranked(self.columns.values[column], (*QUANTILES, TOP))
        return self._ranked[column]

    def prepare(self) -> None:
        """Put every column in order now, so that the first question need not wait for it."""
        for score in self.known:
            if score.kind != "label" and self.measured[score.name].scored:
                for column in columns_of(score):
                    self.ranked(column)

    def provenance(self, score: schema.Score) -> Provenance:
        """What measured a score, and why it could not be."""
        return self.columns.provenance[score.name]

    def once(self, key: Hashable, answer: Callable[[], Any]) -> Any:
        """An answer that depends on the clips and on `key` alone: worked out at the first call."""
        if key not in self._answers:
            self._answers[key] = answer()
        return self._answers[key]

    def stream(self, names: Sequence[str]) -> Iterator[tuple[slice, pa.Table]]:
        """These columns of all clips, piece by piece in the order of `scores`, with the rows that a piece holds."""
        for number, start in enumerate(self.starts[:-1]):
            piece = read_table(self.files[number], names) if self._table is None else _padded(self._table, names)
            yield slice(int(start), int(start) + piece.num_rows), piece

    def rows(self, places: Iterable[int]) -> list[dict[str, Any]]:
        """Whole rows of `clips` by their places in `scores`, in the order given; places that are none are left out."""
        wanted = list(places)
        by_file: dict[int, list[int]] = {}
        for place in wanted:
            if 0 <= place < self.clips:
                by_file.setdefault(int(np.searchsorted(self.starts, place, "right")) - 1, []).append(place)
        found: dict[int, dict[str, Any]] = {}
        for number, some in by_file.items():
            listed = ", ".join(str(place) for place in some)
            sql = f"SELECT * FROM clips WHERE place IN ({listed})"
            if self.files:  # one file at a time: the view over all of them would look into every one
                start = int(self.starts[number])
                low, high = min(some) - start, max(some) - start
                source = f"read_parquet({text(self.files[number])}, file_row_number = true)"
                near = f"(SELECT * FROM {source} WHERE file_row_number BETWEEN {low} AND {high})"
                place_of = f"{start} + file_row_number"
                sql = f"SELECT * FROM ({_select(self.con, near, place_of)}) WHERE place IN ({listed})"
            result = self.con.execute(sql)
            names = [column[0] for column in result.description or []]
            for values in result.fetchall():
                row = dict(zip(names, values, strict=True))
                found[row["place"]] = row
        return [found[place] for place in wanted if place in found]
