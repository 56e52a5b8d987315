"""Statistics of a decision: what came in, what each stage and each filter took, and what every score looks like.

Everything comes from the Parquet rows, clips through the arrays of `curation.score_columns` and the rest through
DuckDB, and is plain data (JSON). Two rules hold throughout: seconds in equal seconds lost plus seconds kept
(`funnel.unaccounted_s` says what is left of that sum), and clips that could not be scored are a line of their own,
never part of a filter's drops.

A filter's drops are counted three ways: `alone`, as if it were the only one; `first`, what is left for it after the
filters before it; `only`, the clips that nothing else would have dropped.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curation import schema
from curation.caption_words import caption_columns, captions, origins
from curation.decisions import Marked, Outcome, marked, outcome_of
from curation.distributions import correlations, score_summary
from curation.other_columns import other_columns
from curation.reasons import Bound
from curation.score_table import (
    SchemaError,
    ScoreTable,
    check_version,
    quote,
    text,
)

LOSSES = {
    "lost_transition_s": "in gradual transitions",
    "lost_short_s": "in shots below the minimum length",
    "lost_keyframe_s": "between a cut and its key frame",
    "lost_error_s": "in films that failed, and in clips that could not be made",
}
COSTS = {
    "probe_s": "probe",
    "cuts_s": "cuts",
    "clips_s": "clips",
    "scores_s": "scores",
    "flow_s": "flow",
    "captions_s": "captions",
    "images_s": "images",
    "text_s": "text",
}


def open_sources(con: duckdb.DuckDBPyConnection, sources: Sequence[str] | pa.Table) -> None:
    """Create the view `sources` with every column of `curation.schema.SOURCES`. Raises SchemaError."""
    if isinstance(sources, pa.Table):
        check_version(sources.schema.metadata, "the table of sources")
        con.register("sources_arrow", sources)
        relation = "sources_arrow"
    elif sources:
        for path in sources:
            rows = con.execute("SELECT key, value FROM parquet_kv_metadata(?)", [path]).fetchall()
            check_version({bytes(key): bytes(value) for key, value in rows}, path)
        relation = f"read_parquet([{', '.join(text(path) for path in sources)}], union_by_name = true)"
    else:
        con.register("sources_arrow", schema.SOURCES.empty_table())
        relation = "sources_arrow"
    present = {row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}
    missing = [name for name in ("source_uri", "status", "duration_s") if name not in present]
    if missing:
        raise SchemaError(f"the table of sources has no column {missing[0]!r}")
    columns = [
        quote(field.name)
        if field.name in present
        else f"NULL::{'VARCHAR' if field.type == pa.string() else 'DOUBLE'} AS {quote(field.name)}"
        for field in schema.SOURCES
    ]
    con.execute(f"CREATE OR REPLACE VIEW sources AS SELECT {', '.join(columns)} FROM {relation}")


def statistics(scores: ScoreTable, bounds: Sequence[Bound]) -> dict[str, Any]:
    """Every statistic of one decision. `open_sources` must have been called on the table's connection."""
    with marked(scores, bounds) as marks:
        result = outcome_of(scores, marks.reasons, marks.masks)
        funnel_ = funnel(scores.once("intake", lambda: intake(scores.con)), result)
        return {
            "schema": schema.VERSION,
            "sources": scores.once("sources", lambda: sources_summary(scores.con)),
            "funnel": funnel_,
            "yield": yields(funnel_),
            "filters": filters(result, bounds),
            "joint": joint(result),
            "scores": {score.name: score_summary(scores, score, bounds, marks) for score in scores.known},
            "correlations": correlations(scores, bounds),
            "clips_per_source": clips_per_source(scores, marks),
            "cost": scores.once("cost", lambda: cost(scores.con)),
            "captions": scores.once("captions", lambda: captions(scores.con, caption_columns(), files=scores.files)),
            "caption_origins": scores.once("caption_origins", lambda: origins(scores.con, caption_columns())),
            "other": scores.once("other", lambda: other_columns(scores)),
        }


def _rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = con.execute(sql).fetchall()
    return found


