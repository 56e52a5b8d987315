"""Process groups and devices: one process alone, torchrun, or Ray Train."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.training.config import TrainConfig


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


def ray_train(config: TrainConfig, *, workers: int, gpus: bool, address: str | None, retries: int = 3) -> None:
    """Run a configuration on a Ray cluster: one Ray Train worker per rank; all are started again from the last
    checkpoint, up to `retries` times, when one fails.

    The output folder must be on storage that all nodes share; Ray Train's own notes go to its `ray/`.

    Raises:
        Exception: that of the first worker that failed every time, as `run` raises it.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    from model.training.config_file import render

    ray.init(address=address, ignore_reinit_error=True)
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"text": render(config)},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if gpus else {}),
        ),
        run_config=RunConfig(
            storage_path=str(Path(config.output) / "ray"), failure_config=FailureConfig(max_failures=retries)
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        _, failure = min(error.worker_failures.items())
        raise getattr(failure, "_base_exc", failure) from None  # without Ray's wrapping: run()'s own errors say enough


def _ray_worker(settings: dict[str, str]) -> None:
    from model.training.config_file import parse_config
    from model.training.run import run

    run(parse_config(settings["text"]))
