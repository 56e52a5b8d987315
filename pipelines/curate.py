"""A curation job from its spec to its report: what `clipmill curate` runs, here or on a cluster.

    preflight -> [rounds of the graph -> commits] -> compaction -> decision -> shards -> statistics -> report

Every step can be killed and carried on by running the same command again: sources that are committed are skipped,
everything after them is a function of the dataset.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from curation.source import failed_row
from pipelines.commit import Committer, compact, duplicate_row, finish_compaction
from pipelines.dataset import Dataset
from pipelines.duplicates import near_duplicates_of
from pipelines.inputs import InputError, absolute, find_duplicates, find_sources
from pipelines.live import Progress, describe, told
from pipelines.metrics import Metrics
from pipelines.preflight import Pools, Refused, check_space, check_weights, locked, open_output, plan_pools, traceless
from pipelines.spec import Spec
from pipelines.survey import Named, NoRoom, Survey, gather, survey


class JobFailed(Exception):
    """The job cannot go on, though it can be continued later. One line for a person."""


Show = Callable[[Progress], None]


def prepare(spec: Spec) -> tuple[Dataset, Named]:
    """All of the preflight that needs no cluster, cheapest first.

    Raises:
        Refused: one line for a person.
    """
    check_weights(spec)
    try:
        named = gather(find_sources(spec.input.uris, column=spec.input.column, exclude=spec.output))
    except (InputError, NoRoom) as error:
        raise Refused(str(error)) from None
    if not named:
        inside = f"{absolute(spec.output)}/"
        hidden = any(f"{absolute(uri)}/".startswith(inside) for uri in spec.input.uris)
        why = f" outside of the output folder {spec.output}, which is not searched" if hidden else ""
        raise Refused(f"input: no video files in {', '.join(spec.input.uris)}{why}")
    return Dataset(open_output(spec).root), named


def curate(spec: Spec, address: str | None = None, show: Show = lambda progress: None) -> Dataset:
    """Run a job, or carry it on. Returns the finished dataset.

    Raises:
        Refused: something is wrong before work starts.
        JobFailed: the dataset could not be written to any more.
        pipelines.cluster.ClusterError: Ray cannot be started or reached.
    """
    with traceless(spec):
        return _curate(spec, address, show)


def _curate(spec: Spec, address: str | None, show: Show) -> Dataset:
    dataset, named = prepare(spec)
    with locked(dataset.storage):
        finish_compaction(dataset)
        try:
            work = survey(named, dataset)
        except NoRoom as error:
            raise Refused(str(error)) from None
        check_space(dataset.storage, work.pending, work.size)
        earlier = work.sources - work.pending
        progress = Progress(sources=work.sources, sources_done=earlier, earlier=earlier, later=work.pending)
        progress.bytes, progress.clips, progress.failed = work.size, work.clips, work.failed
        with told(dataset.storage, lambda ended: describe(progress, ended)), _written(dataset):
            if work.pending:
                _curate_sources(spec, dataset, work, address, progress, show)
            progress.stage = "compacting"
            show(progress)
            compact(dataset, near_duplicates_of(spec, dataset))
            finish(spec, dataset, progress, show)
    return dataset


@contextmanager
def _written(dataset: Dataset) -> Iterator[None]:
    """A disk that is full, or a store that does not answer, ends the job by its own word: JobFailed."""
    try:
        yield
    except ConnectionError:  # to Ray, whose end is not the job's
        raise
    except OSError as error:
        where, said = error.filename or dataset, error.strerror or error
        raise JobFailed(f"cannot write to {where}: {said}") from error


def finish(spec: Spec, dataset: Dataset, progress: Progress, show: Show) -> None:
    """What follows the scores, and can be repeated from them at any time: decision, shards, statistics, report."""
    from pipelines.decide import decide
    from pipelines.export import export
    from pipelines.report import write_report

    name = spec.decision.name
    progress.stage = "deciding"
    show(progress)
    decide(dataset, {"rules": spec.decision.rules, "on_error": spec.on_error}, name)
    if spec.shards.write:
        progress.stage = "writing shards"
        show(progress)
        export(dataset, name, shard_bytes=spec.shards.size, shard_clips=spec.shards.clips)
    progress.stage = "reporting"
    show(progress)
    write_report(dataset, name)


def _curate_sources(
    spec: Spec, dataset: Dataset, work: Survey, address: str | None, progress: Progress, show: Show
) -> None:
    from pipelines.cluster import cluster, local_cpus

    if address is None and "RAY_ADDRESS" not in os.environ:
        plan_pools(spec, spec.resources.cpus or local_cpus())  # refuses in an instant what Ray would start for in vain
    committer = Committer(dataset)
    duplicates = find_duplicates(work.alike, work.curated)
    if duplicates:
        for uri, size in work.todo():
            if uri in duplicates:
                committer.add(duplicate_row(uri, duplicates[uri], size))
                progress.sources_done += 1
                progress.later -= 1
        committer.flush()
    if not progress.later:
        return
    show(progress)
    with cluster(address, spec.resources.cpus) as cpus:
        import ray

        cpus = min(cpus, spec.resources.cpus or cpus)  # several jobs on one cluster keep to their shares
        pools = plan_pools(spec, cpus, ray.cluster_resources().get("GPU", 0.0))
        try:
            for some in work.rounds(spec.resources.round, without=duplicates.keys()):
                progress.waiting, progress.later = dict.fromkeys(some), progress.later - len(some)
                _round(spec, dataset, some, pools, committer, progress, show)
        finally:
            committer.flush()


def _round(
    spec: Spec,
    dataset: Dataset,
    sizes: dict[str, int | None],
    pools: Pools,
    committer: Committer,
    progress: Progress,
    show: Show,
) -> None:
    """Curate these sources, trying again those whose worker process died, and commit every one of them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipelines import graph
    from workers.ledger import Ledger

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger = Ledger.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # lives as long as we do
    metrics = Metrics(dataset)
    waiting = dict.fromkeys(sizes)
    for _attempt in range(spec.resources.attempts):
        progress.stage = "curating"
        for kind, uri, note in graph.run(list(waiting), spec, pools, dataset.storage.root, ledger):
            if kind == "abort":
                raise JobFailed(note["message"])
            if kind == "receipt":
                progress.clips += note["clips"]
                metrics.segment(note)
                row = committer.receipt(uri, note["index"], note.get("timings"))
                progress.warnings += note.get("warnings", [])
            else:
                row = committer.report(uri, note["row"], note["segments"])
            if row is not None:
                del waiting[uri]
                _count(progress, row, sizes, metrics)
            show(progress)
        for uri in _overdue(ledger):
            if uri in waiting:
                del waiting[uri]
                limit = spec.resources.timeout
                row = failed_row(uri, "timeout", f"not done after {limit:g} s of work (resources.timeout)")
                committer.add(row)
                _count(progress, row, sizes, metrics)
        committer.forget_unfinished()
        if not waiting:
            return
    for uri in waiting:
        row = failed_row(uri, "crashed", f"the worker process died {spec.resources.attempts} times on this source")
        row["size_bytes"] = sizes[uri]
        committer.add(row)
        _count(progress, row, sizes, metrics)


def _overdue(ledger: Any) -> list[str]:
    import ray

    overdue: list[str] = ray.get(ledger.overdue.remote())
    return overdue


def _count(progress: Progress, row: dict[str, Any], sizes: dict[str, int | None], metrics: Metrics) -> None:
    progress.sources_done += 1
    progress.waiting.pop(row["source_uri"], None)
    progress.bytes_done += sizes[row["source_uri"]] or 0
    progress.video_s += row["duration_s"] or 0.0
    progress.failed += row["status"] == "failed"
    metrics.source(row, len(progress.waiting) + progress.later, progress.left_s)
