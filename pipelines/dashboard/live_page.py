"""A dataset while its job runs: what has come in, at what speed, at what cost per stage, and what failed lately."""

import time
from typing import Any

from nicegui import ui

from curation.statistics import COSTS
from pipelines import figures
from pipelines.dashboard.datasets import OpenDataset
from pipelines.dashboard.page import background, html, part

_EVERY_S = 2.0
_POINTS = 150


class LivePage:
    """Looks at the dataset every two seconds; a chart of clips over time grows while one watches."""

    def __init__(self, dataset: OpenDataset) -> None:
        self.data = dataset
        self.seen: list[tuple[float, int, float]] = []  # seconds since the page opened, clips, seconds of video
        self.began = time.monotonic()
        with ui.element("div").classes("below"):
            with ui.element("section").classes("panel"):
                self.state = html()
                self.speed = ui.label().classes("hint").style("margin-top: 10px")
                self.chart = ui.echart(self._options(), renderer="svg").style("height: 220px; width: 100%")
            with ui.element("section").classes("panel"):
                html("<h2>Processor time by stage</h2>")
                self.cost = html()
            with ui.element("section").classes("panel"):
                html("<h2>Sources that could not be read</h2>")
                self.failed = html()
        ui.timer(_EVERY_S, self.look)

    def _options(self) -> dict[str, Any]:
        return {
            "animation": False,
            "grid": {"left": 56, "right": 16, "top": 30, "bottom": 28},
            "tooltip": {"trigger": "axis"},
            "xAxis": {"type": "value", "name": "s", "axisLabel": {"color": "#8b97a5"}},
            "yAxis": {
                "type": "value",
                "name": "clips",
                "minInterval": 1,
                "scale": True,
                "nameTextStyle": {"color": "#8b97a5"},
                "axisLabel": {"color": "#8b97a5"},
                "splitLine": {"lineStyle": {"color": "#8b97a533"}},
            },
            "series": [
                {
                    "type": "line",
                    "showSymbol": False,
                    "areaStyle": {"opacity": 0.15},
                    "color": "#0f8b8d",
                    "data": [[round(at, 1), clips] for at, clips, _ in self.seen],
                }
            ],
        }

    async def look(self) -> None:
        """Read what there is now."""
        found = await background(self._read)
        self.seen = [*self.seen, (time.monotonic() - self.began, found["clips"], found["seconds"])][-_POINTS:]
        (t0, clips0, s0), (t1, clips1, s1) = self.seen[0], self.seen[-1]
        speed = "measuring the speed …"
        if t1 > t0 and s1 > s0:
            clips_per_minute = 60 * (clips1 - clips0) / (t1 - t0)
            speed = f"{(s1 - s0) / (t1 - t0):.1f} video-hours per hour, {clips_per_minute:.0f} clips a minute"
        facts = [
            (
                "a job is writing" if found["running"] else "no job is writing",
                "running" if found["running"] else "finished",
            ),
            (f"sources read, {figures.count(found['failed'])} not", figures.count(found["ok"])),
            ("clips", figures.count(found["clips"])),
            ("of video in clips", figures.clock(found["seconds"])),
        ]
        self.state.content = part("facts", facts)
        self.speed.text = speed if found["running"] else ""
        self.chart.set_visibility(found["running"])
        self.chart.options.update(self._options())
        self.cost.content = part("pairs", found["cost"])
        self.failed.content = part("pairs", found["lately"] or [("Nothing", "")])

    def _read(self) -> dict[str, Any]:
        scores = self.data.reopen()
        stages = tuple(COSTS)
        ok, failed, length, *spent = self.data.ask(
            "SELECT count(*) FILTER (WHERE status = 'ok'), count(*) FILTER (WHERE status != 'ok'), "
            f"coalesce(sum(duration_s), 0), {', '.join(f'coalesce(sum({name}), 0)' for name in stages)} FROM sources"
        )[0]
        lately = self.data.ask(
            "SELECT source_uri, coalesce(message, reason, status) FROM sources WHERE status = 'failed' LIMIT 20"
        )
        cost = [
            (name.removesuffix("_s"), f"{figures.clock(took)}{f', {length / took:.0f}x real time' if took else ''}")
            for name, took in zip(stages, spent, strict=True)
        ]
        running = any(len(name.rpartition("/")[2]) != len("part-00000.parquet") for name in self.data.files())
        return {
            "running": running,
            "ok": ok,
            "failed": failed,
            "clips": scores.clips,
            "seconds": scores.seconds,
            "cost": cost,
            "lately": lately,
        }
