"""Ablation subsets: the paper's way to choose a threshold (appendix E.2.2).

For one axis, four nested subsets are made: all clips that have the score, and without the worst 12.5, 25 and 50 %.
One model is trained on each with the same recipe and the same number of steps, and people compare the results. So
that only the axis differs, clips without the score are in none of the four, not even in the one that drops nothing.
"""

from fractions import Fraction
from typing import Any

from curation.rules import Rule, Rules, RulesError, write_share
from pipelines.dataset import Dataset
from pipelines.decide import open_scores, write_decision

SHARES = (Fraction(0), Fraction(1, 8), Fraction(1, 4), Fraction(1, 2))
AXES = {"motion": "motion.coarse", "aesthetic": "aesthetic", "similarity": "similarity", "text": "text_area"}
HIGH_IS_BAD = frozenset({"text_area", "watermark", "niqe", "nsfw", "near_duplicate", "black", "frozen"})
ANY_FRAME = frozenset({"text_area", "nsfw"})  # one frame of it is too much; other scores are compared by their mean


def ablate(dataset: str | Dataset, axis: str) -> list[dict[str, Any]]:
    """Write the four decisions `ablate-AXIS-all`, `-12.5`, `-25` and `-50`. Returns their summaries.

    `axis`: a key of AXES, or the name of any score that is a number.

    Raises:
        RulesError: no clip of the dataset has that score.
        DatasetError, SchemaError: as `pipelines.decide.decide`.
    """
    where = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    scores = open_scores(where)
    name = AXES.get(axis, axis)
    measured = [s.name for s in scores.known if s.kind != "label" and scores.measured[s.name].scored]
    if name not in measured:
        usable = [key for key, score in AXES.items() if score in measured]
        raise RulesError(
            f"axis {axis!r}: no clip of {where} has the score {name!r}; axes of this dataset: "
            f"{', '.join(dict.fromkeys([*usable, *measured])) or 'none'}"
        )
    bad = "highest" if name in HIGH_IS_BAD else "lowest"
    frames = "any" if name in ANY_FRAME or scores.score(name).kind == "number" else "mean"
    made = []
    for share in SHARES:
        rule = Rule(name, **{f"drop_{bad}": share}, frames=frames)  # type: ignore[arg-type]
        label = write_share(share).removesuffix("%") if share else "all"
        made.append(write_decision(where, scores, Rules((rule,)), f"ablate-{axis}-{label}"))
    return made
