"""Ray Jobs that do what a test says, at once: for what the service does around them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipelines.ray_jobs import RayJob, RayJobs, RayUnreachable, Status, UnknownRayJob
from pipelines.spec import Spec


@dataclass
class FakeRay(RayJobs):
    """A cluster of `cpus` CPUs. Jobs stay as they were submitted until `set` says otherwise."""

    cpus: float = 4.0
    up: bool = True
    fate: Status = "PENDING"
    last_words: str = "clipmill: the disk is full; what is finished is kept. Continue with: clipmill curate job.yaml"

    def __post_init__(self) -> None:
        self.address = "http://ray.test"
        self.jobs: dict[str, RayJob] = {}
        self.environments: list[Mapping[str, str]] = []
        self.specs: list[Spec] = []

    def _there(self) -> None:
        if not self.up:
            raise RayUnreachable(f"Ray at {self.address}: connection refused")

    def set(self, output: str, status: Status, exit_code: int | None = None, message: str = "") -> None:
        """Say how the last job on that output is."""
        job = [each for each in self.jobs.values() if (each.output or "").rpartition("/")[2] == output][-1]
        self.jobs[job.id] = replace(job, status=status, exit_code=exit_code, message=message)

    def submit(
        self, spec: Spec, *, id: str | None = None, installed: bool = False, environment: Mapping[str, str] = {}
    ) -> str:
        self._there()
        assert id is not None
        self.specs.append(spec)
        self.environments.append(environment)
        self.jobs.setdefault(id, RayJob(id, self.fate, spec.output, "", None))
        return id

    def list(self) -> list[RayJob]:
        self._there()
        return list(self.jobs.values())

    def get(self, job: str) -> RayJob:
        self._there()
        if job not in self.jobs:
            raise UnknownRayJob(f"no job {job}")
        return self.jobs[job]

    def logs(self, job: str) -> str:
        return f"log of {self.get(job).output}\n{self.last_words}\n"

    def stop(self, job: str) -> bool:
        there = self.get(job)
        if not there.ended:
            self.jobs[job] = replace(there, status="STOPPED")
        return not there.ended

    def forget(self, job: str) -> None:
        self.get(job)
        del self.jobs[job]

    def cpus_and_gpus(self) -> tuple[float, float]:
        self._there()
        return self.cpus, 0.0