def sources_summary(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Sources by status, and the failed ones by reason with up to three examples each."""
    status = dict(_rows(con, "SELECT coalesce(status, 'unknown'), count(*) FROM sources GROUP BY 1 ORDER BY 1"))
    errors = [
        {"reason": reason, "sources": count, "examples": [{"uri": uri, "message": message} for uri, message in some]}
        for reason, count, some in (
            (reason, count, [(example["uri"], example["message"]) for example in examples])
            for reason, count, examples in _rows(
                con,
                "SELECT coalesce(reason, 'unknown'), count(*), "
                "list({'uri': source_uri, 'message': message} ORDER BY source_uri)[:3] "
                "FROM sources WHERE status = 'failed' GROUP BY 1 ORDER BY 2 DESC, 1",
            )
        )
    ]
    return {"total": sum(status.values()), "status": status, "errors": errors}


def intake(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The funnel's steps before any score: the seconds that came in, and what cutting lost of them.

    Of a film that failed after its length was known, all seconds came in and were lost.
    """
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in ("duration_s", *LOSSES))
    with_video = "count(*) FILTER (WHERE status = 'ok' OR duration_s > 0)"
    count, seconds_in, *lost = _rows(con, f"SELECT {with_video}, {sums} FROM sources")[0]
    steps: list[dict[str, Any]] = [
        {"step": "sources", "kind": "level", "sources": count, "clips": None, "seconds": round(seconds_in, 6)}
    ]
    for name, took in zip(LOSSES, lost, strict=True):
        steps.append(
            {"step": name.removesuffix("_s"), "kind": "loss", "clips": None, "seconds": round(took, 6)}
            | {"doc": LOSSES[name]}
        )
    return steps


def funnel(taken_in: Sequence[dict[str, Any]], result: Outcome) -> dict[str, Any]:
    """Seconds in, then each loss in order, down to what is kept.

    `steps` are levels (`sources`, `candidates`, `kept`) with what is left, and losses between them with what they took.
    """
    steps = list(taken_in)
    seconds_in = steps[0]["seconds"]
    clips, seconds = result.all
    steps.append({"step": "candidates", "kind": "level", "clips": clips, "seconds": seconds})
    left = np.ones(len(result.masks), bool)
    for step in result.steps:
        hit = result.has(result.of(step)) & left
        took_clips, took_s = result.total(hit)
        left &= ~hit
        kind = "gate" if step[0].startswith("gate:") else "unscored" if step[1] else "filter"
        steps.append({"step": step[0], "kind": kind, "clips": took_clips, "seconds": took_s})
    kept_clips, kept_s = result.kept
    steps.append({"step": "kept", "kind": "level", "clips": kept_clips, "seconds": kept_s})
    taken = sum(step["seconds"] for step in steps if step["kind"] != "level")
    return {"steps": steps, "unaccounted_s": round(seconds_in - taken - kept_s, 6)}


def yields(funnel_: dict[str, Any]) -> dict[str, Any]:
    """Shares of the seconds that came in; null when nothing came in."""
    seconds = {step["step"]: step["seconds"] for step in funnel_["steps"] if step["kind"] == "level"}
    given = seconds["sources"]
    return {
        "in_s": given,
        "candidate_s": seconds["candidates"],
        "kept_s": seconds["kept"],
        "candidate_share": seconds["candidates"] / given if given else None,
        "kept_share": seconds["kept"] / given if given else None,
    }


def filters(result: Outcome, bounds: Sequence[Bound]) -> list[dict[str, Any]]:
    """Per step of the funnel: what it drops alone, first and only; and the rule behind it."""
    rules = {bound.rule.score: bound for bound in bounds}
    left = np.ones(len(result.masks), bool)
    rows = []
    for step in result.steps:
        hit = result.has(result.of(step))
        others = result.has([reason for other in result.steps if other != step for reason in result.of(other)])
        row: dict[str, Any] = {"filter": step[0], "unscored": step[1]}
        for name, where in (("alone", hit), ("first", hit & left), ("only", hit & ~others)):
            clips, seconds = result.total(where)
            row[name] = {"clips": clips, "seconds": seconds}
        left &= ~hit
        if step[0] in rules and not step[1]:
            row |= {"rule": rules[step[0]].rule.as_data(), "resolved": rules[step[0]].resolved()}
        rows.append(row)
    return rows


def joint(result: Outcome) -> dict[str, Any]:
    """Clips and seconds that two steps both drop; the diagonal is what each drops alone."""
    hits = np.array([result.has(result.of(step)) for step in result.steps], np.float64)
    hits = hits.reshape(len(result.steps), len(result.masks))
    clips = (hits * result.clips) @ hits.T  # whole numbers below 2**53: exact
    us = (hits * result.us) @ hits.T
    return {
        "filters": [f"{name} unscored" if unscored else name for name, unscored in result.steps],
        "clips": clips.astype(np.int64).tolist(),
        "seconds": (us / 1e6).tolist(),
    }


