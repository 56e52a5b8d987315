"""The datasets that a dashboard shows. Nothing else on the machine can be named by a request.

Each is opened once and kept: its scores in DuckDB, as `pipelines.decide.open_scores` gives them. A dataset that is
still being written is opened again when its list of files has changed.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from curation import decisions, statistics
from curation.decisions import Bound, Outcome
from curation.rules import Rules
from curation.score_table import ScoreTable, high_column, low_column, quote
from pipelines.dataset import Dataset
from pipelines.decide import names, open_scores, write_decision


@dataclass
class WhatIf:
    """The answer to a change of thresholds."""

    bounds: list[Bound]
    outcome: Outcome
    funnel: dict[str, Any]
    filters: list[dict[str, Any]]
    joint: dict[str, Any]
    shares: dict[str, tuple[float | None, float | None]]  # per score: % of the scored clips below and above its bounds


class OpenDataset:
    """One dataset, ready for questions. Every method may be called from any thread; questions wait for each other."""

    def __init__(self, name: str, dataset: Dataset) -> None:
        self.name = name
        self.dataset = dataset
        self._lock = threading.RLock()
        self._table: ScoreTable | None = None
        self._files: list[str] = []
        self._intake: list[dict[str, Any]] = []

    def decisions(self) -> list[str]:
        """Names of the decisions there are."""
        return names(self.dataset)

    def files(self) -> list[str]:
        """The Parquet files there are now; they change while a job runs."""
        return [f"{folder}/{part}" for folder in ("clips", "sources") for part in self.dataset.part_files(folder)]

    @property
    def scores(self) -> ScoreTable:
        """The scores, opened on first use. Raises DatasetError or SchemaError."""
        table = self._table
        return table if table is not None else self.reopen()

    def reopen(self) -> ScoreTable:
        """Open the scores anew if the dataset has grown. Raises DatasetError or SchemaError."""
        with self._lock:
            files = self.files()
            if self._table is None or files != self._files:
                table = open_scores(self.dataset)
                if self._table is not None:
                    self._table.con.close()
                self._table, self._files = table, files
                self._intake = statistics.intake(table.con)
            return self._table

    def what_if(self, rules: Rules) -> WhatIf:
        """What these rules would do. Raises RulesError."""
        with self._lock:
            bounds = decisions.resolve(self.scores, rules)
            result = decisions.outcome(self.scores, bounds)
            shares = {bound.rule.score: self._shares(bound) for bound in bounds}
        found = statistics.funnel(self._intake, result)
        return WhatIf(bounds, result, found, statistics.filters(result, bounds), statistics.joint(result), shares)

    def _shares(self, bound: Bound) -> tuple[float | None, float | None]:
        """What share of the scored clips, in percent, lies below and above a bound; a search in sorted values."""
        score, frames, below, above = self.scores.score(bound.rule.score), bound.rule.frames, None, None
        if bound.low is not None and bound.scored:
            values = self.scores.values(low_column(score, frames))
            below = 100 * float(np.searchsorted(values, np.float32(bound.low), "left")) / len(values)
        if bound.high is not None and bound.scored:
            values = self.scores.values(high_column(score, frames))
            above = 100 - 100 * float(np.searchsorted(values, np.float32(bound.high), "right")) / len(values)
        return below, above

    def bounds(self, rules: Rules) -> list[Bound]:
        """`curation.decisions.resolve`. Raises RulesError."""
        with self._lock:
            return decisions.resolve(self.scores, rules)

    def score_summaries(self, bounds: Sequence[Bound]) -> dict[str, dict[str, Any]]:
        """`curation.statistics.score_summary` of every score, on axes that do not move with the bounds."""
        with self._lock, decisions.marked(self.scores, bounds) as marks:
            return {
                score.name: statistics.score_summary(self.scores, score, bounds, marks, fixed_axis=True)
                for score in self.scores.known
            }

    def statistics(self, bounds: Sequence[Bound]) -> dict[str, Any]:
        """Everything that a report would say."""
        with self._lock:
            return statistics.statistics(self.scores, bounds)

    def rows(self, places: str) -> list[dict[str, Any]]:
        """`ScoreTable.rows`."""
        with self._lock:
            return self.scores.rows(places)

    def reasons_of(self, bounds: Sequence[Bound], rows: Sequence[dict[str, Any]]) -> list[list[str]]:
        """Why each of these rows (of `rows`) would be dropped; an empty list for one that is kept."""
        if not rows:
            return []
        found = decisions.reasons(self.scores, bounds)
        listed = ", ".join(str(int(row["place"])) for row in rows)
        masks = dict(self.ask(f"SELECT place, {decisions.mask_sql(found)} FROM scores WHERE place IN ({listed})"))
        return [
            [reason.text for reason in found if reason.drops and masks[row["place"]] >> reason.bit & 1] for row in rows
        ]

    def kept_sql(self, bounds: Sequence[Bound]) -> str:
        """SQL over `scores`: true for a clip that the bounds keep."""
        dropping = [reason for reason in decisions.reasons(self.scores, bounds) if reason.drops]
        return f"{decisions.mask_sql(dropping)} = 0" if dropping else "true"

    def around(self, bound: Bound, most: int) -> list[tuple[str, str]]:
        """(title, query for places) of the clips just outside and just inside a bound, nearest first."""
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
                found.append(
                    (
                        f"{title} ({score.name} {sign} {edge:.3g})".replace("<", "&lt;").replace(">", "&gt;"),
                        f"SELECT place FROM scores {near}",
                    )
                )
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
        """Record a decision. Raises RulesError or DatasetError."""
        with self._lock:
            return write_decision(self.dataset, self.scores, rules, name)

    def ask(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query over `scores`, `clips` and `sources`."""
        with self._lock:
            found: list[tuple[Any, ...]] = self.scores.con.execute(sql, list(parameters)).fetchall()
            return found

    def clip(self, clip_id: str, place: int | None = None) -> dict[str, Any] | None:
        """A clip's row, found at once where `place` is right, by a search where it is not; None if there is none."""
        if place is not None:
            near = self.rows(f"SELECT {int(place)}")
            if near and near[0]["clip_id"] == clip_id:
                return near[0]
        found = self.ask("SELECT place FROM clips WHERE clip_id = ? LIMIT 1", [clip_id])
        return self.rows(f"SELECT {found[0][0]}")[0] if found else None


class Registry:
    """The datasets by the name that links use: the last part of their path, numbered where two are the same."""

    def __init__(self, roots: Iterable[str]) -> None:
        self._by_name: dict[str, OpenDataset] = {}
        for root in roots:
            leaf = PurePosixPath(root.rstrip("/").rpartition("://")[2] or root).name or "dataset"
            name, k = leaf, 2
            while name in self._by_name:
                name, k = f"{leaf}-{k}", k + 1
            self._by_name[name] = OpenDataset(name, Dataset(root))

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> OpenDataset | None:
        """The dataset of that name, if it is one of those shown."""
        return self._by_name.get(name)
