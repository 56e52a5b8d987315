"""Numbers of a run: a line on the console now and then, one JSON line per step, and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch

log = logging.getLogger("clipmill.train")

# Dense bf16 peak of one device, TFLOP/s, as the vendors state it (without sparsity).
PEAK_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "GH200": 989.0, "B200": 2250.0, "A100": 312.0, "A800": 312.0,
    "L40S": 362.0, "A10G": 70.0, "RTX 4090": 165.2, "RTX 3090": 71.0, "V100": 125.0,
}  # fmt: skip


def peak_tflops(device: torch.device, configured: float | None) -> float | None:
    """Peak of the device: as configured, or known by name; None where it is not known (then there is no MFU)."""
    if configured is not None:
        return configured
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


class SigmaBuckets:
    """The loss apart for small and large noise: quarters of the stage's distribution of sigma."""

    def __init__(self, p_mean: float, p_std: float, count: int = 4) -> None:
        normal = NormalDist(p_mean, p_std) if p_std else None
        self.edges = [] if normal is None else [math.exp(normal.inv_cdf(i / count)) for i in range(1, count)]
        self._sums: dict[int, tuple[float, int]] = {}

    def add(self, sigmas: list[float], losses: list[float]) -> None:
        """Losses of samples with their sigmas."""
        for sigma, loss in zip(sigmas, losses, strict=True):
            bucket = sum(sigma >= edge for edge in self.edges)
            total, n = self._sums.get(bucket, (0.0, 0))
            self._sums[bucket] = (total + loss, n + 1)

    def means(self) -> dict[str, float]:
        """Mean loss per bucket since the last call, named by its range of sigma."""
        edges = [0.0, *self.edges, math.inf]
        found = {
            f"loss/sigma_{edges[b]:.2g}_{edges[b + 1]:.2g}": total / n for b, (total, n) in sorted(self._sums.items())
        }
        self._sums.clear()
        return found


class Metrics:
    """Where the numbers go. Only the first rank has one."""

    def __init__(self, folder: Path, *, every: int, steps: int, first: int = 0) -> None:
        """`first`: updates that were done before; what an earlier attempt wrote beyond them is taken back."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _forget_after(self.path, first)
        self._file = open(self.path, "a")  # noqa: SIM115 - open as long as the run
        self._every, self._steps = every, steps
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1 if first else None)
        except ImportError:
            log.warning("TensorBoard is not installed (pip install tensorboard): %s has every number", self.path)

    def step(self, step: int, values: dict[str, float]) -> None:
        """After update number `step` (counted from 1)."""
        clean = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
        line = {"step": step, "time": round(time.time(), 3)} | {k: _rounded(v) for k, v in clean.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in clean.items():
                self._board.add_scalar(name, value, step)
        if step % self._every == 0 or step in (1, self._steps):
            log.info("step %d/%d  %s", step, self._steps, _for_people(clean))

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of later steps: they are taken again, and would be there twice."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # cut off when the run was killed
            continue
    partial = path.with_suffix(".jsonl.tmp")
    partial.write_text("".join(kept))
    partial.replace(path)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _for_people(values: dict[str, float]) -> str:
    parts = [
        f"loss {values['loss']:.4f}",
        f"grad {values['grad_norm']:.3f}",
        f"{values['samples_per_s']:.2f} samples/s",
    ]
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.0%}")
    if "memory_gib" in values:
        parts.append(f"{values['memory_gib']:.1f} GiB")
    if values.get("data_wait_share", 0) > 0.05:
        parts.append(f"waiting for data {values['data_wait_share']:.0%}")
    return "  ".join(parts)
