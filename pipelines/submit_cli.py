"""`clipmill submit`, `status`, `logs`, `stop`: the same job on a cluster, through Ray Jobs.

The cluster gets the spec and, unless `--installed` is given, this checkout's own code (the packages curation, workers,
pipelines and model, about a megabyte); what they depend on must be installed there. `clipmill curate` then runs on the
cluster's head, and its actors wherever Ray places them.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.curate_cli import refuse, resolve
from pipelines.spec import Spec, SpecError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("curation", "workers", "pipelines", "model")

_address = click.option(
    "--address", metavar="URL", envvar="RAY_API_SERVER_ADDRESS", default="http://127.0.0.1:8265", show_default=True,
    help="Of the cluster's Ray dashboard.",
)  # fmt: skip
_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=_SETTINGS)
@click.argument("spec", type=click.Path())
@_address
@click.option("-o", "--output", metavar="OUT", help="Dataset folder or URL; replaces the spec's output.")
@click.option("--installed", is_flag=True, help="Use the clipmill that is installed on the cluster.")
@click.option("--wait", is_flag=True, help="Follow the job; its exit code becomes this command's.")
def submit(spec: str, address: str, output: str | None, installed: bool, wait: bool) -> None:
    """Run SPEC on a cluster. Prints the job's id."""
    try:
        resolved = resolve(spec, output)
    except SpecError as error:
        refuse(str(error))
    with _client(address) as client:
        job = submit_job(client, resolved, installed=installed)
        click.echo(job)
        if wait:
            _follow(client, job)
            sys.exit(0 if _state(client, job) == "SUCCEEDED" else 1)


@click.command(context_settings=_SETTINGS)
@click.argument("job", required=False)
@_address
def status(job: str | None, address: str) -> None:
    """How JOB is doing; without JOB, all jobs that clipmill submitted."""
    with _client(address) as client:
        if job is not None:
            click.echo(_state(client, job))
            return
        for details in client.list_jobs():
            if (details.metadata or {}).get("clipmill"):
                click.echo(f"{details.submission_id}  {_value(details.status):9}  {details.metadata['clipmill']}")


@click.command(context_settings=_SETTINGS)
@click.argument("job")
@_address
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def logs(job: str, address: str, follow: bool) -> None:
    """What JOB has printed."""
    with _client(address) as client:
        if follow:
            _follow(client, job)
        else:
            click.echo(client.get_job_logs(job), nl=False)


@click.command(context_settings=_SETTINGS)
@click.argument("job")
@_address
def stop(job: str, address: str) -> None:
    """Stop JOB. Submitting the same spec again carries it on."""
    with _client(address) as client:
        if not client.stop_job(job):
            refuse(f"{job} is not running ({_state(client, job)})")
        click.echo(f"stopping {job}")


def submit_job(client: "JobSubmissionClient", spec: Spec, *, installed: bool = False) -> str:
    """Hand a spec to Ray Jobs. Returns the job's id.

    Local paths in it are made absolute: they must mean the same on every node (shared storage).
    """
    import importlib

    runtime: dict[str, Any] = {"env_vars": {"PYTHONUNBUFFERED": "1"}}
    if not installed:
        folders = [Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES]
        runtime["py_modules"] = [str(folder) for folder in folders]
        runtime["excludes"] = ["__pycache__"]
    spec = _absolute(spec)
    with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
        Path(folder, "job.yaml").write_text(spec.as_yaml(), encoding="utf-8")
        runtime["working_dir"] = folder
        return _submit_once_ready(
            client,
            entrypoint="python -m pipelines.cli curate job.yaml --address auto",
            runtime_env=runtime,
            metadata={"clipmill": spec.output},
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


def _absolute(spec: Spec) -> Spec:
    from pipelines.inputs import absolute

    inputs = spec.input.model_copy(update={"uris": [absolute(uri) for uri in spec.input.uris]})
    return spec.model_copy(update={"input": inputs, "output": absolute(spec.output)})


@contextmanager
def _client(address: str) -> Iterator["JobSubmissionClient"]:
    """A connection to Ray Jobs; what goes wrong with it is one line and exit code 2."""
    from pipelines.cluster import set_authentication

    set_authentication(address)
    from ray.job_submission import JobSubmissionClient

    try:
        yield JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        refuse(f"Ray at {address}: {str(error).strip().splitlines()[0]}")


def _state(client: "JobSubmissionClient", job: str) -> str:
    return _value(client.get_job_status(job))


def _value(state: Any) -> str:
    return str(getattr(state, "value", state))


def _follow(client: "JobSubmissionClient", job: str) -> None:
    """Print the job's log as it grows, until the job has ended."""
    shown = 0
    while True:
        ended = client.get_job_status(job).is_terminal()
        log = client.get_job_logs(job)
        click.echo(log[shown:], nl=False)
        shown = len(log)
        if ended:
            return
        time.sleep(1.0)
