"""The map from a motion score to the motion bucket (0..255) that the model is conditioned on, stored with the model.

SVD was trained with motion buckets computed from optical flow, but the map was never published, so nobody can tell what
"127" meant. Here the map is data: increasing knots, straight lines between them, constant outside. It travels in
`clipmill.json`, so the bucket asked for when sampling means what it meant in training.

`MotionBuckets.fit` puts the knots at quantiles of a data set's scores: bucket 127 is then the median clip, and every
bucket is as common as every other. Without a data set, DEFAULT is used.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BUCKETS = 256


@dataclass(frozen=True)
class MotionBuckets:
    """A monotone map from scores to buckets.

    Attributes:
        scores: knots, strictly increasing, in the unit of the score.
        buckets: the (real-valued) bucket at each knot, increasing, within 0..255.
        score: which score the map is for, a name of the data set's schema.
        unit: the unit of that score.
        fitted_on: number of scores the knots are quantiles of; 0 for a map that was chosen.
    """

    scores: tuple[float, ...]
    buckets: tuple[float, ...]
    score: str = "motion.coarse"
    unit: str = "px of the 16-px field per 0.5 s"
    fitted_on: int = 0

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.buckets) or len(self.scores) < 2:
            raise ValueError(f"motion map: {len(self.scores)} scores for {len(self.buckets)} buckets; 2 or more pairs")
        if not all(math.isfinite(value) for value in (*self.scores, *self.buckets)):
            raise ValueError("motion map: a knot is not finite")
        if any(a >= b for a, b in zip(self.scores, self.scores[1:], strict=False)):
            raise ValueError("motion map: the scores must increase strictly")
        if any(a > b for a, b in zip(self.buckets, self.buckets[1:], strict=False)):
            raise ValueError("motion map: the buckets must not decrease")
        if self.buckets[0] < 0 or self.buckets[-1] > BUCKETS - 1:
            raise ValueError(f"motion map: buckets must lie in 0..{BUCKETS - 1}")

    def bucket(self, score: float) -> int:
        """The bucket of a score, 0..255.

        Raises:
            ValueError: the score is not a finite number ("could not score" is no motion bucket).
        """
        if not math.isfinite(score):
            raise ValueError(f"motion score {score}: a clip that could not be scored has no motion bucket")
        return round(_interpolate(score, self.scores, self.buckets))

    def representative(self, bucket: float) -> float:
        """A score that falls into a bucket (the inverse of the map; where it is flat, the lowest such score)."""
        for (s0, b0), (s1, b1) in zip(self._knots(), self._knots()[1:], strict=False):
            if b0 <= bucket <= b1 and b1 > b0:
                return s0 + (bucket - b0) / (b1 - b0) * (s1 - s0)
        return self.scores[0] if bucket <= self.buckets[0] else self.scores[-1]

    def _knots(self) -> list[tuple[float, float]]:
        return list(zip(self.scores, self.buckets, strict=True))

    @classmethod
    def fit(
        cls,
        scores: Iterable[float],
        *,
        knots: int = 33,
        score: str = "motion.coarse",
        unit: str = "px of the 16-px field per 0.5 s",
    ) -> "MotionBuckets":
        """Knots at equally spaced quantiles: every bucket gets about the same number of clips.

        Scores that are not finite are left out. Ties are merged, so a data set with many still clips stays monotone.

        Raises:
            ValueError: fewer than two different finite scores.
        """
        values = sorted(value for value in map(float, scores) if math.isfinite(value))
        pairs: dict[float, list[float]] = {}
        for i in range(knots):
            q = i / (knots - 1)
            at = q * (len(values) - 1) if values else 0.0
            low = int(at)
            if values:
                high = min(low + 1, len(values) - 1)
                pairs.setdefault(values[low] + (at - low) * (values[high] - values[low]), []).append(q * (BUCKETS - 1))
        if len(pairs) < 2:
            raise ValueError(f"a motion map needs two different finite scores; got {len(values)} finite scores")
        keys = sorted(pairs)
        buckets = [sum(pairs[key]) / len(pairs[key]) for key in keys]
        return cls(tuple(keys), tuple(buckets), score=score, unit=unit, fitted_on=len(values))

    def to_json(self) -> dict[str, Any]:
        """As it is stored in clipmill.json."""
        return {
            "score": self.score,
            "unit": self.unit,
            "scores": list(self.scores),
            "buckets": list(self.buckets),
            "fitted_on": self.fitted_on,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "MotionBuckets":
        """The inverse of to_json.

        Raises:
            ValueError: a key is missing or a value is no number.
        """
        try:
            return cls(
                scores=tuple(float(value) for value in data["scores"]),
                buckets=tuple(float(value) for value in data["buckets"]),
                score=str(data["score"]),
                unit=str(data["unit"]),
                fitted_on=int(data.get("fitted_on", 0)),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"motion map: {error!r} is missing or no number") from error


def _interpolate(x: float, xs: tuple[float, ...], ys: tuple[float, ...]) -> float:
    if x <= xs[0]:
        return ys[0]
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x <= x1:
            return y0 + (x - x0) / (x1 - x0) * (y1 - y0)
    return ys[-1]


def _default() -> MotionBuckets:
    """255 ln(1 + s / 0.05) / ln(1 + 4 / 0.05) at 17 knots: a chosen curve, not a fitted one. It resolves slow motion:
    the paper's example of a still clip (score 0.043) gets bucket 36, 0.4 gets the usual 127, and 4 (a quarter of the
    frame's height every half second) or more gets 255."""
    buckets = [255 * i / 16 for i in range(17)]
    return MotionBuckets(tuple(0.05 * math.expm1(b / 255 * math.log1p(4 / 0.05)) for b in buckets), tuple(buckets))


DEFAULT = _default()
