"""A dataset while its job runs: what has come in, what waits, how fast, what it costs per stage, what failed lately."""

import time
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from curation.score_table import SchemaError
from curation.statistics import COSTS
from pipelines import figures
from pipelines.dashboard.datasets import OpenDataset
from pipelines.dashboard.page import background, html, part
from pipelines.decide import DatasetError
from pipelines.live import LiveJob, read_live

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
            with ui.element("section").classes("panel") as self.queue_panel:
                html("<h2>Queue</h2><p class='hint'>Sources at work or waiting, the first ones first.</p>")
                self.queue = html()
            self.queue_panel.set_visibility(False)
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
            "xAxis": {
                "type": "value",
                "name": "s",
                "nameTextStyle": {"color": "#8b97a5"},
                "axisLabel": {"color": "#8b97a5"},
                "axisLine": {"lineStyle": {"color": "#8b97a5"}},
                "splitLine": {"show": False},
            },
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
        try:
            found = await background(self._read)
        except (DatasetError, SchemaError, OSError) as error:  # a file went between listing and reading it
            self.speed.text = f"{error}; looking again"
            return
        self.seen = [*self.seen, (time.monotonic() - self.began, found.clips, found.seconds)][-_POINTS:]
        self.state.content = part("progress", found.share) + part("facts", found.facts())
        self.speed.text = found.words or f"Seen from this page: {self._speed()}"
        self.chart.set_visibility(found.running and len(self.seen) > 1)
        self.chart.options.update(self._options())
        self.queue_panel.set_visibility(bool(found.job and found.job.waiting))
        if found.job:
            more = found.job.waiting - len(found.job.next)
            self.queue.content = part("names", found.job.next, more)
        self.cost.content = part("pairs", found.cost)
        self.failed.content = part("pairs", found.lately or [("None", "")])

    def _speed(self) -> str:
        """How fast the dataset grows, as this page has seen it."""
        (t0, clips0, s0), (t1, clips1, s1) = self.seen[0], self.seen[-1]
        if t1 <= t0 or s1 <= s0:
            return "measuring the speed …"
        clips_per_minute = 60 * (clips1 - clips0) / (t1 - t0)
        return f"{(s1 - s0) / (t1 - t0):.1f} video-hours per hour, {clips_per_minute:.0f} clips a minute"

    def _read(self) -> "_Seen":
        scores, job = self.data.reopen(), read_live(self.data.dataset.storage)
        stages = tuple(COSTS)
        ok, failed, length, *spent = self.data.ask(
            "SELECT count(*) FILTER (WHERE status = 'ok'), count(*) FILTER (WHERE status = 'failed'), "
            f"coalesce(sum(duration_s), 0), {', '.join(f'coalesce(sum({name}), 0)' for name in stages)} FROM sources"
        )[0]
        lately = self.data.ask(
            "SELECT source_uri, coalesce(message, reason, status) FROM sources WHERE status = 'failed' LIMIT 20"
        )
        cost = [
            (COSTS[name], figures.clock(took) + (f", {figures.value(length / took)} times real time" if length else ""))
            for name, took in zip(stages, spent, strict=True)
            if took
        ]
        growing = any(len(name.rpartition("/")[2]) != len("part-00000.parquet") for name in self.data.files())
        return _Seen(job, growing, ok, failed, scores.clips, scores.seconds, cost, lately)


@dataclass
class _Seen:
    """A dataset at one moment."""

    job: LiveJob | None
    growing: bool  # files that a finished job would have merged
    ok: int
    failed: int
    clips: int
    seconds: float
    cost: list[tuple[str, str]]
    lately: list[tuple[Any, ...]]

    @property
    def running(self) -> bool:
        """Whether a job is at work: it says so, or an older clipmill's says nothing while files grow."""
        return self.job.running if self.job else self.growing

    @property
    def share(self) -> float | None:
        """How much of the sources is done; None without a job that could say."""
        return self.job.sources_done / self.job.sources if self.job and self.job.sources else None

    @property
    def words(self) -> str:
        """A sentence where the job needs one."""
        if self.job is None:
            return "" if self.growing else "No job is writing to this dataset."
        if self.job.ended is not None:
            return f"The job stopped: {self.job.ended}. The same command carries it on."
        if not self.job.running:
            ago = figures.clock(self.job.silent_s)
            return f"The job has said nothing for {ago}: it was probably killed. The same command carries it on."
        return ""

    def facts(self) -> list[tuple[str, str]]:
        """(what, value) for the tiles at the top."""
        failed = f", {figures.count(self.failed)} could not be read" if self.failed else ""
        clips = [("clips", figures.count(self.clips)), ("of video in clips", figures.clock(self.seconds))]
        if self.job is None:
            state = ("a job is writing", "running") if self.growing else ("no job is writing", "finished")
            return [state, (f"sources read{failed}", figures.count(self.ok)), *clips]
        job = self.job
        rate = f"{job.video_s / job.elapsed_s:.1f}" if job.elapsed_s and job.video_s else "–"
        doing = job.stage if job.running else "stopped" if job.ended is not None else "silent"
        done = f"{figures.count(job.sources_done)} of {figures.count(job.sources)}"
        return [
            ("what the job is doing" if job.running else "the job", doing),
            ("left, about" if job.running else "were left, about", figures.clock(job.left_s)),
            (f"sources done{failed}", done),
            ("sources in the queue", figures.count(job.waiting)),
            *clips,
            ("video-hours per hour", rate),
            ("since this run began", figures.clock(job.elapsed_s)),
        ]
