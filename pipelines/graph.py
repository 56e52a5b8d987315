"""The stage graph on Ray Data:

    sources -> SourceActor -> [FlowActor] -> [CaptionActor] -> [ImageActor] -> [TextActor] -> WriterActor -> driver

Streaming, back-pressure and placement are Ray's: a segment goes to an actor on the node where it was made, if one is
free there, so nodes with GPUs want CPUs too. Three settings keep one bad source from hurting others:
- one source is one block, and an actor has one source at a time, so that a process that dies takes no other with it;
- an actor is restarted without limit, its task never: a source whose process died is tried again by the driver
  (`pipelines.curate`), last and counted, where Ray by default would try it for ever;
- a block that is lost is left out (`max_errored_blocks`); the driver sees which sources gave no report.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from pipelines.metrics import job_name
from pipelines.preflight import Pool, Pools
from pipelines.spec import Spec
from workers.captions import CaptionActor
from workers.flow import FlowActor
from workers.images import ImageActor
from workers.source import SourceActor
from workers.text import TextActor
from workers.wire import Kind, messages
from workers.writer import WriterActor

_STORE_SHARE = 0.5  # of the cluster's object store, for segments between stages: beyond it, Ray would spill to disk
_BLOCK_BYTES = 1 << 20  # a segment is a block of its own as soon as it is there, instead of waiting for more


def run(
    uris: Sequence[str], spec: Spec, pools: Pools, output: str, ledger: Any
) -> Iterator[tuple[Kind, str, dict[str, Any]]]:
    """Work on these sources; yields (kind, uri, note) messages as they come: receipts, reports, aborts.

    A source whose process died gives no report.
    """
    graph = build(uris, spec, pools, output, ledger)
    graph.set_name(job_name(output))  # what Ray calls it in the metrics of its stages
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="ray.data")  # advice on pools that have more actors than inputs
        for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for kind, uri, note, _ in messages(batch):
                yield kind, uri, note


def build(uris: Sequence[str], spec: Spec, pools: Pools, output: str, ledger: Any) -> ray.data.Dataset:
    """The graph over these sources; nothing runs yet."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    context.target_max_block_size = _BLOCK_BYTES
    context.target_min_block_size = 0
    # Ray 2.64 takes `max_task_retries` away (hence the bound in pyproject.toml): without it a source that always kills
    # its process is tried for ever.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")

    # Actors have one task each, so a pool whose actors are all at work is as busy as it can be.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    share = spec.resources.cpus if pools.elastic else None  # which pools that grow must keep to
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=share)
    # Ray Data holds earlier stages back when a job fills its part. Jobs side by side share it as they share the CPUs.
    cpus = ray.cluster_resources().get("CPU", 0.0)
    part = min(1.0, (spec.resources.cpus or cpus) / cpus) if cpus else 1.0
    context.override_object_store_memory_limit_fraction = _STORE_SHARE * part

    survival: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}
    batches: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", **survival}
    sources = ray.data.from_items([{"uri": uri} for uri in uris], override_num_blocks=len(uris))
    graph = sources.map_batches(
        SourceActor,
        fn_constructor_args=(spec.source_settings(), spec.resources.timeout, ledger),
        compute=strategy(pools.source, most=len(uris)),
        num_cpus=pools.source.cpus,
        **batches,
    )
    for actor, arguments, size in _scoring(spec, pools):
        device, threads = "cuda" if size.gpus else "cpu", max(1, int(size.cpus))
        graph = graph.map_batches(
            actor,
            fn_constructor_args=(*arguments, device, threads),
            compute=strategy(size),
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            **batches,
        )
    graph = graph.map_batches(
        WriterActor,
        fn_constructor_args=(output,),
        compute=strategy(pools.writer),
        num_cpus=pools.writer.cpus,
        **batches,
    )
    return graph


def strategy(pool: Pool, most: int | None = None) -> ActorPoolStrategy:
    """A pool as Ray Data is told of it, of at most so many actors."""
    least, largest = pool.between or (pool.actors, pool.actors)
    largest = min(largest, most or largest)
    return ActorPoolStrategy(
        min_size=min(least, largest),
        max_size=largest,
        initial_size=min(pool.actors, largest),
        max_tasks_in_flight_per_actor=1,
    )


def _scoring(spec: Spec, pools: Pools) -> list[tuple[type, tuple[Any, ...], Pool]]:
    """The stages between source and writer that are on: actor, its first arguments, its pool."""
    choices = spec.choices()
    captioners = {
        role.removeprefix("caption_"): choice for role, choice in choices.items() if role.startswith("caption_")
    }
    captions = [kind for kind in ("spatial", "temporal") if kind in captioners]
    frames = {role: choices[role] for role in ("similarity", "aesthetic", "nsfw") if role in choices}
    text, images = pools.text is not None, "images" in pools.models
    stages: list[tuple[type, tuple[Any, ...], Pool]] = []
    if "flow" in pools.models:
        key_frames = "spatial" in captions or images or text
        stages.append((FlowActor, (choices["flow"], key_frames), pools.models["flow"]))
    if "captions" in pools.models:
        stages.append((CaptionActor, (captioners, images or text), pools.models["captions"]))
    if images:
        stages.append((ImageActor, (frames, captions, text), pools.models["images"]))
    if pools.text is not None:
        stages.append((TextActor, (choices["text"], spec.scores.text.batch), pools.text))
    return stages
