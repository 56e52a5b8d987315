"""The datasets that a dashboard shows. Nothing else on the machine can be named by a request.

Each is opened once and kept: its scores in DuckDB, as `pipelines.decide.open_scores` gives them. A dataset that is
still being written is opened again when its list of files has changed.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from curation import decisions, distributions, reasons, statistics
from curation.decisions import Outcome
from curation.reasons import Bound
from curation.rules import Rules
from curation.score_columns import spread
from curation.score_table import ScoreTable, high_column, low_column, quote
from pipelines.dataset import Dataset
from pipelines.decide import DatasetError, bounds_of, names, open_scores, outdated, write_decision
from pipelines.report import sources_of

_MOST_OPEN = 8  # datasets whose scores are held in memory


@dataclass
class WhatIf:
    """The answer to a change of thresholds."""

    bounds: list[Bound]
    outcome: Outcome
    funnel: dict[str, Any]
    filters: list[dict[str, Any]]
    joint: dict[str, Any]
    outdated: bool  # a recorded decision said something else of the clips, whose scores are others now
    shares: dict[str, tuple[float | None, float | None]]  # per score: % of the scored clips below and above its bounds


class OpenDataset:
    """One dataset, ready for questions. Every method may be called from any thread; questions wait for each other."""

    def __init__(self, name: str, dataset: Dataset) -> None:
        self.name = name
        self.dataset = dataset
        self._lock = threading.RLock()
        self._table: ScoreTable | None = None
        self._files: dict[str, tuple[Any, ...]] = {}
        self._intake: list[dict[str, Any]] = []

    @property
    def is_open(self) -> bool:
        """Whether its scores are in memory."""
        return self._table is not None

    def close(self) -> None:
        """Let go of the memory; the next question opens it again."""
        with self._lock:
            if self._table is not None:
                self._table.con.close()
            self._table, self._files = None, {}

    def decisions(self) -> list[str]:
        """Names of the decisions there are."""
        return names(self.dataset)

    def files(self) -> dict[str, tuple[Any, ...]]:
        """The Parquet files there are now, each with what is different once it is replaced; they change while a job
        runs."""
        found: dict[str, tuple[Any, ...]] = {}
        for folder in ("clips", "sources"):
            stamps = self.dataset.storage.stamps(folder)
            found |= {f"{folder}/{part}": stamps.get(part, ()) for part in self.dataset.part_files(folder)}
        return found

    @property
    def scores(self) -> ScoreTable:
        """The scores, opened on first use. Raises DatasetError or SchemaError."""
        table = self._table
        return table if table is not None else self.reopen()

    def reopen(self) -> ScoreTable:
        """Open the scores anew if the dataset has changed. Raises DatasetError or SchemaError."""
        with self._lock:
            files = self.files()
            if self._table is None or files != self._files:
                table = open_scores(self.dataset)
                table.prepare()
                if self._table is not None:
                    self._table.con.close()
                self._table, self._files = table, files
                self._intake = statistics.intake(table.con)
            return self._table

    def what_if(self, rules: Rules, recorded: dict[str, Any] | None = None) -> WhatIf:
        """What these rules would do, or a recorded decision does. Raises RulesError."""
        with self._lock:
            bounds = self.bounds(rules, recorded)
            result = decisions.outcome(self.scores, bounds)
            shares = {bound.rule.score: self._shares(bound) for bound in bounds}
            old = recorded is not None and outdated(self.scores, bounds, recorded)
        found = statistics.funnel(self._intake, result)
        filters, joint = statistics.filters(result, bounds), statistics.joint(result)
        return WhatIf(bounds, result, found, filters, joint, old, shares)

    def _shares(self, bound: Bound) -> tuple[float | None, float | None]:
        """What share of the scored clips, in percent, lies below and above a bound; a search in sorted values."""
        score, frames, below, above = self.scores.score(bound.rule.score), bound.rule.frames, None, None
        if bound.low is not None and bound.scored:
            values = self.scores.ranked(low_column(score, frames))
            below = 100 * values.below(np.float32(bound.low)) / values.count
        if bound.high is not None and bound.scored:
            values = self.scores.ranked(high_column(score, frames))
            above = 100 * values.above(np.float32(bound.high)) / values.count
        return below, above

    def bounds(self, rules: Rules, recorded: dict[str, Any] | None = None) -> list[Bound]:
        """The bounds of these rules, resolved on the clips of now; those of a recorded decision, as they were resolved.

        Raises RulesError.
        """
        with self._lock:
            return bounds_of(self.scores, recorded) if recorded else decisions.resolve(self.scores, rules)

    def score_summaries(self, bounds: Sequence[Bound]) -> dict[str, dict[str, Any]]:
        """`curation.distributions.score_summary` of every score, on axes that do not move with the bounds."""
        with self._lock, decisions.marked(self.scores, bounds) as marks:
            return {
                score.name: distributions.score_summary(self.scores, score, bounds, marks, fixed_axis=True)
                for score in self.scores.known
            }

    def statistics(self, bounds: Sequence[Bound]) -> dict[str, Any]:
        """Everything that a report would say."""
        with self._lock:
            return statistics.statistics(self.scores, bounds)

    def sources(self, bounds: Sequence[Bound], most: int) -> list[dict[str, Any]]:
        """The first sources, failed ones first, with what the bounds keep of each."""
        with self._lock:
            return sources_of(self.scores, bounds, most)

    def rows(self, places: Iterable[int]) -> list[dict[str, Any]]:
        """`ScoreTable.rows`. Raises DatasetError, see `_check_files`."""
        with self._lock:
            self._check_files()
            return self.scores.rows(places)

    def _check_files(self) -> None:
        """Whole rows are read from the files when they are asked for. Raises DatasetError where the files are no longer
        those whose scores are in memory: their rows would stand beside other clips' scores."""
        if self.scores.files:  # none where the rows are in memory too
            now = self.files()
            if any(now.get(name) != stamp for name, stamp in self._files.items()):
                there = self.dataset.storage.exists()
                what = "has changed since this page was opened; load the page again" if there else "does not exist"
                raise DatasetError(f"{self.dataset} {what}")

    def reasons_of(self, bounds: Sequence[Bound], rows: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Why each of these rows (of `rows`) would be dropped; an empty list for one that is kept."""
        with self._lock:
            return reasons.why(self.scores, reasons.reasons(self.scores, bounds), [row["place"] for row in rows])

    def some(self, bounds: Sequence[Bound], which: str, most: int) -> list[dict[str, Any]]:
        """Up to `most` rows, scattered over the dataset: `all`, `kept`, or those with the reason of that name."""
        with self._lock, decisions.marked(self.scores, bounds) as marks:
            if which == "all":
                where = np.ones(self.scores.clips, bool)
            elif which == "kept":
                where = marks.keeps
            else:
                reason = next((each for each in marks.reasons if each.text == which), None)
                where = marks.has(reason) if reason else np.zeros(self.scores.clips, bool)
            return self.rows(spread(where, most))

    def around(self, bound: Bound, most: int) -> list[tuple[str, list[dict[str, Any]]]]:
        """(title, rows) of the clips just outside and just inside a bound, nearest first."""
        score, found = self.scores.score(bound.rule.score), []
        for edge, column, out, inside, word in (
            (bound.low, low_column(score, bound.rule.frames), "<", ">=", "below"),
            (bound.high, high_column(score, bound.rule.frames), ">", "<=", "above"),
        ):
            if edge is None:
                continue
            name, value = quote(column), f"'{edge!r}'::FLOAT"
            for title, sign in ((f"Just {word}: dropped", out), ("Just inside: kept by this rule", inside)):
                order = "DESC" if sign[0] == "<" else "ASC"
                near = f"WHERE {name} {sign} {value} ORDER BY {name} {order}, place LIMIT {int(most)}"
                places = [place for (place,) in self.ask(f"SELECT place FROM scores {near}")]
                found.append((f"{title} ({score.name} {sign} {edge:.3g})", self.rows(places)))
        return found

    def write_decided(self, bounds: Sequence[Bound], extra: Sequence[str], writer: Any) -> None:
        """Give the decision's rows (`curation.decisions.decided`) to a writer, and close it."""
        try:
            with self._lock:
                for batch in decisions.decided(self.scores, bounds, extra=extra):
                    writer.write_batch(batch)
        finally:
            writer.close()

    def save(self, rules: Rules, name: str) -> dict[str, Any]:
        """Record a decision on the clips of now. Raises RulesError, DatasetError or SchemaError."""
        with self._lock:
            return write_decision(self.dataset, self.reopen(), rules, name)

    def ask(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query over `scores`, `clips` and `sources`."""
        with self._lock:
            found: list[tuple[Any, ...]] = self.scores.con.execute(sql, list(parameters)).fetchall()
            return found

    def clip(self, clip_id: str, place: int | None = None) -> dict[str, Any] | None:
        """A clip's row, found at once where `place` is right, by a search where it is not; None if there is none."""
        if place is not None:
            near = self.rows([place])
            if near and near[0]["clip_id"] == clip_id:
                return near[0]
        found = self.ask("SELECT place FROM clips WHERE clip_id = ? LIMIT 1", [clip_id])
        return self.rows([found[0][0]])[0] if found else None


class Registry:
    """The datasets by the name that links use.

    Given a list of places, a name is the last part of the path, numbered where two are the same. Given a callable, it
    is asked at every request and says {name: place}: a service lists the datasets of its jobs, and whom it lets see
    which is its own affair. A dataset that is no longer listed cannot be named any more.
    """

    def __init__(self, roots: Iterable[str] | Callable[[], Mapping[str, str]]) -> None:
        if callable(roots):
            self._listed = roots
        else:
            named = _named(roots)
            self._listed = lambda: named
        self._lock = threading.Lock()
        self._known: dict[str, OpenDataset] = {}  # the one used last is the last one

    def _now(self) -> list[OpenDataset]:
        listed = self._listed()
        with self._lock:
            for name in [name for name, each in self._known.items() if listed.get(name) != str(each.dataset)]:
                self._known.pop(name).close()
            for name, root in listed.items():
                if name not in self._known:
                    self._known[name] = OpenDataset(name, Dataset(root))
            return [self._known[name] for name in listed]

    def __iter__(self) -> Iterator[OpenDataset]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._listed())

    def get(self, name: str) -> OpenDataset | None:
        """The dataset of that name, if it is one of those shown. Others that were not asked for lately are closed."""
        self._now()
        with self._lock:
            found = self._known.pop(name, None)
            if found is not None:
                self._known[name] = found
            idle = [each for each in self._known.values() if each.is_open][:-_MOST_OPEN]
        for each in idle:
            each.close()
        return found


def _named(roots: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for root in roots:
        leaf = PurePosixPath(root.rstrip("/").rpartition("://")[2] or root).name or "dataset"
        name, k = leaf, 2
        while name in found:
            name, k = f"{leaf}-{k}", k + 1
        found[name] = root
    return found
