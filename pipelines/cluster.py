"""The Ray that a job runs on: one started for it on this machine, or a cluster that is there already."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pipelines.live import KEPT


class ClusterError(Exception):
    """Ray cannot be started or reached. One line for a person."""


NO_RAY = 69
"""Exit code of a command that has no Ray (any more): EX_UNAVAILABLE."""


@contextmanager
def cluster(address: str | None = None, cpus: int | None = None) -> Iterator[float]:
    """Connect to Ray, and give the number of its CPUs.

    Args:
        address: of a running cluster; without it (and without RAY_ADDRESS) Ray is started on this machine, and ended
            with the block. Where Ray is already connected in this process, that connection is used and kept.
        cpus: of the Ray that is started.

    Raises:
        ClusterError: see above.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if "ray" not in sys.modules:  # both are read by Ray when it is imported
        set_authentication(address)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its log is in its session folder; ours is short
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources().get("CPU", 0.0)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # the command's own priority, not Ray's 15: `nice` is the user's
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _quiet():
            if address:
                _knock(address)
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            else:
                start(cpus or local_cpus(), include_dashboard=False)
    except Exception as error:  # Ray raises plain Exception, too, where a process of its own did not come up
        where = f"Ray at {address} cannot be reached" if address else "Ray cannot be started"
        raise ClusterError(f"{where}: {str(error).splitlines()[0]}") from error
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has its own by now, which prints a stack
    try:
        with nullcontext() if address else _watched():
            yield ray.cluster_resources().get("CPU", 0.0)
    finally:
        end()


def _knock(address: str) -> None:
    """Raises OSError when nobody listens at HOST:PORT, for which Ray itself waits for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()


@contextmanager
def _watched() -> Iterator[None]:
    """End this process with `NO_RAY`, and say so, when one of the processes that Ray cannot be without has died.

    Ray itself would end it, after up to a minute and often without a word. No call to Ray returns any more, so there is
    no unwinding: it is as if this process had been killed too.
    """
    from ray._private import worker

    node, over = worker._global_node, threading.Event()
    vital = [info.process for name in ("raylet", "gcs_server") for info in node.all_processes[name]]

    def watch() -> None:
        while not over.wait(0.5):
            if any(process.poll() is not None for process in vital):
                say = f"clipmill: Ray has died (it was killed, or memory ran out); {KEPT}: the same command goes on"
                print(f"\n{say}", file=sys.stderr, flush=True)
                node.kill_all_processes(check_alive=False)
                os._exit(NO_RAY)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def end(patience_s: float = 20.0) -> None:
    """End the Ray that this process started, or its connection.

    Ray says goodbye to its server by a call without a deadline, and once, on a busy machine, waited for ever for an
    answer that did not come. So after `patience_s` the processes that were started here are killed: the call fails
    then, and Ray goes on ending. Ctrl-C, which has led here perhaps, is not listened to meanwhile: it would leave this
    half done, for Python's end to do again.
    """
    import ray
    from ray._private import worker

    if worker._global_node is None:
        return
    guard = threading.Timer(patience_s, worker._global_node.kill_all_processes, kwargs={"check_alive": False})
    guard.daemon = True
    guard.start()
    with _uninterrupted():
        try:
            ray.shutdown()
        finally:
            guard.cancel()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C while the block runs (in the main thread, the only one that it interrupts)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start(cpus: int, attempts: int = 3, **options: Any) -> None:
    """Start Ray here. It gives its own processes 30 s, which a busy machine can exceed: so it is tried again."""
    import ray

    for attempt in range(1, attempts + 1):
        try:
            ray.init(address="local", num_cpus=cpus, log_to_driver=False, **{"logging_level": logging.ERROR} | options)
            return
        except Exception as error:
            ray.shutdown()
            if attempt == attempts or "timed out during startup" not in str(error):
                raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray's C++ code prints while it starts off the terminal; errors come as exceptions."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def local_cpus() -> int:
    """CPUs of this machine that this process may use."""
    return len(os.sched_getaffinity(0))


def set_authentication(address: str | None) -> None:
    """Say how Ray authenticates, unless the environment does (RAY_AUTH_MODE), because Ray's clients and servers guess
    differently.

    Ray listens on every interface, so a Ray of our own gets a token that lives as long as it does. A cluster is met
    with the token of this user, if there is one (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token).
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    if address is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    variables = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    has_token = bool(variables) or (Path.home() / ".ray" / "auth_token").exists()
    os.environ["RAY_AUTH_MODE"] = "token" if has_token else "disabled"


def make_token() -> Path:
    """The file of this user's Ray token, made if there is none, and readable by nobody else. (Ray's own is 0644.)"""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        path.chmod(0o600)
    return path
