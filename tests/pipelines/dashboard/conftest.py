"""One server for all tests of the dashboard."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page

from pipelines.decide import decide
from tests.pipelines.dashboard.pages import ATTACK, RULES, WAIT_MS, serving
from tests.synthetic import make_dataset


def hostile(i: int, row: dict[str, Any]) -> None:
    if i == 5:
        row["source_uri"] = f"/films/{ATTACK} 1.mp4"
        row["motion_coarse"], row["motion_coarse_error"] = None, f"odd: {ATTACK}"
        row["caption_spatial"], row["caption_spatial_model"] = f"a dog {ATTACK}", "coca"


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_dataset(tmp_path_factory.mktemp("dashboard") / "films", change=hostile)
    decide(str(made), RULES, "default")
    decide(str(made), {"motion.coarse": {"drop_lowest": "50%"}}, "strict")
    return made


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("others")


@pytest.fixture(scope="session")
def server(root: Path, others: Path) -> Iterator[str]:
    make_dataset(others / "empty", clips=0, media=False)
    make_dataset(others / "single", clips=1)
    make_dataset(others / "bare", clips=2, media=False)
    for folder in ("clips", "sources"):
        (others / "fresh" / folder).mkdir(parents=True)
    (others / "fresh/job.yaml").write_text("")
    older = make_dataset(others / "older", clips=4, media=False)
    for path in (older / "clips").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({b"clipmill_schema": b"0"}), path)

    def fail(i: int, row: dict[str, Any]) -> None:
        row["motion_coarse"], row["motion_coarse_error"] = None, "broken: always"

    make_dataset(others / "failing", clips=6, media=False, change=fail)
    without = {"motion_coarse": math.nan, "text_area": [0.1, None, math.nan]}
    make_dataset(others / "nan", clips=9, change=lambda i, row: row.update(without))
    torn = make_dataset(others / "torn", clips=9, media=False)
    part = torn / "clips/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:200])  # a copy that was interrupted
    grown = make_dataset(others / "grown", clips=12)
    later = (grown / "clips/part-00001.parquet").rename(others / "later.parquet")
    decide(str(grown), {"motion.coarse": {"drop_lowest": "50%"}}, "default")
    later.rename(grown / "clips/part-00001.parquet")
    rescored = make_dataset(others / "rescored", clips=12)
    decide(str(rescored), {"motion.coarse": {"drop_lowest": "50%"}}, "default")
    make_dataset(rescored, clips=12, change=lambda i, row: row.update(motion_coarse=float(i % 5)))
    names = ("empty", "single", "bare", "fresh", "older", "failing", "nan", "torn", "grown", "rescored")
    roots = [root, *(others / name for name in names)]
    with serving(*roots) as address:
        yield address


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """A page that fails the test if anything is asked of another host or a script stumbles."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    found = context.new_page()
    found.set_default_timeout(WAIT_MS)
    faults: list[str] = []
    found.on("request", lambda r: None if r.url.startswith((server, "data:", "blob:")) else faults.append(r.url))
    found.on("pageerror", lambda error: faults.append(str(error)))
    yield found
    context.close()
    assert faults == []
