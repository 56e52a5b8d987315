"""`clipmill cuts`: print the shot boundaries of films."""

import functools
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import click

from curation.cuts import DETECTORS
from pipelines.cluster import local_cpus


@click.command("cuts")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--detector", "name", type=click.Choice(DETECTORS), default="cascade", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file, one per line.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Files worked on at once; as many as CPUs by default.")
def cuts(files: tuple[str, ...], name: str, as_json: bool, jobs: int | None) -> None:
    """Print the cuts of each FILE: hard ones, and gradual ones as spans.

    Exit code 1 if any file could not be read; the others are printed all the same.
    """
    failed = False
    for line, is_error in _lines(files, name, as_json, min(len(files), jobs or local_cpus())):
        failed |= is_error
        click.echo(line, err=is_error)
    sys.exit(1 if failed else 0)


def _lines(files: tuple[str, ...], name: str, as_json: bool, jobs: int) -> Iterator[tuple[str, bool]]:
    """(what to print, whether it is an error) for each file, in order."""
    one = functools.partial(_line, name, as_json)
    if jobs == 1:
        yield from map(one, files)
        return
    # Spawned: a fork of a process whose libraries have threads may wait for ever on a lock that none of them holds.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawned, initializer=_alone) as pool:
        try:
            yield from pool.map(one, files)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _alone() -> None:
    """A process of the pool has one core, and leaves Ctrl-C to the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(1)


def _line(name: str, as_json: bool, file: str) -> tuple[str, bool]:
    from pipelines.cuts_lines import line  # decoders and arrays: not before the processes are started

    return line(name, as_json, file)
