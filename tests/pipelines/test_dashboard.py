"""The dashboard in a real browser: counts follow a handle and agree with DuckDB, clips play, decisions are saved."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from playwright.sync_api import Browser, Page, expect

from pipelines.decide import decide
from tests.browser import chromium
from tests.synthetic import make_dataset

RULES: dict[str, Any] = {"motion.coarse": {"drop_lowest": "25%"}, "text_area": {"max": 0.07}}
ATTACK = "<img src=x onerror=\"document.title='owned'\">"
WAIT_MS = 60_000  # a busy machine is slow; nothing here measures time
expect.set_options(timeout=WAIT_MS)


@contextmanager
def serving(*roots: Path) -> Iterator[str]:
    """`clipmill dashboard` on a free port; yields its address."""
    command = [sys.executable, "-m", "pipelines.cli", "dashboard", *map(str, roots), "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0].rstrip("/")
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/d/{roots[0].name}/download.csv?rules=%7B%7D", timeout=30).read()
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        assert server.stdout is not None
        server.stdout.close()
        server.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def hostile(i: int, row: dict[str, Any]) -> None:
    if i == 5:
        row["source_uri"] = f"/films/{ATTACK} 1.mp4"
        row["motion_coarse"], row["motion_coarse_error"] = None, f"odd: {ATTACK}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_dataset(tmp_path_factory.mktemp("dashboard") / "films", change=hostile)
    decide(str(made), RULES, "default")
    decide(str(made), {"motion.coarse": {"drop_lowest": "50%"}}, "strict")
    return made


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    others = tmp_path_factory.mktemp("others")
    make_dataset(others / "empty", clips=0, media=False)
    make_dataset(others / "single", clips=1)
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
    roots = [root, *(others / name for name in ("empty", "single", "fresh", "older", "failing"))]
    with serving(*roots) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


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


def kept_by_duckdb(root: Path, low: float, text: float | None = 0.07) -> int:
    """Counted without any of the project's code."""
    condition = f"AND list_max(text_area) <= {text}::FLOAT AND text_area_error IS NULL" if text is not None else ""
    row = duckdb.sql(
        f"SELECT count(*) FROM '{root}/clips/*.parquet' WHERE motion_coarse_error IS NULL "
        f"AND motion_coarse >= {low}::FLOAT {condition}"
    ).fetchall()[0]
    return int(row[0])


def kept_clips(page: Page) -> int:
    return int(page.locator('[data-test="kept-clips"]').inner_text().replace("\u202f", ""))


def low_in_link(page: Page) -> float:
    """The lower bound of the motion score that the page's link holds."""
    rules = json.loads(page.evaluate("new URLSearchParams(location.search).get('rules')"))
    return float(rules["motion.coarse"]["min"])


def settled(page: Page) -> None:
    """Wait until the page has answered the last change: the link holds what it shows."""
    expect(page.locator(".clips .clip, .clips-none").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_function("() => location.search.includes('show=')", timeout=WAIT_MS)


def opened(page: Page, address: str, query: str = "") -> None:
    page.goto(f"{address}/d/films{query}")
    expect(page.locator('[data-test="kept-clips"]')).to_be_visible(timeout=WAIT_MS)
    settled(page)


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
    expect(page.get_by_text(f"{saved['clips']['kept']} clips, ")).to_be_visible(timeout=WAIT_MS)
    index = json.loads((root / "shards/mine/index.json").read_text())
    assert index["clips"] == saved["clips"]["kept"]


def test_a_name_that_is_no_name_is_refused_in_a_sentence(page: Page, server: str, root: Path) -> None:
    opened(page, server)
    page.get_by_role("button", name="Save as").click()
    page.get_by_label("Name", exact=True).fill("../../outside")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("cannot name a decision")).to_be_visible()
    assert not list(root.parent.glob("outside*"))


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
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "Clipmill"


