"""Rules as data: which clips a decision keeps, written per score in a few lines of YAML.

    rules:
      motion.coarse: {drop_lowest: 25%}
      text_area: {max: 0.07, frames: any}
      camera: {in: [static, horizontal]}
    on_error: drop

A clip is kept when no rule drops it. Per score:

- `min`, `max`, `range: [low, high]` are absolute and inclusive: a value equal to the bound is kept.
- `drop_lowest`, `drop_highest` are shares of the scored clips ("25%"); `curation.decisions` says how ties fall.
- `in`, `not_in` are sets of labels, for the scores that are labels.
- `frames` is for scores with one value per frame and says how many frames must break the bound before the clip is
  dropped: `any` (the default), `all`, or `mean` to compare their mean.
- `on_error` says where a clip goes that has no value for this score: `drop` or `keep`. Never is it given a number.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, get_args

from curation import schema
from curation.camera import LABELS

Frames = Literal["any", "all", "mean"]
OnError = Literal["drop", "keep"]

DECISION_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
"""What rules may be saved as: the name of files and folders."""
_KEYS = ("min", "max", "range", "drop_lowest", "drop_highest", "in", "not_in", "frames", "on_error")
_NUMERIC_KEYS = ("min", "max", "range", "drop_lowest", "drop_highest")
_SHARE = re.compile(r"\s*(\d{1,3}(?:\.\d{1,20})?)\s*%\s*")  # as many digits as `write_share` gives back
_LARGEST = (2 - 2**-23) * 2.0**127  # scores are float32, so bounds are compared as such


class RulesError(ValueError):
    """Rules that cannot be followed. The message names the key, what is wrong, and what would be right."""


@dataclass(frozen=True)
class Rule:
    """What one score must satisfy. `None` means that this side is not restricted."""

    score: str
    min: float | None = None
    max: float | None = None
    drop_lowest: Fraction | None = None  # share of the scored clips, 0 <= share < 1
    drop_highest: Fraction | None = None
    labels: tuple[str, ...] | None = None
    not_labels: tuple[str, ...] | None = None
    frames: Frames = "any"
    on_error: OnError = "drop"

    def as_data(self) -> dict[str, Any]:
        """The rule as it is written in YAML; `parse_rule` of it gives the same rule."""
        data: dict[str, Any] = {}
        if self.min is not None:
            data["min"] = self.min
        if self.max is not None:
            data["max"] = self.max
        if self.drop_lowest is not None:
            data["drop_lowest"] = write_share(self.drop_lowest)
        if self.drop_highest is not None:
            data["drop_highest"] = write_share(self.drop_highest)
        if self.labels is not None:
            data["in"] = list(self.labels)
        if self.not_labels is not None:
            data["not_in"] = list(self.not_labels)
        if self.frames != "any":
            data["frames"] = self.frames
        data["on_error"] = self.on_error
        return data


@dataclass(frozen=True)
class Rules:
    """The rules of one decision, in the order in which the funnel charges drops to them."""

    rules: tuple[Rule, ...] = ()

    def as_data(self) -> dict[str, Any]:
        return {"rules": {rule.score: rule.as_data() for rule in self.rules}}


def read_share(text: Any, where: str) -> Fraction:
    """'12.5%' as the exact fraction 1/8. Raises RulesError for anything but a percentage from 0 % to below 100 %."""
    match = _SHARE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise RulesError(f"{where}: {text!r} is not a share; write a percentage such as 25%")
    share = Fraction(match.group(1)) / 100
    if share >= 1:
        raise RulesError(f"{where}: {text} would drop every clip; a share lies between 0% and 100%")
    return share


def write_share(share: Fraction) -> str:
    """The share as `read_share` reads it: all digits, no exponent."""
    percent = share * 100
    return f"{Decimal(percent.numerator) / percent.denominator:f}%"


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == math.inf:
        raise RulesError(f"{where}: {value!r} is not a number")
    if abs(value) > _LARGEST:
        raise RulesError(f"{where}: the number is too large; scores go up to {_LARGEST:.2g}")
    return float(value)


def _labels(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise RulesError(f"{where}: {value!r} is not a list of labels; write e.g. [static, horizontal]")
    if not value:
        raise RulesError(f"{where}: the list of labels is empty")
    for label in value:
        if label not in LABELS:
            raise RulesError(f"{where}: there is no label {label!r}; there are {', '.join(LABELS)}")
    return tuple(value)


def parse_rule(name: str, spec: Any, *, on_error: OnError = "drop") -> Rule:
    """One score's rule from its YAML mapping. Raises RulesError naming the key that is wrong."""
    try:
        kind = schema.score(name).kind
    except KeyError as error:
        raise RulesError(f"rules: {error.args[0]}") from None
    where = f"rules.{name}"
    if not isinstance(spec, Mapping):
        raise RulesError(f"{where}: expected a mapping such as {{min: 0.1}}, got {spec!r}")
    unknown = [key for key in spec if key not in _KEYS]
    if unknown:
        raise RulesError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    unfit = [key for key in spec if (key in _NUMERIC_KEYS) == (kind == "label") and key not in ("frames", "on_error")]
    if unfit:
        right = "in, not_in" if kind == "label" else ", ".join(_NUMERIC_KEYS)
        raise RulesError(f"{where}: {unfit[0]!r} does not fit a score that is a {kind}; use {right}")
    if "frames" in spec and kind != "per_frame":
        raise RulesError(f"{where}.frames: this score has one value per clip, not one per frame; leave `frames` out")
    frames = spec.get("frames", "any")
    if frames not in get_args(Frames):
        raise RulesError(f"{where}.frames: {frames!r}; write one of {', '.join(get_args(Frames))}")
    side = spec.get("on_error", on_error)
    if side not in get_args(OnError):
        raise RulesError(f"{where}.on_error: {side!r}; write drop or keep")

    low = _number(spec["min"], f"{where}.min") if "min" in spec else None
    high = _number(spec["max"], f"{where}.max") if "max" in spec else None
    if "range" in spec:
        span = spec["range"]
        if isinstance(span, str) or not isinstance(span, Sequence) or len(span) != 2:
            raise RulesError(f"{where}.range: {span!r} is not [low, high]")
        if low is not None or high is not None:
            raise RulesError(f"{where}: give either range, or min and max")
        low, high = _number(span[0], f"{where}.range[0]"), _number(span[1], f"{where}.range[1]")
    if low is not None and high is not None and low > high:
        raise RulesError(f"{where}: the lower bound {low:g} lies above the upper bound {high:g}: nothing would be kept")
    lowest = read_share(spec["drop_lowest"], f"{where}.drop_lowest") if "drop_lowest" in spec else None
    highest = read_share(spec["drop_highest"], f"{where}.drop_highest") if "drop_highest" in spec else None
    if (lowest or 0) + (highest or 0) >= 1:
        raise RulesError(f"{where}: drop_lowest and drop_highest together would drop every clip")
    labels = _labels(spec["in"], f"{where}.in") if "in" in spec else None
    not_labels = _labels(spec["not_in"], f"{where}.not_in") if "not_in" in spec else None
    if labels and not_labels and set(labels) <= set(not_labels):
        raise RulesError(f"{where}: not_in drops every label of in: nothing would be kept")
    return Rule(
        score=name,
        min=low,
        max=high,
        drop_lowest=lowest,
        drop_highest=highest,
        labels=labels,
        not_labels=not_labels,
        frames=frames,
        on_error=side,
    )


def parse_rules(data: Any) -> Rules:
    """Rules from their YAML data: either `{rules: {...}, on_error: ...}` or the mapping of scores itself.

    Raises RulesError naming the key, what is wrong with it, and the known scores for an unknown one.
    """
    if data is None:
        return Rules()
    if isinstance(data, Rules):
        return data
    if not isinstance(data, Mapping):
        raise RulesError(f"rules: expected a mapping of scores to rules, got {type(data).__name__}")
    on_error: OnError = "drop"
    if "rules" in data or "on_error" in data:
        surplus = [key for key in data if key not in ("rules", "on_error", "description")]
        if surplus:
            raise RulesError(f"unknown key {surplus[0]!r} beside `rules`; known: rules, on_error, description")
        given = data.get("on_error", "drop")
        if given not in get_args(OnError):
            raise RulesError(f"on_error: {given!r}; write drop or keep")
        on_error = given
        data = {} if data.get("rules") is None else data["rules"]
        if not isinstance(data, Mapping):
            raise RulesError(f"rules: expected a mapping of scores to rules, got {type(data).__name__}")
    return Rules(tuple(parse_rule(str(name), spec, on_error=on_error) for name, spec in data.items()))
