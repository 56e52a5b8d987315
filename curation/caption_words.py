"""Statistics of captions: how long they are, and the words they are made of.

Of millions of captions the first `READ` are read: clips are ordered by the hash of their source, so these come from
a random choice of sources. How many clips have a caption is counted over all.
"""

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curation import schema
from curation.score_table import quote

READ = 30_000


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
        and not field.name.endswith(("_error", "_model", "_reason"))
    ]


def _count(con: duckdb.DuckDBPyConnection, column: str, relation: str, files: Sequence[str]) -> int:
    """How many rows have a caption; where the files' own statistics tell, without reading a caption."""
    found = 0
    for path in files:
        metadata = pq.read_metadata(path)
        places = [i for i, name in enumerate(metadata.schema.names) if name == column]
        for group in range(metadata.num_row_groups):
            told = metadata.row_group(group).column(places[0]).statistics if places else None
            if told is None or not told.has_null_count:
                return int(_rows(con, f"SELECT count({quote(column)}) FROM {relation}")[0][0])
            found += metadata.row_group(group).num_rows - told.null_count
    return found if files else int(_rows(con, f"SELECT count({quote(column)}) FROM {relation}")[0][0])


def captions(
    con: duckdb.DuckDBPyConnection, columns: Sequence[str], relation: str = "clips", files: Sequence[str] = ()
) -> dict[str, Any]:
    """Per column of captions: how many `clips` have one, and of those `read`, their length in words and their words.

    `files`: the Parquet files that the relation reads, if it does.

    A word is a run of letters and digits, apostrophes inside included, in lower case.
    """
    found = {}
    for column in columns:
        words = f"regexp_extract_all(lower({quote(column)}), '[\\p{{L}}\\p{{N}}]+(?:''[\\p{{L}}\\p{{N}}]+)*')"
        clips = _count(con, column, relation, files)
        con.execute(
            f"CREATE OR REPLACE TEMP TABLE caption_words AS SELECT {words} AS words FROM {relation} "
            f"WHERE {quote(column)} IS NOT NULL LIMIT {READ}"
        )
        table = "caption_words"
        read, shortest, median, longest, mean = _rows(
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
            "clips": clips,
            "read": read,
            "words": {"min": shortest, "median": median, "max": longest, "mean": mean, "total": total},
            "vocabulary": vocabulary,
            "most_common": dict(common),
        }
    con.execute("DROP TABLE IF EXISTS caption_words")
    return found


def origins(con: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> dict[str, Any]:
    """Per column of captions that a model was asked for: `models` {model: clips}, `errors`, and `fallbacks` {reason:
    clips}, merged captions in whose place one of the two stands; most first."""
    asked = [f"count({quote(f'{name}_model')})" for name in columns]
    counts = _rows(con, f"SELECT {', '.join(asked)} FROM clips")[0]
    found = {}
    for column in [name for name, count in zip(columns, counts, strict=True) if count]:
        model, error = quote(f"{column}_model"), quote(f"{column}_error")
        models = _rows(
            con, f"SELECT {model}, count(*) FROM clips WHERE {model} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        errors = _rows(
            con,
            f"SELECT split_part({error}, ':', 1), count(*), min({error}) FROM clips WHERE {error} IS NOT NULL "
            "GROUP BY 1 ORDER BY 2 DESC, 1",
        )
        told = [{"reason": reason, "clips": clips, "example": example} for reason, clips, example in errors]
        sql = (
            "SELECT merge_fallback, count(*) FROM clips WHERE merge_fallback IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        fallbacks = _rows(con, sql) if column == "caption_merged" else []
        found[column] = {"models": dict(models), "errors": told, "fallbacks": dict(fallbacks)}
    return found
