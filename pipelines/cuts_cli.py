"""`clipmill cuts`: print the shot boundaries of films."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator, MutableSequence
from concurrent.futures import ProcessPoolExecutor, wait
from typing import TYPE_CHECKING

import click

from curation.cuts import DETECTORS
from pipelines.cluster import local_cpus
from pipelines.film_bar import FilmBar

if TYPE_CHECKING:
    from pipelines.cuts_lines import Lines

_LOOK_S = 0.25  # how often the processes are asked how far they are


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
    with FilmBar(len(files)) as bar:
        for one in _lines(files, name, as_json, min(len(files), jobs or local_cpus()), bar):
            failed |= one.failed
            if one.warning:
                bar.print(one.warning, error=True)
            bar.print(one.text, error=one.failed)
    sys.exit(1 if failed else 0)


def _lines(files: tuple[str, ...], name: str, as_json: bool, jobs: int, bar: FilmBar) -> Iterator["Lines"]:
    """What to print of each file, in order."""
    if jobs == 1:
        from pipelines.cuts_lines import lines

        for at, file in enumerate(files):
            yield lines(name, as_json, file, bar.part(at))
        return
    # Spawned: a fork of a process whose libraries have threads may wait for ever on a lock that none of them holds.
    spawned = multiprocessing.get_context("spawn")
    shares = spawned.Array("d", len(files), lock=False)
    with ProcessPoolExecutor(jobs, mp_context=spawned, initializer=_alone, initargs=(shares,)) as pool:
        try:
            for future in [pool.submit(_one, name, as_json, file, at) for at, file in enumerate(files)]:
                while wait([future], _LOOK_S).not_done:
                    bar.seen(sum(shares))
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_shares: MutableSequence[float] = []  # of a process of the pool: how much of each film is done


def _alone(shares: MutableSequence[float]) -> None:
    """A process of the pool has one core, and leaves Ctrl-C to the one that started it."""
    global _shares
    _shares = shares
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(1)


def _one(name: str, as_json: bool, file: str, at: int) -> "Lines":
    from pipelines.cuts_lines import lines  # decoders and arrays: not before the processes are started

    def seen(share: float) -> None:
        _shares[at] = share

    try:
        return lines(name, as_json, file, seen)
    finally:
        seen(1.0)
