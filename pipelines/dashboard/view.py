"""What a page shows, as its link says it: a saved decision, or rules that nobody has saved yet, and which clips.

/d/films?decision=default                        a saved decision
/d/films?rules={"motion.coarse":{"min":0.2}}     these rules
...&show=near:motion.coarse                      clips around that threshold; also reason:..., kept, dropped, all
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode

from curation.data_files import read_json
from curation.rules import Rule, Rules, RulesError, parse_rules
from pipelines.dashboard.datasets import OpenDataset
from pipelines.decide import read_decision


@dataclass(frozen=True)
class View:
    """The state of the deciding page. `recorded` is the saved decision whose rules these are, if it is one: its bounds
    stay as they were resolved then, however the dataset has grown."""

    rules: Rules
    recorded: dict[str, Any] | None = None
    show: str = ""

    @property
    def saved(self) -> str | None:
        """The name of the decision."""
        return self.recorded["name"] if self.recorded else None

    def query(self) -> str:
        """The link's query, without the question mark."""
        items = {"decision": self.saved} if self.saved else {"rules": write_rules(self.rules)}
        if self.show:
            items["show"] = self.show
        return urlencode({key: value for key, value in items.items() if value is not None}, quote_via=quote)

    def rule(self, score: str) -> Rule | None:
        """The rule for a score, if there is one."""
        return next((rule for rule in self.rules.rules if rule.score == score), None)

    def with_rule(self, rule: Rule) -> "View":
        """The same view with another rule for one score; a rule that restricts nothing goes."""
        rules = [each for each in self.rules.rules if each.score != rule.score]
        place = next((i for i, each in enumerate(self.rules.rules) if each.score == rule.score), len(rules))
        if restricts(rule):
            rules.insert(place, rule)
        return replace(self, rules=Rules(tuple(rules)), recorded=None)


def restricts(rule: Rule) -> bool:
    """Whether a rule can drop a clip that has a value."""
    sides = (rule.min, rule.max, rule.drop_lowest, rule.drop_highest, rule.labels, rule.not_labels)
    return any(side is not None for side in sides)


def write_rules(rules: Rules) -> str:
    """Rules as short JSON."""
    data = rules.as_data()["rules"]
    for rule in data.values():
        if rule["on_error"] == "drop":
            del rule["on_error"]
    return json.dumps(data, separators=(",", ":"))


def read_rules(text: str) -> Rules:
    """Rules from a link. Raises RulesError."""
    try:
        data = read_json(text)
    except ValueError as error:
        raise RulesError(f"the rules in the link are not JSON ({error})") from None
    return parse_rules(data)


def read_view(dataset: OpenDataset, query: Mapping[str, str]) -> View:
    """The view that a link asks for; without one, the first saved decision, `default` before others.

    Raises RulesError or DatasetError, in a sentence, for a link that asks for what is not there.
    """
    show = query.get("show", "")
    if query.get("rules"):
        return View(read_rules(query["rules"]), show=show)
    there = dataset.decisions()
    name = query.get("decision") or ("default" if "default" in there else there[0] if there else None)
    if name is None:
        return View(Rules(), show=show)
    data = read_decision(dataset.dataset, name)
    rules = parse_rules({"rules": {score: entry["rule"] for score, entry in data["rules"].items()}})
    return View(rules, data, show)
