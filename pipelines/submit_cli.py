"""`clipmill submit`, `status`, `logs`, `stop`, `resume`, `list`: jobs on a cluster, through the service or without it.

By default they speak to a running `clipmill serve`. With `--ray` they go straight to Ray Jobs: nobody's turn is waited
for, and nothing starts a job again whose driver died.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from pipelines.curate_cli import refuse, resolve
from pipelines.ray_jobs import DEFAULT_ADDRESS, RayJobs, RayUnreachable, UnknownRayJob
from pipelines.service.client import Client, ServiceError
from pipelines.spec import SpecError

_address = click.option(
    "--address", metavar="URL",
    help="Of the service (default: $CLIPMILL_ADDRESS or http://127.0.0.1:8080); with --ray, of the cluster's Ray "
    f"dashboard (default: $RAY_API_SERVER_ADDRESS or {DEFAULT_ADDRESS}).",
)  # fmt: skip
_ray = click.option("--ray", is_flag=True, help="Go straight to Ray Jobs; the job's id is then Ray's.")
_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=_SETTINGS)
@click.argument("spec", type=click.Path())
@_address
@_ray
@click.option("-o", "--output", metavar="OUT", help="Dataset folder or URL; replaces the spec's output.")
@click.option("--installed", is_flag=True, help="With --ray: use the clipmill that is installed on the cluster.")
@click.option("--wait", is_flag=True, help="Follow the job; its exit code becomes this command's.")
def submit(spec: str, address: str | None, ray: bool, output: str | None, installed: bool, wait: bool) -> None:
    """Run SPEC on a cluster. Prints the job's id.

    The service asks for a token where it listens on more than this machine: it is read from $CLIPMILL_TOKEN.
    """
    try:
        resolved = resolve(spec, output)
    except SpecError as error:
        refuse(str(error))
    with _faults():
        if ray:
            jobs = _ray_jobs(address)
            job = jobs.submit(resolved, installed=installed)
            click.echo(job)
            if wait:
                _follow(jobs, job)
                sys.exit(0 if jobs.get(job).status == "SUCCEEDED" else 1)
            return
        if installed:
            refuse("--installed goes with --ray; for the service it is an option of `clipmill serve`")
        service = Client(address)
        job = service.submit(resolved)
        click.echo(job)
        if wait:
            _print(service.follow(job))
            sys.exit(0 if service.job(job)["state"] == "succeeded" else 1)


@click.command(context_settings=_SETTINGS)
@click.argument("job", required=False)
@_address
@_ray
def status(job: str | None, address: str | None, ray: bool) -> None:
    """How JOB is doing; without JOB, all jobs."""
    with _faults():
        if job is None:
            _list(address, ray)
        elif ray:
            click.echo(_ray_jobs(address).get(job).status)
        else:
            service = Client(address)
            click.echo(describe(service.job(job), service.progress(job)))


@click.command("list", context_settings=_SETTINGS)
@_address
@_ray
def list_jobs(address: str | None, ray: bool) -> None:
    """All jobs, with their state and where they write."""
    with _faults():
        _list(address, ray)


@click.command(context_settings=_SETTINGS)
@click.argument("job")
@_address
@_ray
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def logs(job: str, address: str | None, ray: bool, follow: bool) -> None:
    """What JOB has printed."""
    with _faults():
        if not ray:
            service = Client(address)
            _print(service.follow(job) if follow else [service.logs(job)])
        elif follow:
            _follow(_ray_jobs(address), job)
        else:
            click.echo(_ray_jobs(address).logs(job), nl=False)


@click.command(context_settings=_SETTINGS)
@click.argument("job")
@_address
@_ray
def stop(job: str, address: str | None, ray: bool) -> None:
    """Stop JOB. What it has finished is kept: `clipmill resume` (with --ray, the same submission) carries it on."""
    with _faults():
        if not ray:
            click.echo(f"{job} {Client(address).cancel(job)['state']}")
            return
        jobs = _ray_jobs(address)
        if not jobs.stop(job):
            refuse(f"{job} is not running ({jobs.get(job).status})")
        click.echo(f"stopping {job}")


@click.command(context_settings=_SETTINGS)
@click.argument("job")
@_address
def resume(job: str, address: str | None) -> None:
    """Carry a stopped or failed JOB of the service on from where it is."""
    with _faults():
        click.echo(f"{job} {Client(address).resume(job)['state']}")


def describe(job: dict[str, Any], progress: dict[str, Any]) -> str:
    """A job of the service in one line."""
    from pipelines.progress import sentence

    state = f"queued, {job['place']} in line" if job["place"] else job["state"]
    parts = [state, sentence(progress) if progress["sources_done"] or progress["stage"] else "", job["message"] or ""]
    return ", ".join(part for part in parts if part)


def _list(address: str | None, ray: bool) -> None:
    rows: list[tuple[str, ...]]
    if ray:
        rows = [(each.id, each.status, str(each.output)) for each in _ray_jobs(address).list()]
    else:
        rows = [(job["id"], job["state"], job["owner"], job["output"]) for job in Client(address).jobs()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def _ray_jobs(address: str | None) -> RayJobs:
    return RayJobs(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS)


@contextmanager
def _faults() -> Iterator[None]:
    """What goes wrong between here and the cluster is one line and exit code 2."""
    try:
        yield
    except (RayUnreachable, UnknownRayJob, ServiceError) as error:
        refuse(str(error))


def _print(pieces: Iterator[str] | list[str]) -> None:
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()


def _follow(jobs: RayJobs, job: str) -> None:
    """Print the job's log as it grows, until the job has ended."""
    shown = 0
    while True:
        ended = jobs.get(job).ended
        log = jobs.logs(job)
        _print([log[shown:]])
        shown = len(log)
        if ended:
            return
        time.sleep(1.0)
