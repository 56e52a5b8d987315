"""The dashboard inside another service: under a path of its own, with the datasets that the service lists."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.pipelines.dashboard.pages import fetch, free_port, kept_by_duckdb

SERVICE = """
import sys
from pathlib import Path
import uvicorn
from fastapi import FastAPI
from pipelines.dashboard.datasets import Registry
from pipelines.dashboard.server import attach

app = FastAPI()
listed = Path(sys.argv[1])  # a line for each: name, tab, place

@app.get("/own")
def own():
    return "the service's own"

datasets = Registry(lambda: dict(line.split("\\t") for line in listed.read_text().splitlines()))
attach(app, datasets, base="/board", home="Jobs")
uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


@pytest.fixture
def service(root: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Its address, and the file that lists the datasets."""
    listed, port = tmp_path / "listed", free_port()
    listed.write_text(f"job-1\t{root}\n")
    process = subprocess.Popen([sys.executable, "-c", SERVICE, str(listed), str(port)])
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                if fetch(f"{address}/own")[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
        yield address, listed
    finally:
        process.kill()
        process.wait()


def test_a_service_mounts_it_under_a_path_and_says_which_datasets_there_are(
    browser: Browser, service: tuple[str, Path], root: Path
) -> None:
    address, listed = service
    page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
    faults: list[str] = []
    page.on("response", lambda answer: faults.append(answer.url) if answer.status >= 400 else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{address}/board/")
    page.wait_for_url("**/board/d/job-1**")  # the only dataset
    expect(page.get_by_role("link", name="Jobs")).to_have_attribute("href", "/board/")
    page.get_by_label("motion.coarse at least").fill("0.3")
    page.wait_for_function("() => location.pathname === '/board/d/job-1' && location.search.includes('min')")
    expected = kept_by_duckdb(root, 0.3)
    expect(page.locator('[data-test="kept-clips"]')).to_have_text(str(expected))
    page.get_by_role("button", name="Download").click()
    with page.expect_download() as waiting:
        page.get_by_text("CSV", exact=True).click()
    assert waiting.value.path().read_text().count(',"true",') == expected
    page.locator("a.clip").first.click()
    page.wait_for_url("**/board/d/job-1/clip/**")
    page.wait_for_function("() => document.querySelector('video').readyState >= 2")
    page.get_by_text("Back to deciding").click()
    page.wait_for_url("**/board/d/job-1?**")
    assert faults == []
    listed.write_text(f"job-2\t{root}\n")
    page.goto(f"{address}/board/d/job-1")
    expect(page.locator(".notice")).to_contain_text("There is no dataset called job-1 here.")
    assert fetch(f"{address}/board/d/job-1/download.csv")[0] == 404
    assert fetch(f"{address}/board/d/job-2/download.csv?rules=%7B%7D")[0] == 200
    page.context.close()
