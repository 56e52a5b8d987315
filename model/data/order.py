"""Which samples make up which step: a pure function of (seed, step), with nothing to save and nothing to skip.

Samples that can share a batch (same frames and size, see buckets.py) form a *bucket*. Every global batch comes from one
bucket. Each bucket is an endless stream, epoch after epoch; an epoch visits every sample of the bucket exactly once.
Within an epoch, shards are permuted, then the samples inside windows of a few shards: the reads of a while stay in a
few files (and in the page cache), yet neighbours in a shard do not share a batch.

Which bucket a step draws from is fixed in cycles: each cycle holds every bucket in proportion to its weight, in an
order permuted per cycle. So the number of batches a bucket has given before any step is known at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model.data.randomness import Purpose, Streams

MAX_CYCLE = 4096


class EpochOrder:
    """Endless stream over the samples of one bucket.

    Args:
        samples: numbers of the samples, any int64, (N,), grouped by shard.
        shards: the shard of each sample, (N,), non-decreasing.
        window_shards: how many shards are mixed with each other.
        stream: tells buckets of the same run apart.
    """

    def __init__(
        self, samples: np.ndarray, shards: np.ndarray, streams: Streams, *, window_shards: int = 16, stream: int = 0
    ) -> None:
        if len(samples) == 0:
            raise ValueError("an order over no samples")
        self.samples, self._streams, self._stream = samples, streams, stream
        self._window_shards = max(1, window_shards)
        starts = np.flatnonzero(np.r_[True, shards[1:] != shards[:-1]])
        self._starts, self._counts = starts, np.diff(np.r_[starts, len(samples)])
        self._windows = lru_cache(maxsize=4)(self._window)
        self._epochs = lru_cache(maxsize=2)(self._epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> int:
        """The sample at a position of the endless stream; position // len(self) is the epoch."""
        epoch, inside = divmod(position, len(self.samples))
        _, ends = self._epochs(epoch)
        window = int(np.searchsorted(ends, inside, side="right"))
        first = int(ends[window - 1]) if window else 0
        return int(self._windows(epoch, window)[inside - first])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(order of the shards, end of each window in samples)."""
        order = self._streams.permutation(Purpose.SHARD_ORDER, len(self._starts), epoch, self._stream)
        ends = np.cumsum(self._counts[order])
        last = np.arange(self._window_shards, len(order) + self._window_shards, self._window_shards)
        return order, ends[np.minimum(last, len(order)) - 1]

    def _window(self, epoch: int, window: int) -> np.ndarray:
        order, _ = self._epochs(epoch)
        shards = order[window * self._window_shards : (window + 1) * self._window_shards]
        samples = np.concatenate([self.samples[self._starts[s] : self._starts[s] + self._counts[s]] for s in shards])
        place = (epoch << 24) + window
        return samples[self._streams.permutation(Purpose.SAMPLE_ORDER, len(samples), place, self._stream)]


@dataclass(frozen=True)
class Batch:
    """One global batch: `bucket` says which shape it has; samples and ordinals are int64, one for each place, (GB,)."""

    step: int
    bucket: int
    samples: np.ndarray
    ordinals: np.ndarray


class BatchPlan:
    """Step -> global batch, over buckets with weights (their sizes, unless images and videos are mixed by share)."""

    def __init__(
        self, orders: Sequence[EpochOrder], global_batch: int, streams: Streams, weights: Sequence[float] | None = None
    ) -> None:
        if global_batch < 1:
            raise ValueError(f"global batch {global_batch}: at least 1 is needed")
        self.orders, self.global_batch, self._streams = list(orders), global_batch, streams
        share = np.asarray(weights if weights is not None else [len(o) for o in self.orders], dtype=np.float64)
        share = share / share.sum()
        total = sum(len(o) for o in self.orders)
        cycle = min(MAX_CYCLE, max(1, total // global_batch, int(np.ceil(1 / share.min()))))
        self._cycle = np.repeat(np.arange(len(share)), _apportion(share, cycle)) if len(share) > 1 else np.zeros(1, int)
        self._cycles = lru_cache(maxsize=2)(self._permuted)

    def __getitem__(self, step: int) -> Batch:
        cycle, place = divmod(step, len(self._cycle))
        order = self._cycles(cycle)
        bucket = int(order[place])
        before = cycle * int((self._cycle == bucket).sum()) + int((order[:place] == bucket).sum())
        first = before * self.global_batch
        samples = [self.orders[bucket][first + i] for i in range(self.global_batch)]
        ordinals = step * self.global_batch + np.arange(self.global_batch, dtype=np.int64)
        return Batch(step, bucket, np.asarray(samples, dtype=np.int64), ordinals)

    def _permuted(self, cycle: int) -> np.ndarray:
        if len(self.orders) == 1:
            return self._cycle
        return self._cycle[self._streams.permutation(Purpose.BUCKET_ORDER, len(self._cycle), cycle)]


def _apportion(share: np.ndarray, seats: int) -> np.ndarray:
    """Whole numbers that add up to `seats`, in proportion (largest remainder), at least one each."""
    exact = share * seats
    counts = np.maximum(1, np.floor(exact).astype(np.int64))
    while counts.sum() < seats:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > seats:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts


def micro_batches(global_batch: int, micro_batch: int, rank: int, world: int) -> list[np.ndarray]:
    """The places of the global batch that a rank works on, one array per micro-step.

    Micro-batch j of the global batch goes to rank j mod world: reducing after every micro-step in rank order is then
    the same as adding all micro-batches in order on one rank (ordered_reduce.py).

    Raises:
        ValueError: the global batch does not divide.
    """
    if global_batch % (micro_batch * world):
        raise ValueError(
            f"a global batch of {global_batch} cannot be split into micro-batches of {micro_batch} on {world} ranks: "
            f"use a multiple of {micro_batch * world}, or another micro_batch"
        )
    steps = global_batch // (micro_batch * world)
    return [np.arange(micro_batch) + (i * world + rank) * micro_batch for i in range(steps)]
