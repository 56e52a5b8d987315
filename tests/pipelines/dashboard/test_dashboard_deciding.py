"""Deciding in a real browser: counts follow a handle and agree with DuckDB; save, export, download."""

import json
import urllib.request
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from playwright.sync_api import Page, expect

from pipelines.dataset import Dataset
from pipelines.decide import decide, read_decision
from tests.pipelines.dashboard.pages import (
    WAIT_MS,
    exported,
    kept_by_duckdb,
    kept_clips,
    low_in_link,
    opened,
    settled,
)


def test_dragging_a_threshold_changes_the_counts_to_what_duckdb_says(page: Page, server: str, root: Path) -> None:
    opened(page, server)
    low = yaml.safe_load((root / "decisions/default.yaml").read_text())["rules"]["motion.coarse"]["resolved"]["min"]
    assert kept_clips(page) == kept_by_duckdb(root, low)
    handle = page.get_by_label("motion.coarse", exact=True).locator(".q-slider__thumb").first
    box = handle.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 9):
        page.mouse.move(x + 10 * step, y)
    page.mouse.up()
    page.wait_for_function("() => decodeURIComponent(location.search).includes('\"min\":')", timeout=WAIT_MS)
    box = handle.bounding_box()
    assert box is not None
    assert abs(box["x"] + box["width"] / 2 - (x + 80)) < 3  # the handle stays where it was let go
    dragged = low_in_link(page)
    for _ in range(WAIT_MS // 500):  # the last of many small moves is answered last
        page.wait_for_timeout(500)
        before, dragged = dragged, low_in_link(page)
        if before == dragged and kept_clips(page) == kept_by_duckdb(root, dragged):
            break
    assert dragged > low
    assert kept_clips(page) == kept_by_duckdb(root, dragged) < kept_by_duckdb(root, low)
    assert page.get_by_label("motion.coarse at least").input_value() == f"{dragged:g}"
    page.reload()
    settled(page)
    assert kept_clips(page) == kept_by_duckdb(root, dragged)


def test_the_keyboard_moves_a_threshold_and_types_a_share(page: Page, server: str, root: Path) -> None:
    opened(page, server)
    before = kept_clips(page)
    field = page.get_by_label("motion.coarse lowest %")
    field.fill("60")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('60%')", timeout=WAIT_MS)
    expect(page.locator('[data-test="kept-clips"]')).not_to_have_text(str(before))
    handle = page.get_by_label("motion.coarse", exact=True).locator("[tabindex='0']").first
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('\"min\":')", timeout=WAIT_MS)


def test_a_number_stands_in_its_field_as_it_was_typed(page: Page, server: str) -> None:
    """Rounded to four digits, 0.99999 was shown as 1 and 99.9999 % as 100 %, which the same field refuses."""
    opened(page, server, '?rules={"text_area":{"max":0.3}}')
    for label, typed in (("text_area at most", "0.99999"), ("motion.coarse lowest %", "99.9999")):
        page.get_by_label(label).fill(typed)
        page.wait_for_function(f"() => decodeURIComponent(location.search).includes('{typed}')", timeout=WAIT_MS)
        expect(page.get_by_label(label)).to_have_value(typed)
    page.get_by_label("motion.coarse lowest %").fill("100")
    expect(page.get_by_text("a share lies between")).to_be_visible()
    expect(page.get_by_label("motion.coarse lowest %")).to_have_value("99.9999")


def test_rules_that_keep_nothing_are_said_and_a_reload_shows_the_last_that_could_be_read(
    page: Page, server: str
) -> None:
    opened(page, server, '?rules={"text_area":{"max":0.3}}')
    page.get_by_label("text_area at least").fill("0.4")
    expect(page.get_by_text("cannot be saved: rules.text_area: the lower bound 0.4 lies above")).to_be_visible()
    expect(page.locator('[data-test="kept-clips"]')).to_have_text("0")
    page.get_by_label("text_area at least").fill("1e39")  # infinite among the scores, which are float32
    expect(page.get_by_text("cannot be saved: rules.text_area.min: the number is too large")).to_be_visible()
    page.get_by_label("text_area at least").fill("")
    expect(page.get_by_text("unsaved changes")).to_be_visible()
    camera = page.get_by_label("camera", exact=True)
    for label in ("static", "horizontal", "zooming", "complex"):
        camera.get_by_role("checkbox", name=label).click()
    expect(page.get_by_text("cannot be saved: rules.camera.in: the list of labels is empty")).to_be_visible()
    page.reload()
    expect(page.get_by_label("text_area at most")).to_have_value("0.3")
    expect(page.locator(".notice")).to_have_count(0)


def test_a_decision_is_saved_and_is_there_after_a_reload(page: Page, server: str, root: Path) -> None:
    opened(page, server)
    page.get_by_label("text_area at most").fill("0.3")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('0.3')", timeout=WAIT_MS)
    expect(page.get_by_text("unsaved changes")).to_be_visible()
    page.get_by_role("button", name="Save as").click()
    page.get_by_label("Name", exact=True).fill("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    page.wait_for_function("() => location.search.includes('decision=mine')", timeout=WAIT_MS)
    saved = yaml.safe_load((root / "decisions/mine.yaml").read_text())
    assert saved["rules"]["text_area"]["rule"]["max"] == 0.3
    assert saved["rules"]["motion.coarse"]["rule"]["drop_lowest"] == "25%"
    low = saved["rules"]["motion.coarse"]["resolved"]["min"]
    assert saved["clips"]["kept"] == kept_by_duckdb(root, low, 0.3) == kept_clips(page)
    page.reload()
    settled(page)
    assert kept_clips(page) == saved["clips"]["kept"]
    expect(page.get_by_text("unsaved changes")).to_be_hidden()
    page.get_by_role("button", name="Export shards").click()
    exported(page, saved["clips"]["kept"])
    index = json.loads((root / "shards/mine/index.json").read_text())
    assert index["clips"] == saved["clips"]["kept"]


def test_a_name_that_is_no_name_is_refused_in_a_sentence(page: Page, server: str, root: Path) -> None:
    opened(page, server)
    page.get_by_role("button", name="Save as").click()
    page.get_by_label("Name", exact=True).fill("../../outside")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("cannot name a decision")).to_be_visible()
    assert not list(root.parent.glob("outside*"))


def test_downloads_hold_the_decision_of_the_page(page: Page, server: str, root: Path, tmp_path: Path) -> None:
    opened(page, server)
    page.get_by_role("button", name="Download").click()
    with page.expect_download() as waiting:
        page.get_by_text("CSV", exact=True).click()
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    row = duckdb.sql(f"SELECT count(*), count(*) FILTER (WHERE keep) FROM read_csv('{path}')").fetchall()[0]
    assert row == (40, kept_clips(page))
    address = f"{server}/d/films/download.parquet?decision=default"
    (tmp_path / "d.parquet").write_bytes(urllib.request.urlopen(address).read())
    table = pq.read_table(tmp_path / "d.parquet")
    saved = pq.read_table(root / "decisions/default.parquet")
    assert table.select(["clip_id", "keep", "reasons"]).to_pylist() == saved.to_pylist()


def test_a_decision_older_than_the_dataset_is_shown_as_it_was_recorded(page: Page, server: str, others: Path) -> None:
    page.goto(f"{server}/d/grown")
    settled(page)
    expect(page.get_by_text("saved when there were 6 clips, of which it keeps 3; save again")).to_be_visible()
    root = others / "grown"
    low = read_decision(Dataset(root), "default")["rules"]["motion.coarse"]["resolved"]["min"]
    assert page.get_by_label("motion.coarse at least").input_value() == f"{low:.4g}"
    assert kept_clips(page) == kept_by_duckdb(root, low, None)
    address = f"{server}/d/grown/download.parquet?decision=default"
    table = pq.read_table(pa.BufferReader(urllib.request.urlopen(address).read()))
    assert sum(table["keep"].to_pylist()) == kept_clips(page)


def test_a_decision_on_scores_that_are_others_now_is_said_to_be(page: Page, server: str) -> None:
    page.goto(f"{server}/d/rescored")
    settled(page)
    expect(page.get_by_text("saved when the clips had other scores; save again")).to_be_visible()


def test_a_decision_that_was_saved_anew_elsewhere_is_shown_before_it_is_exported(
    page: Page, server: str, root: Path
) -> None:
    decide(str(root), {"motion.coarse": {"drop_lowest": "50%"}}, "shared")
    try:
        opened(page, server, "?decision=shared")
        stricter = decide(str(root), {"motion.coarse": {"drop_lowest": "75%"}}, "shared")["clips"]["kept"]
        assert kept_clips(page) > stricter
        page.get_by_role("button", name="Export shards").click()
        expect(page.get_by_text("shared has been saved anew elsewhere")).to_be_visible()
        assert kept_clips(page) == stricter
        assert not (root / "shards/shared").exists()
        page.get_by_role("button", name="Export shards").click()
        exported(page, stricter)
    finally:
        for end in ("yaml", "parquet"):
            (root / f"decisions/shared.{end}").unlink()


def test_thresholds_that_nobody_has_saved_go_along_to_the_other_pages(page: Page, server: str) -> None:
    opened(page, server)
    page.get_by_label("text_area at most").fill("0.31")
    page.wait_for_function("() => decodeURIComponent(location.search).includes('0.31')", timeout=WAIT_MS)
    for name in ("Statistics", "Errors", "Live"):
        page.get_by_role("link", name=name).click()
        page.wait_for_function(f"() => location.pathname.endsWith('/{name.lower()}')")
        if name == "Statistics":
            expect(page.locator("body")).to_contain_text("at most 0.31")
    page.get_by_role("link", name="Decide").click()
    expect(page.get_by_label("text_area at most")).to_have_value("0.31")
