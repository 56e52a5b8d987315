"""One score on the deciding page: its histogram, the handles of its threshold, the same in numbers, what it drops."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from nicegui import ui

from curation import schema
from curation.decisions import as_compared
from curation.reasons import Bound
from curation.rules import Rule, write_share
from curation.score_table import ScoreTable
from pipelines import figures
from pipelines.dashboard.page import figure, html, part

_STEPS = 1000  # positions of a handle along the axis


class ScoreCard:
    """Shows a rule and hands back the rule that a person makes of it. Knows nothing of the other scores."""

    def __init__(
        self, score: schema.Score, scores: ScoreTable, rule: Rule | None, changed: Callable[[Rule], Awaitable[None]]
    ) -> None:
        self.score, self.scores, self.changed = score, scores, changed
        self.rule = rule or Rule(score.name)
        self.summary: dict[str, Any] | None = None
        self.bound: Bound | None = None
        self.shares: tuple[float | None, float | None] = (None, None)
        self.slider: ui.range | None = None
        self.fields: dict[str, ui.number] = {}
        self._quiet = False  # while the page, not the person, moves the controls
        with ui.element("section").classes("panel card").props(f'aria-label="{score.name}"'):
            html(part("title", score.name) + part("about", score.doc)).classes("about")
            self.words = ui.label().classes("rule")
            self.plot = html().classes("histogram")
            if score.kind == "label":
                self._labels()
            else:
                self._numbers()
            self.counts = html()

    def _numbers(self) -> None:
        self.slider = ui.range(min=0, max=_STEPS, step=1, on_change=self._unless_quiet(self._dragged))
        self.slider.props(f'aria-label="{self.score.name} threshold" dense').set_visibility(False)
        self.axis = html().classes("histogram")
        with ui.element("div").classes("fields"):
            for key, label in (
                ("min", "at least"),
                ("max", "at most"),
                ("lowest", "lowest %"),
                ("highest", "highest %"),
            ):
                field = ui.number(label=label, on_change=self._unless_quiet(partial(self._typed, key)))
                field.props("dense outlined debounce=400 stack-label").props(f'aria-label="{self.score.name} {label}"')
                self.fields[key] = field
        with ui.element("div").classes("options"):
            if self.score.kind == "per_frame":
                choices = {"any": "any frame", "all": "all frames", "mean": "mean of frames"}
                self.frames = ui.select(
                    choices, value=self.rule.frames, on_change=self._unless_quiet(self._options)
                ).props("dense borderless")
            self._on_error()

    def _labels(self) -> None:
        with ui.element("div").classes("options"):
            self.boxes = {
                name: ui.checkbox(name, value=self._allows(name), on_change=self._unless_quiet(self._options)).props(
                    "dense"
                )
                for name in self.scores.labels[self.score.name]
            }
        with ui.element("div").classes("options"):
            self._on_error()

    def _on_error(self) -> None:
        measured = self.scores.measured[self.score.name]
        self.keep = ui.checkbox(
            "keep clips without a score", value=self.rule.on_error == "keep", on_change=self._options
        )
        self.keep.props("dense").set_visibility(measured.unscored > 0)

    def _allows(self, label: str) -> bool:
        inside = self.rule.labels is None or label in self.rule.labels
        return inside and not (self.rule.not_labels is not None and label in self.rule.not_labels)

    def _unless_quiet(self, act: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None] | None]:
        """A handler that does nothing while the page itself moves the controls. It must decide at once: an async
        handler would run later, when the quiet is over."""
        return lambda event: None if self._quiet else act(event)

    async def _set(self, rule: Rule) -> None:
        if rule != self.rule:
            self.rule = rule
            await self.changed(rule)

    async def _options(self, _: Any) -> None:
        rule = replace(self.rule, on_error="keep" if self.keep.value else "drop")
        if self.score.kind == "per_frame":
            rule = replace(rule, frames=self.frames.value)
        if self.score.kind == "label":
            wanted = tuple(name for name, box in self.boxes.items() if box.value)
            everything = len(wanted) == len(self.boxes)
            rule = replace(rule, labels=None if everything else wanted, not_labels=None)
        await self._set(rule)

    async def _typed(self, key: str, event: Any) -> None:
        value: float | None = event.value
        if key in ("min", "max"):
            side = {"min": "drop_lowest", "max": "drop_highest"}[key]
            await self._set(replace(self.rule, **{key: value, side: None}))  # type: ignore[arg-type]
            return
        if value is not None and not 0 <= value < 100:
            ui.notify("a share lies between 0 % and below 100 %", type="warning")
            self._quiet = True
            self._fill()  # the field says again what holds
            self._quiet = False
            return
        share = None if not value else Fraction(str(value)) / 100
        side = {"lowest": "min", "highest": "max"}[key]
        await self._set(replace(self.rule, **{f"drop_{key}": share, side: None}))  # type: ignore[arg-type]

    async def _dragged(self, _: Any) -> None:
        if self.summary is None or self.slider is None:
            return
        axis, place = self.summary["histogram"], self.slider.value
        rule = self.rule
        for handle, end, side in (("min", 0, "drop_lowest"), ("max", _STEPS, "drop_highest")):
            if place[handle] == self._places()[handle]:
                continue
            value = None
            if place[handle] != end:
                exact = axis["low"] + (axis["high"] - axis["low"]) * place[handle] / _STEPS
                value = float(f"{exact:.4g}")
            rule = replace(rule, **{handle: value, side: None})  # type: ignore[arg-type]
        await self._set(rule)

    def _places(self) -> dict[str, float]:
        """Where the handles stand for the bounds that hold."""
        if self.summary is None or "histogram" not in self.summary:
            return {"min": 0, "max": _STEPS}
        axis = self.summary["histogram"]
        span = axis["high"] - axis["low"]

        def place(bound: float | None, free: int) -> int:
            if bound is None:
                return free
            return round(min(max(_STEPS * (bound - axis["low"]) / span, 0), _STEPS))  # a bound may be infinite

        low, high = (self.bound.low, self.bound.high) if self.bound else (None, None)
        return {"min": place(low, 0), "max": place(high, _STEPS)}

    def show(
        self,
        bound: Bound | None,
        drops: dict[str, Any] | None,
        summary: dict[str, Any] | None,
        rule: Rule | None,
        shares: tuple[float | None, float | None],
    ) -> None:
        """Show what holds now. `summary` is None while a handle moves: the counts follow first, the bars after."""
        self.bound, self.rule = (
            bound,
            rule or Rule(self.score.name, frames=self.rule.frames, on_error=self.rule.on_error),
        )
        self.summary, self.shares = summary or self.summary, shares
        self._quiet = True
        try:
            self.words.text = figures.rule_words(self.rule.as_data()) if bound else "no rule: drops nothing"
            measured = self.scores.measured[self.score.name]
            counted = {"drops": drops, "scored": measured.scored, "unscored": measured.unscored}
            self.counts.content = part("drops", counted)
            if self.summary is not None:
                self._draw()
            if self.fields:
                self._fill()
        finally:
            self._quiet = False

    def _draw(self) -> None:
        assert self.summary is not None
        if "labels" in self.summary:
            self.plot.content = figure("labels", self.summary["labels"])
        elif "histogram" not in self.summary:
            self.plot.content = '<p class="hint">No clip could be scored.</p>'
        else:
            resolved = self.bound.resolved() if self.bound else None
            drawn = figures.histogram(self.summary["histogram"], resolved)
            self.plot.content = figure("plot", drawn)
            self.axis.content = figure("axis", drawn, self.score.unit)
            if self.slider is not None:
                self.slider.set_visibility(True)
                self.slider.value = self._places()

    def _fill(self) -> None:
        """The four numbers: bounds as they hold, and the shares that they drop, in percent. What was given stands as it
        was given; only what follows from it is rounded."""
        low, high = (self.bound.low, self.bound.high) if self.bound else (None, None)
        numbers = {"min": low, "max": high, "lowest": self.shares[0], "highest": self.shares[1]}
        numbers = {key: None if number is None else float(f"{number:.4g}") for key, number in numbers.items()}
        for key, given, holds in (("min", self.rule.min, low), ("max", self.rule.max, high)):
            if given is not None and as_compared(given) == holds:  # a share beside it may be the stricter one
                numbers[key] = given
        for key, share in (("lowest", self.rule.drop_lowest), ("highest", self.rule.drop_highest)):
            if share is not None:
                numbers[key] = float(write_share(share).removesuffix("%"))
        for key, number in numbers.items():
            self.fields[key].value = number
