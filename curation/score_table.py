"""The scores of every candidate clip, as DuckDB sees them: the Parquet rows, and a narrow numeric table beside them.

Relations in the connection:

    clips   the Parquet rows with every column of `curation.schema.CLIPS` (a column that an older dataset lacks is null)
    scores  one row per clip, in the order of the files: `us` (duration, microseconds), `gate` (0 or the number of the
            gate), `source` (hash of source_id), `place` (which row of which file), `missing` (bit i: no value for the
            i-th known score), and per score its value columns: NAME for a number, NAME|low NAME|high NAME|mean for one
            value per frame, NAME as a code for a label

A value is null in `scores` unless it is a finite number: an error, a NaN, an infinity, an empty list or a list with a
hole is "could not be scored", never a value. Seconds are summed as whole microseconds, so that sums do not depend on
the order in which threads add them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curation import schema
from curation.rules import Frames

ROW_BITS = 40  # of `place`: the row in its file; the bits above number the file

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
    """How many clips have a score, have an error instead, or were never looked at."""

    scored: int
    failed: int
    not_measured: int

    @property
    def unscored(self) -> int:
        return self.failed + self.not_measured


def quote(name: str) -> str:
    """`name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """`value` as an SQL string."""
    return "'" + value.replace("'", "''") + "'"


def unsigned(bits: int) -> str:
    """The smallest SQL type with that many bits. Raises ValueError above 64."""
    for size, name in ((8, "UTINYINT"), (16, "USMALLINT"), (32, "UINTEGER"), (64, "UBIGINT")):
        if bits <= size:
            return name
    raise ValueError(f"{bits} bits; at most 64 fit a whole number")


def connect(*, memory_limit: str = "1200MB", threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that never reaches for the network or for extensions."""
    con = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"},
    )
    con.execute(f"SET memory_limit = {text(memory_limit)}")
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


_LOW = {"any": "low", "all": "high", "mean": "mean"}
_HIGH = {"any": "high", "all": "low", "mean": "mean"}


def low_column(score: schema.Score, frames: Frames) -> str:
    """The column of `scores` that a lower bound is compared with."""
    return f"{score.name}|{_LOW[frames]}" if score.kind == "per_frame" else score.name


def high_column(score: schema.Score, frames: Frames) -> str:
    """The column of `scores` that an upper bound is compared with."""
    return f"{score.name}|{_HIGH[frames]}" if score.kind == "per_frame" else score.name


class ScoreTable:
    """The relations above, built once from Parquet files, an Arrow table or an Arrow dataset."""

    def __init__(
        self,
        clips: Sequence[str] | pa.Table | Any,
        *,
        con: duckdb.DuckDBPyConnection | None = None,
        scores: Sequence[schema.Score] = schema.SCORES,
    ) -> None:
        """`clips`: local Parquet paths, or anything DuckDB scans as Arrow. Raises SchemaError."""
        self.con = con if con is not None else connect()
        self.known = tuple(score for score in scores if score.kind in ("number", "per_frame", "label"))
        self.files: list[str] = []
        self._sorted: dict[str, np.ndarray] = {}
        self._provenance: dict[str, tuple[dict[str, int], list[tuple[str, int, str]]]] = {}
        self._open(clips)
        self._build()

    def _open(self, clips: Sequence[str] | pa.Table | Any) -> None:
        place = "row_number() OVER () - 1"
        if isinstance(clips, (list, tuple)):
            self.files = [str(path) for path in clips]
            for path in self.files:
                rows = self.con.execute("SELECT key, value FROM parquet_kv_metadata(?)", [path]).fetchall()
                check_version({bytes(key): bytes(value) for key, value in rows}, path)
        if self.files:
            names = "[" + ", ".join(text(path) for path in self.files) + "]"
            source = f"read_parquet({names}, union_by_name = true, filename = true, file_row_number = true)"
            numbers = "MAP {" + ", ".join(f"{text(path)}: {i}" for i, path in enumerate(self.files)) + "}"
            place = f"({numbers}[filename]::BIGINT << {ROW_BITS}) + file_row_number"
        else:
            table: Any = schema.CLIPS.empty_table() if isinstance(clips, (list, tuple)) else clips
            check_version(table.schema.metadata, "the table of clips")
            self.con.register("clips_arrow", table)
            source = "clips_arrow"
        self.con.execute(f"CREATE VIEW clips AS {self._select(source, place)}")

    def _select(self, source: str, place: str) -> str:
        """SQL for the rows of a relation with every column of the schema, and `place`."""
        present = {row[0] for row in self.con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
        columns = []
        for field in schema.CLIPS:  # a type not listed, such as an embedding's, is read as it is
            value = quote(field.name) if field.name in present else "NULL"
            cast = f"::{_SQL_TYPES[field.type]}" if field.type in _SQL_TYPES else ""
            columns.append(f"{value}{cast} AS {quote(field.name)}")
        return f"SELECT {', '.join(columns)}, {place} AS place FROM {source}"

    def _build(self) -> None:
        self.gates: list[str] = [
            row[0]
            for row in self.con.execute("SELECT DISTINCT gate FROM clips WHERE gate IS NOT NULL ORDER BY 1").fetchall()
        ]
        self.labels: dict[str, list[str]] = {}
        columns = [
            "round(duration_s * 1e6)::BIGINT AS us",
            f"{self._code('gate', self.gates)} AS gate",
            "hash(source_id) AS source",
            "place",
        ]
        counts = ["count(*)", "count(*) FILTER (WHERE gate IS NULL)"]
        missing = []
        for number, score in enumerate(self.known):
            column, failed = quote(score.column), quote(f"{score.column}_error")
            if score.kind == "label":
                rows = self.con.execute(f"SELECT DISTINCT {column} FROM clips WHERE {column} IS NOT NULL ORDER BY 1")
                self.labels[score.name] = [row[0] for row in rows.fetchall()]
                values = {score.name: f"nullif({self._code(score.column, self.labels[score.name])}, 0)"}
                valid = f"{column} IS NOT NULL"
            elif score.kind == "number":
                values = {score.name: column}
                valid = f"isfinite({column})"
            else:
                low, high = f"list_min({column})", f"list_max({column})"
                values = {f"{score.name}|low": low, f"{score.name}|high": high}
                values[f"{score.name}|mean"] = f"list_avg({column})::FLOAT"
                valid = f"len({column}) > 0 AND list_count({column}) = len({column}) AND isfinite({low})"
                valid += f" AND isfinite({high})"
            ok = f"{failed} IS NULL AND {valid}"
            missing.append(f"CASE WHEN {ok} THEN 0 ELSE {1 << number} END")
            columns += [f"CASE WHEN {ok} THEN {value} END AS {quote(name)}" for name, value in values.items()]
            counts += [
                f"count(*) FILTER (WHERE coalesce({ok}, false))",
                f"count(*) FILTER (WHERE {failed} IS NOT NULL OR ({column} IS NOT NULL AND NOT coalesce({ok}, false)))",
            ]
        columns.append(f"({' | '.join(missing)})::{unsigned(len(self.known))} AS missing")
        self.con.execute(f"CREATE TABLE scores AS SELECT {', '.join(columns)} FROM clips")
        row = self._row(f"SELECT {', '.join(counts)} FROM clips")
        self.clips: int = row[0]
        self.ungated: int = row[1]  # clips that no gate stopped
        self.measured: dict[str, Measured] = {}
        for i, score in enumerate(self.known):
            scored, wrong = row[2 + 2 * i], row[3 + 2 * i]
            self.measured[score.name] = Measured(scored, wrong, self.clips - scored - wrong)
        self.us: int = self._row("SELECT coalesce(sum(us), 0)::BIGINT FROM scores")[0]

    @staticmethod
    def _code(column: str, names: list[str]) -> str:
        """SQL: 1-based position of the column's text in `names`, 0 for null."""
        if not names:
            return "0::UTINYINT"
        listed = "[" + ", ".join(text(name) for name in names) + "]"
        return f"coalesce(list_position({listed}, {quote(column)}), 0)::UTINYINT"

    def _row(self, sql: str) -> tuple[Any, ...]:
        rows: list[tuple[Any, ...]] = self.con.execute(sql).fetchall()
        return rows[0]

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

    def values(self, column: str) -> np.ndarray:
        """The finite values of a numeric column of `scores`, sorted: float32 (scored,). Kept for the next call."""
        if column not in self._sorted:
            found = self.con.execute(
                f"SELECT {quote(column)} AS v FROM scores WHERE {quote(column)} IS NOT NULL"
            ).fetchnumpy()["v"]
            values = np.asarray(found, np.float32)
            values.sort()
            self._sorted[column] = values
        return self._sorted[column]

    def provenance(self, score: schema.Score) -> tuple[dict[str, int], list[tuple[str, int, str]]]:
        """What measured a score, {model: clips}, and why it could not be, [(reason, clips, example)], most first."""
        if score.name not in self._provenance:
            model, error = quote(f"{score.column}_model"), quote(f"{score.column}_error")
            models = self.con.execute(
                f"SELECT {model}, count(*) FROM clips WHERE {model} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
            ).fetchall()
            errors = self.con.execute(
                f"SELECT split_part({error}, ':', 1), count(*), min({error}) FROM clips WHERE {error} IS NOT NULL "
                "GROUP BY 1 ORDER BY 2 DESC, 1"
            ).fetchall()
            self._provenance[score.name] = dict(models), errors
        return self._provenance[score.name]

    def rows(self, places: str) -> list[dict[str, Any]]:
        """Whole rows of `clips` for a query that selects `place` from `scores`, in the query's order."""
        wanted = [int(row[0]) for row in self.con.execute(places).fetchall()]
        if not wanted:
            return []
        by_file: dict[int, list[int]] = {}
        for place in wanted:
            by_file.setdefault(place >> ROW_BITS if self.files else 0, []).append(place)
        found: dict[int, dict[str, Any]] = {}
        for number, some in by_file.items():
            if number >= max(len(self.files), 1):
                continue
            listed = ", ".join(str(place) for place in some)
            sql = f"SELECT * FROM clips WHERE place IN ({listed})"
            if self.files:  # one file at a time: the view over all of them would look into every one
                low, high = min(some) % (1 << ROW_BITS), max(some) % (1 << ROW_BITS)
                source = f"read_parquet({text(self.files[number])}, file_row_number = true)"
                near = f"(SELECT * FROM {source} WHERE file_row_number BETWEEN {low} AND {high})"
                place_of = f"{number << ROW_BITS} + file_row_number"
                sql = f"SELECT * FROM ({self._select(near, place_of)}) WHERE place IN ({listed})"
            result = self.con.execute(sql)
            names = [column[0] for column in result.description or []]
            for values in result.fetchall():
                row = dict(zip(names, values, strict=True))
                found[row["place"]] = row
        return [found[place] for place in wanted if place in found]
