"""The deciding page: thresholds with their effect, the clips on either side of them, save, export and download."""

import asyncio
from functools import partial
from typing import Any

from nicegui import ui

from curation import presets
from curation.rules import Rule, RulesError, parse_rules
from curation.score_table import SchemaError
from pipelines import figures
from pipelines.dashboard.datasets import OpenDataset, WhatIf
from pipelines.dashboard.export_dialog import Cancelled, Export
from pipelines.dashboard.page import background, dressed, figure, html, may_change, part
from pipelines.dashboard.score_card import ScoreCard
from pipelines.dashboard.view import View, read_view
from pipelines.decide import DatasetError

_CLIPS = 24


class DecidePage:
    """One browser's view of a dataset. Counts follow a moving handle at once; bars and clips follow when it rests."""

    def __init__(self, dataset: OpenDataset, view: View, base: str) -> None:
        self.data, self.view, self.base = dataset, view, base
        self.link = f"{base}/d/{dataset.name}"
        self.what: WhatIf | None = None
        self.shown = _CLIPS
        self._waiting = self._working = False
        self._build()

    def _build(self) -> None:
        scores = self.data.scores
        with ui.element("div").classes("top"):
            choices = {name: name for name in self.data.decisions()}
            self.saved = ui.select(choices, label="Decision", value=self.view.saved, on_change=self._load)
            self.saved.props("dense outlined options-dense").style("min-width: 190px")
            with ui.button("Preset").props("outline no-caps icon-right=arrow_drop_down"), ui.menu():
                for name in presets.names():
                    ui.menu_item(name, on_click=partial(self._take_preset, name))
            ui.button("Save as", on_click=self._ask_name).props("unelevated no-caps").mark("save")
            self.export = ui.button("Export shards", on_click=self._export).props("outline no-caps")
            with ui.button("Download").props("outline no-caps icon-right=arrow_drop_down"), ui.menu():
                ui.menu_item("CSV", on_click=lambda: self._download("csv"))
                ui.menu_item("Parquet", on_click=lambda: self._download("parquet"))
            self.note = ui.label().style("color: var(--dropped); font-weight: 600")
        with ui.element("div").classes("deciding"):
            with ui.element("div").classes("left"):
                with ui.element("section").classes("panel").props('aria-label="Result" aria-live="polite"'):
                    self.summary = html()
                with ui.element("section").classes("panel"):
                    html("<h2>Funnel</h2>")
                    self.funnel = html()
            with ui.element("div").classes("right"):
                self.cards = {
                    score.name: ScoreCard(score, scores, self.view.rule(score.name), self._rule_changed)
                    for score in scores.known
                    if scores.measured[score.name].scored or scores.measured[score.name].failed
                }
                with ui.element("section").classes("panel wide") as self.joint_panel:
                    html("<h3>Dropped by both</h3>")
                    self.joint = html().style("margin-top: 8px")
        with ui.element("div").classes("below"), ui.element("section").classes("panel"):
            html("<h2>Clips</h2>")
            self.which = ui.select({"kept": "Kept"}, value="kept", on_change=self._which_changed)
            self.which.props('dense outlined options-dense aria-label="Which clips"').style(
                "width: fit-content; min-width: 280px; max-width: 100%; margin: 6px 0 16px"
            )
            self.clips = html()
            self.more = ui.button("Show more", on_click=self._show_more).props("flat no-caps")

    async def _rule_changed(self, rule: Rule) -> None:
        self.view = self.view.with_rule(rule)
        await self.refresh()

    async def refresh(self) -> None:
        """Bring everything up to the rules of now. While one answer is in work, only the newest wish is remembered."""
        self._waiting = True
        if self._working:
            return
        self._working = True
        try:
            while self._waiting:
                self._waiting = False
                await self._answer()
        finally:
            self._working = False

    async def _answer(self) -> None:
        view = self.view
        try:
            self.what = await background(self.data.what_if, view.rules, view.recorded)
        except RulesError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        self._show(None)
        await asyncio.sleep(0.12)
        if self._waiting:
            return
        self._show(await background(self.data.score_summaries, self.what.bounds))
        if self._waiting:
            return
        self._offer_clips()
        await self._show_clips()
        self._link()

    def _link(self) -> None:
        """Have the browser's link say what the page shows; while that is nothing that can be read again, the last
        that can."""
        if not self._unreadable():
            ui.navigate.history.replace(f"{self.link}?{self.view.query()}")

    def _unreadable(self) -> str:
        """What is wrong with the rules as they stand, such as bounds that have crossed; nothing, if nothing is."""
        try:
            parse_rules(self.view.rules.as_data())
        except RulesError as error:
            return str(error)
        return ""

    def _show(self, summaries: dict[str, dict[str, Any]] | None) -> None:
        assert self.what is not None
        rows = figures.funnel(self.what.funnel["steps"])
        clips, _ = self.what.outcome.all
        seconds = {row["step"]: row["seconds"] for row in rows if row["kind"] == "level"}
        share = seconds["kept"] / seconds["sources"] if seconds["sources"] else None
        what = {"candidates": clips, "in_s": seconds["sources"], "share": share}
        self.summary.content = part("summary", what, figures.steps_of_share(rows), rows)
        self.funnel.content = figure("funnel", rows)
        self.joint_panel.set_visibility(len(self.what.joint["filters"]) > 1)
        self.joint.content = figure("matrix", self.what.joint)
        bounds = {bound.rule.score: bound for bound in self.what.bounds}
        drops = {row["filter"]: row for row in self.what.filters if not row["unscored"]}
        for name, card in self.cards.items():
            shares = self.what.shares.get(name, (None, None))
            card.show(bounds.get(name), drops.get(name), (summaries or {}).get(name), self.view.rule(name), shares)
        self.note.text = self._note(clips, self.what.outdated)
        if self.saved.value != self.view.saved:
            self.saved.set_value(self.view.saved)
        self.export.set_enabled(self.view.saved is not None)

    def _note(self, clips: int, outdated: bool) -> str:
        """What a person must know before exporting: that nothing is saved or can be, or that the dataset has changed
        since."""
        if wrong := self._unreadable():
            return f"cannot be saved: {wrong}"
        if self.view.recorded is None:
            return "unsaved changes" if self.view.rules.rules else ""
        then = self.view.recorded["clips"]
        if not outdated:
            return ""
        if then["candidates"] == clips:
            return "saved when the clips had other scores; save again to decide on those of now"
        held, kept = figures.count(then["candidates"]), figures.count(then["kept"])
        return f"saved when there were {held} clips, of which it keeps {kept}; save again to include the rest"

    # --- which clips are shown ---

    def _offer_clips(self) -> None:
        assert self.what is not None
        options = {}
        for bound in self.what.bounds:
            if bound.low is not None or bound.high is not None:
                options[f"near:{bound.rule.score}"] = f"Around the threshold of {bound.rule.score}"
        for reason in self.what.outcome.reasons:
            n, _ = self.what.outcome.total(self.what.outcome.has([reason]))
            if reason.drops and n:
                options[f"reason:{reason.text}"] = f"Dropped: {reason.text} ({figures.count(n)})"
        options["kept"] = f"Kept ({figures.count(self.what.outcome.kept[0])})"
        options["all"] = f"All ({figures.count(self.what.outcome.all[0])})"
        wanted = self.view.show if self.view.show in options else next(iter(options))
        self.which.set_options(options, value=wanted)

    async def _which_changed(self, event: Any) -> None:
        if event.value and event.value != self.view.show:
            self.view, self.shown = View(self.view.rules, self.view.recorded, event.value), _CLIPS
            if not self._working:
                await self._show_clips()
                self._link()

    async def _show_more(self) -> None:
        self.shown += _CLIPS
        await self._show_clips()

    async def _show_clips(self) -> None:
        assert self.what is not None
        try:
            content, full = await background(self._clips_html, self.which.value, self.what)
        except (DatasetError, SchemaError) as error:
            content, full = part("problem", str(error)), False
        self.clips.content = content
        self.more.set_visibility(full)

    def _clips_html(self, which: str, what: WhatIf) -> tuple[str, bool]:
        """The grid, and whether there may be more."""
        kind, _, name = which.partition(":")
        if kind == "near":
            return self._both_sides(name, what)
        rows = self.data.some(what.bounds, name if kind == "reason" else kind, self.shown)
        badge = name.rpartition(" ")[0] if kind == "reason" and not name.startswith("gate:") else None
        grid = part("clips", dressed(self.data, what.bounds, rows, self.view.query(), badge), self.link)
        return grid if rows else '<p class="hint clips-none">No clips here.</p>', len(rows) == self.shown

    def _both_sides(self, name: str, what: WhatIf) -> tuple[str, bool]:
        bound = next(bound for bound in what.bounds if bound.rule.score == name)
        pieces, full = [], False
        for title, rows in self.data.around(bound, self.shown // 2):
            full = full or len(rows) == self.shown // 2
            grid = part("clips", dressed(self.data, what.bounds, rows, self.view.query(), name), self.link)
            none = '<p class="hint clips-none">No clips here.</p>'
            pieces.append(f"<div>{part('title', title)}{grid if rows else none}</div>")
        return f'<div class="side">{"".join(pieces)}</div>', full

    # --- saved decisions ---

    async def _load(self, event: Any) -> None:
        if event.value and event.value != self.view.saved:
            try:
                self.view = read_view(self.data, {"decision": event.value, "show": self.view.show})
            except (DatasetError, RulesError) as error:
                ui.notify(str(error), type="negative", multi_line=True)
                self.saved.set_value(self.view.saved)
                return
            await self.refresh()

    async def _take_preset(self, name: str) -> None:
        """Start from a preset's rules, as far as this dataset has the scores."""
        rules, left_out = await background(presets.fitted, name, self.data.scores)
        if left_out:
            ui.notify(f"left out, because no clip has the score: {', '.join(left_out)}", type="warning")
        self.view = View(rules, show=self.view.show)
        await self.refresh()

    def _ask_name(self) -> None:
        with ui.dialog() as dialog, ui.card().style("min-width: 320px"):
            ui.label("Save this decision").style("font-size: 17px; font-weight: 650")
            name = ui.input("Name", value=self.view.saved or "").props("outlined dense autofocus").classes("w-full")
            name.style("width: 100%")

            async def save() -> None:
                if await self._save(name.value or ""):
                    dialog.close()

            name.on("keydown.enter", save)
            with ui.row().style("justify-content: flex-end; width: 100%"):
                ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
                ui.button("Save", on_click=save).props("unelevated no-caps")
        dialog.open()

    async def _save(self, name: str) -> bool:
        if not may_change():
            return False
        working = ui.notification(f"saving {name} …", spinner=True, timeout=None)
        try:
            made = await background(self.data.save, self.view.rules, name)
        except (DatasetError, SchemaError, RulesError, OSError) as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return False
        finally:
            working.dismiss()
        self.view = View(self.view.rules, made, self.view.show)
        self.saved.set_options({each: each for each in self.data.decisions()}, value=name)
        ui.notify(f"saved {name}: {figures.count(made['clips']['kept'])} clips kept", type="positive")
        await self.refresh()
        return True

    async def _export(self) -> None:
        name = self.view.saved
        if name is None or not may_change() or not await self._as_saved():
            return
        self.export.set_enabled(False)
        try:
            made = await Export(self.data.dataset, name).run()
        except Cancelled:
            ui.notify("the export was cancelled; the shards that are complete stay, exporting again carries it on")
            return
        except (DatasetError, OSError) as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        finally:
            self.export.set_enabled(True)
        text = (
            f"{figures.count(made['clips'])} clips, {figures.size(made['bytes'])} in {self.data.dataset}/shards/{name}"
        )
        if made["errors"]:
            text += f"; {figures.count(made['errors'])} clips could not be exported, see errors.parquet there"
        if not made["clips"] and not made["errors"]:
            text = f"{name} keeps no clip, so no shards were written"
        good = made["clips"] and not made["errors"]
        ui.notify(text, type="positive" if good else "warning", multi_line=True, timeout=10000)

    async def _as_saved(self) -> bool:
        """Whether the decision is still what the page shows. If it has been saved anew elsewhere, the page turns to
        that one and says so: nobody gets shards or a file of thresholds that he has not seen."""
        name = self.view.saved or ""
        try:
            now = await background(read_view, self.data, {"decision": name, "show": self.view.show})
        except (DatasetError, RulesError) as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return False
        if now.recorded == self.view.recorded:
            return True
        self.view = now
        await self.refresh()
        text = f"{name} has been saved anew elsewhere since this page showed it; now the page shows what it is"
        ui.notify(text, type="warning", multi_line=True, timeout=10000)
        return False

    async def _download(self, kind: str) -> None:
        if self.view.saved and not await self._as_saved():
            return
        ui.navigate.to(f"/d/{self.data.name}/download.{kind}?{self.view.query()}")
