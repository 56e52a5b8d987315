"""The gradients of one update: accumulated over micro-steps, summed over ranks, clipped."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.training.ema import local
from model.training.ordered_reduce import OrderedReduceScatter, add_replicated


class Gradients:
    """Call begin_step, then begin_micro_step / end_micro_step around each backward pass, then clip.

    Args:
        sharded: parameters of the network (FSDP2 sums their gradients; on one rank they are plain).
        replicated: small parameters beside it, which every rank holds whole.
        reductions: see parallelize.parallelize.
        exact: sums and norm do not depend on the number of ranks, to the last bit.
    """

    def __init__(
        self,
        sharded: Sequence[nn.Parameter],
        replicated: Sequence[nn.Parameter],
        reductions: Sequence[OrderedReduceScatter],
        *,
        exact: bool,
    ) -> None:
        self._sharded, self._replicated = list(sharded), list(replicated)
        self._reductions, self._exact = list(reductions), exact
        self._totals: dict[int, Tensor] = {}

    def begin_step(self) -> None:
        """Forget the last update's gradients."""
        for parameter in (*self._sharded, *self._replicated):
            parameter.grad = None
        for reduction in self._reductions:
            reduction.begin_step()
        self._totals.clear()

    def begin_micro_step(self) -> None:
        """With ordered sums, FSDP is handed the running sum each time: it must not add it to itself."""
        if self._reductions:
            for parameter in self._sharded:
                parameter.grad = None

    def end_micro_step(self) -> None:
        """Add up the replicated parameters' gradients over ranks."""
        if self._replicated:
            assert dist.group.WORLD is not None
            add_replicated(self._replicated, self._totals, dist.group.WORLD)

    @torch.no_grad()
    def clip(self, max_norm: float) -> float:
        """Scale all gradients so that their joint norm is at most max_norm; returns the norm before."""
        for i, parameter in enumerate(self._replicated):
            parameter.grad = self._totals.get(i)
        grads = [p.grad for p in (*self._sharded, *self._replicated) if p.grad is not None]
        norm = _exact_norm(grads) if self._exact else _norm(grads)
        scale = min(1.0, max_norm / (norm + 1e-6))
        if scale < 1.0:
            torch._foreach_mul_([local(g) for g in grads], scale)
        return norm


def _norm(grads: Sequence[Tensor]) -> float:
    sharded = [g for g in grads if isinstance(g, DTensor)]
    plain = [g for g in grads if not isinstance(g, DTensor)]
    total = 0.0
    if sharded:
        found = torch.nn.utils.get_total_norm(sharded)
        total += float(found.full_tensor() if isinstance(found, DTensor) else found) ** 2
    if plain:
        total += float(torch.nn.utils.get_total_norm(plain)) ** 2
    return total**0.5


def _exact_norm(grads: Sequence[Tensor]) -> float:
    """The norm over whole gradients, laid out and added up in the same order on any number of ranks."""
    flat = torch.cat([part.reshape(-1) for part in _whole(grads)])
    return float(flat.double().square().sum().sqrt())


def _whole(grads: Sequence[Tensor]) -> list[Tensor]:
    """Whole gradients of sharded ones, on every rank, in one message."""
    sharded = [g for g in grads if isinstance(g, DTensor)]
    if not sharded:
        return [g.contiguous() for g in grads]
    mesh = sharded[0].device_mesh
    world = mesh.size()
    padded = []
    for g in sharded:  # FSDP2 shards along the first dimension, in chunks of ceil(rows / world)
        rows = -(-g.shape[0] // world)
        mine = g.to_local()
        block = mine.new_zeros(rows, *g.shape[1:])
        block[: mine.shape[0]] = mine
        padded.append(block.reshape(-1))
    buffer = torch.cat(padded)
    gathered = buffer.new_empty(world * buffer.numel())
    dist.all_gather_into_tensor(gathered, buffer, group=mesh.get_group())
    columns, at, whole = gathered.view(world, -1), 0, iter([])  # type: ignore[var-annotated]
    found = []
    for g, block in zip(sharded, padded, strict=True):
        n = block.numel()
        found.append(columns[:, at : at + n].reshape(-1)[: g.numel()])
        at += n
    whole = iter(found)
    return [next(whole) if isinstance(g, DTensor) else g.contiguous() for g in grads]
