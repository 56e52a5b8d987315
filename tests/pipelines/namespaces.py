"""Two Ray nodes in network namespaces of their own, with a cable between them that can be cut. Needs root."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.pipelines.service_rig import QUICK_TO_NOTICE

HEAD, OTHER = "10.77.0.1", "10.77.0.2"
_PORT = 6379  # free in a namespace that is new
_OPTIONS = ["--disable-usage-stats", "--block", "--num-cpus=2", "--object-store-memory=268435456"]


class TwoNodes:
    """The head, on which jobs are started, and another node. `two_nodes` makes it."""

    def __init__(self, folder: Path, names: tuple[str, str]) -> None:
        self._folder, (self._here, self._there) = folder, names
        self.environment = (
            os.environ | QUICK_TO_NOTICE | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        )
        self.environment.pop("RAY_ADDRESS", None)

    def start_head(self) -> None:
        """Start the head."""
        head = ["--head", f"--port={_PORT}", f"--node-ip-address={HEAD}", "--include-dashboard=false"]
        self._start(self._here, *head, *_OPTIONS)

    def start_other(self) -> None:
        """Start the other node, again or for the first time, and wait until both are there."""
        self._start(self._there, f"--address={HEAD}:{_PORT}", f"--node-ip-address={OTHER}", *_OPTIONS)
        ask = f"import ray; ray.init('{HEAD}:{_PORT}', logging_level=50); print(ray.cluster_resources()['CPU'])"
        deadline = time.monotonic() + 180
        while True:
            done = subprocess.run(self._in(self._here, sys.executable, "-c", ask), env=self.environment,
                                  capture_output=True, text=True)  # fmt: skip
            if done.stdout.strip().endswith("4.0"):
                return
            assert time.monotonic() < deadline, f"{done.stderr[-2000:]}\n{self.log()}"

    def curate(self, films: Path, out: Path) -> subprocess.Popen[bytes]:
        """Start `clipmill curate` on the head. In rounds: so both nodes still work when the first clips are stored."""
        command = [sys.executable, "-m", "pipelines.cli", "curate", str(films), "-o", str(out)]
        command += ["--address", f"{HEAD}:{_PORT}", "--set", "resources.attempts=9", "--set", "resources.round=12"]
        for change in ("clips.min=1 s", "clips.max=4 s", "scores.text=off"):
            command += ["--set", change]
        return self._spawn(self._here, command)

    def wait_for_work(self, out: Path, job: "subprocess.Popen[bytes]") -> None:
        """Wait until the other node works on sources, and something is in the dataset."""
        deadline = time.monotonic() + 300
        while not (any("SourceActor" in each for each in self._titles()) and list(out.glob("clips/part-*.parquet"))):
            assert job.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def cut(self) -> None:
        """Pull the cable out: no packet gets through, and nobody is told."""
        _ip("-n", self._here, "link", "set", "cable", "down")

    def join(self) -> None:
        """Put the cable in again."""
        _ip("-n", self._here, "link", "set", "cable", "up")

    def kill_raylet(self) -> None:
        """SIGKILL to the other node's raylet, and to nothing else."""
        [raylet] = [each for each in self._processes(self._there) if each.name() == "raylet"]
        raylet.send_signal(signal.SIGKILL)

    def end_other(self) -> None:
        """Kill what is left of the other node."""
        for each in self._processes(self._there):
            with suppress(psutil.Error):
                each.kill()

    def log(self) -> str:
        """What the nodes and jobs have printed last."""
        return (self._folder / "log").read_text()[-4000:]

    def _start(self, name: str, *options: str) -> None:
        self._spawn(name, [sys.executable, "-m", "ray.scripts.scripts", "start", *options])

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(self._in(name, *command), env=self.environment, stdout=log, stderr=log)

    def _in(self, name: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", name, *command]

    def _titles(self) -> list[str]:
        titles = []
        for each in self._processes(self._there):
            with suppress(psutil.Error):
                titles.append(" ".join(each.cmdline()))
        return titles

    def _processes(self, name: str) -> list[psutil.Process]:
        found = []
        for pid in _ip("netns", "pids", name).split():
            with suppress(psutil.Error):
                found.append(psutil.Process(int(pid)))
        return found


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Make the namespaces and the cable, and start both nodes."""
    mark = f"{random.SystemRandom().randrange(10**6):06d}"
    names = (f"clipmill-{mark}-a", f"clipmill-{mark}-b")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, (HEAD, OTHER), strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", name, "link", "set", device, "up")
        nodes = TwoNodes(folder, names)
        nodes.start_head()
        nodes.start_other()
        yield nodes
    finally:
        for name in names:
            for pid in _run("netns", "pids", name).stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _run("netns", "delete", name)


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["ip", *words], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.fail("no ip on this machine: apt-get install iproute2 (deploy/system-packages.sh does it)")


def _ip(*words: str) -> str:
    done = _run(*words)
    if done.returncode and "Operation not permitted" in done.stderr:
        pytest.fail(
            f"ip {' '.join(words)}: {done.stderr.strip()}: run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN (in a "
            "container: --privileged), e.g. sudo make test-long"
        )
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout
