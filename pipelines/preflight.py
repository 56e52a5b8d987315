"""What must be right before work starts. Everything that is not, is one line and exit code 2."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curation.storage import Storage
from curation.weights import WeightsUnavailable
from pipelines.inputs import SourceFile
from pipelines.spec import Spec

_WRITER_CPUS = 0.1
_SPARE_BYTES = 64 * 2**20


class Refused(Exception):
    """The job cannot run as asked. The message is one line: what is wrong and the way out."""


@dataclass(frozen=True)
class Pools:
    """Actor pools that fit the cluster together, each with CPUs per actor."""

    source_actors: int
    source_cpus: float
    text_actors: int
    text_cpus: float
    text_gpus: float
    writer_actors: int
    writer_cpus: float


def plan_pools(spec: Spec, cpus: float, gpus: float = 0.0) -> Pools:
    """Divide the cluster's CPUs among the stages, so that every stage can run at the same time.

    A stage that found no CPU would block those before it for ever; so what does not fit is refused here. Source actors
    take what the others leave; on a machine too small for whole CPUs they share what is there (2 CPUs: two source
    actors of 0.95 CPUs and a writer of 0.1).

    Raises:
        Refused: too few CPUs or GPUs, with the numbers.
    """
    wanted = spec.resources
    text = spec.scores.text
    text_actors = text.actors if text.implementation != "off" else 0
    writers = max(1, int(cpus) // 16)
    others = text_actors * text.cpus + writers * _WRITER_CPUS
    least = 0.5 * wanted.source_cpus  # a source actor that shares its CPU with the writer and the text stage
    if text_actors * text.gpus > gpus:
        raise Refused(
            f"scores.text: {text_actors} actors of {text.gpus:g} GPUs need {text_actors * text.gpus:g}, "
            f"the cluster has {gpus:g}; lower scores.text.gpus"
        )
    if cpus - others < least:
        raise Refused(
            f"too few CPUs: the stages need {others + least:g} "
            f"(sources {least:g}, text {text_actors * text.cpus:g}, writer {writers * _WRITER_CPUS:g}), "
            f"the cluster has {cpus:g}; set scores.text to off, or lower scores.text.cpus or resources.source_cpus"
        )
    left = cpus - others
    source_actors = max(1, round(left / wanted.source_cpus))
    # Four digits are what Ray counts in.
    source_cpus = min(wanted.source_cpus, int(left / source_actors * 1e4) / 1e4)
    return Pools(source_actors, source_cpus, text_actors, text.cpus, text.gpus, writers, _WRITER_CPUS)


def check_weights(spec: Spec) -> None:
    """Refuse a job whose models have no weights here."""
    from curation import weights

    needed = {"craft": weights.CRAFT, "ppocr": weights.PP_OCR_DETECTOR}
    try:
        if spec.scores.text.implementation != "off":
            needed[spec.scores.text.implementation].path()
    except WeightsUnavailable as error:
        raise Refused(f"scores.text: {error}; or set scores.text to off") from None
    if spec.cuts.detector == "transnetv2":
        from curation.cuts.transnetv2 import WEIGHTS  # imports torch

        try:
            WEIGHTS.path()
        except WeightsUnavailable as error:
            raise Refused(f"cuts.detector: {error}; or set cuts.detector to cascade") from None


# What may differ between two runs of one job: how it runs, and what is decided afterwards.
_FREE_KEYS = ("resources", "decision", "shards", "on_error", "output")


def open_output(spec: Spec) -> Storage:
    """The output folder, made the job's own by its `job.yaml`.

    Raises:
        Refused: the folder cannot be made or written to, holds another job, or holds something else.
    """
    storage = Storage(spec.output)
    try:
        if storage.is_local:
            os.makedirs(storage.path(), exist_ok=True)
        if storage.exists("job.yaml"):
            theirs = yaml.safe_load(storage.read("job.yaml"))
            differing = _differences(theirs, yaml.safe_load(spec.as_yaml()))
            if differing:
                raise Refused(
                    f"{spec.output} holds another job (job.yaml differs in {', '.join(differing)}); "
                    "choose another output folder, or run that job's spec"
                )
        elif storage.is_local and os.listdir(storage.path()):
            raise Refused(f"{spec.output} is not empty and holds no job.yaml; choose another output folder")
        storage.write("job.yaml", spec.as_yaml().encode())
    except yaml.YAMLError as error:
        raise Refused(f"{spec.output}/job.yaml is not YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise Refused(f"{spec.output}: cannot write there ({error.strerror or error})") from None
    return storage


def _differences(theirs: Any, ours: Any, path: str = "") -> list[str]:
    """Keys in which two specs differ, in dotted form."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return [] if theirs == ours else [path]
    found = []
    for key in sorted(theirs.keys() | ours.keys()):
        if not (path == "" and key in _FREE_KEYS):
            below = f"{path}.{key}".lstrip(".")
            if key not in theirs or key not in ours:
                found.append(below)
            else:
                found += _differences(theirs[key], ours[key], below)
    return found


@contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Keep a second run out of a local output folder while the block runs. The lock dies with the process.

    Raises:
        Refused: another run holds it.
    """
    if not storage.is_local:
        yield
        return
    handle = os.open(storage.path(), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{storage.root}: another clipmill is writing to it now") from None
        yield
    finally:
        os.close(handle)


def check_space(storage: Storage, pending: Sequence[SourceFile]) -> None:
    """Refuse a local output folder that cannot hold the clips.

    Copied clips are as large as their sources, so what is needed is the pending sources' size, and 64 MiB to work with.
    """
    if not storage.is_local:
        return
    needed = sum(source.size or 0 for source in pending) + _SPARE_BYTES
    free = shutil.disk_usage(Path(storage.path())).free
    if pending and free < needed:
        raise Refused(
            f"{storage.root}: no space: {_gigabytes(free)} free, the clips of {len(pending)} sources may need "
            f"{_gigabytes(needed)}; free some, or choose another output folder"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
