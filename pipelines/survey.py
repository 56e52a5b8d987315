"""What a run of a job has to do: the sources that its inputs name, less those that its dataset has already.

Both may be more than memory holds: DuckDB compares them, and goes to the temporary folder where its memory ends. Uris
are bytes there, since names of files need not be Unicode.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curation.score_table import connect
from pipelines.dataset import Dataset
from pipelines.inputs import SourceFile

MEMORY = "256MB"
_AT_ONCE = 10_000


class NoRoom(Exception):
    """The temporary folder takes no more. One line for a person."""


class Survey:
    """The sources of a run, counted. `survey` makes it.

    Attributes:
        sources: how many the inputs name, each counted once.
        pending: those without a row, or whose size has changed since they got it; `size`: bytes of those
            whose size is known.
        clips: of the dataset's rows; `failed`: rows of sources that failed.
        alike: sources whose size another one has too, so that their content may be the same.
        curated: uris of those of them whose clips are in the dataset.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        """`con`: with the tables `named`, `done` and `pending`."""
        self._con = con
        (self.sources,) = self._row("SELECT count(*) FROM named")
        self.pending, self.size = self._row("SELECT count(*), coalesce(sum(size), 0)::BIGINT FROM pending")
        self.clips, self.failed = self._row(
            "SELECT coalesce(sum(clips), 0)::BIGINT, count(*) FILTER (WHERE status = 'failed') FROM done"
        )
        shared = "SELECT size FROM named WHERE size > 0 GROUP BY size HAVING count(*) > 1"
        alike = f"FROM named WHERE size IN ({shared})"
        self.alike = [SourceFile(_text(uri), size) for uri, size in self._rows(f"SELECT uri, size {alike}")]
        curated = f"SELECT uri FROM done WHERE status = 'ok' AND uri IN (SELECT uri {alike})"
        self.curated = {_text(uri) for (uri,) in self._rows(curated)}

    def todo(self) -> Iterator[tuple[str, int | None]]:
        """Uri and size of the pending sources, sorted by uri."""
        for uri, size in self._rows("SELECT uri, size FROM pending ORDER BY uri"):
            yield _text(uri), size

    def rounds(self, most: int, without: Collection[str]) -> Iterator[dict[str, int | None]]:
        """The same, but for some uris, up to `most` at a time: size by uri."""
        left = (pair for pair in self.todo() if pair[0] not in without)
        while some := dict(islice(left, most)):
            yield some

    def _row(self, sql: str) -> Any:
        return next(self._rows(sql))

    def _rows(self, sql: str) -> Iterator[Any]:
        with _room():
            found = self._con.cursor().execute(sql)
            while some := found.fetchmany(_AT_ONCE):
                yield from some


class Named:
    """The sources that the inputs name, some perhaps twice. `gather` makes it."""

    def __init__(self) -> None:
        self.con = connect(memory_limit=MEMORY)
        self.con.execute("CREATE TABLE listed (uri BLOB, size BIGINT, place BIGINT)")
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def add(self, found: pa.Table) -> None:
        """Take sources in: a table as `pipelines.inputs.FOUND`."""
        _insert(self.con, "listed", found, self._number)
        self._number += found.num_rows


def gather(found: Iterable[pa.Table]) -> Named:
    """What the inputs name: tables as `pipelines.inputs.find_sources` gives them.

    Raises:
        NoRoom: see there.
        pipelines.inputs.InputError: while they are read.
    """
    named = Named()
    with _room():
        for each in found:
            named.add(each)
    return named


def survey(named: Named, dataset: Dataset) -> Survey:
    """Compare what the inputs name with what the dataset has.

    Raises:
        NoRoom: see there.
    """
    con, rows = named.con, 0
    with _room():
        con.execute("CREATE TABLE stored (uri BLOB, size BIGINT, status VARCHAR, clips BIGINT, place BIGINT)")
        for table in dataset.source_parts(["source_uri", "size_bytes", "status", "clips"]):
            _insert(con, "stored", table.rename_columns(["uri", "size", "status", "clips"]), rows)
            rows += table.num_rows
        _once_each(con, "named", "listed", size="arg_min(size, place)")  # the first size that is known
        latest = {name: f"arg_max_null({name}, place)" for name in ("size", "status", "clips")}
        _once_each(con, "done", "stored", **latest)
        con.execute(
            "CREATE TABLE pending AS SELECT named.uri, named.size FROM named LEFT JOIN done ON named.uri = done.uri "
            "WHERE done.uri IS NULL OR named.size != done.size"
        )
    return Survey(con)


def _once_each(con: duckdb.DuckDBPyConnection, name: str, rows: str, **chosen: str) -> None:
    """Make the table or view `name` of `rows`, with one row for each uri; of several, the values that are chosen."""
    twice = f"SELECT 1 FROM {rows} GROUP BY hash(uri) HAVING count(*) > 1 LIMIT 1"
    if con.execute(twice).fetchone() is None:  # by hash, which takes a tenth of the time
        con.execute(f"CREATE VIEW {name} AS SELECT uri, {', '.join(chosen)} FROM {rows}")
        return
    values = ", ".join(f"{sql} AS {column}" for column, sql in chosen.items())
    con.execute(f"CREATE TABLE {name} AS SELECT uri, {values} FROM {rows} GROUP BY uri")


def _insert(con: duckdb.DuckDBPyConnection, name: str, rows: pa.Table, place: int) -> None:
    """Append rows to a table, with their numbers, from `place` on, as the last column."""
    rows = rows.set_column(0, "uri", rows["uri"].cast(pa.binary()))
    rows = rows.append_column("place", pa.array(np.arange(place, place + rows.num_rows)))
    con.register("rows", rows)
    con.execute(f"INSERT INTO {name} SELECT * FROM rows")
    con.unregister("rows")


def _text(uri: bytes) -> str:
    return uri.decode("utf-8", "surrogateescape")


@contextmanager
def _room() -> Iterator[None]:
    """Says in one line that the temporary folder is full."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        reason = str(error).splitlines()[0]
        raise NoRoom(
            f"no room for the list of sources ({reason}); name another temporary folder with TMPDIR"
        ) from error
