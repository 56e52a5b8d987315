"""What the other pages show: clips that play, a clip's own page, two decisions, errors, a running job."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

from pipelines.report import write_report
from tests.pipelines.dashboard.pages import (
    ATTACK,
    WAIT_MS,
    opened,
)


def test_hovering_over_a_clip_plays_it_out_of_the_media_tar(page: Page, server: str) -> None:
    opened(page, server)
    answers: list[tuple[int, str]] = []
    page.on("response", lambda r: answers.append((r.status, r.url)) if ".mp4" in r.url else None)
    clip = page.locator("a.clip").first
    clip.scroll_into_view_if_needed()
    clip.hover()
    page.wait_for_function("() => { const v = document.querySelector('a.clip video'); return v.currentTime > 0; }")
    assert answers
    assert all(status == 206 for status, _ in answers)
    assert page.evaluate("document.querySelector('a.clip video').videoWidth") == 64
    page.mouse.move(2, 2)
    page.wait_for_function("() => document.querySelector('a.clip video').paused")


def test_a_clips_own_page_says_why_and_from_where(page: Page, server: str) -> None:
    opened(page, server, "?decision=default&show=reason:text_area%20above")
    page.locator("a.clip").first.click()
    page.wait_for_url("**/clip/**")
    body = page.locator("body")
    expect(body).to_contain_text("text_area above")
    expect(body).to_contain_text("by decision default")
    expect(body).to_contain_text("(farneback)")
    expect(page.locator(".timeline a.here")).to_have_count(1)
    assert page.locator(".timeline a").count() == 10
    page.wait_for_function("() => document.querySelector('video').readyState >= 2")
    page.locator(".timeline a:not(.here)").first.click()
    expect(page.locator(".timeline a.here")).to_have_count(1)


def test_a_clip_without_film_or_picture_says_so(page: Page, server: str) -> None:
    page.goto(f"{server}/d/bare")
    picture = page.locator("a.clip .picture").first
    expect(picture).to_be_visible()
    assert "no picture" in picture.evaluate("each => getComputedStyle(each, '::before').content")
    page.locator("a.clip").first.click()
    expect(page.locator("body")).to_contain_text("This dataset has the clip's scores, but not its film.")
    assert page.locator(".clip-page video[controls]").count() == 0


def test_two_decisions_are_compared(page: Page, server: str, root: Path) -> None:
    page.goto(f"{server}/d/films/compare?first=default&second=strict")
    expect(page.locator(".facts.four")).to_be_visible()
    kept = {}
    for name in ("default", "strict"):
        rows = pq.read_table(root / f"decisions/{name}.parquet").to_pylist()
        kept[name] = {row["clip_id"] for row in rows if row["keep"]}
    numbers = page.locator(".facts.four b").all_inner_texts()
    expected = [kept["default"] & kept["strict"], kept["default"] - kept["strict"], kept["strict"] - kept["default"]]
    assert numbers[:3] == [str(len(each)) for each in expected]
    assert page.locator("a.clip").count() == len(expected[1]) + len(expected[2])


def test_errors_are_grouped_and_hostile_text_stays_text(page: Page, server: str) -> None:
    page.goto(f"{server}/d/films/errors")
    table = page.locator("table.list")
    expect(table).to_contain_text("too_short")
    expect(table).to_contain_text("<script>alert(1)</script>.mp4")
    expect(table).to_contain_text(f"odd: {ATTACK}")
    table.get_by_text("odd:").click()
    page.wait_for_url("**/clip/**")
    expect(page.locator("body")).to_contain_text("could not be scored: odd:")
    expect(page.locator("body")).to_contain_text(f"a dog {ATTACK}")
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "Clipmill"


def test_a_job_is_watched_as_it_writes(page: Page, server: str, root: Path) -> None:
    page.goto(f"{server}/d/films/live")
    expect(page.locator(".facts.four")).to_contain_text("finished", timeout=WAIT_MS)
    live = root / "sources/part-live-000000.parquet"
    shutil.copy(root / "sources/part-00000.parquet", live)
    try:
        expect(page.locator(".facts.four")).to_contain_text("running", timeout=WAIT_MS)
        told = {"stage": "curating", "sources": 40, "sources_done": 12, "failed": 2, "clips": 40, "waiting": 28}
        told |= {"next": [f"/films/{ATTACK}.mp4"], "video_s": 900.0, "elapsed_s": 300.0, "left_s": 700.0}
        told |= {"written": time.time(), "ended": None}
        (root / "progress.json").write_text(json.dumps(told))
        facts = page.locator(".facts.four")
        for text in ("curating", "11 min 40 s", "12 of 40", "28"):
            expect(facts).to_contain_text(text)
        expect(page.get_by_role("progressbar", name="Sources done")).to_have_attribute("aria-valuenow", "30")
        expect(page.locator("ol.names")).to_contain_text(f"/films/{ATTACK}.mp4")
        (root / "progress.json").write_text(json.dumps(told | {"ended": "the disk is full"}))
        expect(page.get_by_text("The job stopped: the disk is full.")).to_be_visible()
    finally:
        live.unlink()
        (root / "progress.json").unlink(missing_ok=True)
    expect(page.locator(".facts.four")).to_contain_text("finished", timeout=WAIT_MS)


def test_the_statistics_page_says_what_the_report_says(page: Page, server: str, root: Path) -> None:
    write_report(str(root), "default")
    found = json.loads((root / "statistics/default.json").read_text())
    page.goto(f"{server}/d/films/statistics?decision=default")
    body = page.locator(".below")
    titles = ("Yield", "What each filter takes", "Dropped by both", "Before and after", "Clips per source")
    for title in (*titles, "Quantiles", "Correlation of scores", "Captions: spatial", "Cost", "Sources"):
        expect(body.get_by_role("heading", name=title, exact=True)).to_be_visible()
    row = page.locator("tr", has_text="drop the lowest 25 %").locator("td.number").all_inner_texts()
    told = next(each for each in found["filters"] if each["filter"] == "motion.coarse")
    assert row[::2] == [str(told[which]["clips"]) for which in ("alone", "first", "only")]
    after = page.locator(".columns .pair").evaluate_all("all => all.map(each => each.title)")
    counted = zip(found["clips_per_source"]["before"], found["clips_per_source"]["after"], strict=True)
    assert after == [f"{before} sources before, {after} after" for before, after in counted]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_the_screen_in_light_and_dark(browser: Browser, server: str, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    for path in ("", "/statistics", "/compare", "/errors", "/live"):
        page.goto(f"{server}/d/films{path}")
        expect(page.locator("section.panel").first).to_be_visible()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        ends = page.locator(".top nav a").evaluate_all("all => all.map(each => each.getBoundingClientRect().right)")
        assert len(ends) == 6
        assert max(ends) <= width  # no page is out of sight
        if path == "":
            whole = "all => all.every(each => each.scrollWidth <= each.clientWidth)"
            assert page.locator(".fields input").evaluate_all(whole)  # no number is cut off
            assert page.locator(".left .funnel .row", has_text="Kept").locator(".number").first.is_visible()
            heights = page.locator(".facts b").evaluate_all("all => all.map(each => each.offsetHeight)")
            assert max(heights) < 1.5 * min(heights)  # none takes two lines
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3
        assert (brightness < 60) == (scheme == "dark"), path
    context.close()
