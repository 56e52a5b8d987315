"""`clipmill cluster` in the foreground: however it ends, its Ray ends with it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.pipelines.service_rig import free_port

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(300)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[psutil.Process]:
    """The command, once its Ray answers."""
    port, dashboard = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "pipelines.cli", "cluster", "--cpus", "1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--dashboard-port", str(dashboard)],
            env=environment | {"HOME": str(tmp_path)}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    found = psutil.Process(process.pid)
    below: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 180
        while not ({"raylet", "gcs_server"} <= {each.name() for each in below} and _answers(dashboard)):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
            with suppress(psutil.NoSuchProcess):
                below = found.children(recursive=True)
        yield found
    finally:
        for each in [*below, found]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_ray_ends_with_the_command(cluster: psutil.Process, how: signal.Signals) -> None:
    below = cluster.children(recursive=True)
    assert len(below) > 3
    cluster.send_signal(how)
    _, left = psutil.wait_procs([cluster, *below], timeout=60)
    assert [" ".join(each.cmdline())[:200] for each in left] == []


def test_a_port_that_is_taken_is_refused_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["cluster", "--port", str(port)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert f"port {port} is taken: perhaps by a Ray that runs here" in result.output


@pytest.mark.parametrize("ports", [(16379, 8265), (6379, 18265), (8265, 8265)])
def test_ports_that_ray_needs_itself_are_refused_in_one_line(ports: tuple[int, int]) -> None:
    result = CliRunner().invoke(main, ["cluster", "--port", str(ports[0]), "--dashboard-port", str(ports[1])])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "Ray needs two, outside of 10002 to 19999" in result.output
