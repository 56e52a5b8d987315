"""What must be right before work starts. Everything that is not, is one line and exit code 2."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curation.data_files import read_yaml
from curation.registry import check
from curation.storage import Storage
from curation.weights import WeightsUnavailable
from pipelines.lease import Held, leased
from pipelines.live import NAME as LIVE
from pipelines.spec import Resources, Spec, TextStage, Workers

_WRITER_CPUS = 0.1
_SPARE_BYTES = 64 * 2**20


class Refused(Exception):
    """The job cannot run as asked. The message is one line: what is wrong and the way out."""


@dataclass(frozen=True)
class Pool:
    """Equal actors."""

    actors: int
    cpus: float
    """Per actor."""
    gpus: float = 0.0
    between: tuple[int, int] | None = None
    """Ray makes it smaller or larger within these; `actors` is how many there are at first."""


@dataclass(frozen=True)
class Pools:
    """Actor pools that fit the cluster together. `models`: those of the stages flow, captions and images that are
    on."""

    source: Pool
    models: dict[str, Pool]
    text: Pool | None
    writer: Pool

    @property
    def elastic(self) -> bool:
        """Whether Ray changes the size of some of them."""
        return any(pool.between for pool in (self.source, *self.models.values(), self.text) if pool)


STAGES = {
    "flow": ("flow",),
    "captions": ("caption_spatial", "caption_temporal", "caption_merge"),
    "images": ("similarity", "aesthetic", "nsfw"),
}
"""The stages of the models, in the graph's order, and the roles that each plays."""

_SHARED_CPUS = 0.1  # what an actor that shares its CPU with others counts as, at least


def plan_pools(spec: Spec, cpus: float, gpus: float = 0.0) -> Pools:
    """Divide the cluster's CPUs among the stages, so that every stage can run at the same time.

    A stage that found no CPU would block those before it for ever; so what does not fit is refused here. Source actors
    take what the others leave; on a machine too small for whole CPUs they and the models share what is there (2 CPUs:
    two source actors of 0.95 CPUs and a writer of 0.1).

    Raises:
        Refused: too few CPUs or GPUs, with the numbers.
    """
    resources, wanted = spec.resources, spec.scores.text
    text = _pool(wanted) if wanted.implementation != "off" else None
    choices = spec.models.choices()
    models = {}
    for stage, roles in STAGES.items():
        if any(role in choices for role in roles):
            models[stage] = _pool(getattr(resources, stage))
    needed_gpus = {"scores.text": text, **{f"resources.{stage}": pool for stage, pool in models.items()}}
    if (total := _gpus_for([pool for pool in needed_gpus.values() if pool])) > gpus:
        named = [f"{name} {p.actors} x {p.gpus:g}" for name, p in needed_gpus.items() if p and p.gpus]
        raise Refused(
            f"too few GPUs: the stages need {total} ({', '.join(named)}), the cluster has {gpus:g}; lower their gpus"
        )
    writers = max(1, int(cpus) // 16)
    text_cpus, writer_cpus = (text.actors * text.cpus if text else 0.0), writers * _WRITER_CPUS
    least = 0.5 * resources.source_cpus  # a source actor that shares its CPU with the writer and other stages
    if resources.source_actors is not None:
        least = _between(resources.source_actors)[0] * resources.source_cpus
    models = _fitted(models, cpus - text_cpus - writer_cpus - least)
    models_cpus = sum(pool.actors * pool.cpus for pool in models.values())
    left = cpus - text_cpus - writer_cpus - models_cpus
    if left < least - 1e-9:
        parts = [f"sources {least:g}", *[f"{name} {pool.actors * pool.cpus:g}" for name, pool in models.items()]]
        parts += [f"text {text_cpus:g}", f"writer {writer_cpus:g}"]
        raise Refused(
            f"too few CPUs: the stages need {least + text_cpus + writer_cpus + models_cpus:g} ({', '.join(parts)}), "
            f"the cluster has {cpus:g}; set scores.text to off, or lower scores.text.cpus or resources.*.cpus"
        )
    return Pools(_source_pool(resources, left, models, text), models, text, Pool(writers, _WRITER_CPUS))


def _source_pool(resources: Resources, cpus: float, models: dict[str, Pool], text: Pool | None) -> Pool:
    """Source actors on the CPUs that the other stages leave. Where one of those can grow, they make room for it when
    they have nothing to do."""
    if resources.source_actors is not None:
        least, most = _between(resources.source_actors)
        at_first = max(least, min(most, int(cpus / resources.source_cpus + 1e-9)))
        return Pool(at_first, resources.source_cpus, between=(least, most) if most > least else None)
    number = max(1, round(cpus / resources.source_cpus))
    elastic = any(pool.between for pool in (*models.values(), text) if pool)
    each = min(resources.source_cpus, _countable(cpus / number))
    return Pool(number, each, between=(1, number) if elastic and number > 1 else None)


def _pool(asked: Workers | TextStage) -> Pool:
    least, most = _between(asked.actors)
    return Pool(least, asked.cpus, asked.gpus, (least, most) if most > least else None)


def _between(actors: int | tuple[int, int]) -> tuple[int, int]:
    return actors if isinstance(actors, tuple) else (actors, actors)


def _gpus_for(pools: list[Pool]) -> int:
    """GPUs that these need: an actor's share is of one GPU, so two shares of 0.6 need two."""
    free: list[float] = []
    whole = 0
    for share in sorted((pool.gpus for pool in pools for _ in range(pool.actors) if pool.gpus), reverse=True):
        if share >= 1:
            whole += int(share)
            continue
        room = next((k for k, left in enumerate(free) if left >= share - 1e-9), None)
        if room is None:
            free.append(1.0 - share)
        else:
            free[room] -= share
    return whole + len(free)


def _fitted(pools: dict[str, Pool], cpus: float) -> dict[str, Pool]:
    """These pools, those of one CPU and less made smaller where they do not fit into `cpus` otherwise."""
    if sum(pool.actors * pool.cpus for pool in pools.values()) <= cpus:
        return pools
    least = {name: pool.cpus if pool.cpus > 1 else min(pool.cpus, _SHARED_CPUS) for name, pool in pools.items()}
    more = sum(pool.actors * (pool.cpus - least[name]) for name, pool in pools.items())
    over = cpus - sum(pool.actors * least[name] for name, pool in pools.items())
    share = max(0.0, over) / more if more else 0.0
    return {
        name: pool if pool.cpus > 1 else replace(pool, cpus=_countable(least[name] + share * (pool.cpus - least[name])))
        for name, pool in pools.items()
    }


def _countable(cpus: float) -> float:
    """Rounded down to the four digits that Ray counts in."""
    return int(cpus * 1e4 + 1e-6) / 1e4


def check_weights(spec: Spec) -> None:
    """Refuse a job whose models have no weights here, naming each role, its file, and the command that gets it."""
    problems = []
    for report in check(spec.choices()):
        if report.problem is not None and report.role == "text":
            problems.append(f"scores.{report.problem}; or set scores.text to off")
        elif report.problem is not None:
            problems.append(f"models.{report.problem}")
    if problems:
        raise Refused("; ".join(problems))
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
    storage = _output(spec)
    try:
        if storage.is_local:
            os.makedirs(storage.path(), exist_ok=True)
        if storage.exists("job.yaml"):
            theirs = read_yaml(storage.read("job.yaml"))
            differing = _differences(theirs, read_yaml(spec.as_yaml()))
            if differing:
                raise Refused(
                    f"{spec.output} holds another job (job.yaml differs in {', '.join(differing)}); "
                    "choose another output folder, or run that job's spec"
                )
        elif storage.is_local and os.listdir(storage.path()):
            raise Refused(f"{spec.output} is not empty and holds no job.yaml; choose another output folder")
        storage.write("job.yaml", spec.as_yaml().encode())
    except ValueError as error:
        raise Refused(f"{spec.output}/job.yaml is not YAML ({error})") from None
    except OSError as error:
        raise Refused(f"{spec.output}: cannot write there ({error.strerror or error})") from None
    return storage


def _output(spec: Spec) -> Storage:
    try:
        return Storage(spec.output)
    except (ValueError, ImportError, OSError) as error:  # an unknown protocol, its package missing, nobody answers
        raise Refused(f"output: {spec.output}: {error}") from None


@contextmanager
def traceless(spec: Spec) -> Iterator[None]:
    """Take back what `open_output` put into a new folder when the block refuses the job.

    So the spec may be corrected and have the same folder. Where sources are committed, the job stays.
    """
    storage, found = _output(spec), True
    with suppress(OSError):  # open_output will say what is wrong
        found = storage.exists("job.yaml")
    made = storage.is_local and not os.path.isdir(storage.path())
    try:
        yield
    except Refused:
        with suppress(OSError, Refused):
            with locked(storage):  # else another run is at work here by now
                if not found and not storage.list("sources"):
                    storage.remove("job.yaml")
                    storage.remove(LIVE)
            if made:
                os.rmdir(storage.path())  # fails, and should, where anything is left
        raise


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
    """Keep a second run out of an output folder while the block runs. The lock dies with the process.

    Raises:
        Refused: another run holds it.
    """
    if not storage.is_local:
        try:
            with leased(storage):
                yield
        except Held as error:
            raise Refused(f"{storage.root}: {error}") from None
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


def check_space(storage: Storage, sources: int, size: int) -> None:
    """Refuse a local output folder that cannot hold the clips.

    Copied clips are as large as their sources, so what is needed is the size in bytes of these, and 64 MiB to work
    with.
    """
    if not storage.is_local:
        return
    needed = size + _SPARE_BYTES
    free = shutil.disk_usage(Path(storage.path())).free
    if sources and free < needed:
        raise Refused(
            f"{storage.root}: no space: {_gigabytes(free)} free, the clips of {sources} sources may need "
            f"{_gigabytes(needed)}; free some, or choose another output folder"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