def clips_per_source(scores: ScoreTable, marks: Marked) -> dict[str, Any]:
    """The paper's figure 2: how many sources have 0, 1, 2-3, 4-7, ... clips, before and after the decision."""
    rows = _per_source_counts(scores, marks.keeps)
    sql = "SELECT count(*) FROM sources WHERE status = 'ok' AND coalesce(clips, 0) = 0"
    silent = scores.once("silent sources", lambda: _rows(scores.con, sql)[0][0])
    most = max((before for before, _, _ in rows), default=1)
    edges = [0, 1]
    while edges[-1] <= most:
        edges.append(edges[-1] * 2)
    before_n, after_n = [0] * (len(edges) - 1), [0] * (len(edges) - 1)
    before_n[0] = after_n[0] = silent
    total = [0, 0]
    for before, after, n in rows:
        before_n[before.bit_length()] += n
        after_n[after.bit_length()] += n
        total = [total[0] + before * n, total[1] + after * n]
    count = sum(n for _, _, n in rows) + silent
    return {
        "edges": edges,  # bin i holds sources with edges[i] <= clips < edges[i + 1]
        "before": before_n,
        "after": after_n,
        "mean_before": total[0] / count if count else None,
        "mean_after": total[1] / count if count else None,
    }


def _per_source_counts(scores: ScoreTable, keeps: np.ndarray) -> list[tuple[int, int, int]]:
    """(clips, kept clips, sources with so many), for the sources that have clips."""
    if not scores.clips:
        return []
    # The clips of a source follow one another in the files; where they do not, its runs are added up.
    starts = np.flatnonzero(np.concatenate([[True], scores.source[1:] != scores.source[:-1]]))
    before = np.diff(np.append(starts, scores.clips))
    after = np.add.reduceat(keeps, starts, dtype=np.int64)
    runs = scores.source[starts]
    ordered = np.sort(runs)
    if (ordered[1:] == ordered[:-1]).any():
        _, run = np.unique(runs, return_inverse=True)
        before = np.bincount(run, weights=before).astype(np.int64)
        after = np.bincount(run, weights=after).astype(np.int64)
    most = int(before.max()) + 1
    pairs, number = np.unique(before * most + after, return_counts=True)
    return [(*divmod(int(pair), most), int(n)) for pair, n in zip(pairs, number, strict=True)]


PER_SOURCE: pa.Schema = pa.schema(
    [
        *[schema.SOURCES.field(name) for name in ("source_id", "source_uri", "status", "reason", "duration_s")],
        *[schema.SOURCES.field(name) for name in LOSSES],
        pa.field("clips", pa.int64(), metadata={"doc": "candidate clips"}),
        pa.field("candidate_s", pa.float64(), metadata={"doc": "seconds in candidate clips", "unit": "s"}),
        pa.field("kept_clips", pa.int64(), metadata={"doc": "clips that the decision keeps"}),
        pa.field("kept_s", pa.float64(), metadata={"doc": "seconds that the decision keeps", "unit": "s"}),
    ],
    metadata={"clipmill_schema": str(schema.VERSION)},
)


def per_source(scores: ScoreTable, bounds: Sequence[Bound], *, batch_rows: int = 65536) -> Iterator[pa.RecordBatch]:
    """The funnel of each source (schema PER_SOURCE), in order of uri. A duplicate has no clips of its own."""
    with marked(scores, bounds) as marks:
        reader = scores.con.sql(
            f"SELECT source_id, source_uri, status, reason, duration_s, {', '.join(LOSSES)}, coalesce(n, 0) AS clips, "
            "coalesce(all_us, 0) / 1e6 AS candidate_s, coalesce(m, 0) AS kept_clips, "
            "coalesce(kept_us, 0) / 1e6 AS kept_s "
            "FROM sources LEFT JOIN (SELECT source, count(*) AS n, sum(us)::BIGINT AS all_us, "
            f"count(*) FILTER (WHERE keep = 1) AS m, sum(us) FILTER (WHERE keep = 1)::BIGINT AS kept_us "
            f"FROM {marks.relation} GROUP BY source) ON status = 'ok' AND hash(source_id) = source ORDER BY source_uri"
        ).to_arrow_reader(batch_rows)
        for batch in reader:
            columns = [column.cast(field.type) for column, field in zip(batch.columns, PER_SOURCE, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=PER_SOURCE)


def cost(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Processor time of each stage that ran, in all and per hour of video that came in."""
    sums = ", ".join(f"sum({name})" for name in COSTS)
    seconds_in, *spent = _rows(con, f"SELECT coalesce(sum(duration_s), 0), {sums} FROM sources")[0]
    return [
        {
            "stage": stage,
            "cpu_s": round(took, 6),
            "cpu_s_per_video_hour": round(took / seconds_in * 3600, 6) if seconds_in else None,
        }
        for stage, took in zip(COSTS.values(), spent, strict=True)
        if took is not None
    ]
