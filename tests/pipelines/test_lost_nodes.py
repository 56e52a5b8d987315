"""A node that is lost in the middle of a job: its raylet dies alone, or the network between it and the head breaks.

Nobody replaces the node; the job ends on the one that is left, with the bytes of an undisturbed run.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset import Dataset
from tests.pipelines.namespaces import TwoNodes, two_nodes
from tests.pipelines.test_job import content
from tests.pipelines.test_service_jobs import write_films

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]  # wall seconds on a busy machine


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films") / "films", 48)


@pytest.fixture(scope="module")
def undisturbed(nodes: TwoNodes, films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert nodes.curate(films, out).wait(600) == 0, nodes.log()
    return content(Dataset(out))


def test_a_job_survives_the_death_of_a_raylet_alone(
    nodes: TwoNodes, films: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    job = nodes.curate(films, tmp_path / "out")
    nodes.wait_for_work(tmp_path / "out", job)
    nodes.kill_raylet()
    assert job.wait(900) == 0, nodes.log()
    assert content(Dataset(tmp_path / "out")) == undisturbed
    nodes.end_other()
    nodes.start_other()


def test_a_job_survives_a_cut_cable(nodes: TwoNodes, films: Path, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The node behind it goes on by itself for a while: it may even store segments, which are those of the others."""
    job = nodes.curate(films, tmp_path / "out")
    nodes.wait_for_work(tmp_path / "out", job)
    nodes.cut()
    assert job.wait(900) == 0, nodes.log()
    assert content(Dataset(tmp_path / "out")) == undisturbed
    nodes.join()
    nodes.end_other()
