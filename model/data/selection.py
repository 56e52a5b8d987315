"""Which samples of the shards a stage can use, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.data.buckets import Bucket, nearest_size
from model.data.shards import DataError, find_shards, open_shard


@dataclass(frozen=True)
class SampleTable:
    """All samples of some shards, in order of shard and place."""

    urls: tuple[str, ...]
    table: pa.Table  # shards.SCHEMA
    shard: np.ndarray  # (N,) int64, number of the shard of each sample, non-decreasing

    def __len__(self) -> int:
        return len(self.shard)

    def row(self, sample: int) -> dict[str, object]:
        """One sample's index row."""
        return dict(self.table.slice(sample, 1).to_pylist()[0])

    @classmethod
    def open(cls, patterns: Sequence[str]) -> SampleTable:
        """Read (or make) the indexes of the shards.

        Raises:
            ShardError: a shard is missing, truncated, changed or not a tar.
        """
        urls = find_shards(patterns)
        with ThreadPoolExecutor(8) as pool:
            shards = list(pool.map(open_shard, urls))
        lengths = [s.table.num_rows for s in shards]
        table = pa.concat_tables([s.table for s in shards]).combine_chunks()
        return cls(tuple(urls), table, np.repeat(np.arange(len(shards)), lengths))

    def numbers(self, column: str) -> np.ndarray:
        """A numeric column as float64, NaN where there is none."""
        return pc.cast(self.table[column], pa.float64()).to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Wanted:
    """What a stage needs of a sample."""

    frames: int
    rates_fps: tuple[float, float]
    camera: tuple[str, ...] = ()
    caption: bool = False
    motion: bool = True
    elevation: bool = False


@dataclass(frozen=True)
class Selection:
    """Usable samples, and how many fell out for which reason (the first that applies)."""

    samples: np.ndarray  # (M,) int64
    dropped: dict[str, int]

    def __str__(self) -> str:
        lost = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items() if n)
        return f"{len(self.samples)} samples" + (f" ({lost})" if lost else "")


def select(table: SampleTable, wanted: Wanted, *, image: bool = False) -> Selection:
    """The samples of which a stage can take its frames.

    Raises:
        DataError: none is left; the message says why and what would help.
    """
    n = len(table)
    keep, dropped = np.ones(n, bool), {}

    def drop(where: np.ndarray, reason: str) -> None:
        nonlocal keep
        dropped[reason] = int((keep & where).sum())
        keep = keep & ~where

    media = np.asarray(table.table["media"].to_pylist(), dtype=object)
    frames, rate = table.numbers("frames"), table.numbers("rate_fps")
    pictures = np.isin(media, ["jpg", "jpeg", "png", "webp"])
    if wanted.frames > 1 and not image:
        drop(pictures, "are single images")
        known = np.isfinite(frames) & np.isfinite(rate) & (media != "latents")
        drop(known & ~fits(frames, rate, wanted.frames, wanted.rates_fps), "are too short for the frames asked")
        drop((media == "latents") & (frames < wanted.frames), "hold fewer precomputed frames than asked")
        if wanted.motion:
            drop(~np.isfinite(table.numbers("motion")), "have no motion score")
    if wanted.camera:
        labels = np.asarray(table.table["camera"].to_pylist(), dtype=object)
        drop(~np.isin(labels, wanted.camera), f"are not labelled {' or '.join(wanted.camera)}")
    if wanted.caption:
        drop(pc.list_value_length(table.table["captions"]).to_numpy(zero_copy_only=False) == 0, "have no caption")
    if wanted.elevation:
        drop(~np.isfinite(table.numbers("elevation_deg")), "have no elevation_deg")
    if not keep.any():
        raise DataError(
            f"{table.urls[0]} and {len(table.urls) - 1} more shards: {_why_none(n, dropped, wanted, frames)}"
        )
    return Selection(np.flatnonzero(keep), dropped)


def fits(frames: np.ndarray, rate: np.ndarray, wanted: int, rates_fps: tuple[float, float]) -> np.ndarray:
    """Whether a clip of constant rate holds `wanted` frames at some rate/k in the range (decode.pick_frames)."""
    # The least stride that is slow enough gives the shortest stretch.
    stride = np.maximum(1, np.ceil(rate / (rates_fps[1] * 1.01) - 1e-9))
    return (rate / stride >= rates_fps[0] * 0.99) & (stride * (wanted - 1) <= frames - 1)


def _why_none(n: int, dropped: dict[str, int], wanted: Wanted, frames: np.ndarray) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    message = f"none of {n} samples can be used: {reasons}."
    if dropped.get("are too short for the frames asked"):
        low, high = wanted.rates_fps
        message += (
            f" {wanted.frames} frames at {low:g} to {high:g} fps are asked; the longest clip has "
            f"{int(np.nanmax(frames))} frames. Ask for fewer frames, or raise the upper end of `fps`."
        )
    if dropped.get("have no caption"):
        message += " Text-to-video needs captions: turn captioning on in the curation job, or train image_to_video."
    if dropped.get("have no motion score"):
        message += " The motion bucket comes from the score motion.coarse: turn it on in the curation job."
    return message


def by_bucket(
    table: SampleTable, selection: Selection, frames: int, choices: list[tuple[int, int]], *, image: bool = False
) -> list[tuple[Bucket, np.ndarray]]:
    """The selected samples by shape: buckets that have any, each with its samples."""
    found = []
    width, height = table.numbers("width")[selection.samples], table.numbers("height")[selection.samples]
    size = nearest_size(np.nan_to_num(width, nan=1), np.nan_to_num(height, nan=1), choices)
    for i, (h, w) in enumerate(choices):
        members = selection.samples[size == i]
        if len(members):
            found.append((Bucket(frames, h, w, image), members))
    return found
