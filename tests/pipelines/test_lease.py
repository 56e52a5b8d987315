"""Two who would write to one folder on an object store: one does, the other is told who it is."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pipelines.lease
from curation.storage import Storage
from pipelines.lease import NAME, Held, leased
from pipelines.preflight import Refused, locked
from tests.pipelines.conftest import Faults

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(300)]

HOLD = """
import sys
from curation.storage import Storage
from pipelines.lease import leased
with leased(Storage(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_S", 0.2), ("SILENT_S", 3.0), ("_SETTLE_S", 0.2)):
        monkeypatch.setattr(pipelines.lease, name, seconds)


@pytest.fixture
def storage(s3: Any, request: pytest.FixtureRequest) -> Storage:
    return Storage(f"s3://films/lease/{request.node.name}")


def holder(storage: Storage) -> "subprocess.Popen[bytes]":
    """Another process that holds the lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, storage.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_one_at_a_time(storage: Storage) -> None:
    with leased(storage):
        with pytest.raises(Refused, match=r"lease/.*: process \d+ on .* is writing to it now"), locked(storage):
            pass
        assert storage.exists(NAME)
    assert not storage.exists(NAME)
    with locked(storage):
        pass


def test_a_process_of_this_machine_that_was_killed_is_replaced_at_once(storage: Storage) -> None:
    process = holder(storage)
    process.kill()
    process.wait()
    began = time.monotonic()
    with leased(storage):
        assert time.monotonic() - began < pipelines.lease.SILENT_S


def test_one_elsewhere_is_replaced_when_it_falls_silent(storage: Storage) -> None:
    storage.fs.pipe_file(storage.path(NAME), json.dumps({"id": "x", "host": "elsewhere", "pid": 1}).encode())
    began = time.monotonic()
    with leased(storage):
        assert time.monotonic() - began >= pipelines.lease.SILENT_S


def test_one_elsewhere_that_lives_is_not_replaced(storage: Storage) -> None:
    over = threading.Event()

    def live() -> None:
        renewed = 0
        while not over.wait(0.1):
            renewed += 1
            data = {"id": "x", "host": "elsewhere", "pid": 1, "renewed": renewed}
            storage.fs.pipe_file(storage.path(NAME), json.dumps(data).encode())

    storage.fs.pipe_file(storage.path(NAME), json.dumps({"id": "x", "host": "elsewhere", "pid": 1}).encode())
    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(Held, match="process 1 on elsewhere"), leased(storage):
            pass
    finally:
        over.set()
        thread.join()


def test_of_two_who_replace_a_dead_one_at_once_one_has_it(storage: Storage) -> None:
    storage.fs.pipe_file(storage.path(NAME), json.dumps({"id": "x", "host": "elsewhere", "pid": 1}).encode())
    held, refused, ready = [], [], threading.Barrier(2)

    def take() -> None:
        ready.wait()
        try:
            with leased(Storage(storage.root)):
                held.append(1)
                while not refused:
                    time.sleep(0.01)
        except Held:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_who_was_replaced_ends_itself(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def end(code: int) -> None:
        ended.set()
        raise SystemExit(code)  # of the thread

    monkeypatch.setattr("os._exit", end)
    with leased(storage):
        storage.fs.pipe_file(storage.path(NAME), json.dumps({"id": "another"}).encode())
        assert ended.wait(30)
    assert json.loads(storage.read(NAME)) == {"id": "another"}, "it is not ours to take away"


def test_a_busy_store_does_not_lose_it(storage: Storage, s3_faults: Faults) -> None:
    s3_faults.share, before = 0.3, s3_faults.seen.total()
    try:
        with leased(storage):
            while s3_faults.seen.total() - before < 5:  # renewals go wrong meanwhile
                time.sleep(0.05)
            assert json.loads(storage.read(NAME))["pid"] > 0
    finally:
        s3_faults.share = 0.0


def test_two_services_do_not_work_on_one_root(storage: Storage, tmp_path: Path) -> None:
    process = holder(storage)
    try:
        command = [sys.executable, "-m", "pipelines.cli", "serve", storage.root, "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 2
        assert f"process {process.pid} on" in done.stderr + done.stdout
        assert "is writing to it now" in done.stderr + done.stdout
    finally:
        process.kill()
        process.wait()
