"""Checkpoints that are complete or absent: DCP in the background, a temporary folder, one rename, the newest k kept.

    step-00000100.tmp/   being written; thrown away when a run starts
    step-00000100/       complete: weights, optimizer and averages as DCP shards, and manifest.json

Tensors are saved under their full names with their place in the whole, so a checkpoint can be read by any number of
ranks. There is no state of data or random numbers to save: both are functions of the step (data/).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from model.training.ema import local

log = logging.getLogger("clipmill.train")
MANIFEST = "manifest.json"


class CheckpointProblem(Exception):
    """A checkpoint that cannot be written or used: the message names the folder and the way out."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself."""

    step: int
    settings: dict[str, Any]  # what must be the same to go on from it
    ema_updates: int
    files: dict[str, int]  # sizes


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """Complete checkpoints, oldest first."""
    found = folder.glob("step-*") if folder.is_dir() else []
    return sorted(int(p.name[5:]) for p in found if p.name[5:].isdigit() and (p / MANIFEST).is_file())


def read_manifest(folder: Path, step: int) -> Manifest:
    """The manifest of a checkpoint, after checking that its files are whole.

    Raises:
        CheckpointProblem: a file is missing or has another size, or the manifest is none.
    """
    path = path_of(folder, step)
    try:
        manifest = Manifest(**json.loads((path / MANIFEST).read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointProblem(
            f"{path / MANIFEST} cannot be read ({error}): the checkpoint was damaged. "
            f"Remove {path} to go on from the one before"
        ) from error
    for name, size in manifest.files.items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes of {size}"
            raise CheckpointProblem(
                f"{path / name} {state}: the checkpoint was damaged. Remove {path} to go on from the one before"
            )
    return manifest


def compare_settings(manifest: Manifest, now: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on from a checkpoint of another run. Compared is what both tell: an older one tells less.

    Raises:
        CheckpointProblem: names what differs.
    """
    then = manifest.settings
    now = json.loads(json.dumps(now))
    differ = [k for k in sorted(then.keys() & now.keys()) if then[k] != now[k]]
    if differ:
        listed = "; ".join(f"{k}: {_short(then[k])} then, {_short(now[k])} now" for k in differ)
        raise CheckpointProblem(
            f"{where} was written by another configuration ({listed}). "
            "Restore the configuration, or choose another `output`"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


class Checkpointer:
    """Saves and loads one stage. All ranks call every method together."""

    def __init__(self, folder: Path, *, keep: int, asynchronous: bool, reading: bool = False) -> None:
        self.folder, self.keep, self.asynchronous = folder, keep, asynchronous
        # A process group of its own, so that writing in the background does not meet the training's messages.
        self._group = dist.new_group(backend="gloo")
        self._running: tuple[int, threading.Thread, Future[None]] | None = None
        if dist.get_rank() == 0 and not reading:  # a reader must not throw away what a run is writing
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob("step-*"):
                if leftover.suffix == ".tmp" or not (leftover / MANIFEST).is_file():
                    shutil.rmtree(leftover, ignore_errors=True)
        dist.barrier(self._group)

    def save(self, step: int, state: dict[str, Tensor], settings: Mapping[str, Any], ema_updates: int) -> None:
        """Copy the state now, write it in the background (or here). An earlier write is waited for first.

        Raises:
            CheckpointProblem: this write failed, or the earlier one; what was there before is untouched.
        """
        self.wait()
        if step in steps_in(self.folder):
            return
        copied = {name: _copy(value) for name, value in state.items()}
        done: Future[None] = Future()
        thread = threading.Thread(
            target=self._write, args=(done, step, copied, dict(settings), ema_updates), name=f"checkpoint-{step}"
        )
        self._running = (step, thread, done)
        thread.start()
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            CheckpointProblem: the last write failed, on any rank.
        """
        if self._running is None:
            return
        step, thread, done = self._running
        thread.join()
        self._running = None
        failure = done.exception()
        if failure is not None:
            raise CheckpointProblem(
                f"checkpoint of step {step} could not be written to {self.folder} "
                f"({shutil.disk_usage(self.folder).free / 2**30:.2f} GiB free): {_root_cause(failure)}. "
                f"Nothing else was touched; the newest complete one is {self._newest()}. Free space and run again"
            ) from failure

    def settle(self) -> None:
        """Let a write that is under way finish, before the process group goes; a failure is only reported."""
        try:
            self.wait()
        except CheckpointProblem as error:
            log.error("%s", error)

    def _newest(self) -> str:
        steps = steps_in(self.folder)
        return f"step {steps[-1]}" if steps else "none"

    def _write(
        self, done: Future[None], step: int, state: dict[str, Tensor], settings: dict[str, Any], ema_updates: int
    ) -> None:
        """In the background; whatever happens, `done` says so."""
        failure: BaseException | None = None
        try:
            self._write_files(step, state, settings, ema_updates)
        except BaseException as error:  # the boundary of the thread: wait() raises it again. DCP's is no Exception
            failure = error
        try:
            # All ranks learn whether it worked, so that all go on or all stop.
            failed = torch.tensor([failure is not None], dtype=torch.int32)
            dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=self._group)
            if failed.item() and dist.get_rank() == 0:
                shutil.rmtree(self._partial(step), ignore_errors=True)
            if failed.item() and failure is None:
                failure = CheckpointProblem("another rank could not write")
        except BaseException as error:  # another rank is gone
            failure = failure or error
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)

    def _partial(self, step: int) -> Path:
        return path_of(self.folder, step).with_suffix(".tmp")

    def _write_files(self, step: int, state: dict[str, Tensor], settings: dict[str, Any], ema_updates: int) -> None:
        partial = self._partial(step)
        self._check_space(sum(local(t).numel() * t.element_size() for t in state.values()))
        dcp.save(state, storage_writer=dcp.FileSystemWriter(partial), process_group=self._group)
        if dist.get_rank() != 0:
            return
        files = {p.name: p.stat().st_size for p in partial.iterdir()}
        manifest = {"step": step, "settings": settings, "ema_updates": ema_updates, "files": files}
        with open(partial / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path_of(self.folder, step))
        _sync_folder(self.folder)
        for old in steps_in(self.folder)[: -self.keep]:
            # Renamed first, so that a kill in the middle leaves no half of a checkpoint under its name.
            leaving = self._partial(old)
            path_of(self.folder, old).rename(leaving)
            shutil.rmtree(leaving)

    def _check_space(self, needed: int) -> None:
        """Refuse on all ranks together what cannot fit, before anything is written."""
        free = shutil.disk_usage(self.folder).free
        short = torch.tensor([needed > free], dtype=torch.int32)
        dist.all_reduce(short, op=dist.ReduceOp.MAX, group=self._group)
        if short.item():
            needs = f"{needed / 2**30:.2f} GiB per rank are needed, {free / 2**30:.2f} GiB are free"
            raise OSError(errno.ENOSPC, needs)

    def load(self, step: int, state: dict[str, Tensor]) -> None:
        """Fill the state's tensors in place, on any number of ranks.

        Raises:
            CheckpointProblem: tensors are missing or have another shape.
        """
        path = path_of(self.folder, step)
        try:
            dcp.load(state, storage_reader=dcp.FileSystemReader(path), process_group=self._group)
        except (CheckpointException, RuntimeError, ValueError) as error:
            raise CheckpointProblem(
                f"{path} cannot be read: {_root_cause(error)}. If it was damaged, remove {path} to go on from the one "
                "before"
            ) from error

    def names(self, step: int) -> set[str]:
        """The tensors a checkpoint holds."""
        return set(dcp.FileSystemReader(path_of(self.folder, step)).read_metadata().state_dict_metadata)


def _copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU that training no longer changes, with its place in the whole."""
    kept = local(tensor).to("cpu", copy=True)
    if not isinstance(tensor, DTensor):
        return kept
    mesh = tensor.device_mesh
    if mesh.device_type != "cpu":
        mesh = _on_cpu(tuple(mesh.shape), mesh.mesh_dim_names)
    return DTensor.from_local(
        kept, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


@lru_cache
def _on_cpu(shape: tuple[int, ...], names: tuple[str, ...] | None) -> DeviceMesh:
    """The same ranks with CPU tensors; made once, because making it is a collective operation."""
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def _root_cause(error: BaseException) -> str:
    """The sentence that matters of a CheckpointException, which wraps each rank's."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]  # torch's own go on with a stack


def _sync_folder(folder: Path) -> None:
    """Make the rename survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
