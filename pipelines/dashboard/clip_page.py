"""A clip's own page: the film, every score, why it is kept or dropped, where it came from, what lies around it."""

from typing import Any

from nicegui import ui

from curation import decisions
from curation.rules import RulesError
from pipelines import figures
from pipelines.dashboard.datasets import OpenDataset
from pipelines.dashboard.page import dressed, html, look, notice, part
from pipelines.dashboard.view import View

_PROVENANCE = {
    "source_uri": "Source",
    "source_id": "Source id",
    "clip_id": "Clip id",
    "start_s": "Starts at",
    "duration_s": "Lasts",
    "start_frame": "First frame",
    "frames": "Frames",
    "rate_fps": "Frames per second",
    "width": "Width (px)",
    "height": "Height (px)",
    "codec": "Codec",
    "has_audio": "Sound",
    "mode": "Cut in mode",
    "shot": "Shot",
    "copied_s": "Copied without re-encoding",
    "gate": "Stopped by gate",
    "media_file": "Kept in",
}


def show_clip(dataset: OpenDataset, clip_id: str, place: int | None, view: View, base: str) -> None:
    """Build the page. A clip that is not there gives a sentence."""
    row = dataset.clip(clip_id, place)
    if row is None:
        notice(f"This dataset has no clip {clip_id}.", bad=True)
        return
    try:
        bounds = decisions.resolve(dataset.scores, view.rules)
    except RulesError as error:
        notice(str(error), bad=True)
        bounds = []
    link = f"{base}/d/{dataset.name}"
    reasons = dataset.reasons_of(bounds, [row])[0]
    with ui.element("div").classes("clip-page"):
        with ui.element("section").classes("panel"):
            film = f"{link}/clip/{row['clip_id']}"
            ui.element("video").props(
                f'controls muted loop autoplay playsinline src="{film}.mp4?place={row["place"]}" '
                f'poster="{film}.jpg?place={row["place"]}" aria-label="The clip"'
            )
            verdict = ui.label(", ".join(reasons) if reasons else "kept").classes("verdict")
            verdict.classes(look(reasons)).style("margin-top: 12px; width: fit-content")
            by = f"by decision {view.saved}" if view.saved else "by the rules in this link"
            ui.label(by).classes("hint").style("display: inline-block; margin: 0 10px")
            _neighbours(dataset, row, bounds, link, view.query())
        with ui.element("section").classes("panel"):
            html("<h2>Scores</h2>")
            html(part("pairs", _scores(dataset, row)))
            html('<h2 style="margin-top:16px">Where it comes from</h2>')
            html(part("pairs", [(label, _plain(key, row[key])) for key, label in _PROVENANCE.items()]))
    with ui.element("div").classes("top"):
        ui.link("Back to deciding", f"{link}?{view.query()}")


def _scores(dataset: OpenDataset, row: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for score in dataset.scores.known:
        value, error, model = row[score.column], row[f"{score.column}_error"], row[f"{score.column}_model"]
        if error:
            shown = f"could not be scored: {error}"
        elif value is None:
            shown = "not measured"
        elif isinstance(value, list):
            shown = ", ".join("–" if each is None else figures.value(each) for each in value)
        else:
            shown = value if isinstance(value, str) else figures.value(value)
        found.append((score.name, f"{shown}{f'  ({model})' if model else ''}"))
    for key in ("flow_dx", "flow_dy", "flow_divergence", "flow_curl", "flow_residual"):
        if row[key] is not None:
            found.append((key, figures.value(row[key])))
    return found


def _plain(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key in ("start_s", "duration_s", "copied_s"):
        return figures.clock(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _neighbours(dataset: OpenDataset, row: dict[str, Any], bounds: Any, link: str, query: str) -> None:
    """The source's clips on its timeline, and the ones before and after this clip."""
    places = dataset.ask("SELECT place FROM clips WHERE source_id = ? ORDER BY start_s", [row["source_id"]])
    listed = ", ".join(str(int(place)) for (place,) in places)
    rows = dressed(dataset, bounds, dataset.rows(f"SELECT unnest([{listed}])"), query)
    length = dataset.ask("SELECT max(duration_s) FROM sources WHERE source_id = ?", [row["source_id"]])[0][0]
    end = max(each["start_s"] + each["duration_s"] for each in rows)
    html('<h2 style="margin-top:16px">In its source</h2>')
    html(part("timeline", rows, row["clip_id"], max(length or 0.0, end), link, query))
    here = next(i for i, each in enumerate(rows) if each["clip_id"] == row["clip_id"])
    html(part("clips", [each for each in rows[max(0, here - 2) : here + 3] if each["clip_id"] != row["clip_id"]], link))
