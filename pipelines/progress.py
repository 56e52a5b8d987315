"""What a person sees of a job: a live line while it runs, plain lines where nobody watches, a table at the end."""

import os
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self, TextIO

import pyarrow as pa
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipelines.commit import TIMINGS
from pipelines.live import Progress

_PLAIN_EVERY_S = 15.0


def duration(seconds: float) -> str:
    """`75.2` -> `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def line(progress: Progress) -> str:
    """Videos, clips, video-hours per hour, errors, time left."""
    parts = [progress.stage, f"{progress.sources_done}/{progress.sources} videos", f"{progress.clips} clips"]
    if progress.video_s:
        parts.append(f"{progress.video_s / progress.elapsed_s:.1f} video-hours per hour")
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    parts.append(f"{duration(progress.elapsed_s)} so far")
    if progress.left_s is not None and progress.stage == "curating":
        parts.append(f"about {duration(progress.left_s)} left")
    return ", ".join(parts)


def sentence(progress: dict[str, Any]) -> str:
    """The same of a job of the service (`pipelines.service.routes.ProgressOut`)."""
    parts = [progress["stage"] or "", f"{progress['sources_done']}/{progress['sources'] or '-'} videos"]
    parts.append(f"{progress['clips']} clips")
    if progress["video_hours_per_hour"]:
        parts.append(f"{progress['video_hours_per_hour']:.1f} video-hours per hour")
    if progress["failed"]:
        parts.append(f"{progress['failed']} failed")
    if progress["left_s"] is not None and progress["stage"] == "curating":
        parts.append(f"about {duration(progress['left_s'])} left")
    return ", ".join(part for part in parts if part)


class Display:
    """`with Display() as show: curate(spec, show=show)`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=_stderr(), highlight=False)
        self._live: Live | None = None
        self._printed_at = 0.0
        self._stage = ""
        self._said = 0
        self._last: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._picture, transient=True)
            self._live.start()
            self._console.show_cursor()  # rich hides it, and a process that is killed could not give it back
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Take note of where the job is."""
        self._last = progress
        for said in progress.warnings[self._said :]:
            self._console.print(f"warning: {said}", soft_wrap=True)
        self._said = len(progress.warnings)
        if self._live is not None:
            return
        now = time.monotonic()
        if progress.stage != self._stage or now - self._printed_at > _PLAIN_EVERY_S:
            self._console.print(line(progress), soft_wrap=True)
            self._printed_at, self._stage = now, progress.stage

    def _picture(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        if self._last is not None:
            total = self._last.bytes or 1
            bar = ProgressBar(total=total, completed=self._last.bytes_done, width=28)
            grid.add_row(bar, line(self._last))
        return grid


def _stderr() -> TextIO:
    """A standard error of our own: `pipelines.cluster` turns the shared one off while Ray starts."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    except OSError:  # not a file: a test's
        return sys.stderr


_LOSSES = {
    "lost_transition_s": "inside transitions",
    "lost_short_s": "shots below the minimum",
    "lost_keyframe_s": "between cut and key frame",
    "lost_error_s": "errors",
}


def summary(sources: pa.Table, kept_by_decision: tuple[str, int, float] | None = None) -> list[Table]:
    """The final tables: sources by status and reason, yield in seconds, processor time by stage.

    Args:
        sources: `Dataset.sources()`.
        kept_by_decision: (name, clips, seconds) that the default decision keeps.
    """
    rows: list[dict[str, Any]] = sources.to_pylist()
    outcome = Table("sources", "number", "reason", title_justify="left", box=None)
    counts = Counter((row["status"], row["reason"] or "") for row in rows)
    for (status, reason), number in sorted(counts.items(), key=lambda item: (item[0][0] != "ok", item[0])):
        outcome.add_row(status, str(number), reason)

    seconds_in = sum(row["duration_s"] or 0.0 for row in rows)
    footage = Table("footage", "seconds", "share", box=None)
    for numeric in footage.columns[1:]:
        numeric.justify = "right"

    def add(name: str, seconds: float) -> None:
        footage.add_row(name, f"{seconds:.1f}", f"{100 * seconds / seconds_in:.1f} %" if seconds_in else "")

    add("in", seconds_in)
    clips = sum(row["clips"] or 0 for row in rows)
    add(f"in {clips} clips", sum(row["kept_s"] or 0.0 for row in rows))
    for column, name in _LOSSES.items():
        lost = sum(row[column] or 0.0 for row in rows)
        if lost:
            add(f"lost: {name}", lost)
    if kept_by_decision is not None:
        name, number, seconds = kept_by_decision
        add(f"kept by decision {name}: {number} clips", seconds)

    cost = Table("stage", "processor s", "x real time", box=None)
    for numeric in cost.columns[1:]:
        numeric.justify = "right"
    for name in TIMINGS:
        if ran := [row[name] for row in rows if row[name] is not None]:
            spent = sum(ran)
            cost.add_row(name.removesuffix("_s"), f"{spent:.1f}", f"{seconds_in / spent:.0f}" if spent else "")
    return [outcome, footage, cost]
