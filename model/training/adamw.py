"""AdamW whose result does not depend on how the parameters are sharded, to the last bit.

PyTorch's fused and vectorised updates use fused multiply-adds in their vector part and not in its scalar tail (or the
other way round), so an element's update depends on its place in its shard. Here every operation rounds once.
The arithmetic is that of `torch.optim.AdamW` (Loshchilov and Hutter 2019, algorithm 2), the state has the same names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from model.training.ema import local


class ExactAdamW(torch.optim.Optimizer):
    """For training whose result must not depend on the number of ranks."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            chosen = [p for p in group["params"] if p.grad is not None]
            for p in chosen:
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
            for p in chosen:
                state = self.state[p]
                t = int(state["step"])
                w, g = local(p), local(p.grad)
                m, v = local(state["exp_avg"]), local(state["exp_avg_sq"])
                m.mul_(beta1).add_(g.mul(1 - beta1))
                v.mul_(beta2).add_(g.square().mul_(1 - beta2))
                scale = v.div(1 - beta2**t).sqrt_().add_(group["eps"])
                w.mul_(1 - lr * group["weight_decay"])
                w.sub_(m.div(1 - beta1**t).div_(scale).mul_(lr))
