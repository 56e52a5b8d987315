"""A lock on an object store, which has none: a small object says who writes below it, and is renewed while they do.

    with leased(storage): ...

Who finds the object waits to see whether it changes: if it does, its owner lives, and `Held` is raised. One whose owner
has died (at once, if that was a process of this machine; else after `SILENT_S` without a renewal) is replaced. No
clocks are compared. A process that finds that it was replaced, because it was cut off from the store for so long, ends
itself on the spot: what it would write from then on is another's to write.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from curation.storage import Storage

NAME = ".lease.json"
RENEW_S = 10.0
SILENT_S = 60.0
_SETTLE_S = 3.0  # two who replace an object at the same moment see after this whose was last
_LOST = 75  # exit code: EX_TEMPFAIL
log = logging.getLogger("clipmill.lease")


class Held(Exception):
    """Somebody else holds it. The message says who."""


@contextmanager
def leased(storage: Storage) -> Iterator[None]:
    """Hold the lease of a folder on an object store while the block runs.

    Raises:
        Held: somebody else holds it.
        OSError: the store does not answer.
    """
    mine = _acquire(storage)
    over = threading.Event()
    thread = threading.Thread(target=_renew, args=(storage, mine, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if _read(storage).get("id") == mine["id"]:
            storage.remove(NAME)


def _acquire(storage: Storage) -> dict[str, Any]:
    mine = {"id": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid(), "renewed": 0}
    mine["born"] = _born(os.getpid())
    with suppress(FileExistsError):
        storage.create(NAME, _bytes(mine))
        return mine
    found = _read(storage)
    if found == mine:  # created by the first of two tries, of which the store said that it failed
        return mine
    if found and not _is_dead(found):
        _watch(storage, found)
    storage.write(NAME, _bytes(mine))
    time.sleep(_SETTLE_S)
    if (found := _read(storage)) != mine:
        raise Held(_said_of(found))
    return mine


def _watch(storage: Storage, owner: dict[str, Any]) -> None:
    """Wait until the owner has been silent for so long that it must be dead. Raises Held when it is not."""
    log.warning("%s: %s; waiting up to %g s to see whether it lives", storage.root, _said_of(owner), SILENT_S)
    began = time.monotonic()
    while time.monotonic() - began < SILENT_S:
        time.sleep(min(RENEW_S / 2, SILENT_S))
        found = _read(storage)
        if not found:
            return
        if found != owner:
            raise Held(_said_of(found))


def _renew(storage: Storage, mine: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(RENEW_S):
        try:
            found = _read(storage)
            if found.get("id") != mine["id"]:
                log.critical("%s: process %s on %s has taken over", storage.root, found.get("pid"), found.get("host"))
                os._exit(_LOST)
            mine["renewed"] += 1
            storage.write(NAME, _bytes(mine))
        except OSError as error:
            log.warning("%s: the lease could not be renewed (%s); trying again", storage.root, error)


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine, and is no more."""
    return owner.get("host") == socket.gethostname() and _born(owner.get("pid")) != owner.get("born")


def _born(pid: object) -> str | None:
    """What tells a process from a later one of the same number: when the machine and the process started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None


def _said_of(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')} is writing to it now"


def _read(storage: Storage) -> dict[str, Any]:
    """What the object says; empty without one."""
    storage.fs.invalidate_cache()
    try:
        return dict(json.loads(storage.read(NAME)))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def _bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
