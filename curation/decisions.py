"""Decisions: rules over scores become absolute thresholds, and thresholds become keep or drop, with reasons.

Scoring is paid for once; deciding is arithmetic on columns and can be repeated at will (paper, section 3.1 and
appendix E.2.2: every filter axis is calibrated by dropping its worst 12.5, 25 or 50 %).

Shares. `drop_lowest: q` looks at the n clips that have the score (whatever the other rules do), sorted. With
k = floor(q n) computed exactly, the threshold is the value at position k, counted from 0, and a clip is dropped when
its value lies strictly below it. Clips equal to the threshold are all kept: never more than the share is dropped, and
with ties fewer. `drop_highest` mirrors it. So every rule resolves to inclusive absolute bounds, which are recorded.

Scores are stored as float32, so bounds are compared as float32 too: a stored 0.07 satisfies `max: 0.07`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import schema
from curation.reasons import Bound, Reason, masks, reasons
from curation.rules import Rules, RulesError
from curation.score_columns import over_blocks
from curation.score_table import ScoreTable, high_column, low_column

TABLE: pa.Schema = pa.schema(
    [
        pa.field("clip_id", pa.string(), metadata={"doc": "as in clips/"}),
        pa.field("keep", pa.bool_(), metadata={"doc": "the clip goes into the shards"}),
        pa.field("reasons", pa.list_(pa.string()), metadata={"doc": "every rule that drops it; empty when kept"}),
    ],
    metadata={"clipmill_schema": str(schema.VERSION)},
)


def resolve(scores: ScoreTable, rules: Rules) -> list[Bound]:
    """Absolute bounds for every rule. Raises RulesError for a score that this dataset does not have."""
    bounds = []
    for rule in rules.rules:
        score, measured = scores.score(rule.score), scores.measured[rule.score]
        if scores.ungated and not measured.scored and not measured.failed:
            have = [s.name for s in scores.known if scores.measured[s.name].scored]
            raise RulesError(
                f"rules.{rule.score}: no clip of this dataset was measured for it (its stage was off); "
                f"measured: {', '.join(have) or 'nothing'}"
            )
        low, high = rule.min, rule.max
        if rule.drop_lowest is not None and measured.scored:
            values = scores.ranked(low_column(score, rule.frames))
            cut = values.at(int(rule.drop_lowest * values.count))
            low = cut if low is None else max(low, cut)
        if rule.drop_highest is not None and measured.scored:
            values = scores.ranked(high_column(score, rule.frames))
            cut = values.at(values.count - 1 - int(rule.drop_highest * values.count))
            high = cut if high is None else min(high, cut)
        bounds.append(Bound(rule, as_compared(low), as_compared(high), measured.scored, measured.unscored))
    return bounds


def as_compared(bound: float | None) -> float | None:
    """The bound rounded to float32, written with the digits that give this float32 back."""
    return None if bound is None else float(str(np.float32(bound)))


@dataclass(frozen=True)
class Outcome:
    """What a set of bounds does, in clips and in microseconds, for every combination of reasons that occurs.

    masks (n,) uint64, clips (n,) int64, us (n,) int64, in ascending order of mask.
    """

    reasons: tuple[Reason, ...]
    masks: np.ndarray
    clips: np.ndarray
    us: np.ndarray

    def total(self, where: np.ndarray) -> tuple[int, float]:
        """(clips, seconds) of the combinations selected by `where`, bool (n,)."""
        return int(self.clips[where].sum()), int(self.us[where].sum()) / 1e6

    def has(self, of: Sequence[Reason]) -> np.ndarray:
        """Which combinations contain at least one of these reasons: bool (n,)."""
        return (self.masks & np.uint64(sum({1 << reason.bit for reason in of}))) != 0

    @property
    def dropped(self) -> np.ndarray:
        return self.has([reason for reason in self.reasons if reason.drops])

    @property
    def kept(self) -> tuple[int, float]:
        """(clips, seconds) that no reason drops."""
        return self.total(~self.dropped)

    @property
    def all(self) -> tuple[int, float]:
        return self.total(np.ones(len(self.masks), bool))

    @property
    def steps(self) -> list[tuple[str, bool]]:
        """The steps of the funnel: (filter, unscored), in order. A filter's unscored clips are a step of their own."""
        return list(dict.fromkeys((reason.filter, reason.unscored) for reason in self.reasons if reason.drops))

    def of(self, step: tuple[str, bool]) -> list[Reason]:
        return [reason for reason in self.reasons if (reason.filter, reason.unscored) == step and reason.drops]


