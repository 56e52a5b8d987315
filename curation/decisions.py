"""Decisions: rules over scores become absolute thresholds, and thresholds become keep or drop, with reasons.

Scoring is paid for once; deciding is arithmetic on columns and can be repeated at will (paper, section 3.1 and
appendix E.2.2: every filter axis is calibrated by dropping its worst 12.5, 25 or 50 %).

Shares. `drop_lowest: q` looks at the n clips that have the score (whatever the other rules do), sorted. With
k = floor(q n) computed exactly, the threshold is the value at position k, counted from 0, and a clip is dropped when
its value lies strictly below it. Clips equal to the threshold are all kept: never more than the share is dropped, and
with ties fewer. `drop_highest` mirrors it. So every rule resolves to inclusive absolute bounds, which are recorded.

Scores are stored as float32, so bounds are compared as float32 too: a stored 0.07 satisfies `max: 0.07`.

Reasons are `SCORE below`, `SCORE above`, `SCORE label`, `SCORE unscored` and `gate:NAME`. A clip stopped by a gate has
that one reason only: the later scores were never asked for.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation import schema
from curation.rules import Rule, Rules, RulesError, parse_rule
from curation.score_table import ScoreTable, high_column, low_column, quote, text, unsigned

TABLE: pa.Schema = pa.schema(
    [
        pa.field("clip_id", pa.string(), metadata={"doc": "as in clips/"}),
        pa.field("keep", pa.bool_(), metadata={"doc": "the clip goes into the shards"}),
        pa.field("reasons", pa.list_(pa.string()), metadata={"doc": "every rule that drops it; empty when kept"}),
    ],
    metadata={"clipmill_schema": str(schema.VERSION)},
)


@dataclass(frozen=True)
class Bound:
    """A rule with its shares resolved: inclusive absolute bounds, exactly as they are compared (float32)."""

    rule: Rule
    low: float | None
    high: float | None
    scored: int
    unscored: int

    def resolved(self) -> dict[str, Any]:
        """The absolute rule, in the form in which it could be written by hand."""
        data: dict[str, Any] = {}
        if self.low is not None:
            data["min"] = self.low
        if self.high is not None:
            data["max"] = self.high
        if self.rule.labels is not None:
            data["in"] = list(self.rule.labels)
        if self.rule.not_labels is not None:
            data["not_in"] = list(self.rule.not_labels)
        return data


@dataclass(frozen=True)
class Reason:
    """One way in which a clip can fail, and the bit of the mask that says whether it did."""

    text: str  # as stored in decisions/NAME.parquet
    filter: str  # the score or gate that it belongs to
    unscored: bool
    drops: bool
    bit: int
    sql: str  # over `scores`; null counts as false


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
            values = scores.values(low_column(score, rule.frames))
            cut = float(values[int(rule.drop_lowest * len(values))])
            low = cut if low is None else max(low, cut)
        if rule.drop_highest is not None and measured.scored:
            values = scores.values(high_column(score, rule.frames))
            cut = float(values[len(values) - 1 - int(rule.drop_highest * len(values))])
            high = cut if high is None else min(high, cut)
        bounds.append(Bound(rule, as_compared(low), as_compared(high), measured.scored, measured.unscored))
    return bounds


def as_compared(bound: float | None) -> float | None:
    """The bound rounded to float32, written with the digits that give this float32 back."""
    return None if bound is None else float(str(np.float32(bound)))


def _float32(value: float) -> str:
    return f"{text(str(np.float32(value)))}::FLOAT"


def reasons(scores: ScoreTable, bounds: Sequence[Bound]) -> list[Reason]:
    """Every way in which a clip can fail these bounds: gates first, then the rules in their order.

    Bit i of the mask is the i-th known score's bit of `scores.missing`, so that one operation tells all that could not
    be scored; the other reasons follow.
    """
    found: list[Reason] = []
    free = itertools.count(len(scores.known))

    def add(text_: str, filter_: str, sql: str) -> None:
        found.append(Reason(text_, filter_, unscored=False, drops=True, bit=next(free), sql=sql))

    for number, gate in enumerate(scores.gates, start=1):
        add(f"gate:{gate}", f"gate:{gate}", f"gate = {number}")
    for bound in bounds:
        name, score = bound.rule.score, scores.score(bound.rule.score)
        low, high = quote(low_column(score, bound.rule.frames)), quote(high_column(score, bound.rule.frames))
        if bound.low is not None:
            add(f"{name} below", name, f"{low} < {_float32(bound.low)}")
        if bound.high is not None:
            add(f"{name} above", name, f"{high} > {_float32(bound.high)}")
        refused = set[str]()
        if bound.rule.labels is not None:
            refused |= set(scores.labels[name]) - set(bound.rule.labels)
        if bound.rule.not_labels is not None:
            refused |= set(scores.labels[name]) & set(bound.rule.not_labels)
        if refused:
            codes = ", ".join(str(1 + scores.labels[name].index(label)) for label in sorted(refused))
            add(f"{name} label", name, f"{low} IN ({codes})")
        if bound.unscored:
            bit, drops = scores.known.index(score), bound.rule.on_error == "drop"
            sql = f"missing & {1 << bit} != 0"
            found.append(Reason(f"{name} unscored", name, unscored=True, drops=drops, bit=bit, sql=sql))
    if any(reason.bit >= 64 for reason in found):
        raise RulesError(f"{len(found)} rules and gates at once are more than can be told apart")
    return found


def mask_sql(found: Sequence[Reason]) -> str:
    """SQL over `scores`: a whole number whose bits are those of the reasons that hold."""
    kind = unsigned(1 + max((reason.bit for reason in found), default=0))
    gates, bits = [], []
    unscored = sum(1 << reason.bit for reason in found if reason.unscored)
    if unscored:
        bits.append(f"(missing & {unscored})::{kind}")
    for reason in found:
        if _is_gate(reason):
            gates.append(f"WHEN {reason.sql} THEN {1 << reason.bit}::{kind}")
        elif not reason.unscored:
            bits.append(f"CASE WHEN {reason.sql} THEN {1 << reason.bit}::{kind} ELSE 0::{kind} END")
    whole = " | ".join(bits) or f"0::{kind}"
    return f"CASE {' '.join(gates)} ELSE {whole} END" if gates else f"({whole})"


def _is_gate(reason: Reason) -> bool:
    return reason.filter.startswith("gate:")


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
    """`scores` with a decision's mask beside every row: an SQL relation, and conditions over it."""

    reasons: tuple[Reason, ...]
    relation: str
    kept: str  # true for a clip that nothing drops


