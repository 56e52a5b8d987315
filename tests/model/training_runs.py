"""Training runs in processes of their own, on any number of gloo ranks, to be killed and started again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.model.training_preload"])

CONFIG = """
output: {output}
data: {{shards: [{shards}], workers: {workers}}}
model: {{size: tiny, autoencoder: haar, image_encoder: untrained, text_encoder: untrained}}
compute: {{precision: {precision}, checkpointing: none}}
saving: {{every: 2, keep: 2, validate_every: 0, log_every: 1}}
seed: 3
stages:
  - {{preset: image-to-video-320, tiny: true, name: stage, height: 32, width: 32, frames: 4, warmup_steps: 2,
     global_batch: 4, steps: {steps}, ema_decay: 0.9{more}}}
"""


def write_config(path: Path, output: Path, shards: Path, *, steps: int = 6, workers: int = 0, precision: str = "fp32",
                 more: str = "") -> Path:  # fmt: skip
    """A small image-to-video run."""
    fields = {"output": output, "shards": shards, "steps": steps, "workers": workers, "precision": precision}
    path.write_text(CONFIG.format(**fields, more=more and f", {more}"))
    return path


def start(config: Path, ranks: int, log: Path) -> list[Any]:
    """One process per rank, with the environment that torchrun gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        mine = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = CONTEXT.Process(target=train, args=(str(config), mine, str(log.with_suffix(f".{rank}.log"))))
        process.start()
        processes.append(process)
    return processes


def train(config: str, environment: dict[str, str], log: str) -> None:
    """What a rank does: `clipmill train CONFIG`."""
    os.environ.update(environment)
    with open(log, "ab", buffering=0) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    from model.train_cli import train as command

    command([config])


def finish(processes: list[Any], timeout_s: float = 1200) -> list[int | None]:
    """Exit statuses; negative: the signal that ended it."""
    end = time.monotonic() + timeout_s
    for p in processes:
        p.join(max(0.0, end - time.monotonic()))
    for p in processes:
        if p.is_alive():
            p.kill()
            p.join()
    return [p.exitcode for p in processes]


def signal_when(
    processes: list[Any], ready: Callable[[], bool], which: signal.Signals, timeout_s: float = 1200
) -> None:
    """Send a signal to all of them as soon as `ready`."""
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, "never got there"
        assert all(p.is_alive() for p in processes), "ended before the signal"
        time.sleep(0.005)
    for p in processes:
        os.kill(p.pid, which)


def steps_done(output: Path) -> int:
    """Updates so far, from the log of metrics."""
    path = output / "01-stage" / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def result(output: Path) -> dict[str, Tensor]:
    """The exported weights."""
    return load_file(output / "01-stage" / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of tensors that differ."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
