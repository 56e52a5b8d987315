"""Score columns in memory: the clips' scores as flat arrays, read once from Parquet, file by file.

A value is NaN (0 for a label's code) unless it is a finite number: an error, a NaN, an infinity, an empty list or a
list with a hole is "could not be scored", never a value. So a comparison with a bound is false for it by itself.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import schema

ROWS = 1 << 16  # of a block: its columns stay in a core's cache while several questions are asked about them
THREADS = min(4, os.cpu_count() or 1)


@dataclass
class Provenance:
    """What measured a score, why it could not be, and how many clips have a value."""

    scored: int = 0
    failed: int = 0
    models: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # by the word before the first colon
    examples: dict[str, str] = field(default_factory=dict)  # of each such word, the first message in order

    def add(self, other: "Provenance") -> None:
        self.scored += other.scored
        self.failed += other.failed
        self.models += other.models
        self.errors += other.errors
        for reason, text in other.examples.items():
            self.examples[reason] = min(text, self.examples.get(reason, text))


@dataclass
class Columns:
    """All clips, in the order of the files.

    us: float64 (n,), duration in whole microseconds (sums below 2**53 are exact); gate: uint8 (n,), 0 or the number of
    the gate in `gates`; missing: bit i is set where the i-th known score has no value; values: float32 (n,) per numeric
    column, uint8 (n,) codes per label.
    """

    us: np.ndarray
    gate: np.ndarray
    missing: np.ndarray
    values: dict[str, np.ndarray]
    gates: list[str]
    labels: dict[str, list[str]]
    provenance: dict[str, Provenance]

    def __len__(self) -> int:
        return len(self.us)


def columns_of(score: schema.Score) -> list[str]:
    """The names of a score's columns: one, or three for a value per frame."""
    return [f"{score.name}|{what}" for what in ("low", "high", "mean")] if score.kind == "per_frame" else [score.name]


def needed(known: Sequence[schema.Score]) -> list[str]:
    """Columns of `schema.CLIPS` that are read."""
    return ["duration_s", "gate", *(f"{s.column}{end}" for s in known for end in ("", "_error", "_model"))]


def read_files(files: Sequence[str], known: Sequence[schema.Score]) -> Columns:
    """The score columns of local Parquet files. A column that a file lacks is null."""
    counts = [pq.read_metadata(path).num_rows for path in files]
    starts = np.cumsum([0, *counts])

    def read(number: int) -> pa.Table:
        return read_table(files[number], needed(known))

    return _gather(known, int(starts[-1]), [int(start) for start in starts[:-1]], read)


def read_table(path: str, columns: Sequence[str]) -> pa.Table:
    """Columns of one Parquet file, those that it lacks as null, in the types of the schema."""
    present = set(pq.read_schema(path).names)
    texts = [name for name in columns if name in present and name.endswith(("_error", "_model", "gate"))]
    table = pq.read_table(path, columns=[n for n in columns if n in present], read_dictionary=texts, use_threads=False)
    for name in columns:
        if name not in present:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.CLIPS.field(name).type))
    return table.select(list(columns))


def from_table(table: pa.Table, known: Sequence[schema.Score]) -> Columns:
    """The score columns of a table of clips."""
    for name in needed(known):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.CLIPS.field(name).type))
    return _gather(known, table.num_rows, [0], lambda _: table)


