"""A clip's own page: the film, every score, why it is kept or dropped, where it came from, what lies around it."""

from dataclasses import dataclass
from typing import Any

from nicegui import ui

from curation.caption_words import caption_columns
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
    "duplicate_of": "Near-duplicate of clip",
    "media_file": "Kept in",
}


@dataclass
class Found:
    """A clip with what its page says about it."""

    row: dict[str, Any]
    reasons: list[str]
    around: list[dict[str, Any]]  # all clips of its source, in order
    length_s: float  # of the source
    scores: list[tuple[str, str]]
    captions: list[tuple[str, str]]


def read_clip(dataset: OpenDataset, clip_id: str, place: int | None, view: View) -> Found | None:
    """Look a clip up, with its neighbours. None when the dataset has no such clip."""
    row = dataset.clip(clip_id, place)
    if row is None:
        return None
    bounds = dataset.bounds(view.rules, view.recorded)
    places = dataset.ask("SELECT place FROM clips WHERE source_id = ? ORDER BY start_s", [row["source_id"]])
    around = dressed(dataset, bounds, dataset.rows(place for (place,) in places), view.query())
    length = dataset.ask("SELECT max(duration_s) FROM sources WHERE source_id = ?", [row["source_id"]])[0][0]
    end = max(each["start_s"] + each["duration_s"] for each in around)
    reasons = dataset.reasons_of(bounds, [row])[0]
    return Found(row, reasons, around, max(length or 0.0, end), _scores(dataset, row), _captions(row))


def show_clip(dataset: OpenDataset, found: Found | None, clip_id: str, view: View, base: str) -> None:
    """Build the page. A clip that is not there gives a sentence."""
    if found is None:
        notice(f"This dataset has no clip {clip_id}.", bad=True)
        return
    row, link = found.row, f"{base}/d/{dataset.name}"
    with ui.element("div").classes("clip-page"):
        with ui.element("section").classes("panel"):
            film = f"{link}/clip/{row['clip_id']}"
            if row["media_file"] and row["media_size"]:
                video = ui.element("video").props(
                    f'controls muted loop autoplay playsinline src="{film}.mp4?place={row["place"]}" '
                    'aria-label="The clip"'
                )
                if row["thumbnail_size"]:
                    video.props(f'poster="{film}.jpg?place={row["place"]}"')
            else:
                html(part("about", "This dataset has the clip's scores, but not its film."))
            verdict = ui.label(", ".join(found.reasons) if found.reasons else "kept").classes("verdict")
            verdict.classes(look(found.reasons)).style("margin-top: 12px; width: fit-content")
            by = f"by decision {view.saved}" if view.saved else "by the rules in this link"
            ui.label(by).classes("hint").style("display: inline-block; margin: 0 10px")
            html('<h2 style="margin-top:16px">In its source</h2>')
            html(part("timeline", found.around, row["clip_id"], found.length_s, link, view.query()))
            here = next(i for i, each in enumerate(found.around) if each["clip_id"] == row["clip_id"])
            html(part("clips", found.around[max(0, here - 2) : here] + found.around[here + 1 : here + 3], link))
        with ui.element("section").classes("panel"):
            html("<h2>Scores</h2>")
            html(part("pairs", found.scores))
            if found.captions:
                html('<h2 style="margin-top:16px">Captions</h2>')
                html(part("pairs", found.captions))
            html('<h2 style="margin-top:16px">Where it comes from</h2>')
            html(part("pairs", [(label, _plain(key, row[key])) for key, label in _PROVENANCE.items()]))
    with ui.element("div").classes("top"):
        ui.link("Back to deciding", f"/d/{dataset.name}?{view.query()}")


def _scores(dataset: OpenDataset, row: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for score in dataset.scores.known:
        value, error, model = row[score.column], row[f"{score.column}_error"], row[f"{score.column}_model"]
        if error:
            shown = f"could not be scored: {error}"
        elif value is None:
            shown = "not measured"
        elif isinstance(value, list):
            shown = ", ".join(map(figures.value, value))
        else:
            shown = value if isinstance(value, str) else figures.value(value)
        measured = dataset.scores.measured[score.name]
        if value is None and not error and not measured.scored and not measured.failed:
            continue  # a stage that was off for the whole dataset
        found.append((score.name, f"{shown}{f'  ({model})' if model else ''}"))
    for key in ("flow_dx", "flow_dy", "flow_divergence", "flow_curl", "flow_residual"):
        if row[key] is not None:
            found.append((key, figures.value(row[key])))
    return found


def _captions(row: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for column in caption_columns():
        text, error, model = row[column], row.get(f"{column}_error"), row.get(f"{column}_model")
        if text is not None or error:
            told = text if text is not None else f"could not be made: {error}"
            found.append((column.removeprefix("caption_"), f"{told}{f'  ({model})' if model else ''}"))
    return found


def _plain(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key in ("start_s", "duration_s", "copied_s"):
        return figures.clock(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
