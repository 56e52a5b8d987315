"""`clipmill cuts`: print the shot boundaries of films."""

import dataclasses
import functools
import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import click
import cv2

from curation.cuts import DETECTORS, Cut, CutDetector, detector
from curation.errors import CannotDecode
from curation.probe import VideoInfo, probe
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
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _line(name: str, as_json: bool, file: str) -> tuple[str, bool]:
    try:
        info = probe(file)
        if info.note:
            click.echo(f"warning: {file}: {info.note}", err=True)
        found = _detector(name).detect(info)
    except CannotDecode as error:
        return f"error: {error} [{error.reason}]", True
    return (json.dumps(_as_object(file, info, found)) if as_json else _as_table(file, info, found)), False


@functools.cache
def _detector(name: str) -> CutDetector:
    return detector(name)


def _as_object(file: str, info: VideoInfo, found: list[Cut]) -> dict[str, object]:
    return {
        "file": file,
        "fps": round(float(info.nominal_rate), 6),
        "frames": info.frames,
        "duration_s": round(info.duration_s, 6),
        "cuts": [
            {
                key: round(value, 6) if isinstance(value, float) else value
                for key, value in dataclasses.asdict(cut).items()
            }
            for cut in found
        ],
    }


def _as_table(file: str, info: VideoInfo, found: list[Cut]) -> str:
    rate = f"{float(info.nominal_rate):.3f}".rstrip("0").rstrip(".")
    lines = [f"{file}: {info.frames} frames, {rate} fps, {info.duration_s:.2f} s, {len(found)} cuts"]
    if found:
        lines.append(f"  {'time':>10}  {'frame':>7}  {'kind':<7}  {'mixed frames':<15}  {'score':>7}  pass")
    for cut in found:
        mixed = f"{cut.start_frame}-{cut.end_frame - 1}" if cut.kind == "gradual" else ""
        clock = f"{int(cut.time_s // 60)}:{cut.time_s % 60:06.3f}"
        lines.append(
            f"  {clock:>10}  {cut.frame:>7}  {cut.kind:<7}  {mixed:<15}  {cut.score:>7.2f}  {cut.pass_fps:g} fps"
        )
    return "\n".join(lines)
