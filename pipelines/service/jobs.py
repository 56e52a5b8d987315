"""The service's jobs. Each is a dataset directory below one root; Ray runs it; a thread keeps all of them going.

What a job is doing follows from its record (`service.json`) and from what Ray says of its last attempt. Neither is kept
anywhere else, so a service that is killed and started again shows the same jobs and goes on with them. A job whose
driver died (a kill, a lost node, a lost cluster) is started again; one that ended by itself is not.
"""

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from curation.input_policy import VARIABLE, Forbidden, InputPolicy
from curation.location import local_path
from curation.storage import Storage
from pipelines.dataset import Dataset
from pipelines.inputs import absolute
from pipelines.live import KEPT, LiveJob, read_live
from pipelines.preflight import Refused, check_weights, open_output, plan_pools
from pipelines.ray_jobs import RayJob, RayJobs, RayUnreachable, UnknownRayJob
from pipelines.service.queue import next_to_start
from pipelines.service.record import (
    ENDED,
    JOB_ID,
    BadRecord,
    Record,
    State,
    is_job_id,
    now,
    read_record,
    write_record,
)
from pipelines.service.tally import Tallies, Tally
from pipelines.spec import Spec, SpecError, parse_spec, read_yaml_text

LOG = "service.log"
_LOG_BYTES = 16 << 20
_MOST_DEATHS = 3
_TICK_S = 1.0
_NOT_SCHEDULED = "could not be scheduled"  # Ray's message of a job that no node took: so it is while a node is ended
_PAUSE_S = 5.0

log = logging.getLogger("clipmill.service")


