"""What a decision's statistics say of the columns that no rule looks at: the camera's measured motion, the crop
rectangles of letterboxed clips, and the embeddings."""

from typing import Any

import duckdb

from curation import schema
from curation.score_table import ScoreTable, quote

FLOW = ("flow_dx", "flow_dy", "flow_divergence", "flow_curl", "flow_residual")
CROP = ("crop_left", "crop_top", "crop_right", "crop_bottom")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
READ = 200_000  # clips that are looked at; evenly spaced ones where there are more
CROPS = 12  # rectangles told one by one


def other_columns(scores: ScoreTable) -> dict[str, Any]:
    """Distributions of columns that are no scores. The first two are of `read` evenly spaced clips at most.

    Returns:
        `read`; `flow`: {column: {doc, unit, clips, quantiles}} of those that any clip has; `crops`: the commonest
        rectangles (edges as hundredths of the frame's sides, and clips), `cropped`: clips with any bars, of `measured`;
        `embedding`: {models: {model: clips}, errors: [{reason, clips}]}.
    """
    stride = -(-scores.clips // READ) or 1
    con, some = scores.con, f"(SELECT * FROM clips WHERE place % {stride} = 0)"
    return {"read": -(-scores.clips // stride), "flow": _flow(con, some)} | _crops(con, some) | _embedding(con)


def _flow(con: duckdb.DuckDBPyConnection, some: str) -> dict[str, Any]:
    asked = ", ".join(f"count({name}), quantile_disc({name}, {list(QUANTILES)})" for name in FLOW)
    row = con.execute(f"SELECT {asked} FROM {some}").fetchall()[0]
    found = {}
    for name, clips, values in zip(FLOW, row[::2], row[1::2], strict=True):
        if clips:
            about = schema.CLIPS.field(name).metadata
            found[name] = {"doc": about[b"doc"].decode(), "unit": about[b"unit"].decode(), "clips": clips}
            found[name] |= {"quantiles": {f"{q:g}": value for q, value in zip(QUANTILES, values, strict=True)}}
    return found


def _crops(con: duckdb.DuckDBPyConnection, some: str) -> dict[str, Any]:
    edges = ", ".join(f"round(100 * {name})::INTEGER AS {name}" for name in CROP)
    rows = con.execute(
        f"SELECT {', '.join(CROP)}, count(*) FROM (SELECT {edges} FROM {some} WHERE crop_left IS NOT NULL) "
        "GROUP BY ALL ORDER BY 5 DESC, 1, 2, 3, 4"
    ).fetchall()
    barred = [dict(zip((*CROP, "clips"), row, strict=True)) for row in rows if row[:4] != (0, 0, 100, 100)]
    cropped = sum(each["clips"] for each in barred)
    return {"crops": barred[:CROPS], "cropped": cropped, "measured": sum(row[4] for row in rows)}


def _embedding(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    models, errors = (
        con.execute(
            f"SELECT {quote(name)}, count(*) FROM clips WHERE {quote(name)} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
        for name in ("embedding_model", "embedding_error")
    )
    return {
        "embedding": {
            "models": dict(models),
            "errors": [{"reason": reason, "clips": clips} for reason, clips in errors],
        }
    }
