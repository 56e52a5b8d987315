"""What a job tells Prometheus, through Ray: every node of the cluster exports these beside Ray's own numbers.

Ray writes `ray_` in front of a name and `_total` behind a counter. `deploy/grafana/clipmill.json` draws them. From Ray
itself come GPU utilisation (`ray_node_gpus_utilization`), what waits before each stage and the GPUs that it holds
(`ray_data_*`, whose tag `dataset` begins with ours: see `pipelines.graph.run`). The driver counts, because it hears of
every source and segment exactly once; a job that is carried on counts what it does from then on. The tag that tells
jobs apart is called `dataset`, because Prometheus gives every series a `job` of its own.
"""

import logging
import os
from typing import Any

from curation.statistics import COSTS
from pipelines.dataset import Dataset

log = logging.getLogger("clipmill.job")


def job_name(output: str) -> str:
    """What a job with this output is called in its metrics."""
    return os.environ.get("CLIPMILL_JOB") or output.rstrip("/").rpartition("/")[2]


class Metrics:
    """Counters of one job. Ray must be connected."""

    def __init__(self, dataset: Dataset) -> None:
        from ray.util.metrics import Counter, Gauge

        self._job = job_name(dataset.storage.root)

        def counter(name: str, text: str, *tags: str) -> Any:
            return Counter(name, text, ("dataset", *tags)).set_default_tags({"dataset": self._job})

        self._sources = counter("clipmill_sources", "Videos done, by outcome (ok, failed, duplicate)", "outcome")
        self._errors = counter("clipmill_errors", "Videos that failed and clips that have no score", "stage", "reason")
        self._clips = counter("clipmill_clips", "Clips stored")
        self._bytes = counter("clipmill_clip_bytes", "Bytes of clips stored")
        self._video = counter("clipmill_video_seconds", "Seconds of video that are done")
        self._kept = counter("clipmill_kept_seconds", "Seconds of video in clips")
        self._stage = counter("clipmill_stage_seconds", "Processor seconds, by stage", "stage")
        gauge = {"tag_keys": ("dataset",)}
        self._waiting = Gauge("clipmill_waiting_sources", "Videos in the queue or at work", **gauge)
        self._left = Gauge("clipmill_left_seconds", "Wall seconds left, as far as can be told", **gauge)

    def segment(self, note: dict[str, Any]) -> None:
        """A segment is stored; `note` is its receipt (`workers.writer`)."""
        self._clips.inc(note["clips"])
        self._bytes.inc(note["bytes"])
        for score, number in note.get("errors", {}).items():
            self._errors.inc(number, {"stage": score, "reason": "unscored"})

    def source(self, row: dict[str, Any], waiting: int, left_s: float | None) -> None:
        """A source is done; `row` is its row of `sources/`."""
        self._sources.inc(1, {"outcome": row["status"]})
        if row["status"] == "failed":
            self._errors.inc(1, {"stage": "sources", "reason": row["reason"]})
        for column, counter in (("duration_s", self._video), ("kept_s", self._kept)):
            if row.get(column):
                counter.inc(row[column])
        for column, stage in COSTS.items():
            if row.get(column):
                self._stage.inc(row[column], {"stage": stage})
        self._waiting.set(waiting, {"dataset": self._job})
        self._left.set(left_s or 0.0, {"dataset": self._job})
        ids = {"job": self._job, "source_id": row.get("source_id"), "source_uri": row["source_uri"]}
        ids |= {"status": row["status"], "reason": row["reason"], "clips": row["clips"]}
        log.info("source done", extra={"ids": ids})