class JobError(Exception):
    """A request that cannot be met. `status` is the HTTP status that says so; the message is one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Job:
    """A job as others see it."""

    record: Record
    state: State
    output: str
    place: int | None  # in the queue, from 1


class Jobs:
    """All jobs of a service. Every method may be called from any thread."""

    def __init__(
        self, root: str, ray: RayJobs, policy: InputPolicy, *, limit: int = 2, installed: bool = False
    ) -> None:
        """Read the jobs that are there; `keep_going` starts working on them.

        Args:
            root: folder or URL below which every job has its dataset directory.
            limit: how many jobs may run at once.
            installed: the cluster has clipmill; do not send this checkout's code with each job.
        """
        self.root = Storage(absolute(root))
        self.policy = policy
        self._ray, self._limit, self._installed = ray, limit, installed
        self._lock = threading.RLock()
        self._wake, self._over = threading.Event(), threading.Event()
        self._seen: dict[str, RayJob] = {}
        self._records: dict[str, Record] = {}
        self._not_before: dict[str, float] = {}  # by job, on the monotonic clock
        self._cpus: float | None = None
        self.tallies = Tallies()
        if self.root.is_local:
            os.makedirs(self.root.path(), exist_ok=True)
        for name in self._folders():
            try:
                record = read_record(self.storage(name), name)
            except BadRecord as error:
                log.error("%s; the folder is left alone", error)
                continue
            if record is not None:
                self._records[name] = record
        for record in [each for each in self._records.values() if each.wanted == "delete"]:
            self._delete_files(record.id)

    # What others ask for

    def list(self) -> list[Job]:
        """All jobs, the one submitted last first."""
        with self._lock:
            ordered = sorted(self._records.values(), key=lambda each: (each.submitted, each.id), reverse=True)
            return [self._job(record) for record in ordered]

    def get(self, job: str) -> Job:
        """One job. Raises JobError(404)."""
        with self._lock:
            record = self._records.get(job)
            if record is None:
                raise JobError(404, f"no job is called {job!r}")
            return self._job(record)

    def spec(self, job: str) -> Spec:
        """The resolved spec of a job. Raises JobError."""
        self.get(job)
        return self._spec(job)

    def submit(self, data: Any, owner: str) -> Job:
        """Take a job in: its spec is checked, its folder made, and its turn will come.

        Raises:
            JobError: 422 a spec that cannot be run, 403 an input that may not be read, 409 an output that is taken,
                503 a cluster that is down.
        """
        try:
            spec = parse_spec(data, "spec")
        except SpecError as error:
            raise JobError(422, str(error)) from None
        name = self._name(spec.output)
        with self._lock:
            if name in self._records:
                raise JobError(409, f"output {name} is taken by a job of {self._records[name].owner}; choose another")
        self._check_inputs(spec)
        spec = self._with_share(spec)
        spec = spec.model_copy(update={"output": self.root.url(name)})
        with self._lock:
            if name in self._records:
                raise JobError(409, f"output {name} is taken by a job of {self._records[name].owner}; choose another")
            try:
                open_output(spec)
                cpus = float(spec.resources.cpus or 1)
                record = Record(name, owner, now(), cpus, epoch=secrets.token_hex(4))
                self._write(record)
            except Refused as error:
                raise JobError(409, str(error)) from None
            except OSError as error:
                raise JobError(507, f"{name}: cannot write there ({error.strerror or error})") from None
            log.info("job %s submitted by %s", name, owner)
            self._wake.set()
            return self._job(record)

    def cancel(self, job: str) -> Job:
        """Stop a job, or take it out of the queue. What it has finished is kept. Raises JobError."""
        with self._lock:
            now_ = self.get(job)
            if now_.state in ENDED:
                raise JobError(409, f"{job} has ended already ({now_.state})")
            record = now_.record.but(wanted="stop")
            if not record.launched:
                record = record.but(ended="cancelled", finished=now(), message=None)
            self._write(record)
            self._wake.set()
            return self._job(record)

    def resume(self, job: str) -> Job:
        """Put a job that has ended into the queue again; it goes on from where it is. Raises JobError."""
        with self._lock:
            now_ = self.get(job)
            if now_.state not in ENDED:
                raise JobError(409, f"{job} has not ended ({now_.state}); there is nothing to resume")
            fresh = {"ended": None, "finished": None, "message": None, "launched": False, "deaths": 0}
            self._write(now_.record.but(wanted="run", submitted=now(), **fresh))
            self._wake.set()
            return self.get(job)

    def delete(self, job: str) -> None:
        """Delete an ended job and its dataset. Raises JobError."""
        with self._lock:
            now_ = self.get(job)
            if now_.state not in ENDED:
                raise JobError(409, f"{job} has not ended ({now_.state}); cancel it first")
            self._write(now_.record.but(wanted="delete"))
            self._delete_files(job)
        log.info("job %s deleted", job)
        with suppress(RayUnreachable, UnknownRayJob):
            self._ray.forget(now_.record.ray_id)

    def progress(self, job: str) -> tuple[LiveJob | None, Tally]:
        """What a job last said of itself, be it running or not, and what its dataset holds. Raises JobError."""
        self.get(job)
        return read_live(self.storage(job)), self.tallies.of(Dataset(self.storage(job).root))

    def logs(self, job: str) -> str:
        """What a job has printed, all attempts. Raises JobError."""
        found = self.get(job).record
        saved = self._saved_log(job)
        if found.launched and not found.ended:
            with suppress(UnknownRayJob):
                try:
                    return saved + _headline(found) + self._ray.logs(found.ray_id)
                except RayUnreachable as error:
                    raise JobError(503, str(error)) from None
        return saved

    @property
    def ray(self) -> RayJobs:
        return self._ray

    def storage(self, job: str) -> Storage:
        """The dataset directory of a job."""
        return Storage(self.root.url(job))

    # The thread that keeps the jobs going

    def keep_going(self) -> Callable[[], None]:
        """Start the thread. Returns what ends it; the jobs go on without it."""

        def work() -> None:
            while not self._over.is_set():
                try:
                    self.tick()
                except Exception:  # a fault here must not end the service; it is tried again
                    log.exception("keeping the jobs going")
                self._wake.wait(_TICK_S)
                self._wake.clear()

        thread = threading.Thread(target=work, name="clipmill-jobs", daemon=True)
        thread.start()

        def end() -> None:
            self._over.set()
            self._wake.set()
            thread.join(10.0)

        return end

    def tick(self) -> None:
        """Ask Ray once, take note of what has ended, and start what may start."""
        try:
            seen = {job.id: job for job in self._ray.list()}
            self._cpus = self._ray.cpus_and_gpus()[0]
        except RayUnreachable as error:
            log.debug("%s", error)
            return
        with self._lock:
            self._seen = seen
            active = [record for record in self._records.values() if record.launched and record.ended is None]
        for record in active:
            self._settle(record, seen.get(record.ray_id))
        self._start_what_may(self._cpus)

    def _start_what_may(self, cpus: float) -> None:
        while True:
            with self._lock:
                waiting = [each for each in self._records.values() if not each.launched and each.ended is None]
                waiting = [each for each in waiting if self._not_before.get(each.id, 0.0) <= time.monotonic()]
                active = [each for each in self._records.values() if each.launched and each.ended is None]
                record = next_to_start(waiting, active, self._limit, cpus)
                if record is None:
                    return
                done = self.tallies.of(Dataset(self.storage(record.id).root)).sources_done
                record = record.but(
                    launched=True, seen=False, attempt=record.attempt + 1, started=now(), sources_done=done
                )
                self._write(record)
            try:
                limits = {VARIABLE: self.policy.dumps(), "CLIPMILL_JOB": record.id}
                spec = self._spec(record.id)
                self._ray.submit(spec, id=record.ray_id, installed=self._installed, environment=limits)
                log.info("job %s handed to Ray as %s", record.id, record.ray_id)
            except RayUnreachable as error:
                log.warning("job %s: %s", record.id, error)
                return  # Ray will not know its id: then it is queued again
            except JobError as error:
                self._write(record.but(ended="failed", finished=now(), message=str(error)))

    def _settle(self, record: Record, seen: RayJob | None) -> None:
        """Take note of what has become of an attempt."""
        if seen is not None and not seen.ended:
            if not record.seen:
                with self._lock:
                    self._write(self._records.get(record.id, record).but(seen=True))
            if record.wanted == "stop":
                with suppress(RayUnreachable, UnknownRayJob):
                    self._ray.stop(record.ray_id)
            return
        if seen is not None:
            self._save_log(record)
        with self._lock:
            record = self._records.get(record.id, record)
            if record.ended is not None:
                return
            self._write(self._after(record, seen))

    def _after(self, record: Record, seen: RayJob | None) -> Record:
        """The record once an attempt is over: ended, or in the queue again. `seen` is None where Ray forgot it."""
        if seen is not None and seen.status == "SUCCEEDED":
            return record.but(ended="succeeded", finished=now(), message=None)
        if record.wanted == "stop":
            return record.but(ended="cancelled", finished=now(), message=None)
        if seen is not None and seen.status == "STOPPED":
            return record.but(ended="cancelled", finished=now(), message="stopped through Ray")
        reason = self._reason(record)
        if seen is not None and _ended_by_itself(seen, reason):
            return record.but(ended="failed", finished=now(), message=reason or seen.message)
        if seen is None and not record.seen:  # it never got there: the same attempt again, under the same id
            said = "Ray has not taken the job yet; trying again"
            return record.but(launched=False, attempt=record.attempt - 1, message=said)
        if seen is not None and seen.exit_code is None and _NOT_SCHEDULED in seen.message:
            self._not_before[record.id] = time.monotonic() + _PAUSE_S
            return record.but(launched=False, message="no node of the cluster took the job")
        said = "Ray lost the job" if seen is None else f"the driver died ({_first_line(seen.message)})"
        if seen is not None and (seen.exit_code or 0) > 0 and reason:
            said += f": {reason}"
        done = self.tallies.of(Dataset(self.storage(record.id).root)).sources_done
        deaths = 1 if done > record.sources_done else record.deaths + 1
        if deaths >= _MOST_DEATHS:
            said += f", {deaths} times without finishing a source"
            return record.but(ended="failed", finished=now(), message=said, deaths=deaths)
        log.warning("job %s: %s; it is started again", record.id, said)
        return record.but(launched=False, message=f"{said}; started again", deaths=deaths)

    # What they share

    def _job(self, record: Record) -> Job:
        place = None
        state: State
        if record.ended is not None:
            state = record.ended
        elif record.wanted == "stop":
            state = "stopping"
        elif not record.launched:
            state = "queued"
            waiting = [each for each in self._records.values() if not each.launched and each.ended is None]
            place = 1 + sorted(waiting, key=lambda each: (each.submitted, each.id)).index(record)
        else:
            seen = self._seen.get(record.ray_id)
            state = "starting" if seen is None or seen.status == "PENDING" else "running"
        return Job(record, state, self.root.url(record.id), place)

    def _folders(self) -> Iterable[str]:
        if not self.root.exists():
            return []
        entries = self.root.fs.ls(self.root.path(), detail=True)
        names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
        real = [name for name in names if not (self.root.is_local and os.path.islink(self.root.path(name)))]
        return [name for name in real if is_job_id(name)]

    def _name(self, output: str) -> str:
        """The name of the folder that a spec's output means. Raises JobError(422)."""
        name = output.rstrip("/")
        for base in (self.root.url(), self.root.root.rstrip("/")):
            name = name.removeprefix(base.rstrip("/") + "/")
        if not is_job_id(name):
            raise JobError(
                422, f"spec: output: {output!r} is not a name; the service makes a folder of it ({JOB_ID.strip('^$')})"
            )
        if self.root.is_local and os.path.islink(self.root.path(name)):
            raise JobError(409, f"output {name} is a link; choose another")
        return name

    def _check_inputs(self, spec: Spec) -> None:
        for uri in spec.input.uris:
            try:
                self.policy.check(uri)
            except Forbidden as error:
                raise JobError(403, f"spec: input.uris: {error}") from None
            path = local_path(uri)
            if path is not None and path.startswith("/") and not set(path) & set("*?[") and not os.path.exists(path):
                raise JobError(422, f"spec: input.uris: {uri}: no such file or folder")

    def _with_share(self, spec: Spec) -> Spec:
        """The spec with its share of the cluster's CPUs written into it. Raises JobError where it cannot run."""
        try:
            check_weights(spec)
            cpus, gpus = self._ray.cpus_and_gpus()
            share = min(spec.resources.cpus or max(1, int(cpus / self._limit)), max(1, int(cpus)))
            try:
                plan_pools(spec, share, gpus)
            except Refused:
                if spec.resources.cpus is not None:
                    raise
                share = max(1, int(cpus))  # too large for a share: it runs alone
                plan_pools(spec, share, gpus)
        except Refused as error:
            raise JobError(422, f"spec: {error}") from None
        except RayUnreachable as error:
            raise JobError(503, f"the cluster is down, the job was not taken: {error}") from None
        return spec.model_copy(update={"resources": spec.resources.model_copy(update={"cpus": share})})

    def _spec(self, job: str) -> Spec:
        try:
            return parse_spec(read_yaml_text(self.storage(job).read("job.yaml"), f"{job}/job.yaml"), f"{job}/job.yaml")
        except (OSError, SpecError) as error:
            raise JobError(500, f"{job}: its spec cannot be read ({error})") from None

    def _write(self, record: Record) -> None:
        write_record(self.storage(record.id), record)
        self._records[record.id] = record

    def _delete_files(self, job: str) -> None:
        """Delete a dataset directory; what makes it a job goes last, so that a kill leaves something to go on with."""
        storage = self.storage(job)
        for entry in storage.fs.ls(storage.path(), detail=True):
            if not str(entry["name"]).endswith("/service.json"):
                storage.fs.rm(entry["name"], recursive=True)
        storage.fs.rm(storage.path(), recursive=True)
        self._records.pop(job, None)
        self._not_before.pop(job, None)
        self.tallies.forget(Dataset(storage.root))

    def _saved_log(self, job: str) -> str:
        try:
            return self.storage(job).read(LOG).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _save_log(self, record: Record) -> None:
        """Keep what an attempt has printed: Ray forgets it with its cluster."""
        with suppress(RayUnreachable, UnknownRayJob, OSError):
            text = self._ray.logs(record.ray_id)
            head = _headline(record)
            saved = self._saved_log(record.id)
            if head not in saved:
                whole = (saved + head + text).encode()
                self.storage(record.id).write(LOG, whole[-_LOG_BYTES:])

    def _reason(self, record: Record) -> str | None:
        """The last thing that `clipmill curate` said about itself in this attempt."""
        printed = self._saved_log(record.id).rpartition(_headline(record))[2]
        said = [line for line in printed.splitlines() if line.startswith("clipmill: ")]
        return said[-1].removeprefix("clipmill: ") if said else None


def _ended_by_itself(seen: RayJob, reason: str | None) -> bool:
    """Whether a driver has said its last word: see `pipelines.curate_cli.run`. With 1 it also ends when its raylet is
    gone."""
    return seen.exit_code in (0, 2) or (seen.exit_code == 1 and reason is not None and KEPT in reason)


def _headline(record: Record) -> str:
    return f"--- attempt {record.attempt}, started {record.started}\n"


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason given"
    return line.partition(", last available logs")[0]
