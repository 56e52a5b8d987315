"""Never lose work: the same bits whatever the number of ranks, wherever the run was killed."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from model.training.checkpoint import steps_in
from tests.model.training_runs import finish, result, same_bits, signal_when, start, steps_done, write_config
from tests.model.training_shards import make_shards

STEPS = 6
pytestmark = pytest.mark.timeout(1500)  # seconds; about 40 where nothing else runs


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


def test_run_killed_twice_ends_on_the_same_bits_whatever_the_number_of_ranks(
    tmp_path: Path, shards: Path, uninterrupted: dict
) -> None:
    """2 ranks, SIGKILL; 4 ranks, SIGKILL; 1 rank with a loader process. An epoch of 9 clips is 2.25 batches of 4."""
    output, checkpoints = tmp_path / "run", tmp_path / "run" / "01-stage" / "checkpoints"
    for number, (ranks, least) in enumerate([(2, random.randint(2, 3)), (4, 4)]):
        config = write_config(tmp_path / "c.yaml", output, shards, steps=STEPS)
        before = steps_in(checkpoints)[-1] if number else 0
        processes = start(config, ranks, tmp_path / f"log-{number}")
        ready = lambda: steps_in(checkpoints)[-1:] > [before] and steps_done(output) >= least  # noqa: B023, E731
        signal_when(processes, ready, signal.SIGKILL)
        assert finish(processes) == [-signal.SIGKILL] * ranks
        assert 0 < steps_in(checkpoints)[-1] < STEPS
    newest = steps_in(checkpoints)[-1]
    config = write_config(tmp_path / "c.yaml", output, shards, steps=STEPS, workers=1)
    assert finish(start(config, 1, tmp_path / "log-last")) == [0], _log(tmp_path)
    assert f"goes on from step {newest}" in _log(tmp_path)
    assert same_bits(uninterrupted, result(output)) == []
    assert not list(checkpoints.glob("*.tmp"))


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_at_once_and_says_so(
    tmp_path: Path, shards: Path, uninterrupted: dict, asked: signal.Signals
) -> None:
    output = tmp_path / "run"
    config = write_config(tmp_path / "c.yaml", output, shards, steps=STEPS)
    processes = start(config, 2, tmp_path / "log-a")
    signal_when(processes, lambda: steps_done(output) >= 3, asked)
    assert finish(processes) == [143, 143], _log(tmp_path)
    saved = steps_in(output / "01-stage" / "checkpoints")[-1]
    assert saved == steps_done(output) < STEPS, "the step that was reached is the one that was saved"
    assert finish(start(config, 1, tmp_path / "log-b")) == [0], _log(tmp_path)
    assert same_bits(uninterrupted, result(output)) == []
