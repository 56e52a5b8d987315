"""What cannot be shown is said in a sentence: never a stack trace, never a blank page."""

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.pipelines.dashboard.pages import (
    WAIT_MS,
)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/d/empty", "This dataset has no clips: of 6 sources 2 could not be read. The page Errors says why."),
        ("/d/fresh", "This dataset is empty so far: no source is finished."),
        ("/d/older", "older schema version 0"),
        ("/d/nowhere", "There is no dataset called nowhere here."),
        ("/d/films?decision=gone", "has no decision called 'gone'; there are: default"),
        ("/d/films?rules=%7Bbroken", "the rules in the link are not JSON"),
        (
            "/d/films?rules=%7B%22sharpness%22:%7B%22min%22:1%7D%7D",
            "no score is called 'sharpness'; known: motion.coarse",
        ),
        ("/d/films/clip/ffff", "This dataset has no clip ffff."),
        ("/d/single/compare", "Comparing takes two saved decisions"),
        ("/d/torn", "its tables cannot be read"),
        ("/d/torn/errors", "its tables cannot be read"),
        ("/d/older/statistics", "older schema version 0"),
        ("/d/empty/statistics", "This dataset has no clips"),
        ("/d/films/statistics?rules=%5B1%5D", "rules: expected a mapping of scores to rules"),
        ('/d/films?rules={"camera":{"min":1}}', "'min' does not fit a score that is a label"),
        ('/d/films?rules={"niqe":{"max":5}}', "no clip of this dataset was measured for it"),
        ("/d/films?rules=" + "[" * 5000, "the rules in the link are not JSON (nested too deep)"),
        ('/d/films?rules={"motion.coarse":{"min":1' + "0" * 400 + "}}", "the number is too large"),
        ("/d/films?decision=../default", "cannot name a decision"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(page: Page, server: str, path: str, sentence: str) -> None:
    page.goto(f"{server}{path}")
    expect(page.locator(".notice")).to_contain_text(sentence, timeout=WAIT_MS)
    assert "Traceback" not in page.inner_text("body")


def test_a_column_that_is_all_errors_and_a_single_clip_have_pages(page: Page, server: str) -> None:
    page.goto(f"{server}/d/failing")
    expect(page.get_by_label("motion.coarse", exact=True)).to_contain_text("No clip could be scored.", timeout=WAIT_MS)
    page.goto(f"{server}/d/single")
    expect(page.locator('[data-test="kept-clips"]')).to_have_text("1", timeout=WAIT_MS)


def test_a_nan_is_no_score(page: Page, server: str) -> None:
    page.goto(f"{server}/d/nan?rules=" + '{"motion.coarse":{"min":0.1}}')
    expect(page.locator('[data-test="kept-clips"]')).to_have_text("0", timeout=WAIT_MS)
    expect(page.locator(".funnel")).to_contain_text("motion.coarse could not be scored")
    page.goto(f"{server}/d/nan/statistics")
    expect(page.locator("body")).to_contain_text("Clips per source")
    assert "nan" not in page.inner_text(".below").lower()


def test_clips_of_which_a_frame_has_no_value_are_shown(page: Page, server: str) -> None:
    page.goto(f"{server}/d/nan?rules=" + '{"text_area":{"max":0.5}}&show=reason:text_area%20unscored')
    expect(page.locator("a.clip")).to_have_count(9, timeout=WAIT_MS)


def test_a_broken_decision_is_said_in_a_sentence(page: Page, server: str, root: Path) -> None:
    (root / "decisions/broken.parquet").write_text("rules: [1, 2]\n")
    try:
        page.goto(f"{server}/d/films?decision=broken")
        expect(page.locator(".notice")).to_contain_text("decisions/broken.parquet is not a decision of this version")
        page.goto(f"{server}/d/films/compare?first=default&second=broken")
        expect(page.locator(".notice")).to_contain_text("decisions/broken.parquet is not a decision of this version")
        page.goto(f"{server}/d/films/compare?first=default&second=lost")
        expect(page.locator(".notice")).to_contain_text("This dataset has no decision called lost; there are: ")
        assert "Traceback" not in page.inner_text("body")
    finally:
        (root / "decisions/broken.parquet").unlink()


def test_the_command_refuses_what_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "dashboard", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist\n"