@dataclass(frozen=True)
class Marked:
    """`scores` with a decision's mask beside every row."""

    reasons: tuple[Reason, ...]
    masks: np.ndarray  # unsigned (clips,)
    keeps: np.ndarray  # bool (clips,): nothing drops the clip
    relation: str  # `scores` with the columns `mask` and `keep`

    def has(self, reason: Reason) -> np.ndarray:
        """Which clips have this reason: bool (clips,)."""
        return (self.masks & self.masks.dtype.type(1 << reason.bit)) != 0


@contextmanager
def marked(scores: ScoreTable, bounds: Sequence[Bound]) -> Iterator[Marked]:
    """Compute the mask of every clip once, for as long as several questions are asked about the same bounds."""
    found = reasons(scores, bounds)
    made = masks(scores, found)
    dropping = made.dtype.type(sum({1 << reason.bit for reason in found if reason.drops}))
    keeps = np.empty(scores.clips, bool)

    def keep(block: slice) -> None:
        np.equal(made[block] & dropping, 0, out=keeps[block])

    over_blocks(scores.clips, keep)
    scores.with_columns("marked_scores", mask=made, keep=keeps.view(np.uint8))
    try:
        yield Marked(tuple(found), made, keeps, "marked_scores")
    finally:
        scores.con.unregister("marked_scores")


_DENSE_BITS = 16  # up to here every combination of reasons has a place in a table


def outcome(scores: ScoreTable, bounds: Sequence[Bound]) -> Outcome:
    """Apply bounds to every clip at once."""
    found = reasons(scores, bounds)
    return outcome_of(scores, found, masks(scores, found))


def outcome_of(scores: ScoreTable, found: Sequence[Reason], made: np.ndarray) -> Outcome:
    """The outcome of reasons whose masks are known."""
    if len(found) <= _DENSE_BITS:
        places = 1 << len(found)

        def count(block: slice) -> tuple[np.ndarray, np.ndarray]:
            return (
                np.bincount(made[block], minlength=places),
                np.bincount(made[block], weights=scores.columns.us[block], minlength=places),
            )

        clips, us = np.zeros(places, np.int64), np.zeros(places, np.int64)
        for some, took in over_blocks(scores.clips, count):
            clips += some
            us += took.astype(np.int64)
        there = np.flatnonzero(clips)
        return Outcome(tuple(found), there.astype(np.uint64), clips[there], us[there])
    scores.con.register("made", pa.table({"mask": pa.array(made), "us": pa.array(scores.columns.us)}))
    rows = scores.con.execute(
        "SELECT mask, count(*) AS clips, sum(us)::BIGINT AS us FROM made GROUP BY mask ORDER BY mask"
    ).fetchnumpy()
    scores.con.unregister("made")
    return Outcome(
        tuple(found),
        np.asarray(rows["mask"], np.uint64),
        np.asarray(rows["clips"], np.int64),
        np.asarray(rows["us"], np.int64),
    )


