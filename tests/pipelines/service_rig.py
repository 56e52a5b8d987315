"""A cluster of two nodes with the service on it, all of whose processes can be killed one by one."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipelines.service.client import Client, ServiceError
from pipelines.service.record import ENDED

QUICK_TO_NOTICE = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "10",
    "OMP_NUM_THREADS": "1",
}
"""The environment of a Ray that notices within seconds that a node is dead."""


def free_port() -> int:
    """A port that neither Ray (10002-19999) nor the system (from 32768 on) gives to somebody else meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Rig:
    """Use as a context manager. Every method that kills sends SIGKILL and says whether there was something to kill."""

    def __init__(self, folder: Path, films: Path, *, running: int = 2, node_cpus: float = 2) -> None:
        self.folder, self.films, self.running, self.node_cpus = folder, films, running, node_cpus
        self.port, self.dashboard = free_port(), 0
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.environment = os.environ | QUICK_TO_NOTICE
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment.pop("RAY_ADDRESS", None)
        self._service: subprocess.Popen[bytes] | None = None
        self._cluster: Any = None
        self._node: Any = None

    def __enter__(self) -> "Rig":
        os.environ |= QUICK_TO_NOTICE | {"PATH": self.environment["PATH"]}
        for attempt in range(3):  # Ray gives its node 30 s to start, which a busy machine can exceed
            try:
                self._start_cluster()
                break
            except Exception as error:  # Ray raises plain Exception
                self.__exit__()
                if attempt == 2 or "timed out during startup" not in str(error):
                    raise
        self.start_service()
        return self

    def _start_cluster(self) -> None:
        from ray.cluster_utils import Cluster

        self.dashboard = free_port()  # another one at each attempt: a dashboard that came up late keeps its own
        shared = {"object_store_memory": 256 << 20, "dashboard_agent_listen_port": 0}
        head = shared | {"num_cpus": 2, "include_dashboard": True, "dashboard_port": self.dashboard}
        self._cluster = Cluster()
        self._cluster.add_node(**head)
        self._node = self._cluster.add_node(num_cpus=self.node_cpus, **shared)

    def __exit__(self, *_: object) -> None:
        if self._service is not None:
            self._service.terminate()
            self._service.wait(30)
        if self._cluster is not None:
            self._cluster.shutdown()

    def start_service(self) -> None:
        """Start it, again or for the first time, and wait until it answers."""
        command = [sys.executable, "-m", "pipelines.cli", "serve", str(self.folder / "data"), "--port", str(self.port)]
        command += ["--input", str(self.films), "--address", f"http://127.0.0.1:{self.dashboard}"]
        command += ["--running", str(self.running), "--installed"]  # the nodes share a folder for what they unpack
        with (self.folder / "service.log").open("ab") as log:
            self._service = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(ServiceError):
                self.client.jobs()
                return
            assert self._service.poll() is None, (self.folder / "service.log").read_text()
            time.sleep(0.2)
        raise TimeoutError((self.folder / "service.log").read_text())

    def submit(self, name: str, **changes: Any) -> str:
        """Submit a job on the films, through the command line."""
        data: dict[str, Any] = {"input": {"uris": [str(self.films)]}, "output": name, "scores": {"text": "off"}}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data | {"clips": {"min": "1 s", "max": "4 s"}} | changes))
        command = [sys.executable, "-m", "pipelines.cli", "submit", str(path), "--address", self.client.address]
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout.strip()

    def state(self, job: str) -> str:
        return str(self.client.job(job)["state"])

    def wait(self, job: str, *, until: tuple[str, ...] = ENDED, seconds: float = 400) -> str:
        """The state that a job has reached."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in until:
            assert state not in ENDED, self.client.job(job)
            assert time.monotonic() < deadline, (state, self.client.logs(job)[-3000:])
            time.sleep(0.3)
        return state

    def kill_service(self, which: random.Random) -> bool:
        """Kill the service and start it again."""
        assert self._service is not None
        self._service.kill()
        self._service.wait()
        self.start_service()
        return True

    def kill_driver(self, which: random.Random) -> bool:
        """Kill one `clipmill curate` on the cluster."""
        return _kill(which, [each for each in self._processes() if "pipelines.cli curate" in _command(each)])

    def kill_worker(self, which: random.Random) -> bool:
        """Kill one actor that works on sources or writes segments."""
        return _kill(which, [each for each in self._processes() if "MapWorker" in _command(each)])

    def kill_raylet(self, which: random.Random) -> bool:
        """Kill the second node's raylet: its workers end with it. Another node takes its place."""
        os.kill(self._node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        return self._replace_node()

    def kill_node(self, which: random.Random) -> bool:
        """Kill everything of the second node at once. Another node takes its place."""
        for each in self._below(self._node):
            with suppress(psutil.Error):
                each.kill()
        return self._replace_node()

    def working_nodes(self) -> int:
        """How many nodes have an actor of a job."""
        return sum(
            any("SourceActor" in _command(each) for each in self._below(node))
            for node in self._cluster.list_all_nodes()
        )

    def _replace_node(self) -> bool:
        with suppress(Exception):  # half of it is dead already
            self._cluster.remove_node(self._node, allow_graceful=False)
        for attempt in range(5):
            try:
                self._node = self._cluster.add_node(
                    num_cpus=self.node_cpus, object_store_memory=256 << 20, dashboard_agent_listen_port=0
                )
                break
            except Exception as error:  # as in __enter__
                if attempt == 4 or "timed out during startup" not in str(error):
                    raise
        return True

    def _processes(self) -> list[psutil.Process]:
        return [each for node in self._cluster.list_all_nodes() for each in self._below(node)]

    def _below(self, node: Any) -> list[psutil.Process]:
        found = []
        for processes in node.all_processes.values():
            for each in processes:
                with suppress(psutil.Error):
                    root = psutil.Process(each.process.pid)
                    found += [root, *root.children(recursive=True)]
        return found


def _command(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _kill(which: random.Random, found: list[psutil.Process]) -> bool:
    if not found:
        return False
    with suppress(psutil.Error):
        which.choice(sorted(found, key=lambda each: each.pid)).kill()
    return True
