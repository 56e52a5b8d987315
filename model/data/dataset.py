"""From (step, place) to a training sample: everything about it is a function of (seed, ordinal), see randomness.py."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from model.data.buckets import Bucket
from model.data.decode import CannotRead, read_clip, read_image
from model.data.latents import read_latents
from model.data.order import Batch, BatchPlan
from model.data.randomness import Purpose, Streams
from model.data.sample import TrainingSample
from model.data.selection import SampleTable
from model.data.shards import CAPTION_COLUMNS, MEDIA, SampleError, read_member

_MAX_REPLACEMENTS = 8


@dataclass(frozen=True)
class Source:
    """The samples behind one bucket."""

    bucket: Bucket
    table: SampleTable


class ClipDataset(Dataset[TrainingSample]):
    """`dataset[(step, place)]` -> TrainingSample. Reads and decodes; holds no state that changes results."""

    def __init__(
        self,
        sources: list[Source],
        plan: BatchPlan,
        streams: Streams,
        *,
        rates_fps: tuple[float, float],
        random_crop: bool,
        caption_weights: Mapping[str, float],
        replace_bad: bool = False,
    ) -> None:
        self.sources, self.plan, self.streams = sources, plan, streams
        self._rates_fps, self._random_crop = rates_fps, random_crop
        self._caption_weights, self._replace_bad = dict(caption_weights), replace_bad
        self._batch: Batch | None = None

    def __getitem__(self, where: tuple[int, int]) -> TrainingSample:
        step, place = where
        if self._batch is None or self._batch.step != step:
            self._batch = self.plan[step]
        source = self.sources[self._batch.bucket]
        ordinal, number = int(self._batch.ordinals[place]), int(self._batch.samples[place])
        order = self.plan.orders[self._batch.bucket]

        def candidates() -> Iterator[tuple[Source, int]]:
            yield source, number
            position = int(self.streams.draws(Purpose.REPLACEMENT, ordinal).integers(len(order)))
            for tries in itertools.count(1):
                yield source, order[position + tries]

        return self.read_first(candidates(), ordinal)

    def read_first(self, candidates: Iterator[tuple[Source, int]], ordinal: int) -> TrainingSample:
        """The first of endless candidates (source, sample's number) that can be decoded, with the draws of `ordinal`.

        Raises:
            SampleError: it cannot be decoded, and bad samples are not replaced; or too many in turn cannot.
            ShardError: see `read`.
        """
        replaced: list[str] = []
        while True:
            source, number = next(candidates)
            try:
                sample = self.read(source, number, ordinal)
                sample.replaced = tuple(replaced)
                return sample
            except SampleError as error:
                if not self._replace_bad or len(replaced) >= _MAX_REPLACEMENTS:
                    raise
                replaced.append(str(error))

    def read(self, source: Source, number: int, ordinal: int) -> TrainingSample:
        """Sample `number` of a source, with the draws of `ordinal`.

        Raises:
            SampleError: it cannot be decoded.
            ShardError: its shard is not what was indexed.
        """
        row: dict[str, Any] = source.table.row(number)
        url, key, bucket = source.table.urls[int(source.table.shard[number])], row["key"], source.bucket
        data = _member(url, row, "media", row["media"])
        crop = self.streams.draws(Purpose.CROP, ordinal) if self._random_crop else None
        sample = TrainingSample(
            ordinal, key, url, 1.0, _number(row["motion"]), self._caption(url, row, ordinal),
            _number(row["elevation_deg"]), None,
        )  # fmt: skip
        kind = MEDIA[row["media"]]
        size = (bucket.height, bucket.width)
        try:
            if kind == "latents":
                return read_latents(data, sample, bucket)
            if kind == "image":
                taken = read_image(data, size, crop=crop)
            else:
                draws = self.streams.draws(Purpose.FRAMES, ordinal)
                taken = read_clip(data, bucket.frames, size, rates_fps=self._rates_fps, choose=draws, crop=crop)
        except CannotRead as error:
            raise SampleError(f"sample {key} of {url}: {error}") from error
        sample.frames, sample.fps = taken.pixels, max(1.0, taken.fps)
        return sample

    def _caption(self, url: str, row: dict[str, Any], ordinal: int) -> str:
        """One of the clip's captions, by weight among those there are; its .txt where its json has none."""
        there = [role for role in row["captions"] or [] if role in CAPTION_COLUMNS]
        if there and row["json_offset"] is not None:
            weights = np.array([self._caption_weights.get(role, 0.0) for role in there])
            if weights.sum() == 0:
                weights = np.ones(len(there))
            ends = np.cumsum(weights / weights.sum())
            draw = self.streams.draws(Purpose.CAPTION, ordinal).random()
            role = there[min(int(np.searchsorted(ends, draw, side="right")), len(there) - 1)]
            return str(json.loads(_member(url, row, "json", "json"))[CAPTION_COLUMNS[role]])
        if row["captions"] and row["txt_offset"] is not None:
            return _member(url, row, "txt", "txt").decode("utf-8", errors="replace").strip()
        return ""


def _member(url: str, row: dict[str, Any], kind: str, extension: str) -> bytes:
    name = f"{row['key']}.{extension}"
    return read_member(url, name, row[f"{kind}_offset"], row[f"{kind}_size"], row[f"{kind}_crc32"])


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
