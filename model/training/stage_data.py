"""The samples of one stage: selected, sorted into shapes, ordered."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace

import numpy as np

from model.conditioning.motion import DEFAULT, MotionBuckets
from model.data.buckets import sizes
from model.data.dataset import ClipDataset, Source
from model.data.order import BatchPlan, EpochOrder
from model.data.randomness import Streams
from model.data.selection import SampleTable, Wanted, by_bucket, select
from model.training.config import DataConfig, StageConfig

log = logging.getLogger("clipmill.train")


@dataclass
class StageData:
    """What a stage reads."""

    dataset: ClipDataset
    table: SampleTable
    streams: Streams
    fingerprint: str
    summary: str


def stage_data(data: DataConfig, stage: StageConfig, *, seed: int, size_multiple: int) -> StageData:
    """Open the shards and lay out the stage's batches.

    Args:
        size_multiple: height and width in pixels must be multiples of this.

    Raises:
        DataError: a shard cannot be used, or no sample suits the stage.
        ValueError: an impossible size.
    """
    streams = Streams(seed, stage.name)
    table, pictures = _tables(data, stage)
    choices = sizes(stage.height, stage.width, size_multiple, by_aspect=stage.aspect_buckets)
    wanted = Wanted(
        frames=stage.frames,
        rates_fps=stage.fps,
        camera=stage.camera,
        caption=stage.task == "text_to_video",
        elevation=stage.task == "orbit",
    )
    selection = select(table, wanted)
    groups = [(table, bucket, members) for bucket, members in by_bucket(table, selection, stage.frames, choices)]
    weights = [float(len(members)) for _, _, members in groups]
    summary = str(selection)
    if stage.frames == 1:
        groups = [(t, replace(b, image=True), m) for t, b, m in groups]
    elif stage.image_share:
        images = select(pictures, wanted, image=True)
        extra = [(pictures, bucket, m) for bucket, m in by_bucket(pictures, images, 1, choices, image=True)]
        share = stage.image_share / (1 - stage.image_share) * sum(weights)
        count = sum(len(m) for _, _, m in extra)
        weights += [share * len(m) / count for _, _, m in extra]
        groups += extra
        summary += f" and {images} as images"
    orders = [
        EpochOrder(m, t.shard[m], streams, window_shards=data.window_shards, stream=i)
        for i, (t, _, m) in enumerate(groups)
    ]
    dataset = ClipDataset(
        [Source(bucket, t) for t, bucket, _ in groups],
        BatchPlan(orders, stage.global_batch, streams, weights),
        streams,
        rates_fps=stage.fps,
        random_crop=stage.crop == "random",
        caption_weights=stage.caption_weights,
        replace_bad=data.bad_sample == "replace",
    )
    if len(groups) > 1:
        summary += " in shapes " + ", ".join(f"{b} ({len(m)})" for _, b, m in groups)
    return StageData(dataset, table, streams, _fingerprint(table, pictures), summary)


def motion_map(data: StageData, known: MotionBuckets | None) -> MotionBuckets:
    """The map of the model that is started from, else one fitted to the shards (the default one where all scores are
    equal). It is stored with the model, so that a bucket means when sampling what it meant here."""
    if known is not None:
        return known
    scores = data.table.numbers("motion")
    try:
        return MotionBuckets.fit(scores[np.isfinite(scores)].tolist())
    except ValueError:
        return DEFAULT


def data_fingerprint(data: DataConfig, stage: StageConfig) -> str:
    """The same as `stage_data`'s. Raises DataError."""
    return _fingerprint(*_tables(data, stage))


def _tables(data: DataConfig, stage: StageConfig) -> tuple[SampleTable, SampleTable]:
    """The clips, and where the single images of joint training come from (the same, if from nowhere else)."""
    table = SampleTable.open(data.shards)
    apart = stage.frames > 1 and stage.image_share and data.images
    return table, SampleTable.open(data.images) if apart else table


def _fingerprint(table: SampleTable, pictures: SampleTable) -> str:
    """What the order is over: keys and sizes of all samples, and which of them share a shard (whole shards are
    permuted, and each gives one file of precomputed latents)."""
    parts = []
    for each in [table] if pictures is table else [table, pictures]:
        digest = hashlib.sha256(repr(np.bincount(each.shard).tolist()).encode())
        for column in ("key", "media_size"):
            digest.update(repr(each.table[column].to_pylist()).encode())
        parts.append(f"{len(each)} samples in {len(each.urls)} shards, {digest.hexdigest()[:16]}")
    return " and ".join(parts)
