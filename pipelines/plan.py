"""What a corpus will cost: hours, nodes, GPUs and money, from the rates that a finished dataset has measured.

    processor hours of a stage = hours of video * processor seconds per second of video
    wall hours                 = those of the slowest group of actors: processor hours / actors at work

A sample of the corpus, curated with the same spec on a machine of the same kind, is the measurement. Nothing is assumed
about stages that did not run. An actor counts as one processor at work: a stage that had more threads, or a GPU, has
fewer processor seconds in the sample and is planned with what it had there.
"""

import math
from dataclasses import dataclass

from curation.statistics import COSTS
from pipelines.dataset import Dataset
from pipelines.preflight import STAGES, Refused, plan_pools
from pipelines.spec import Spec

HOURS_PER_YEAR = 365.25 * 24


class PlanError(Exception):
    """A plan that cannot be made. One line for a person."""


@dataclass(frozen=True)
class Rates:
    """What a dataset has measured, per second of video that came in.

    Attributes:
        cpu_s: processor seconds by stage; stages that did not run are missing.
        clips: clips per second of video.
        kept: share of the video that is in clips.
        clip_bytes: bytes of clips per second of video.
        video_s: how much video was measured.
    """

    cpu_s: dict[str, float]
    clips: float
    kept: float
    clip_bytes: float
    video_s: float


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    cpus: float = 16.0
    gpus: float = 0.0
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Group:
    """Stages that share actors, on the planned cluster.

    Attributes:
        name: as the spec's resources call it; `sources` is everything that shares a source's decode.
        cpu_hours: processor hours that it needs.
        actors: what it gets with the spec as it is; of a pool that grows, the maximum.
        hours: wall hours that it needs with those.
        balanced: actors with which all groups would be done at the same time.
    """

    name: str
    stages: dict[str, float]
    cpu_hours: float
    actors: int
    hours: float
    balanced: int


@dataclass(frozen=True)
class Plan:
    """The estimate.

    Attributes:
        hours: wall hours with the spec as it is; `bottleneck` is the group that they come from.
        balanced_hours: wall hours with every group's `balanced` actors.
        cost: of the balanced plan; None without a price.
    """

    video_hours: float
    groups: tuple[Group, ...]
    cpu_hours: float
    nodes: int
    hours: float
    bottleneck: str
    balanced_hours: float
    gpus: float
    cost: float | None
    clips: float
    clip_hours: float
    clip_bytes: float


_SOURCES = ("probe", "cuts", "clips", "scores")


def measured(dataset: Dataset) -> Rates:
    """The rates of a dataset's finished sources. Raises PlanError when there is nothing to go by."""
    rows = [row for row in dataset.sources().to_pylist() if row["status"] == "ok" and row["duration_s"]]
    video_s = sum(row["duration_s"] for row in rows)
    if not video_s:
        raise PlanError(f"{dataset}: no finished source, so nothing was measured; curate a sample first")
    spent = {stage: sum(row.get(column) or 0.0 for row in rows) for column, stage in COSTS.items()}
    sizes = dataset.clips(["media_size"])["media_size"].to_pylist()
    return Rates(
        cpu_s={stage: seconds / video_s for stage, seconds in spent.items() if seconds},
        clips=sum(row["clips"] for row in rows) / video_s,
        kept=sum(row["kept_s"] for row in rows) / video_s,
        clip_bytes=sum(size or 0 for size in sizes) / video_s,
        video_s=video_s,
    )


def make_plan(
    spec: Spec, rates: Rates, video_hours: float, node: Node, *, nodes: int | None = None, within_h: float | None = None
) -> Plan:
    """Plan `video_hours` of video on machines like `node`.

    Args:
        nodes: how many there are; or
        within_h: wall hours in which it is to be done, from which their number follows. One node without either.

    Raises:
        PlanError: a stage of the spec was not measured, or its actors do not fit on the nodes.
    """
    stages_of = _stages_of(spec)
    if missing := [name for name, stages in stages_of.items() if not any(stage in rates.cpu_s for stage in stages)]:
        raise PlanError(
            f"the spec's {', '.join(missing)} did not run in the measured dataset; measure one curated with this spec"
        )
    hours_of = {
        name: {stage: video_hours * rates.cpu_s[stage] for stage in stages if stage in rates.cpu_s}
        for name, stages in stages_of.items()
    }
    cpu_hours = sum(sum(stages.values()) for stages in hours_of.values())
    if nodes is None:
        nodes = 1 if within_h is None else max(1, math.ceil(cpu_hours / (within_h * node.cpus)))
    try:
        pools = plan_pools(spec, nodes * node.cpus, nodes * node.gpus)
    except Refused as error:
        raise PlanError(f"on {nodes} such nodes: {error}") from None
    pool_of = {"sources": pools.source, **pools.models} | ({"text": pools.text} if pools.text else {})
    groups = []
    balanced_hours = cpu_hours / (nodes * node.cpus)
    for name, pool in pool_of.items():
        stages = hours_of[name]
        needed = sum(stages.values())
        balanced = max(1, math.ceil(needed / (balanced_hours * min(1.0, pool.cpus))))
        actors = pool.between[1] if pool.between else pool.actors
        groups.append(Group(name, stages, needed, actors, needed / (actors * min(1.0, pool.cpus)), balanced))
    slowest = max(groups, key=lambda group: group.hours)
    return Plan(
        video_hours=video_hours,
        groups=tuple(sorted(groups, key=lambda group: -group.cpu_hours)),
        cpu_hours=cpu_hours,
        nodes=nodes,
        hours=max(slowest.hours, balanced_hours),  # pools that grow share the processors with the others
        bottleneck=slowest.name,
        balanced_hours=balanced_hours,
        gpus=nodes * node.gpus,
        cost=None if node.price_per_hour is None else balanced_hours * nodes * node.price_per_hour,
        clips=video_hours * 3600 * rates.clips,
        clip_hours=video_hours * rates.kept,
        clip_bytes=video_hours * 3600 * rates.clip_bytes,
    )


def _stages_of(spec: Spec) -> dict[str, tuple[str, ...]]:
    """The groups of actors that a spec asks for, and the stages that each runs."""
    roles = spec.choices()
    models = [stage for stage, plays in (STAGES | {"text": ("text",)}).items() if any(role in roles for role in plays)]
    return {"sources": _SOURCES} | {stage: (stage,) for stage in models}
