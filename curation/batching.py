"""Batches for a model: as large as asked for, halved when the GPU's memory does not hold them."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class Batches:
    """Runs a model over items. Out of GPU memory halves the batch, says so, and goes on with the smaller one.

    Attributes:
        size: items per call now.
        halved: how often it was halved.
    """

    def __init__(self, size: int, model: str) -> None:
        if size < 1:
            raise ValueError(f"a batch holds at least one item, got {size}")
        self.size = size
        self.halved = 0
        self._model = model

    def map(self, run: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R]:
        """`run` over consecutive batches of `items`; results in order.

        Raises:
            torch.cuda.OutOfMemoryError: one item alone does not fit.
        """
        import torch

        results: list[R] = []
        while len(results) < len(items):
            batch = items[len(results) : len(results) + self.size]
            answers: Sequence[R] | None = None
            try:
                answers = run(batch)
            except torch.cuda.OutOfMemoryError:
                if len(batch) == 1:
                    raise
            if answers is None:  # out here, because the exception holds on to what the model had on the GPU
                self._halve(len(batch))
                continue
            if len(answers) != len(batch):
                raise RuntimeError(f"{self._model} gave {len(answers)} results for a batch of {len(batch)}")
            results.extend(answers)
        return results

    def _halve(self, tried: int) -> None:
        import torch

        self.size = max(1, tried // 2)
        self.halved += 1
        logger.warning("%s: out of GPU memory with a batch of %d, going on with %d", self._model, tried, self.size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
