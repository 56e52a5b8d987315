"""Batches: order and results do not depend on their size; running out of GPU memory halves them and says so."""

import logging
from collections.abc import Sequence

import pytest
import torch

from curation.batching import Batches


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_results_are_in_order_for_any_batch_size(size: int) -> None:
    assert Batches(size, "model").map(lambda batch: [2 * x for x in batch], list(range(10))) == [
        2 * x for x in range(10)
    ]


def test_out_of_memory_halves_the_batch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def run(batch: Sequence[int]) -> list[int]:
        seen.append(len(batch))
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("no room")
        return [x + 1 for x in batch]

    batches = Batches(16, "raft_large")
    with caplog.at_level(logging.WARNING):
        assert batches.map(run, list(range(20))) == list(range(1, 21))
    assert seen[:3] == [16, 8, 4]
    assert batches.size == 2
    assert batches.halved == 3
    assert "raft_large: out of GPU memory with a batch of 16, going on with 8" in caplog.text
    seen.clear()
    batches.map(run, list(range(4)))
    assert seen == [2, 2]  # it does not try the large batch again


def test_one_item_that_does_not_fit_is_an_error() -> None:
    def run(batch: Sequence[int]) -> list[int]:
        raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        Batches(4, "model").map(run, [1, 2])


def test_an_empty_clip_list_is_no_call() -> None:
    assert Batches(4, "model").map(lambda batch: pytest.fail("called"), []) == []
