"""Ready-made rules. A preset may ask for scores that a dataset lacks: those rules are left out, and named."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from curation.data_files import read_yaml
from curation.rules import Rules, RulesError, parse_rules
from curation.score_table import ScoreTable


def names() -> list[str]:
    """The presets, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in files(__name__).iterdir() if entry.name.endswith(".yaml")
    )


def read(name: str) -> dict[str, Any]:
    """A preset as YAML data. Raises RulesError naming the presets there are."""
    if name not in names():
        raise RulesError(f"no preset is called {name!r}; there are: {', '.join(names())}")
    data: dict[str, Any] = read_yaml((files(__name__) / f"{name}.yaml").read_bytes())
    return data


def fitted(name: str, scores: ScoreTable) -> tuple[Rules, list[str]]:
    """The preset's rules for this dataset, and the scores whose rules were left out because nothing measured them."""
    data = read(name)
    wanted: Mapping[str, Any] = data["rules"]
    known = {score.name for score in scores.known}
    measured = [each for each in wanted if each in known and scores.measured[each].scored]
    kept = {each: wanted[each] for each in measured}
    return parse_rules({"rules": kept, "on_error": data["on_error"]}), [each for each in wanted if each not in kept]
