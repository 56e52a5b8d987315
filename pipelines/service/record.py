"""What the service knows about a job beyond its spec, kept in the job's dataset directory as `service.json`.

Written before anything is done that it announces, so that a service killed in between finds the job and carries on.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from curation.storage import Storage

NAME = "service.json"
JOB_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
"""A job is called what its dataset folder is called."""

State = Literal["queued", "starting", "running", "stopping", "succeeded", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")


class BadRecord(Exception):
    """A `service.json` that cannot be understood. One line for a person."""


@dataclass(frozen=True)
class Record:
    """One job.

    Attributes:
        id: the name of its folder.
        cpus: its share of the cluster; its actors take no more.
        wanted: what its owner wants of it.
        attempt: how often it was handed to Ray; the last time under the id `ray_id`. 0: not yet.
        launched: whether the last attempt has been handed to Ray, or is about to be.
        seen: whether Ray has been heard to know it.
        deaths: attempts in a row that died without finishing a source.
        sources_done: of the dataset, when the last attempt began.
        ended: how it ended; None while it is queued or running.
        message: why it failed, or what happened last.
    """

    id: str
    owner: str
    submitted: str
    cpus: float
    wanted: Literal["run", "stop"] = "run"
    attempt: int = 0
    launched: bool = False
    seen: bool = False
    deaths: int = 0
    sources_done: int = 0
    started: str | None = None
    finished: str | None = None
    ended: State | None = None
    message: str | None = None
    epoch: str = field(default="")
    """Told apart from a job of the same name that was deleted."""

    @property
    def ray_id(self) -> str:
        """The last attempt's id in Ray."""
        return f"clipmill-{self.id}-{self.epoch}-{self.attempt}"

    def but(self, **changes: Any) -> "Record":
        """The record with some fields changed."""
        return replace(self, **changes)


def now() -> str:
    """The time, as records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_record(storage: Storage, record: Record) -> None:
    """Put a record into the job's dataset directory, atomically. Raises OSError."""
    storage.write(NAME, (json.dumps({"version": 1} | asdict(record), indent=1) + "\n").encode())


def read_record(storage: Storage, name: str) -> Record | None:
    """The record of the dataset `name`; None when it is not the service's job. Raises BadRecord."""
    try:
        data = json.loads(storage.read(NAME))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise BadRecord(f"{storage.url(NAME)}: {error}") from None
    try:
        if data.pop("version") != 1:
            raise BadRecord(f"{storage.url(NAME)}: written by another version of clipmill")
        record = Record(**data)
    except (AttributeError, KeyError, TypeError) as error:
        raise BadRecord(f"{storage.url(NAME)}: not a job's record ({error})") from None
    return record.but(id=name)  # a folder that was moved is called by its new name


def is_job_id(name: str) -> bool:
    """Whether a job may be called so."""
    return re.fullmatch(JOB_ID, name) is not None
