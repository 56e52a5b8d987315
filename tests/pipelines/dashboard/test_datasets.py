"""The dashboard's view of a dataset that changes while it is open."""

from pathlib import Path

import pytest

from curation.rules import parse_rules
from pipelines.dashboard.datasets import OpenDataset
from pipelines.dataset import Dataset
from pipelines.decide import decide, read_decision
from tests.synthetic import exchange_scores, make_dataset

RULES = {"motion.coarse": {"drop_lowest": "50%"}}


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_scores_that_are_others_under_the_same_file_names_are_read_anew(tmp_path: Path, scheme: str) -> None:
    made = make_dataset(tmp_path / "data", clips=12, media=False)
    decide(str(made), RULES, "default")
    dataset = Dataset(f"{scheme}{made}")
    if scheme:
        dataset.storage.fs.put(str(made), dataset.storage.base, recursive=True)
    opened = OpenDataset("data", dataset)
    before = opened.reopen()
    assert opened.reopen() is before
    recorded = read_decision(dataset, "default")
    assert not opened.what_if(parse_rules(RULES), recorded).outdated
    exchange_scores(made)
    if scheme:
        dataset.storage.fs.put(f"{made}/clips/*", f"{dataset.storage.base}/clips/")
    assert opened.reopen() is not before
    assert opened.what_if(parse_rules(RULES), recorded).outdated
