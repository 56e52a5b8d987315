"""Why clips fail: each way in which a set of bounds can drop a clip, and which of them hold for every clip.

Reasons are `SCORE below`, `SCORE above`, `SCORE label`, `SCORE unscored` and `gate:NAME`. A clip stopped by a gate has
that one reason only: the later scores were never asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from curation.rules import Rule, RulesError
from curation.score_columns import over_blocks
from curation.score_table import ScoreTable, high_column, low_column


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
    column: str  # what `test` looks at: a value column, `gate` or `missing`
    test: Callable[[np.ndarray], np.ndarray]  # which values of a piece of that column fail


def reasons(scores: ScoreTable, bounds: Sequence[Bound]) -> list[Reason]:
    """Every way in which a clip can fail these bounds: gates first, then the rules in their order."""
    found: list[Reason] = []

    def add(text_: str, filter_: str, column: str, test: Callable[[np.ndarray], np.ndarray]) -> None:
        found.append(Reason(text_, filter_, unscored=False, drops=True, bit=len(found), column=column, test=test))

    for number, gate in enumerate(scores.gates, start=1):
        add(f"gate:{gate}", f"gate:{gate}", "gate", partial(np.equal, number))
    for bound in bounds:
        name, score = bound.rule.score, scores.score(bound.rule.score)
        low, high = low_column(score, bound.rule.frames), high_column(score, bound.rule.frames)
        if bound.low is not None:
            test = partial(np.greater, np.float32(bound.low))
            add(f"{name} below", name, low, test)
        if bound.high is not None:
            test = partial(np.less, np.float32(bound.high))
            add(f"{name} above", name, high, test)
        refused = set[str]()
        if bound.rule.labels is not None:
            refused |= set(scores.labels[name]) - set(bound.rule.labels)
        if bound.rule.not_labels is not None:
            refused |= set(scores.labels[name]) & set(bound.rule.not_labels)
        if refused:
            codes = sorted(1 + scores.labels[name].index(label) for label in refused)
            table = np.zeros(256, bool)
            table[codes] = True
            add(f"{name} label", name, low, table.__getitem__)
        if bound.unscored:
            mask, drops = 1 << scores.known.index(score), bound.rule.on_error == "drop"
            found.append(
                Reason(
                    f"{name} unscored", name, unscored=True, drops=drops, bit=len(found),
                    column="missing", test=partial(_has_bit, mask),
                )
            )  # fmt: skip
    if len(found) > 64:
        raise RulesError(f"{len(found)} rules and gates at once are more than can be told apart")
    return found


def _has_bit(mask: int, values: np.ndarray) -> np.ndarray:
    return (values & values.dtype.type(mask)) != 0


def _is_gate(reason: Reason) -> bool:
    return reason.filter.startswith("gate:")


def masks(scores: ScoreTable, found: Sequence[Reason]) -> np.ndarray:
    """Per clip a whole number whose bits are those of the reasons that hold: unsigned (clips,).

    A clip that a gate stopped has the gate's bit only.
    """
    kind = np.min_scalar_type((1 << max((reason.bit for reason in found), default=0) + 1) - 1)
    made = np.zeros(scores.clips, kind)

    def mark(block: slice) -> None:
        planes: dict[int, np.ndarray] = {}  # eight bits at a time, in bytes: most of the work is done on those
        for reason in found:
            byte, bit = divmod(reason.bit, 8)
            held = reason.test(scores.column(reason.column)[block]).view(np.uint8)
            if bit:
                held = np.left_shift(held, bit)
            planes[byte] = held if byte not in planes else np.bitwise_or(planes[byte], held, out=planes[byte])
        bytes_of = made[block].view(np.uint8).reshape(-1, kind.itemsize)
        for byte, plane in planes.items():
            bytes_of[:, byte] = plane
        if gates:
            stopped = np.flatnonzero(scores.columns.gate[block])
            made[block][stopped] &= kind.type(gates)

    gates = sum(1 << reason.bit for reason in found if _is_gate(reason))
    over_blocks(scores.clips, mark)
    return made


def why(scores: ScoreTable, found: Sequence[Reason], places: Sequence[int]) -> list[list[str]]:
    """The reasons that drop each of these clips, by their places in `scores`; an empty list for one that is kept."""
    held = [reason.test(scores.column(reason.column)[np.asarray(places, np.int64)]) for reason in found]
    gated = scores.columns.gate[np.asarray(places, np.int64)] > 0
    return [
        [
            reason.text
            for reason, hit in zip(found, held, strict=True)
            if reason.drops and hit[i] and (not gated[i] or _is_gate(reason))
        ]
        for i in range(len(places))
    ]
