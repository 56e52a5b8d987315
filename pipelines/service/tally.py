"""What a dataset holds so far, in numbers: from the Parquet parts that its job has written.

Parts never change once they are there, so each is read once, and only the columns that are counted. A source whose file
changed between two runs counts twice until the job's last step has merged the parts.
"""

import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.schema import SCORES
from curation.statistics import COSTS, LOSSES
from pipelines.dataset import Dataset


@dataclass
class Tally:
    """Sums over a dataset. Adding two gives that of both.

    Attributes:
        sources: by status: ok, failed, duplicate.
        reasons: failed sources by reason.
        score_errors: clips that could not be scored, by score.
        cpu_s: processor seconds by stage.
        lost_s: seconds of video lost, by the column of `sources` that counts them.
    """

    sources: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    score_errors: Counter[str] = field(default_factory=Counter)
    clips: int = 0
    video_s: float = 0.0
    kept_s: float = 0.0
    cpu_s: Counter[str] = field(default_factory=Counter)
    lost_s: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def sources_done(self) -> int:
        return sum(self.sources.values())


class Tallies:
    """Tallies of datasets, each part of which is read once."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, Tally]] = {}

    def of(self, dataset: Dataset) -> Tally:
        """What is there now. Parts that vanish while they are read (the job merges them) are counted as they come."""
        names = [f"{folder}/{part}" for folder in ("sources", "clips") for part in dataset.part_files(folder)]
        known = self._parts.get(str(dataset), {})
        parts: dict[str, Tally] = {}
        for name in names:
            kept = known.get(name) if "part-000" not in name else None  # merged parts are written anew at every end
            try:
                parts[name] = kept or (_sources if name.startswith("sources") else _clips)(dataset, name)
            except (OSError, pa.ArrowInvalid):
                continue
        self._parts[str(dataset)] = parts
        return sum(parts.values(), Tally())

    def forget(self, dataset: Dataset) -> None:
        """Drop what is kept about a dataset."""
        self._parts.pop(str(dataset), None)


def _sources(dataset: Dataset, name: str) -> Tally:
    table = dataset.read_table(name)
    failed = table.filter(pc.equal(table["status"], "failed"))
    return Tally(
        sources=_counts(table["status"]),
        reasons=_counts(failed["reason"]),
        clips=int(_sum(table["clips"])),
        video_s=_sum(table["duration_s"]),
        kept_s=_sum(table["kept_s"]),
        cpu_s=Counter({stage: _sum(table[column]) for column, stage in COSTS.items() if column in table.column_names}),
        lost_s=Counter({column: _sum(table[column]) for column in LOSSES}),
    )


def _clips(dataset: Dataset, name: str) -> Tally:
    file = pq.ParquetFile(io.BytesIO(dataset.storage.read(name)))
    columns = {f"{score.column}_error": score.name for score in SCORES}
    table = file.read([column for column in columns if column in file.schema_arrow.names])
    errors = {columns[column]: table.num_rows - table[column].null_count for column in table.column_names}
    return Tally(score_errors=Counter({score: number for score, number in errors.items() if number}))


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    counted: list[dict[str, Any]] = pc.value_counts(column).to_pylist()
    return Counter({str(each["values"]): each["counts"] for each in counted})


def _sum(column: pa.ChunkedArray) -> float:
    return float(pc.sum(column).as_py() or 0.0)
