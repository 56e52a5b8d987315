"""Process groups and devices: one process alone, or what torchrun (or Ray Train) has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Where this process stands."""

    rank: int
    world: int
    local_world: int
    device: torch.device
    control: Any
    """Process group (gloo) for numbers and flags, which live on the CPU."""

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0


@contextmanager
def process_group(*, threads: int) -> Iterator[Ranks]:
    """Join the group that torchrun (or Ray Train) describes in the environment, or make one of this process alone."""
    if threads:
        torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    made = not dist.is_initialized()
    if made:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=timedelta(minutes=30))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    world = dist.get_world_size()
    try:
        yield Ranks(
            rank=dist.get_rank(),
            world=world,
            local_world=int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world > 1 else 1,
            device=device,
            control=dist.new_group(backend="gloo"),
        )
    finally:
        if made:
            dist.destroy_process_group()