def _gather(
    known: Sequence[schema.Score], rows: int, starts: Sequence[int], read: Callable[[int], pa.Table]
) -> Columns:
    names = {score.name: columns_of(score) for score in known}
    found = Columns(
        us=np.zeros(rows),
        gate=np.zeros(rows, np.uint8),
        missing=np.zeros(rows, np.min_scalar_type((1 << len(known)) - 1)),
        values={
            name: np.zeros(rows, np.uint8) if score.kind == "label" else np.empty(rows, np.float32)
            for score in known
            for name in names[score.name]
        },
        gates=[],
        labels={score.name: [] for score in known if score.kind == "label"},
        provenance={score.name: Provenance() for score in known},
    )

    def take(number: int) -> tuple[int, int, list[str], dict[str, list[str]], dict[str, Provenance]]:
        table, start = read(number), starts[number]
        part = slice(start, start + table.num_rows)
        seconds = np.nan_to_num(_floats(table["duration_s"], np.float64))
        found.us[part] = np.floor(seconds * 1e6 + 0.5)
        gates, found.gate[part] = _codes(table["gate"])
        labels: dict[str, list[str]] = {}
        told = {}
        for bit, score in enumerate(known):
            column, error = table[score.column], table[f"{score.column}_error"]
            if score.kind == "label":
                labels[score.name], codes = _codes(column)
                made = {score.name: codes}
                good = codes > 0
            else:
                made = _numbers(score, column)
                good = np.isfinite(next(iter(made.values())))
                for values in made.values():
                    good &= np.isfinite(values)
            wrong = _valid(error)
            good &= ~wrong
            for name, values in made.items():
                values[~good] = 0 if score.kind == "label" else np.nan
                found.values[name][part] = values
            found.missing[part] |= (~good).astype(found.missing.dtype) << found.missing.dtype.type(bit)
            wrong |= _valid(column) & ~good
            told[score.name] = _provenance(int(good.sum()), int(wrong.sum()), table[f"{score.column}_model"], error)
        return start, table.num_rows, gates, labels, told

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(take, range(len(starts))))
    found.gates = sorted({name for part in parts for name in part[2]})
    for label in found.labels:
        found.labels[label] = sorted({name for part in parts for name in part[3][label]})
    for start, n, gates, labels, told in parts:
        part = slice(start, start + n)
        found.gate[part] = _recode(found.gate[part], gates, found.gates)
        for name, there in labels.items():
            found.values[name][part] = _recode(found.values[name][part], there, found.labels[name])
        for name, some in told.items():
            found.provenance[name].add(some)
    pa.default_memory_pool().release_unused()  # what the files were decoded into
    return found


def _provenance(scored: int, failed: int, model: pa.ChunkedArray, error: pa.ChunkedArray) -> Provenance:
    told = Provenance(scored, failed, Counter(dict(_counts(model))))
    for text, clips in _counts(error):
        reason = text.partition(":")[0]
        told.errors[reason] += clips
        told.examples[reason] = min(text, told.examples.get(reason, text))
    return told


def _counts(column: pa.ChunkedArray) -> Iterable[tuple[str, int]]:
    if column.null_count == len(column):
        return []
    counted = pc.value_counts(column.drop_null())
    return zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)


