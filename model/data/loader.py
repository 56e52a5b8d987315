"""Micro-batches for one rank, in order, whatever the number of decoding processes."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from model.data.dataset import ClipDataset
from model.data.order import micro_batches
from model.data.sample import TrainingSample
from model.data.shards import DataError

_PR_SET_PDEATHSIG = 1


class _Places(Sampler[list[tuple[int, int]]]):
    """The (step, place) pairs of each micro-batch of a rank, from a step on."""

    def __init__(self, first: int, last: int, places: list[np.ndarray]) -> None:
        self._first, self._last, self._places = first, last, places

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self._first, self._last):
            for micro in self._places:
                yield [(step, int(place)) for place in micro]

    def __len__(self) -> int:
        return (self._last - self._first) * len(self._places)


class _Reported(Dataset[TrainingSample | DataError]):
    """Bad data as a value: an exception comes out of a decoding process with that process's stack as its message."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, where: tuple[int, int]) -> TrainingSample | DataError:
        try:
            return self._dataset[where]
        except DataError as error:
            return error


def load_batches(
    dataset: ClipDataset,
    *,
    first_step: int,
    last_step: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    prefetch: int = 4,
) -> Generator[list[TrainingSample]]:
    """Lists of `micro_batch` samples: all micro-steps of first_step, then of the next, up to last_step (exclusive).

    The dataset is a pure function, so resuming is starting at another step, at no cost. Close the batches to end the
    decoding processes before the last one.

    Raises:
        ValueError: the global batch does not divide among the ranks.
        DataError: from the iterator, at the place of the sample.
    """
    places = micro_batches(dataset.plan.global_batch, micro_batch, rank, world)
    if workers:
        _kill_workers_at_exit()
    loader = DataLoader(
        _Reported(dataset),
        batch_sampler=_Places(first_step, last_step, places),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=_as_list,
        worker_init_fn=partial(_begin_worker, os.getpid()),
        multiprocessing_context="fork" if workers else None,
    )
    return _batches(loader)


def _batches(loader: DataLoader[Any]) -> Generator[list[TrainingSample]]:
    batches = iter(loader)
    try:
        for batch in batches:
            yield _sound(batch)
    finally:
        del batches  # which ends the decoding processes, though an error's traceback may hold on to this frame


@cache
def _kill_workers_at_exit() -> None:
    """For batches that nobody closed. Python ends such children with a SIGTERM, which these ignore, and waits."""

    def kill() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(kill)


def _as_list(samples: list[TrainingSample | DataError]) -> list[TrainingSample | DataError]:
    return samples


def _sound(batch: list[TrainingSample | DataError]) -> list[TrainingSample]:
    """Raises DataError: the first one in the batch."""
    samples = []
    for each in batch:
        if isinstance(each, DataError):
            raise each
        samples.append(each)
    return samples


def _begin_worker(trainer: int, worker: int) -> None:
    """A decoding process lives exactly as long as the trainer, and works on one thread."""
    torch.set_num_threads(1)
    # A terminal, systemd or a scheduler signals all processes of a run. The trainer saves and stops, and needs its
    # samples until then; it is what ends this process.
    for which in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(which, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # kill -9 of the trainer leaves nobody behind
        if os.getppid() != trainer:  # it went before that
            os._exit(1)
