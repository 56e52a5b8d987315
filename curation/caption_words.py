"""Statistics of captions: how long they are, and the words they are made of."""

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from curation import schema
from curation.score_table import quote


def _rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = con.execute(sql).fetchall()
    return found


def caption_columns() -> list[str]:
    """The columns of the schema that hold captions."""
    return [
        field.name
        for field in schema.CLIPS
        if field.name.startswith("caption")
        and field.type == pa.string()
        and not field.name.endswith(("_error", "_model"))
    ]


def captions(con: duckdb.DuckDBPyConnection, columns: Sequence[str], relation: str = "clips") -> dict[str, Any]:
    """Per column of captions: how many there are, their length in words, and the words they are made of.

    A word is a run of letters and digits, apostrophes inside included, in lower case.
    """
    found = {}
    for column in columns:
        words = f"regexp_extract_all(lower({quote(column)}), '[\\p{{L}}\\p{{N}}]+(?:''[\\p{{L}}\\p{{N}}]+)*')"
        table = f"(SELECT {words} AS words FROM {relation} WHERE {quote(column)} IS NOT NULL)"
        count, shortest, median, longest, mean = _rows(
            con,
            "SELECT count(*), min(n), quantile_disc(n, 0.5), max(n), avg(n) "
            f"FROM (SELECT len(words) AS n FROM {table})",
        )[0]
        vocabulary, total = _rows(
            con, f"SELECT count(DISTINCT word), count(*) FROM (SELECT unnest(words) AS word FROM {table})"
        )[0]
        common = _rows(
            con,
            f"SELECT word, count(*) FROM (SELECT unnest(words) AS word FROM {table}) "
            "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20",
        )
        found[column] = {
            "clips": count,
            "words": {"min": shortest, "median": median, "max": longest, "mean": mean, "total": total},
            "vocabulary": vocabulary,
            "most_common": dict(common),
        }
    return found
