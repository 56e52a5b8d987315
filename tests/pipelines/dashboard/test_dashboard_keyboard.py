"""From a finished job to an exported decision with nothing but the keyboard."""

import json
from pathlib import Path

import yaml
from playwright.sync_api import Locator, Page, expect

from tests.pipelines.dashboard.pages import exported, kept_by_duckdb, opened


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until the wanted control has the focus."""
    handle = wanted.element_handle()
    for _ in range(80):
        if page.evaluate(
            "wanted => wanted === document.activeElement || wanted.contains(document.activeElement)", handle
        ):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"80 presses of Tab do not lead to {wanted}")


def test_a_decision_is_made_saved_and_exported_with_the_keyboard_alone(page: Page, server: str, root: Path) -> None:
    opened(page, server, "?decision=default")
    tab_to(page, page.get_by_label("motion.coarse at least"))
    page.keyboard.press("Control+A")
    page.keyboard.type("0.3")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('\"min\":0.3')")
    expect(page.locator('[data-test="kept-clips"]')).to_have_text(str(kept_by_duckdb(root, 0.3)))
    page.keyboard.press("Control+Home")
    page.evaluate("document.activeElement.blur()")
    tab_to(page, page.get_by_role("button", name="Save as"))
    assert page.evaluate("getComputedStyle(document.activeElement).boxShadow") != "none"  # one sees where one is
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Name", exact=True))
    page.keyboard.press("Control+A")
    page.keyboard.type("typed")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.search.includes('decision=typed')")
    saved = yaml.safe_load((root / "decisions/typed.yaml").read_text())
    assert saved["clips"]["kept"] == kept_by_duckdb(root, 0.3)
    tab_to(page, page.get_by_role("button", name="Export shards"))
    page.keyboard.press("Enter")
    exported(page, saved["clips"]["kept"])
    assert json.loads((root / "shards/typed/index.json").read_text())["clips"] == saved["clips"]["kept"]
    clip = page.locator("a.clip").first
    tab_to(page, clip)
    page.wait_for_function("() => document.activeElement.querySelector('video').currentTime > 0")  # focus plays it too
    page.keyboard.press("Enter")
    page.wait_for_url("**/clip/**")
