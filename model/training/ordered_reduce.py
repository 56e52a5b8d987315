"""Gradients added in the order of the samples, whatever the number of ranks: the same sum to the last bit.

Floating-point addition is not associative, so a run on 4 ranks normally differs in the last bits from one on 2, and the
two drift apart. Here micro-batch j of a global batch is worked on by rank j mod W (data/order.py), and after each
micro-step the W gradients are added to the running sum in rank order:

    s_{j+1} = s_j + g_j,   j = 0, 1, 2, ... over the micro-batches of the global batch

which is exactly what one rank that works through them alone does. Per micro-step an all-to-all brings every rank its
shard of all W gradients: the same volume as the reduce-scatter it replaces. Needs a fixed micro-batch size, the same
number of threads per rank, and sharding over one group of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter


class OrderedReduceScatter(ReduceScatter):
    """What FSDP2 calls instead of reduce-scatter, one object per sharded unit."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def begin_step(self) -> None:
        """Forget the sum of the last step."""
        self.total = None

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer for FSDP to fill."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> None:
        """Put the running sum, this micro-step's gradients included, into the output: it replaces `grad`."""
        pieces = torch.empty_like(input_tensor)
        dist.all_to_all_single(pieces, input_tensor, group=group)
        if self.total is not None and self.total.numel() != output_tensor.numel():
            raise RuntimeError("parameters that get a gradient differ between micro-steps: exact sums need them equal")
        for piece in pieces.chunk(group.size()):
            self.total = piece.clone() if self.total is None else self.total.add_(piece)
        assert self.total is not None
        output_tensor.copy_(self.total)


def add_replicated(parameters: Iterable[nn.Parameter], totals: dict[int, Tensor], group: dist.ProcessGroup) -> None:
    """The same for the few parameters that every rank holds whole: their gradients are added to `totals` in rank order.

    `totals` is keyed by the parameter's place. Gradients are cleared; the caller puts the totals back at the end.
    """
    world = group.size()
    for i, parameter in enumerate(parameters):
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gathered = [grad] if world == 1 else [torch.empty_like(grad) for _ in range(world)]
        if world > 1:
            dist.all_gather(gathered, grad.contiguous(), group=group)
        for each in gathered:
            totals[i] = each.clone() if i not in totals else totals[i].add_(each)
        parameter.grad = None
