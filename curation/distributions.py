"""What each score looks like, before and after a decision: quantiles, histograms, and how scores go together."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from curation import schema
from curation.decisions import Marked
from curation.reasons import Bound
from curation.score_columns import Ranked, over_blocks
from curation.score_table import QUANTILES, TOP, ScoreTable, high_column, low_column

BINS = 48
FEW, FAR = 200, 10  # see `histogram`
CORRELATED = 200_000  # clips that correlations are worked out on; evenly spaced ones where there are more


def _bound(bounds: Sequence[Bound], name: str) -> Bound | None:
    return next((bound for bound in bounds if bound.rule.score == name), None)


def shown_column(score: schema.Score, bound: Bound | None) -> str:
    """The numeric column of `scores` that stands for a score: the one its rule compares, else the mean over frames."""
    if score.kind != "per_frame":
        return score.name
    if bound is None:
        return low_column(score, "mean")
    return high_column(score, bound.rule.frames) if bound.high is not None else low_column(score, bound.rule.frames)


def score_summary(
    scores: ScoreTable, score: schema.Score, bounds: Sequence[Bound], marks: Marked, *, fixed_axis: bool = False
) -> dict[str, Any]:
    """One score: how many have it, its errors and models, its distribution before and after the decision.

    `fixed_axis`: the histogram's axis follows from the values alone, so that it stays while a bound moves.
    """
    measured = scores.measured[score.name]
    bound = _bound(bounds, score.name)
    told = scores.provenance(score)
    data: dict[str, Any] = {
        "kind": score.kind,
        "unit": score.unit,
        "doc": score.doc,
        "scored": measured.scored,
        "failed": measured.failed,
        "not_measured": measured.not_measured,
        "models": dict(sorted(told.models.items(), key=lambda item: (-item[1], item[0]))),
        "errors": [
            {"reason": reason, "clips": count, "example": told.examples[reason]}
            for reason, count in sorted(told.errors.items(), key=lambda item: (-item[1], item[0]))
        ],
    }
    if not measured.scored:
        return data
    if score.kind == "label":
        names = scores.labels[score.name]
        clips, us, kept, kept_us = _counts(scores, marks, score.name, len(names) + 1, lambda codes: codes)
        data["labels"] = {
            name: {
                "clips": int(clips[code]),
                "seconds": int(us[code]) / 1e6,
                "kept": {"clips": int(kept[code]), "seconds": int(kept_us[code]) / 1e6},
            }
            for code, name in enumerate(names, start=1)
        }
        return data
    shown = shown_column(score, bound)
    data["shown"] = shown
    data["quantiles"] = quantiles(scores.ranked(shown))
    data["histogram"] = histogram(scores, shown, marks, None if fixed_axis else bound)
    return data


def quantiles(values: Ranked) -> dict[str, float]:
    """Exact quantiles: the value at position floor(q (n - 1)), so a value that occurs."""
    return {f"{q:g}": float(str(np.float32(values.quantile(q)))) for q in QUANTILES}


def _counts(
    scores: ScoreTable, marks: Marked, column: str, bins: int, place: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """Clips and microseconds per bin, of all clips and of those kept: four int64 (bins,).

    `place` gives the bin, below `bins`, for each value of a piece of the column.
    """

    def count(block: slice) -> tuple[np.ndarray, np.ndarray]:
        both = place(scores.columns.values[column][block]).astype(np.intp)
        both += np.where(marks.keeps[block], bins, 0)
        us = scores.columns.us[block]
        return np.bincount(both, minlength=2 * bins), np.bincount(both, weights=us, minlength=2 * bins)

    clips, us = np.zeros(2 * bins, np.int64), np.zeros(2 * bins)
    for some, took in over_blocks(scores.clips, count):
        clips += some
        us += took
    (dropped, kept), (dropped_us, kept_us) = clips.reshape(2, bins), us.astype(np.int64).reshape(2, bins)
    return [dropped + kept, dropped_us + kept_us, kept, kept_us]


def histogram(scores: ScoreTable, column: str, marks: Marked, bound: Bound | None) -> dict[str, Any]:
    """Counts in BINS equal bins from the smallest value to the 99.5th percentile, stretched to contain the bounds.

    The last bin also holds whatever lies above it: `beyond` says how many clips those are. Of fewer than FEW clips one
    is half a percent already: there the axis ends at the highest value, unless that lies FAR times as far out.
    """
    values = scores.ranked(column)
    low, high = values.quantile(0.0), values.quantile(TOP)
    if scores.clips < FEW and values.quantile(1.0) - low <= FAR * (high - low):
        high = values.quantile(1.0)
    if bound is not None:
        low = min([low, *(b for b in (bound.low, bound.high) if b is not None)])
        high = max([high, *(b for b in (bound.low, bound.high) if b is not None)])
    if low >= 0 and low < 0.25 * high:
        low = 0.0
    if not high > low:
        high = low + (abs(low) * 0.01 or 1.0)
    width = (high - low) / BINS

    def place(piece: np.ndarray) -> np.ndarray:
        found = (piece - np.float64(low)) / width
        np.maximum(found, 0, out=found)
        np.minimum(found, BINS - 1, out=found)
        found[np.isnan(found)] = BINS  # one more bin, for the clips without a value
        return found

    clips, us, kept, kept_us = (each[:BINS] for each in _counts(scores, marks, column, BINS + 1, place))
    return {
        "low": low,
        "high": high,
        "clips": clips.tolist(),
        "kept": kept.tolist(),
        "seconds": (us / 1e6).tolist(),
        "kept_seconds": (kept_us / 1e6).tolist(),
        "beyond": values.above(np.float32(high)),
    }


def correlations(scores: ScoreTable, bounds: Sequence[Bound]) -> dict[str, Any]:
    """Pearson correlation of every two numeric scores, over the clips that have both; null where it is undefined.

    Of more than CORRELATED clips, `read` evenly spaced ones are looked at: the error is below 0.005.
    """
    columns = {
        score.name: shown_column(score, _bound(bounds, score.name))
        for score in scores.known
        if score.kind != "label" and scores.measured[score.name].scored > 1
    }
    return scores.once(("correlations", *columns.values()), lambda: _correlations(scores, columns))  # type: ignore[no-any-return]


def _correlations(scores: ScoreTable, columns: dict[str, str]) -> dict[str, Any]:
    stride = -(-scores.clips // CORRELATED) or 1
    values = np.stack([scores.columns.values[column][::stride] for column in columns.values()] or [np.empty(0)])
    there = (~np.isnan(values)).astype(np.float64)
    n = there @ there.T  # clips that have both
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.nan_to_num(np.nansum(values, axis=1, dtype=np.float64) / there.sum(1))
        x = np.nan_to_num(values.astype(np.float64) - centre[:, None])
        mean = (x @ there.T) / n  # [i, j]: of score i, over the clips that have j too
        variance = (x**2 @ there.T) / n - mean**2
        pearson = ((x @ x.T) / n - mean * mean.T) / np.sqrt(variance * variance.T)
    # What is left of a constant's variance is rounding: no correlation is defined.
    varies = variance > 1e-18 * centre[:, None] ** 2
    known = (n > 1) & varies & varies.T & np.isfinite(pearson)
    matrix: list[list[float | None]] = [
        [
            1.0 if i == j else round(float(np.clip(pearson[i, j], -1, 1)), 6) if known[i, j] else None
            for j in range(len(columns))
        ]
        for i in range(len(columns))
    ]
    return {"scores": list(columns), "pearson": matrix, "read": values.shape[-1]}
