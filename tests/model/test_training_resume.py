"""Never lose work: the same bits whatever the number of ranks, wherever the run was killed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from model.training.checkpoint import steps_in
from tests.model.training_runs import finish, result, same_bits, signal_when, start, steps_done, write_config
from tests.model.training_shards import make_shards

STEPS = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), shards=3, clips=3, size=(32, 48))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> dict:
    """The weights after all steps on one rank."""
    folder = tmp_path_factory.mktemp("one-rank")
    config = write_config(folder / "c.yaml", folder / "run", shards, steps=STEPS)
    assert finish(start(config, 1, folder / "log")) == [0], (folder / "log.0.log").read_text()
    return result(folder / "run")


def _log(folder: Path) -> str:
    return "\n".join(p.read_text()[-1500:] for p in sorted(folder.glob("log*")))


@pytest.mark.parametrize(("before", "after", "workers"), [(2, 1, 1), (4, 2, 0), (1, 4, 0)])
def test_killed_run_goes_on_with_other_ranks_to_the_same_bits(
    tmp_path: Path, shards: Path, uninterrupted: dict, before: int, after: int, workers: int
) -> None:
    output = tmp_path / "run"
    config = write_config(tmp_path / "c.yaml", output, shards, steps=STEPS)
    when = random.Random(before).randint(3, STEPS - 3)  # mid-epoch: an epoch of 9 clips is 2.25 batches
    checkpoints = output / "01-stage" / "checkpoints"
    processes = start(config, before, tmp_path / "log-a")
    signal_when(processes, lambda: steps_done(output) >= when and bool(steps_in(checkpoints)), signal.SIGKILL)
    assert finish(processes) == [-signal.SIGKILL] * before
    newest = steps_in(checkpoints)[-1]
    assert 0 < newest < STEPS
    write_config(tmp_path / "c.yaml", output, shards, steps=STEPS, workers=workers)
    assert finish(start(config, after, tmp_path / "log-b")) == [0] * after, _log(tmp_path)
    assert f"goes on from step {newest}" in _log(tmp_path)
    assert same_bits(uninterrupted, result(output)) == []
    assert not list(checkpoints.glob("*.tmp"))


def test_sigterm_saves_at_once_and_says_so(tmp_path: Path, shards: Path, uninterrupted: dict) -> None:
    output = tmp_path / "run"
    config = write_config(tmp_path / "c.yaml", output, shards, steps=STEPS)
    processes = start(config, 2, tmp_path / "log-a")
    signal_when(processes, lambda: steps_done(output) >= 3, signal.SIGTERM)
    assert finish(processes) == [143, 143], _log(tmp_path)
    saved = steps_in(output / "01-stage" / "checkpoints")[-1]
    assert saved == steps_done(output) < STEPS, "the step that was reached is the one that was saved"
    assert finish(start(config, 1, tmp_path / "log-b")) == [0], _log(tmp_path)
    assert same_bits(uninterrupted, result(output)) == []
