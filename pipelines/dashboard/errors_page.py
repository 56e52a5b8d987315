"""What went wrong, grouped by reason, with examples: sources that could not be read, scores that could not be made."""

from typing import Any

from nicegui import ui

from pipelines.dashboard.datasets import OpenDataset
from pipelines.dashboard.page import html, notice, part

_EXAMPLES = 5


def read_errors(dataset: OpenDataset, base: str) -> list[dict[str, Any]]:
    """What went wrong: groups with `where`, `reason`, `count` and `examples`."""
    return _sources(dataset) + _scores(dataset, f"{base}/d/{dataset.name}")


def show_errors(groups: list[dict[str, Any]]) -> None:
    """Build the page."""
    if not groups:
        notice("Nothing went wrong: every source was read, and every clip has every score that was asked for.")
        return
    with ui.element("div").classes("below"), ui.element("section").classes("panel"):
        html("<h2>What went wrong</h2><p class='hint'>None of this is counted as filtered.</p>")
        html(f'<div class="scroll">{part("errors", groups)}</div>')


def _sources(dataset: OpenDataset) -> list[dict[str, Any]]:
    rows = dataset.ask(
        "SELECT status, coalesce(reason, status), count(*), "
        f"list({{'uri': source_uri, 'message': coalesce(message, duplicate_of)}} ORDER BY source_uri)[:{_EXAMPLES}] "
        "FROM sources WHERE status != 'ok' GROUP BY 1, 2 ORDER BY 3 DESC, 2"
    )
    return [
        {
            "where": "source",
            "reason": reason,
            "count": count,
            "examples": [{"text": _about(each["uri"], each["message"] or ""), "href": None} for each in examples],
        }
        for _, reason, count, examples in rows
    ]


def _about(uri: str, message: str) -> str:
    """The message, with the file's name before it unless it says it already."""
    return message if uri in message else ": ".join(filter(None, (uri, message)))


def _scores(dataset: OpenDataset, link: str) -> list[dict[str, Any]]:
    groups = []
    for score in dataset.scores.known:
        error = f'"{score.column}_error"'
        rows = dataset.ask(
            f"SELECT split_part({error}, ':', 1), count(*), "
            f"list({{'id': clip_id, 'place': place, 'error': {error}, 'uri': source_uri}} ORDER BY place)"
            f"[:{_EXAMPLES}] "
            f"FROM clips WHERE {error} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        for reason, count, examples in rows:
            shown = [
                {
                    "text": f"{each['uri'].rsplit('/', 1)[-1]}: {each['error']}",
                    "href": f"{link}/clip/{each['id']}?place={each['place']}",
                }
                for each in examples
            ]
            groups.append({"where": score.name, "reason": reason, "count": count, "examples": shown})
    return groups