def decided(
    scores: ScoreTable, bounds: Sequence[Bound], *, extra: Sequence[str] = (), batch_rows: int = 65536
) -> Iterator[pa.RecordBatch]:
    """The rows of decisions/NAME.parquet (schema TABLE), in order of clip_id; `extra` columns of clips/ behind them."""
    found = reasons(scores, bounds)
    made = masks(scores, found)
    names = {
        mask: [r.text for r in found if r.drops and mask >> r.bit & 1]
        for mask in outcome_of(scores, found, made).masks.tolist()
    }
    schema_ = pa.schema([*TABLE, *[schema.CLIPS.field(name) for name in extra]], TABLE.metadata)
    narrow = pa.schema([schema.CLIPS.field("clip_id"), *list(schema_)[3:], pa.field("mask", pa.uint64())])

    def pieces() -> Iterator[pa.RecordBatch]:
        for rows, table in scores.stream(["clip_id", *extra]):
            mask = pa.array(made[rows].astype(np.uint64))
            yield from table.append_column("mask", mask).cast(narrow).to_batches()

    scores.con.register("decided", pa.RecordBatchReader.from_batches(narrow, pieces()))
    try:
        for batch in scores.con.sql("SELECT * FROM decided ORDER BY clip_id").to_arrow_reader(batch_rows):
            # A clip's reasons are those of its mask: each list is made once for a batch, and taken as often as needed.
            encoded = batch["mask"].dictionary_encode()
            lists = pa.array([names[mask] for mask in encoded.dictionary.to_pylist()], pa.list_(pa.string()))
            given = lists.take(encoded.indices)
            columns = [batch["clip_id"], pc.equal(pc.list_value_length(given), 0), given]
            columns += [batch[name] for name in extra]
            cast = [column.cast(field.type) for column, field in zip(columns, schema_, strict=True)]
            yield pa.RecordBatch.from_arrays(cast, schema=schema_)
    finally:
        scores.con.unregister("decided")


def summary(scores: ScoreTable, bounds: Sequence[Bound]) -> dict[str, Any]:
    """decisions/NAME.yaml without its name: the rules as given, their resolved values, and counts."""
    found = reasons(scores, bounds)
    made = masks(scores, found)
    result = outcome_of(scores, found, made)
    kept, everything = result.kept, result.all
    rules: dict[str, Any] = {}
    for bound in bounds:
        name = bound.rule.score
        alone = result.total(result.has([r for r in result.reasons if r.filter == name and not r.unscored]))
        rules[name] = {
            "rule": bound.rule.as_data(),
            "resolved": bound.resolved(),
            "clips": {"scored": bound.scored, "unscored": bound.unscored, "dropped_alone": alone[0]},
            "seconds": {"dropped_alone": alone[1]},
        }
    return {
        "schema": schema.VERSION,
        "clips": {"candidates": everything[0], "kept": kept[0], "dropped": everything[0] - kept[0]},
        "seconds": {
            "candidates": everything[1],
            "kept": kept[1],
            "dropped": round(everything[1] - kept[1], 6),
        },
        "digest": _digest(scores, made),
        "gates": {
            name: result.total(result.has([r for r in result.reasons if r.text == f"gate:{name}"]))[0]
            for name in scores.gates
        },
        "rules": rules,
    }


def digest(scores: ScoreTable, bounds: Sequence[Bound]) -> str:
    """What bounds say of every clip, in 16 digits: others once clips came, went, or were scored anew with another
    outcome; the same in whatever order and files the rows are."""
    return _digest(scores, masks(scores, reasons(scores, bounds)))


def _digest(scores: ScoreTable, made: np.ndarray) -> str:
    numbers = scores.once("clip numbers", lambda: _clip_numbers(scores))

    def said(block: slice) -> int:
        mixed = numbers[block] + made[block].astype(np.uint64) * _ODD
        mixed ^= mixed >> np.uint64(32)
        mixed *= _ODD
        mixed ^= mixed >> np.uint64(29)
        return int(mixed.sum(dtype=np.uint64))

    return f"{sum(over_blocks(scores.clips, said)) % (1 << 64):016x}"


_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads the bits of what it multiplies


def _clip_numbers(scores: ScoreTable) -> np.ndarray:
    """Half of each clip's id as a number: (clips,) uint64."""
    numbers = np.empty(scores.clips, np.uint64)
    for rows, table in scores.stream(["clip_id"]):
        halves = pc.binary_slice(pc.ascii_rpad(table["clip_id"], 16).cast(pa.binary()), 0, 16)
        halves = halves.combine_chunks().cast(pa.binary(16))
        words = np.frombuffer(halves.buffers()[1], np.uint64).reshape(-1, 2)[halves.offset :][: len(halves)]
        numbers[rows] = words[:, 0] ^ words[:, 1] * _ODD
    return numbers
