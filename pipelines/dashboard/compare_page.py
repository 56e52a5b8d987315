"""Two decisions side by side: how many clips each keeps, which ones moved, and by which reasons."""

from typing import Any

from nicegui import ui

from pipelines import figures
from pipelines.dashboard.datasets import OpenDataset
from pipelines.dashboard.page import background, html, notice, part
from pipelines.decide import DatasetError
from pipelines.diff import diff

_SHOWN = 24


class ComparePage:
    """The page; `first` and `second` come from the link."""

    def __init__(self, dataset: OpenDataset, first: str | None, second: str | None, base: str) -> None:
        self.data, self.link = dataset, f"{base}/d/{dataset.name}"
        names = dataset.decisions()
        if len(names) < 2:
            there = f"only {names[0]!r}" if names else "none"
            notice(f"Comparing takes two saved decisions; this dataset has {there}. Save another on the page Decide.")
            return
        for name in (first, second):
            if name and name not in names:
                notice(f"This dataset has no decision called {name}; there are: {', '.join(names)}.", bad=True)
        first = first or ("default" if "default" in names else names[0])
        second = second or next(name for name in names if name != first)
        with ui.element("div").classes("top"):
            self.first = ui.select(names, label="First", value=first if first in names else None, on_change=self.show)
            self.second = ui.select(
                names, label="Second", value=second if second in names else None, on_change=self.show
            )
            for select in (self.first, self.second):
                select.props("dense outlined options-dense").style("min-width: 180px")
        with ui.element("div").classes("below"):
            self.body = html()

    async def show(self, _: Any = None) -> None:
        """Work out the difference and show it."""
        first, second = self.first.value, self.second.value
        if not first or not second:
            return
        try:
            self.body.content = await background(self._content, first, second)
        except DatasetError as error:
            self.body.content = part("problem", str(error))
            return
        ui.navigate.history.replace(f"{self.link}/compare?first={first}&second={second}")

    def _content(self, first: str, second: str) -> str:
        found = diff(self.data.dataset, first, second, most=_SHOWN)
        facts = [
            ("kept by both", figures.count(found["both"])),
            (f"only by {first}", figures.count(found["only_first"])),
            (f"only by {second}", figures.count(found["only_second"])),
            ("kept by neither", figures.count(found["neither"])),
        ]
        pieces = [f'<section class="panel">{part("facts", facts)}</section>']
        for key, keeps, drops in (("only_first", first, second), ("only_second", second, first)):
            if found[key]:
                rows = self._rows([clip for clip in found["clips"] if clip["kept_by"] == keeps], keeps)
                pieces.append(
                    f'<section class="panel"><h2>Kept by {keeps}, dropped by {drops}</h2>'
                    f'<p class="hint">Why {drops} drops them; a clip can have several reasons.</p>'
                    f"{part('bars', list(found['reasons'][key].items()))}"
                    f'<div style="height:16px"></div>{part("clips", rows, self.link)}</section>'
                )
        if not found["only_first"] and not found["only_second"]:
            pieces.append('<section class="panel"><p class="hint">They keep the same clips.</p></section>')
        return f'<div class="stack">{"".join(pieces)}</div>'

    def _rows(self, clips: list[dict[str, Any]], keeps: str) -> list[dict[str, Any]]:
        why = {clip["clip_id"]: clip["reasons"] for clip in clips}
        if not why:
            return []
        listed = ", ".join("?" for _ in why)
        places = self.data.ask(f"SELECT place FROM clips WHERE clip_id IN ({listed}) ORDER BY clip_id", list(why))
        rows = self.data.rows(place for (place,) in places)
        return [
            row | {"reasons": why[row["clip_id"]], "look": "dropped", "query": f"decision={keeps}", "badge": ""}
            for row in rows
        ]