def _valid(column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count == 0:
        return np.ones(len(column), bool)
    if column.null_count == len(column):
        return np.zeros(len(column), bool)
    return np.asarray(column.is_valid().to_numpy())


def _floats(column: pa.ChunkedArray, kind: Any) -> np.ndarray:
    """A column of numbers with NaN for null; a copy that may be written to."""
    array = column.cast(pa.from_numpy_dtype(kind)).combine_chunks()
    return np.array(array.to_numpy(zero_copy_only=False), kind)


def _codes(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The different texts of a column, and for each row the 1-based place of its text among them, 0 for null."""
    if column.null_count == len(column):
        return [], np.zeros(len(column), np.uint8)
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if len(names) > 255:
        raise ValueError(f"{len(names)} different labels; at most 255 can be told apart")
    return names, (pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False) + 1).astype(np.uint8)


def _recode(codes: np.ndarray, old: list[str], new: list[str]) -> np.ndarray:
    if old == new:
        return codes
    places = {name: place for place, name in enumerate(new, start=1)}
    return np.array([0, *(places[name] for name in old)], np.uint8)[codes]


def _numbers(score: schema.Score, column: pa.ChunkedArray) -> dict[str, np.ndarray]:
    if score.kind == "number":
        return {score.name: _floats(column, np.float32)}
    names = columns_of(score)
    made = {name: np.full(len(column), np.nan, np.float32) for name in names}
    if column.null_count == len(column):
        return made
    lists = column.cast(pa.list_(pa.float32())).combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    there = np.flatnonzero(lengths)
    if len(there):
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        if (lengths[there] == lengths[there[0]]).all():
            frames = np.ascontiguousarray(flat.reshape(len(there), -1).T)  # along the clips: many at once
            low, high, mean = frames.min(0), frames.max(0), frames.mean(0, dtype=np.float64)
        else:
            edges = np.concatenate([[0], np.cumsum(lengths[there])[:-1]])
            low, high = np.minimum.reduceat(flat, edges), np.maximum.reduceat(flat, edges)
            mean = np.add.reduceat(flat.astype(np.float64), edges) / lengths[there]
        for name, values in zip(names, (low, high, mean), strict=True):
            made[name][there] = values
    return made


def blocks(rows: int) -> Iterator[slice]:
    """Consecutive slices of ROWS rows."""
    return (slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS))


def over_blocks(rows: int, work: Callable[[slice], Any]) -> list[Any]:
    """`work` on every block, in several threads (numpy leaves the interpreter alone while it computes), in order."""
    if rows <= 4 * ROWS:
        return [work(block) for block in blocks(rows)]
    shares = np.array_split(np.arange(-(-rows // ROWS)), THREADS)

    def some(share: np.ndarray) -> list[Any]:
        return [work(slice(int(k) * ROWS, min((int(k) + 1) * ROWS, rows))) for k in share]

    with ThreadPoolExecutor(THREADS) as pool:
        return [each for share in pool.map(some, shares) for each in share]


class Ranked:
    """The values of a column in ascending order, without keeping them: every `step`-th of them, and where it stands.

    The value at any place is found exactly by looking through the column for what lies between two of those.
    """

    def __init__(self, values: np.ndarray, shares: Sequence[float], step: int = 4096) -> None:
        """`values`: float32 (n,) with NaN where there is none; `shares`: quantiles to remember."""
        self._values = values
        ordered = values[~np.isnan(values)]
        ordered.sort()
        self.count = len(ordered)
        self._marks = np.append(ordered[::step], ordered[-1:])
        self._below = np.searchsorted(ordered, self._marks, side="left")  # values smaller than the mark
        self._step = step
        places = [int(share * (self.count - 1)) for share in shares if self.count]
        self._found = {place: float(ordered[place]) for place in places}

    def at(self, place: int) -> float:
        """The value at `place`, counted from 0, in ascending order."""
        if place not in self._found:
            mark = place // self._step
            low, high = self._marks[mark], self._marks[min(mark + 1, len(self._marks) - 1)]
            value = low
            if low != high:
                pieces = over_blocks(len(self._values), lambda block: _between(self._values[block], low, high))
                near = np.concatenate(pieces)
                near.sort()
                value = near[place - self._below[mark]]
            self._found[place] = float(value)
        return self._found[place]

    def quantile(self, share: float) -> float:
        """The value at place floor(share (n - 1)): a value that occurs."""
        return self.at(int(share * (self.count - 1)))

    def below(self, bound: np.float32) -> int:
        """How many values are smaller."""
        return int(sum(over_blocks(len(self._values), lambda block: np.count_nonzero(self._values[block] < bound))))

    def above(self, bound: np.float32) -> int:
        """How many values are larger."""
        return int(sum(over_blocks(len(self._values), lambda block: np.count_nonzero(self._values[block] > bound))))


def _between(values: np.ndarray, low: np.float32, high: np.float32) -> np.ndarray:
    return values[(values >= low) & (values <= high)]


def spread(where: np.ndarray, most: int) -> list[int]:
    """Up to `most` of the places where `where`, bool (n,), is true: scattered over all of them, always the same ones,
    and asking for more gives those and more."""
    places = np.flatnonzero(where).astype(np.uint64)
    keys = places * np.uint64(0x9E3779B97F4A7C15)  # the golden ratio's multiples lie evenly between 0 and 2**64
    nearest = np.argpartition(keys, most)[:most] if len(keys) > most else np.arange(len(keys))
    return [int(place) for place in places[nearest[np.argsort(keys[nearest])]]]
