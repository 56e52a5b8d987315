"""The dashboard's view of a dataset that changes while it is open."""

import shutil
from pathlib import Path

import pytest

from curation.rules import parse_rules
from pipelines.dashboard.datasets import OpenDataset
from pipelines.dataset import Dataset
from pipelines.decide import DatasetError, decide, read_decision
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


def test_another_dataset_under_the_same_path_is_never_mixed_with_the_one_that_was_opened(tmp_path: Path) -> None:
    """The scores were of the old clips and the rows of the new ones; saving failed with Arrow's words."""
    made = make_dataset(tmp_path / "data", clips=12, media=False)
    opened = OpenDataset("data", Dataset(str(made)))
    bounds = opened.what_if(parse_rules(RULES)).bounds
    assert len(opened.some(bounds, "all", 20)) == 12
    shutil.rmtree(made)
    make_dataset(made, clips=30, seed=1, media=False)
    with pytest.raises(DatasetError, match="has changed since this page was opened; load the page again"):
        opened.some(bounds, "all", 20)
    assert opened.save(parse_rules(RULES), "now")["clips"]["candidates"] == 30
    assert len(opened.some(bounds, "all", 50)) == 30


def test_nothing_is_saved_into_a_dataset_that_is_gone(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "data", clips=12, media=False)
    opened = OpenDataset("data", Dataset(str(made)))
    bounds = opened.what_if(parse_rules(RULES)).bounds
    shutil.rmtree(made)
    for act in (lambda: opened.save(parse_rules(RULES), "late"), lambda: opened.some(bounds, "all", 20)):
        with pytest.raises(DatasetError, match="does not exist"):
            act()
    assert not made.exists()
