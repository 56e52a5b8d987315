"""The stage graph on Ray Data:

    sources -> SourceActor -> [FlowActor] -> [CaptionActor] -> [ImageActor] -> [TextActor] -> WriterActor -> driver

Streaming, back-pressure and placement are Ray's. Three settings keep one bad source from hurting others:
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
from ray.data import ActorPoolStrategy, DataContext

from pipelines.preflight import Pool, Pools
from pipelines.spec import Spec
from workers.captions import CaptionActor
from workers.flow import FlowActor
from workers.images import ImageActor
from workers.source import SourceActor
from workers.text import TextActor
from workers.wire import Kind, messages
from workers.writer import WriterActor

_BLOCK_BYTES = 1 << 20  # a segment is a block of its own as soon as it is there, instead of waiting for more


def run(
    uris: Sequence[str], spec: Spec, pools: Pools, output: str, ledger: Any
) -> Iterator[tuple[Kind, str, dict[str, Any]]]:
    """Work on these sources; yields (kind, uri, note) messages as they come: receipts, reports, aborts.

    A source whose process died gives no report.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    context.target_max_block_size = _BLOCK_BYTES
    context.target_min_block_size = 0
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Ray 2.64 takes `max_task_retries` away (hence the bound in pyproject.toml): without it a source that always kills
    # its process is tried for ever.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")

    def pool(size: int) -> ActorPoolStrategy:
        return ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1)

    survival: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0}
    batches: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", **survival}
    sources = ray.data.from_items([{"uri": uri} for uri in uris], override_num_blocks=len(uris))
    graph = sources.map_batches(
        SourceActor,
        fn_constructor_args=(spec.source_settings(), spec.resources.timeout, ledger),
        compute=pool(min(pools.source.actors, len(uris))),
        num_cpus=pools.source.cpus,
        **batches,
    )
    for actor, arguments, size in _scoring(spec, pools):
        device, threads = "cuda" if size.gpus else "cpu", max(1, int(size.cpus))
        graph = graph.map_batches(
            actor,
            fn_constructor_args=(*arguments, device, threads),
            compute=pool(size.actors),
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            **batches,
        )
    graph = graph.map_batches(
        WriterActor,
        fn_constructor_args=(output,),
        compute=pool(pools.writer.actors),
        num_cpus=pools.writer.cpus,
        **batches,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="ray.data")  # advice on pools that have more actors than inputs
        for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for kind, uri, note, _ in messages(batch):
                yield kind, uri, note


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
