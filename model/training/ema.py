"""Averaged weights, sharded like the weights themselves: a float32 copy of every trained parameter's local shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """e <- d e + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) at update n, as generative-models has it."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._parameters = dict(parameters)
        self.averages: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After every optimizer step."""
        self.updates += 1
        d = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, weights = [local(a) for a in self.averages.values()], [local(p) for p in self._parameters.values()]
        # e + (1 - d) (w - e) in steps that round once each: the same on any number of ranks (see adamw.py).
        change = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(change, 1 - d)
        torch._foreach_add_(averages, change)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Run with the averages in place of the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            weight, average = local(parameter), local(self.averages[name])
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor, or the tensor itself; shares memory with it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()