@contextmanager
def marked(scores: ScoreTable, bounds: Sequence[Bound]) -> Iterator[Marked]:
    """Compute the mask of every clip once, for as long as several questions are asked about the same bounds."""
    found = reasons(scores, bounds)
    scores.con.execute(f"CREATE OR REPLACE TEMP TABLE masks AS SELECT {mask_sql(found)} AS mask FROM scores")
    dropping = sum({1 << reason.bit for reason in found if reason.drops})
    try:
        yield Marked(tuple(found), "scores POSITIONAL JOIN masks", f"mask & {dropping} = 0" if dropping else "true")
    finally:
        scores.con.execute("DROP TABLE masks")


def outcome(scores: ScoreTable, bounds: Sequence[Bound]) -> Outcome:
    """Apply bounds to every clip at once: one scan of the score columns."""
    found = reasons(scores, bounds)
    return outcome_of(scores, found, f"(SELECT {mask_sql(found)} AS mask, us FROM scores)")


def outcome_of(scores: ScoreTable, found: Sequence[Reason], relation: str) -> Outcome:
    """The outcome of reasons whose mask a relation already holds."""
    rows = scores.con.execute(
        f"SELECT mask, count(*) AS clips, sum(us)::BIGINT AS us FROM {relation} GROUP BY mask ORDER BY mask"
    ).fetchnumpy()
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
    masks = outcome(scores, bounds).masks
    names = {int(mask): [r.text for r in found if r.drops and int(mask) >> r.bit & 1] for mask in masks}
    meaning = pa.table(
        {"mask": pa.array(list(names), pa.uint64()), "reasons": pa.array(list(names.values()), pa.list_(pa.string()))}
    )
    schema_ = pa.schema([*TABLE, *[schema.CLIPS.field(name) for name in extra]], TABLE.metadata)
    scores.con.register("mask_meaning", meaning)
    wanted = ", ".join(
        ["c.clip_id", "len(m.reasons) = 0 AS keep", "m.reasons", *[f"c.{quote(name)}" for name in extra]]
    )
    reader = scores.con.sql(
        f"SELECT {wanted} FROM (SELECT place, ({mask_sql(found)})::UBIGINT AS mask FROM scores) s "
        "JOIN clips c USING (place) JOIN mask_meaning m USING (mask) ORDER BY c.clip_id"
    ).to_arrow_reader(batch_rows)
    for batch in reader:
        columns = [column.cast(field.type) for column, field in zip(batch.columns, schema_, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema_)
    scores.con.unregister("mask_meaning")


def summary(scores: ScoreTable, bounds: Sequence[Bound]) -> dict[str, Any]:
    """decisions/NAME.yaml without its name: the rules as given, their resolved values, and counts."""
    result = outcome(scores, bounds)
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
        "gates": {
            name: result.total(result.has([r for r in result.reasons if r.text == f"gate:{name}"]))[0]
            for name in scores.gates
        },
        "rules": rules,
    }


def absolute(data: Mapping[str, Any]) -> Rules:
    """The rules of a recorded decision (decisions/NAME.yaml) with their resolved, absolute bounds."""
    parsed = []
    for name, entry in data["rules"].items():
        spec = dict(entry["resolved"])
        for key in ("frames", "on_error"):
            if key in entry["rule"]:
                spec[key] = entry["rule"][key]
        parsed.append(parse_rule(name, spec))
    return Rules(tuple(parsed))
