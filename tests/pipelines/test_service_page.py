"""The jobs page in a real browser: log in, fill in the form, watch, cancel, resume, delete. Ray obeys the test."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect

from curation.input_policy import InputPolicy
from pipelines.service.app import create_app
from pipelines.service.jobs import Jobs
from pipelines.service.tokens import TokenStore
from tests.pipelines.fake_ray import FakeRay
from tests.pipelines.service_rig import free_port
from tests.synthetic import make_dataset

pytestmark = pytest.mark.timeout(600)


@contextmanager
def serving(jobs: Jobs, tokens: TokenStore | None) -> Iterator[str]:
    port = free_port()
    app = create_app(jobs, tokens, dashboard=False)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def submit(page: Page, films: str, output: str) -> None:
    page.locator("[name='input.uris']").fill(films)
    page.locator("[name='output']").fill(output)
    page.locator("[name='scores.text.implementation']").select_option("off")
    page.locator("[name='clips.min']").fill("1 s")
    page.get_by_role("button", name="Submit").click()


def test_a_job_from_the_form_to_its_end(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "films").mkdir()
    ray = FakeRay()
    jobs = Jobs(str(tmp_path / "data"), ray, InputPolicy.of([str(tmp_path / "films")]))
    tokens = TokenStore(tmp_path / "tokens.json")
    token, other = tokens.make("ann", "submit"), tokens.make("bob", "read")
    with serving(jobs, tokens) as url:
        page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{url}/")
        page.get_by_label("Token").fill("cm_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("This token is wrong")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("There is no job yet.")).to_be_visible()
        page.get_by_text("New job").click()
        page.get_by_text("How: cuts").click()
        submit(page, "/etc", "films-1")
        expect(page.locator("#said")).to_contain_text("/etc: not below any of the inputs that are allowed here")
        submit(page, str(tmp_path / "films"), "films-1")
        expect(page.locator("#said")).to_have_text("films-1 is in the queue.")
        assert jobs.spec("films-1").clips.min == 1.0
        job = page.locator("[data-job='films-1']")
        expect(job.locator(".state")).to_have_text("starting", timeout=20_000)
        ray.set("films-1", "RUNNING")
        expect(job.locator(".state")).to_have_text("running", timeout=20_000)
        expect(job.get_by_role("link", name="Results")).to_be_hidden()
        made = make_dataset(tmp_path / "made", clips=0, media=False)  # sources are read, but no clip comes out of them
        shutil.copytree(made / "sources", tmp_path / "data/films-1/sources", dirs_exist_ok=True)
        expect(job.get_by_role("link", name="Results")).to_be_visible(timeout=20_000)
        job.get_by_role("button", name="Log").click()
        expect(job.locator("pre")).to_contain_text("log of", timeout=20_000)
        job.get_by_role("button", name="Cancel").click()
        expect(job.locator(".state")).to_have_text("cancelled", timeout=20_000)
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page fits a telephone"
        job.get_by_role("button", name="Resume").click()
        expect(job.locator(".state")).to_have_text("starting", timeout=20_000)
        ray.set("films-1", "FAILED", 1)
        expect(job.locator(".state")).to_have_text("failed", timeout=20_000)
        expect(job).to_contain_text("the disk is full")
        page.on("dialog", lambda dialog: dialog.accept())
        job.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("There is no job yet.")).to_be_visible(timeout=20_000)
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("Token").fill(other)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("bob (read)")).to_be_visible()
        expect(page.get_by_text("New job")).to_have_count(0)
        assert not faults
