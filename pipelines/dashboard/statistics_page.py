"""Everything that the report says in numbers, for the rules of the link: what a decision does to the whole dataset."""

from dataclasses import dataclass
from typing import Any

from nicegui import ui

from pipelines import figures
from pipelines.dashboard.datasets import OpenDataset
from pipelines.dashboard.page import figure, html, part, section
from pipelines.dashboard.view import View
from pipelines.report import SHOWN_SOURCES


@dataclass
class Told:
    """A decision's statistics, and what it does to each of the first sources."""

    found: dict[str, Any]
    sources: list[dict[str, Any]]


def read_statistics(dataset: OpenDataset, view: View) -> Told:
    """Compute them for the rules of a view."""
    bounds = dataset.bounds(view.rules, view.recorded)
    return Told(dataset.statistics(bounds), dataset.sources(bounds, SHOWN_SOURCES))


def show_statistics(dataset: OpenDataset, told: Told, view: View) -> None:
    """Build the page."""
    found = told.found
    rows = figures.funnel(found["funnel"]["steps"])
    cards = [{"name": name, **card} for name, card in found["scores"].items()]
    about = f"Decision {view.saved}." if view.saved else "The rules in this link, which are not saved."
    facts = [
        (f"of {figures.clock(found['yield']['in_s'])} of video kept", figures.clock(found["yield"]["kept_s"])),
        ("of the video kept", figures.percent(found["yield"]["kept_share"])),
        ("of the video in candidate clips", figures.percent(found["yield"]["candidate_share"])),
        (f"of {figures.count(dataset.scores.clips)} clips kept", figures.count(rows[-1]["clips"])),
    ]
    with ui.element("div").classes("below"):
        with ui.element("section").classes("panel"):
            html(f"<h2>Yield</h2>{part('about', about)}{part('facts', facts)}")
            html(figure("yield_bar", figures.steps_of_share(rows))).style("margin-top: 16px")
        with ui.element("section").classes("panel"):
            html("<h2>What each filter takes</h2>")
            html(f'<div class="scroll">{part("filters", found["filters"])}</div>')
        if len(found["joint"]["filters"]) > 1:
            html(section("joint", found))
        with ui.element("section").classes("panel"):
            html("<h2>Before and after</h2>")
            html(part("about", "Every score's distribution: grey all clips, colour those that the decision keeps."))
            html(part("before_after", [_drawn(card) for card in cards if card["scored"]]))
        html(section("clips_per_source", found))
        for piece in (
            section("quantiles", cards),
            section("other", found, dataset.scores.clips),
            section("correlations", found, dataset.scores.clips),
            section("captions", found),
            section("cost", found),
        ):
            if piece.strip():
                html(piece).classes("stack")
        html(section("sources", told.sources, max(0, found["sources"]["total"] - SHOWN_SOURCES), view.saved))


def _drawn(card: dict[str, Any]) -> dict[str, Any]:
    return card | {"figure": figures.histogram(card["histogram"]) if "histogram" in card else None}
