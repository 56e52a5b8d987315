"""`clipmill curate`: run a job in place, or carry one on."""

import shlex
import signal
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from rich.console import Console

from curation import data_files
from curation.location import local_uri
from curation.schema import SCORES
from curation.structured_log import log_if_asked
from pipelines.live import KEPT
from pipelines.spec import Spec, SpecError, parse_spec, read_yaml, read_yaml_text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", metavar="SPEC|FOLDER")
@click.option("-o", "--output", metavar="OUT", help="Dataset folder or URL; replaces the spec's output.")
@click.option("--address", metavar="ADDRESS", help="Run on this Ray cluster (default: RAY_ADDRESS, else this machine).")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key, e.g. clips.mode=exact or decision.rules.motion.coarse.min=1.",
)
def command(what: str, output: str | None, address: str | None, changes: tuple[str, ...]) -> None:
    """Turn videos into a dataset of training clips, with shards and a report.

    SPEC is a job's YAML file (see `clipmill spec template`), or - for standard input. FOLDER (or a video, a glob, a CSV
    or Parquet list, a URL) is curated with the defaults. A job that was stopped is carried on by the same command.
    """
    try:
        spec = resolve(what, output, changes)
    except SpecError as error:
        refuse(str(error))
    again = shlex.join(["clipmill", *sys.argv[1:]])
    run(spec, address, again)


def resolve(what: str, output: str | None, changes: tuple[str, ...] = ()) -> Spec:
    """The spec that the arguments of `clipmill curate` mean. Raises SpecError."""
    if what == "-":
        data, where = read_yaml_text(sys.stdin.buffer.read(), "standard input"), "standard input"
    elif what.endswith((".yaml", ".yml")):
        data, where = read_yaml(what), what
    else:
        data, where = {"input": {"uris": [local_uri(what)]}}, "defaults"
    if isinstance(data, dict):
        if output is not None:
            data["output"] = output
        for change in changes:
            _apply(data, change)
    return parse_spec(data, where)


def _apply(data: dict[str, Any], change: str) -> None:
    """Put `a.b=value` into the data; the value is read as YAML."""
    path, equals, value = change.partition("=")
    if not equals:
        raise SpecError(f"--set {change}: write KEY=VALUE")
    *sections, key = _keys(path.strip())
    for section in sections:
        below = data.setdefault(section, {})
        if not isinstance(below, dict):
            raise SpecError(f"--set {change}: {section} is not a section of the spec")
        data = below
    try:
        data[key] = data_files.read_yaml(value)
    except ValueError as error:
        raise SpecError(f"--set {change}: {error}") from None


def _keys(path: str) -> list[str]:
    """The parts of a.b.c; a score's name is one, though it has a dot: decision.rules.motion.coarse.min has four."""
    parts, names = path.split("."), {each.name for each in SCORES}
    for k, pair in enumerate(pairwise(parts)):
        if ".".join(pair) in names:
            return [*parts[:k], ".".join(pair), *parts[k + 2 :]]
    return parts


def run(spec: Spec, address: str | None, again: str) -> None:
    """Run a job with a display.

    Ends the program with 2 when it is refused, 69 when there is no Ray (any more), 1 (and `KEPT` in its last line) when
    it failed, 130 when interrupted.

    Args:
        again: the command that carries the job on, as it is shown to the user.
    """
    from pipelines.cluster import NO_RAY, ClusterError
    from pipelines.curate import JobFailed, curate
    from pipelines.decide import read_decision
    from pipelines.preflight import Refused
    from pipelines.progress import Display, summary

    log_if_asked()
    signal.signal(signal.SIGTERM, _interrupt)
    for note in spec.models.notes():
        click.echo(f"clipmill: {note}", err=True)
    try:
        with Display() as show:
            dataset = curate(spec, address, show)
    except Refused as error:
        refuse(str(error))
    except ClusterError as error:
        click.echo(f"clipmill: {error}", err=True)
        sys.exit(NO_RAY)
    except JobFailed as error:
        click.echo(f"clipmill: {error}; {KEPT}. Continue with: {again}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo(f"\nclipmill: interrupted; {KEPT}. Continue with: {again}", err=True)
        sys.exit(130)
    console = Console(highlight=False)
    decided = read_decision(dataset, spec.decision.name)
    kept = (spec.decision.name, decided["clips"]["kept"], decided["seconds"]["kept"])
    for table in summary(dataset.sources(), kept):
        console.print(table)
        console.print()
    report = dataset.storage.url("report.html")
    console.print(f"dataset  {dataset.storage.url()}", soft_wrap=True)
    if dataset.storage.exists("report.html"):
        console.print(f"report   {Path(report).as_uri() if report.startswith('/') else report}", soft_wrap=True)


def refuse(message: str) -> NoReturn:
    """One line and exit code 2: nothing was done."""
    click.echo(f"clipmill: {message}", err=True)
    sys.exit(2)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
