"""Clipmill's jobs as Ray Jobs: the one place that hands specs to a cluster and asks it how they are.

The cluster gets the spec and, unless told that clipmill is installed there, this checkout's own code (the packages
curation, workers, pipelines and model, about a megabyte); what they depend on must be installed there. `clipmill
curate` then runs on the cluster's head, and its actors wherever Ray places them.

Where clipmill is installed, the spec goes with the command, so that no node has anything to unpack: of two nodes that
share a machine, one that starts deletes what Ray has unpacked for the other.
"""

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pipelines.spec import Spec

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("curation", "workers", "pipelines", "model")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_CURATE = "exec python -m pipelines.cli curate"
_COMMAND_BYTES = 100_000
"""Linux gives a shell commands of up to 128 KiB; a longer spec is uploaded."""
_NOTHING: Mapping[str, str] = MappingProxyType({})
Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]


class RayUnreachable(Exception):
    """The cluster does not answer, or not as Ray does. One line for a person."""


class UnknownRayJob(Exception):
    """The cluster knows no job of this id."""


@dataclass(frozen=True)
class RayJob:
    """What Ray knows of a job.

    Attributes:
        output: the dataset it writes; None for a job that is not one of ours.
        exit_code: of `clipmill curate`; None while it runs, and where Ray could not see it end.
    """

    id: str
    status: Status
    output: str | None
    message: str
    exit_code: int | None

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class RayJobs:
    """Ray Jobs at one address. The connection is made when it is first needed, so that a cluster may be down before."""

    def __init__(self, address: str = DEFAULT_ADDRESS) -> None:
        self.address = address
        self._connected: JobSubmissionClient | None = None

    def _prepare(self) -> None:
        """Say how Ray authenticates before it is imported, and not before it answers: the token of a cluster that is
        being started is made meanwhile. Raises RayUnreachable."""
        from pipelines.cluster import set_authentication

        if "ray" in sys.modules:
            return
        if "RAY_AUTH_MODE" not in os.environ and self.address.startswith("http"):
            import requests  # as Ray's own client does, so by the same proxies and certificates

            try:
                requests.head(self.address, timeout=10)
            except requests.ConnectionError:
                said = "nobody answers there; `clipmill cluster` starts Ray on this machine"
                raise RayUnreachable(f"Ray at {self.address}: {said}") from None
            except OSError as error:
                raise RayUnreachable(f"Ray at {self.address}: {error}") from None
        set_authentication(self.address)

    def _client(self) -> "JobSubmissionClient":
        if self._connected is None:
            from ray.job_submission import JobSubmissionClient

            self._connected = JobSubmissionClient(self.address)
        return self._connected

    @contextmanager
    def _asking(self, job: str | None = None) -> Iterator["JobSubmissionClient"]:
        """A client; what goes wrong becomes RayUnreachable or UnknownRayJob."""
        self._prepare()
        from ray.exceptions import RayError

        try:
            yield self._client()
        except (OSError, RuntimeError, ValueError, RayError) as error:
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if said.startswith("Version check returned"):  # another program's
                said = "does not answer as Ray's dashboard does; the address of `clipmill serve` goes without --ray"
            elif job is not None and "404" in said:
                raise UnknownRayJob(f"Ray at {self.address}: {said}") from None
            raise RayUnreachable(f"Ray at {self.address}: {said}") from None

    def submit(
        self,
        spec: Spec,
        *,
        id: str | None = None,
        installed: bool = False,
        environment: Mapping[str, str] = _NOTHING,
    ) -> str:
        """Hand a spec to Ray Jobs. Returns the job's id; with `id`, a second call with the same one changes nothing.

        Local paths in it are made absolute: they must mean the same on every node (shared storage).

        Args:
            installed: use the clipmill that is installed on the cluster.
            environment: variables of the job's processes. Ray shows them to whoever may look at its jobs.

        Raises:
            RayUnreachable: nothing was submitted.
        """
        runtime: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1", **environment}}
        if not installed:
            folders = [Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES]
            runtime["py_modules"] = [str(folder) for folder in folders]
            runtime["excludes"] = ["__pycache__"]
        spec = absolute_paths(spec)
        command = _command_with(spec) if installed else None
        with self._asking() as client, tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
            if command is None:
                Path(folder, "job.yaml").write_text(spec.as_yaml(), encoding="utf-8")
                runtime["working_dir"] = folder
            try:
                return _submit_once_ready(
                    client,
                    submission_id=id,
                    entrypoint=command or f"{_CURATE} job.yaml --address auto",
                    runtime_env=runtime,
                    metadata={"clipmill": spec.output},
                )
            except RuntimeError as error:
                if id is not None and "already exists" in str(error):
                    return id
                raise

    def get(self, job: str) -> RayJob:
        """One job. Raises RayUnreachable or UnknownRayJob."""
        with self._asking(job) as client:
            return _ray_job(client.get_job_info(job))

    def list(self) -> list[RayJob]:
        """All jobs that clipmill submitted. Raises RayUnreachable."""
        with self._asking() as client:
            found = [_ray_job(details) for details in client.list_jobs() if details.submission_id]
            return [job for job in found if job.output]

    def logs(self, job: str) -> str:
        """What the job has printed so far. Raises RayUnreachable or UnknownRayJob."""
        with self._asking(job) as client:
            return str(client.get_job_logs(job))

    def stop(self, job: str) -> bool:
        """Stop a job; False when it has ended already. Raises RayUnreachable or UnknownRayJob."""
        with self._asking(job) as client:
            return bool(client.stop_job(job))

    def forget(self, job: str) -> None:
        """Have Ray drop an ended job from its list. Raises RayUnreachable or UnknownRayJob."""
        with self._asking(job) as client:
            client.delete_job(job)

    def cpus_and_gpus(self) -> tuple[float, float]:
        """What the cluster has in all. Raises RayUnreachable."""
        with self._asking() as client:
            answer = client._do_request("GET", "/api/v0/nodes?detail=1&limit=10000")
            if answer.status_code != 200:
                raise RuntimeError(f"/api/v0/nodes answers {answer.status_code}")
            nodes = [node for node in answer.json()["data"]["result"]["result"] if node["state"] == "ALIVE"]
            total = [sum(float(node["resources_total"].get(kind, 0.0)) for node in nodes) for kind in ("CPU", "GPU")]
            return total[0], total[1]


def absolute_paths(spec: Spec) -> Spec:
    """The spec with its local paths made absolute, from the folder of this process."""
    from pipelines.inputs import absolute

    inputs = spec.input.model_copy(update={"uris": [absolute(uri) for uri in spec.input.uris]})
    return spec.model_copy(update={"input": inputs, "output": absolute(spec.output)})


def _command_with(spec: Spec) -> str | None:
    """The shell's command that carries the spec itself; None where that would be too long."""
    # In the YAML of a mapping every line is a key or is indented, so none is the word that ends it.
    command = f"{_CURATE} - --address auto <<'END'\n{spec.as_yaml()}END\n"
    return command if len(command.encode()) <= _COMMAND_BYTES else None


def _ray_job(details: Any) -> RayJob:
    return RayJob(
        id=str(details.submission_id),
        status=getattr(details.status, "value", details.status),
        output=(details.metadata or {}).get("clipmill"),
        message=str(details.message or ""),
        exit_code=details.driver_exit_code,
    )


def _submit_once_ready(client: "JobSubmissionClient", patience_s: float = 60.0, **job: Any) -> str:
    """Submit; a cluster that has just started answers before the agent that takes jobs is up, so that is waited for."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1.0)
