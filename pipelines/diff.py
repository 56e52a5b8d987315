"""What changed between two decisions of a dataset, and why: which clips moved, and by which reasons."""

from typing import Any

import duckdb

from curation.score_table import connect, text
from pipelines.dataset import Dataset
from pipelines.decide import read_decision


def diff(dataset: str | Dataset, first: str, second: str, *, most: int | None = None) -> dict[str, Any]:
    """Compare two decisions.

    Returns counts of clips kept by `both`, by `neither`, `only_first` and `only_second`; `reasons`: per direction, how
    many of the moved clips each reason accounts for; and `clips`: the moved clips in order of clip_id, at most `most`
    of each direction, each with `kept_by` (the one name that keeps it) and `reasons` (why the other drops it). A clip
    that only one of the two decisions knows, because the dataset grew in between, counts as dropped there with the
    reason `not there yet`.

    Raises:
        DatasetError: there is no such dataset or decision.
    """
    where = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    con = connect()
    relations = []
    for i, name in enumerate((first, second)):
        read_decision(where, name)
        if where.storage.is_local:
            relations.append(f"read_parquet({text(where.storage.path(f'decisions/{name}.parquet'))})")
        else:
            con.register(f"decision_{i}", where.read_table(f"decisions/{name}.parquet"))
            relations.append(f"decision_{i}")
    con.execute(
        "CREATE VIEW pairs AS SELECT coalesce(a.clip_id, b.clip_id) AS clip_id, coalesce(a.keep, false) AS first, "
        "coalesce(b.keep, false) AS second, CASE WHEN a.keep THEN coalesce(b.reasons, ['not there yet']) "
        f"ELSE coalesce(a.reasons, ['not there yet']) END AS reasons FROM {_paired(con, *relations)}"
    )
    counts = {
        (a, b): n for a, b, n in con.execute("SELECT first, second, count(*) FROM pairs GROUP BY 1, 2").fetchall()
    }
    moved = con.execute(
        "SELECT first, reason, count(*) FROM (SELECT first, unnest(reasons) AS reason FROM pairs "
        "WHERE first != second) GROUP BY 1, 2 ORDER BY 3 DESC, 2"
    ).fetchall()
    limit = f" LIMIT {int(most)}" if most is not None else ""
    clips = [
        row
        for way in ("first AND NOT second", "second AND NOT first")
        for row in con.execute(
            f"SELECT clip_id, first, reasons FROM pairs WHERE {way} ORDER BY clip_id{limit}"
        ).fetchall()
    ]
    return {
        "first": first,
        "second": second,
        "both": counts.get((True, True), 0),
        "neither": counts.get((False, False), 0),
        "only_first": counts.get((True, False), 0),
        "only_second": counts.get((False, True), 0),
        "reasons": {
            "only_first": {reason: n for in_first, reason, n in moved if in_first},
            "only_second": {reason: n for in_first, reason, n in moved if not in_first},
        },
        "clips": [{"clip_id": i, "kept_by": first if a else second, "reasons": why} for i, a, why in sorted(clips)],
    }


def _paired(con: duckdb.DuckDBPyConnection, first: str, second: str) -> str:
    """The rows of two decisions side by side. Both are sorted by clip_id: of the same clips, they need no join."""
    aligned, rows = con.execute(
        f"SELECT count(*) FILTER (WHERE a.clip_id = b.clip_id), count(*) FROM {first} a POSITIONAL JOIN {second} b"
    ).fetchall()[0]
    if aligned == rows:
        return f"{first} a POSITIONAL JOIN {second} b"
    return f"{first} a FULL JOIN {second} b ON a.clip_id = b.clip_id"
