"""The service on a real cluster of two nodes: jobs side by side, and every kind of process killed in the middle."""

import random
import time
from pathlib import Path

import httpx
import pytest

from pipelines.dataset import Dataset
from tests.media import film
from tests.pipelines.service_rig import Rig
from tests.pipelines.test_job import content

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]  # wall seconds on a busy machine


def write_films(folder: Path, number: int) -> Path:
    """Real films, each with a byte more than the one before it, so that they are not duplicates."""
    folder.mkdir()
    for k in range(number):
        (folder / f"{k:03d}.mp4").write_bytes(film("bikes.mp4").read_bytes() + b"\0" * (8 + k))
    return folder


def test_jobs_survive_the_death_of_every_process(tmp_path: Path) -> None:
    films = write_films(tmp_path / "films", 8)
    which = random.Random(0)
    with Rig(tmp_path, films) as rig:
        rig.wait(rig.submit("undisturbed"))
        undisturbed = content(Dataset(rig.folder / "data" / "undisturbed"))
        assert rig.submit("one", resources={"attempts": 9}) == "one"
        assert rig.submit("two", resources={"attempts": 9}) == "two"
        for name in ("one", "two"):
            rig.wait(name, until=("running",))
        deadline = time.monotonic() + 90
        while rig.working_nodes() < 2:
            assert time.monotonic() < deadline, f"both nodes are to work: {rig.client.jobs()}"
            time.sleep(0.1)
        assert rig.kill_worker(which)
        assert rig.kill_service(which)
        assert {each["id"]: each["state"] for each in rig.client.jobs()}.keys() >= {"one", "two"}
        assert rig.kill_driver(which)
        assert rig.kill_node(which)
        for name in ("one", "two"):
            assert rig.wait(name) == "succeeded"
            assert content(Dataset(rig.folder / "data" / name)) == undisturbed
        page = httpx.get(f"{rig.client.address}/d/one", timeout=120)
        assert (page.status_code, "nicegui" in page.text.lower()) == (200, True), "the dashboard is mounted"
        progress = rig.client.progress("one")
        assert (progress["sources_done"], progress["failed"], progress["sources"]) == (8, 0, 8)
        assert sum(rig.client.job(name)["attempt"] for name in ("one", "two")) >= 3