def test_a_job_is_watched_as_it_writes(page: Page, server: str, root: Path) -> None:
    page.goto(f"{server}/d/films/live")
    expect(page.locator(".facts.four")).to_contain_text("finished", timeout=WAIT_MS)
    live = root / "sources/part-live-000000.parquet"
    shutil.copy(root / "sources/part-00000.parquet", live)
    try:
        expect(page.locator(".facts.four")).to_contain_text("running", timeout=WAIT_MS)
    finally:
        live.unlink()
    expect(page.locator(".facts.four")).to_contain_text("finished", timeout=WAIT_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_fits_the_screen_in_light_and_dark(browser: Browser, server: str, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    for path in ("", "/compare", "/errors", "/live"):
        page.goto(f"{server}/d/films{path}")
        expect(page.locator("section.panel").first).to_be_visible()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3
        assert (brightness < 60) == (scheme == "dark"), path
    context.close()


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


# --- what the server may and may not be asked for ---


def fetch(address: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_ranges_of_a_clip_are_the_bytes_of_its_tar_member(server: str, root: Path) -> None:
    row = pq.read_table(root / "clips/part-00000.parquet").to_pylist()[3]
    with open(root / f"media/{row['media_file']}", "rb") as tar:
        tar.seek(row["media_offset"])
        whole = tar.read(row["media_size"])
    address, size = f"{server}/d/films/clip/{row['clip_id']}.mp4", len(whole)
    assert fetch(address)[::2] == (200, whole)
    for asked, first, last in (("0-0", 0, 0), ("10-99", 10, 99), ("100-", 100, size - 1), ("-7", size - 7, size - 1)):
        status, headers, body = fetch(address, Range=f"bytes={asked}")
        assert (status, body) == (206, whole[first : last + 1])
        assert headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert fetch(address, Range=f"bytes={size - 1}-{size + 50}")[2] == whole[-1:]
    status, headers, _ = fetch(address, Range=f"bytes={size}-")
    assert (status, headers["content-range"]) == (416, f"bytes */{size}")
    assert fetch(f"{address}?place=99999")[2] == whole  # a stale place in a link costs a search, nothing else


@pytest.mark.parametrize(
    "path",
    [
        "/d/films/clip/..%2f..%2fjob.yaml.mp4",
        "/d/films/../../job.yaml",
        "/d/..%2f..%2fetc/clip/passwd.mp4",
        "/d/films/job.yaml",
        "/d/films/media/part-00000.tar",
        "/d/other/clip/0.mp4",
        "/d/films/download.exe",
    ],
)
def test_no_path_leads_outside(server: str, path: str) -> None:
    status, _, body = fetch(f"{server}{path}")
    assert status == 404 or b"There is no dataset" in body
    assert b"inputs:" not in body


@pytest.mark.parametrize("media_file", ["../secret.tar", "/etc/passwd", "link.tar", "..", "part-00000.tar/../x.tar"])
def test_a_dataset_cannot_point_the_server_at_other_files(tmp_path: Path, media_file: str) -> None:
    import httpx
    from fastapi import FastAPI

    from pipelines.dashboard.datasets import Registry
    from pipelines.dashboard.files import routes

    made = make_dataset(
        tmp_path / "data",
        clips=2,
        media=False,
        change=lambda i, row: row.update(
            media_file=media_file, media_offset=0, media_size=6, thumbnail_offset=0, thumbnail_size=6
        ),
    )
    (tmp_path / "data/secret.tar").write_bytes(b"secret")
    (tmp_path / "secret.tar").write_bytes(b"secret")
    (made / "media/link.tar").symlink_to(tmp_path / "secret.tar")
    clip_id = pq.read_table(made / "clips/part-00000.parquet")["clip_id"][0].as_py()
    app = FastAPI()
    app.include_router(routes(Registry([str(made)])))

    async def ask(kind: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.get(f"/d/data/clip/{clip_id}.{kind}")

    for kind in ("mp4", "jpg"):
        with ThreadPoolExecutor(1) as apart:  # Playwright keeps an event loop in this thread
            answer = apart.submit(asyncio.run, ask(kind)).result()
        assert answer.status_code == 404
        assert b"secret" not in answer.content


def test_only_requests_that_name_this_machine_are_answered(server: str) -> None:
    assert fetch(f"{server}/d/films/download.csv", Host="evil.example")[0] == 400


def test_a_cell_that_a_spreadsheet_would_run_is_disarmed() -> None:
    from pipelines.dashboard.files import as_cells

    assert as_cells(pa.array(["=HYPERLINK(1)", "a=b", None])).to_pylist() == ["'=HYPERLINK(1)", "a=b", None]
    assert as_cells(pa.array([-3.5])).to_pylist() == ["-3.5"]
    assert as_cells(pa.array([["a", "b"], []])).to_pylist() == ["a;b", ""]


def test_the_command_refuses_what_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "dashboard", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist\n"
