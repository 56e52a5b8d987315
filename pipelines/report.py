"""report.html: one self-contained page of a decision, to be opened anywhere, and the numbers behind it.

    statistics/NAME.json              every statistic of `curation.statistics`
    statistics/NAME.sources.parquet   the funnel of each source

Nothing is loaded from elsewhere: figures are inline SVG, thumbnails are embedded. File names, messages and captions
are escaped by the template.
"""

import base64
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from curation.decisions import Marked, marked
from curation.reasons import Bound
from curation.score_columns import spread
from curation.score_table import ScoreTable
from curation.statistics import PER_SOURCE, per_source, statistics
from pipelines import figures
from pipelines.dataset import Dataset
from pipelines.decide import bounds_of, check_name, open_scores, outdated, read_decision, write_parquet

# A list of numbers and nulls over several lines. JSON text holds no line break, so no string can match.
_NUMBERS = re.compile(r"\[(\n(?:\s*(?:-?[\d.eE+-]+|null),?\s*)+\n\s*)\]")
_SHOWN_KEPT = 24
_SHOWN_PER_REASON = 12
SHOWN_SOURCES = 200


def write_report(dataset: str | Dataset, name: str) -> str:
    """Write statistics/NAME.json and report.html for a decision. Returns where the report is.

    Raises:
        DatasetError: there is no such dataset or decision.
        SchemaError: the dataset is of another schema version.
    """
    where = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    decision = read_decision(where, check_name(name))
    scores = open_scores(where)
    bounds = bounds_of(scores, decision)
    found = {"decision": name} | statistics(scores, bounds)
    where.storage.write(f"statistics/{name}.json", as_json(found).encode())
    write_parquet(where, f"statistics/{name}.sources.parquet", PER_SOURCE, per_source(scores, bounds))
    page = render(where, name, found, scores, bounds, decision)
    where.storage.write("report.html", page.encode())
    return where.storage.url("report.html")


def as_json(data: dict[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line, so that a file of histograms can still be read."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def render(
    dataset: Dataset,
    name: str,
    found: dict[str, Any],
    scores: ScoreTable,
    bounds: Sequence[Bound],
    decision: dict[str, Any],
) -> str:
    """The page's HTML."""
    rows = figures.funnel(found["funnel"]["steps"])
    cards = []
    filters = {row["filter"]: row for row in found["filters"] if not row["unscored"]}
    unscored = {row["filter"]: row for row in found["filters"] if row["unscored"]}
    for score, summary in found["scores"].items():
        if summary["scored"] or summary["failed"]:
            rule = decision["rules"].get(score)
            resolved = rule["resolved"] if rule else None
            card = {"name": score, **summary, "drops": filters.get(score), "unscored_drops": unscored.get(score)}
            card |= {"rule": rule["rule"] if rule else None, "resolved": resolved}
            card["figure"] = figures.histogram(summary["histogram"], resolved) if "histogram" in summary else None
            cards.append(card)
    kept, dropped = _kept_and_dropped(dataset, scores, bounds)
    return (
        figures.environment()
        .get_template("report.html.j2")
        .render(
            title=str(dataset).rstrip("/").rpartition("/")[2],
            dataset=str(dataset),
            name=name,
            version=version("clipmill"),
            found=found,
            funnel=rows,
            parts=figures.steps_of_share(rows),
            cards=cards,
            stale=outdated(scores, bounds, decision),
            then=decision["clips"]["candidates"],
            now=scores.clips,
            kept=kept,
            dropped=dropped,
            sources=sources_of(scores, bounds, SHOWN_SOURCES),
            sources_left_out=max(0, found["sources"]["total"] - SHOWN_SOURCES),
        )
    )


def _kept_and_dropped(
    dataset: Dataset, scores: ScoreTable, bounds: Sequence[Bound]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Some of the clips that are kept; and per reason, how many clips it drops, and some of them."""
    with marked(scores, bounds) as marks:
        kept = _thumbnails(dataset, scores, marks.keeps, _SHOWN_KEPT)
        return kept, _dropped(dataset, scores, marks)


def _dropped(dataset: Dataset, scores: ScoreTable, marks: Marked) -> list[dict[str, Any]]:
    groups = []
    for reason in marks.reasons:
        where = marks.has(reason)
        if reason.drops and where.any():
            shown = _thumbnails(dataset, scores, where, _SHOWN_PER_REASON)
            clips = int(np.count_nonzero(where))
            groups.append({"reason": reason.text, "filter": reason.filter, "clips": clips, "shown": shown})
    return groups


def _thumbnails(dataset: Dataset, scores: ScoreTable, where: np.ndarray, most: int) -> list[dict[str, Any]]:
    """Up to `most` of the clips where `where` is true, spread over the dataset, the same ones every time."""
    rows = scores.rows(spread(where, most))
    return [row | {"thumbnail": _thumbnail(dataset, row)} for row in rows]


def _thumbnail(dataset: Dataset, row: dict[str, Any]) -> str | None:
    """The clip's JPEG as a data URI; None when there is none or it cannot be read."""
    if not row["thumbnail_size"]:
        return None
    try:
        data = dataset.storage.read_range(f"media/{row['media_file']}", row["thumbnail_offset"], row["thumbnail_size"])
    except OSError:
        return None
    if not data.startswith(b"\xff\xd8"):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def sources_of(scores: ScoreTable, bounds: Sequence[Bound], most: int) -> list[dict[str, Any]]:
    """The first sources by name, failed ones first, with what the decision keeps of each."""
    result = scores.con.execute(
        "SELECT source_id, source_uri, status, reason, duplicate_of, duration_s, clips, hash(source_id) AS source "
        f"FROM sources ORDER BY status = 'ok', source_uri LIMIT {int(most)}"
    )
    names = [column[0] for column in result.description or []]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    listed = ", ".join(str(row["source"]) for row in rows if row["status"] == "ok") or "NULL"
    with marked(scores, bounds) as marks:
        kept = scores.con.execute(
            f"SELECT source, count(*), sum(us)::BIGINT FROM {marks.relation} WHERE keep = 1 AND source IN ({listed}) "
            "GROUP BY 1"
        ).fetchall()
    by_source = {source: (clips, us / 1e6) for source, clips, us in kept}
    for row in rows:
        row["kept_clips"], row["kept_s"] = by_source.get(row["source"], (0, 0.0))
    return rows
