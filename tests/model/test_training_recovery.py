"""What happens when a run is started again: after it was finished, killed, changed, or ran out of disk."""

from __future__ import annotations

import fcntl
import json
import resource
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from model.data.selection import SampleTable
from model.data.shards import DataError
from model.tasks import VideoModel
from model.train_cli import train
from model.training import precompute as precompute_module
from model.training.checkpoint import Checkpointer, CheckpointProblem, path_of, steps_in
from model.training.config import StageConfig, TrainConfig
from model.training.config_file import ConfigError, parse_config
from model.training.precompute import precompute
from model.training.run import memory_of, run
from model.training.starting_point import starting_point
from tests.model.training_shards import clip, make_shards, write_shard

pytestmark = pytest.mark.timeout(1500)

CONFIG = """
output: {output}
data: {{shards: [{shards}], workers: 0}}
model: {{size: tiny, autoencoder: haar, image_encoder: untrained, text_encoder: untrained}}
compute: {{precision: fp32, checkpointing: none}}
saving: {{every: 1, validate_every: 0, log_every: 1}}
stages:
  - {{preset: image-to-video-320, tiny: true, name: a, height: 32, width: 32, frames: 4, global_batch: 1, steps: 2}}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), shards=1, clips=3, size=(32, 48))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    run(_config(output, shards))
    return output


@pytest.fixture
def output(tmp_path: Path, finished: Path) -> Path:
    """A copy of a finished run of two steps."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _config(output: Path, shards: Path, **stage: Any) -> TrainConfig:
    config = parse_config(CONFIG.format(output=output, shards=shards))
    return replace(config, stages=(replace(config.stages[0], **stage),))


def _more(config: TrainConfig, **changes: Any) -> TrainConfig:
    """The same chain with another stage behind it."""
    second: StageConfig = replace(config.stages[-1], name="b", **changes)
    return replace(config, stages=(*config.stages, second))


def _logged(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "01-a" / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_stage_goes_on_when_more_steps_are_asked(output: Path, shards: Path) -> None:
    with open(output / "01-a" / "metrics.jsonl", "a") as log:  # what a killed attempt leaves beyond its checkpoint
        log.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    model = output / "01-a" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    before = model.read_bytes()
    run(_config(output, shards, steps=3))
    assert _logged(output) == [1, 2, 3], "no step is there twice"
    assert steps_in(output / "01-a" / "checkpoints") == [1, 2, 3]
    assert model.read_bytes() != before


def test_a_finished_stage_of_another_configuration_is_not_taken_for_this_one(
    output: Path, shards: Path, tmp_path: Path
) -> None:
    other_shards = make_shards(tmp_path / "others", shards=1, clips=1, size=(32, 48))
    with pytest.raises(CheckpointProblem, match=r"01-a was written by another.*p_mean: 0.0 then, 0.2 now"):
        run(_config(output, shards, p_mean=0.2))
    config = _config(output, shards)
    for changed, message in (
        (replace(config, model=replace(config.model, autoencoder="haar-1")), r'model\.autoencoder: "haar" then'),
        (
            replace(config, model=replace(config.model, channels=(32, 64))),
            r"channels: null then, \[32, 64\] now",
        ),
        (replace(config, data=replace(config.data, shards=(str(other_shards),))), r'data: "3 samples.*"1 samples'),
    ):
        with pytest.raises(CheckpointProblem, match=rf"01-a was written by another.*{message}"):
            run(changed)
    with pytest.raises(CheckpointProblem, match=r"trained for 2 steps, 1 are asked"):
        run(_config(output, shards, steps=1))
    (output / "02-b").mkdir()
    with pytest.raises(CheckpointProblem, match=r"02-b started from its result: remove"):
        run(_more(_config(output, shards, steps=3)))


def test_the_same_samples_in_other_shards_are_another_order(output: Path, shards: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    clips = [clip(i, size=(32, 48)) for i in range(3)]
    write_shard(packed / "0.tar", clips[:1])
    write_shard(packed / "1.tar", clips[1:])
    before, after = SampleTable.open([str(shards)]), SampleTable.open([str(packed)])
    for column in ("key", "media_crc32"):
        assert before.table[column].to_pylist() == after.table[column].to_pylist()
    with pytest.raises(CheckpointProblem, match=r'data: "3 samples in 1 shards, .*then, "3 samples in 2 shards, .*now'):
        run(_config(output, packed, steps=3))
    precompute(_config(output, shards), None, str(tmp_path / "latents"))
    with pytest.raises(ConfigError, match=r"latents of other settings \(data 3 samples in 1 shards"):
        precompute(_config(output, packed), None, str(tmp_path / "latents"))


def test_a_second_run_keeps_off_until_the_first_is_gone(output: Path, shards: Path) -> None:
    """Its first act would be to throw away what the other is writing. A lock file that nobody holds is no lock."""
    config = _config(output, shards, steps=3)
    written = output / "01-a" / "checkpoints" / "step-00000003.tmp"
    written.mkdir()
    with open(output / ".lock", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"run: another `clipmill train` is at work there"):
            run(config)
        assert written.is_dir()
    run(config)
    assert steps_in(written.parent) == [1, 2, 3]


def test_a_full_disk_while_the_result_is_written_leaves_the_checkpoints(output: Path, shards: Path) -> None:
    config = _config(output, shards)
    shutil.rmtree(output / "01-a" / "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # writing past 1 MB fails, as on a full disk
    try:
        with pytest.raises(CheckpointProblem, match=r"result of a could not be written to .*model.*free space"):
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in sorted((output / "01-a").iterdir())] == ["checkpoints", "metrics.jsonl", "tensorboard"]
    assert run(config).is_dir()


def test_a_kill_while_an_earlier_result_is_replaced_leaves_no_half_of_it(
    output: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, **_: Any) -> None:
        if (path / "unet").is_dir():
            (path / "unet" / "config.json").unlink()
            raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr("model.training.export.shutil.rmtree", killed)
        with pytest.raises(SystemExit):
            run(_config(output, shards, steps=3))
    assert VideoModel.load(run(_config(output, shards, steps=3)))


def test_half_a_checkpoint_is_never_taken_for_one(output: Path, shards: Path) -> None:
    folder = output / "01-a" / "checkpoints"
    shutil.rmtree(output / "01-a" / "model")
    newest = path_of(folder, 2)
    (newest / "manifest.json").unlink()  # killed while it was thrown away, or while it was copied elsewhere
    shutil.copytree(newest, folder / "step-00000003.tmp")  # killed while it was written
    run(_config(output, shards))
    assert steps_in(folder) == [1, 2]
    assert not list(folder.glob("*.tmp"))
    assert _logged(output) == [1, 2]


@pytest.mark.parametrize("left", ['{"step": 2, "set', "[]", '{"step": 2}'])
def test_a_damaged_manifest_is_named_with_the_way_out(output: Path, shards: Path, left: str) -> None:
    shutil.rmtree(output / "01-a" / "model")
    newest = path_of(output / "01-a" / "checkpoints", 2)
    (newest / "manifest.json").write_text(left)
    with pytest.raises(CheckpointProblem, match=r"step-00000002/manifest\.json cannot be read.*Remove .*step-00000002"):
        run(_config(output, shards))


def test_damaged_tensors_of_the_right_size_are_named_with_the_way_out(output: Path, shards: Path) -> None:
    shutil.rmtree(output / "01-a" / "model")
    tensors = next(path_of(output / "01-a" / "checkpoints", 2).glob("*.distcp"))
    tensors.write_bytes(bytes(tensors.stat().st_size))
    with pytest.raises(CheckpointProblem, match=r"step-00000002 cannot be read: .*remove .*step-00000002"):
        run(_config(output, shards))


def test_whatever_stops_the_writer_is_reported(
    output: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("cannot pickle this")

    monkeypatch.setattr(Checkpointer, "_write_files", broken)
    with pytest.raises(CheckpointProblem, match=r"step 4 could not be written.*cannot pickle this"):
        run(_config(output, shards, steps=4))
    assert "checkpoint of step 3 could not be written" in caplog.text, "training went on, and tried again"
    assert steps_in(output / "01-a" / "checkpoints") == [1, 2]


def test_latents_of_mixed_sizes_are_made_once_and_not_mixed_with_others(tmp_path: Path) -> None:
    """Portrait and landscape clips, each encoded at the size of its aspect-ratio bucket."""
    clips = [clip(0, size=(32, 64)), clip(1, size=(64, 32)), clip(2, size=(48, 48))]
    (tmp_path / "clips").mkdir()
    write_shard(tmp_path / "clips" / "0.tar", clips)
    config = _config(tmp_path / "run", tmp_path / "clips", aspect_buckets=True, global_batch=1, steps=2)
    latents = tmp_path / "latents"
    assert "3 clips encoded" in precompute(config, None, str(latents))
    table = SampleTable.open([str(latents)])
    sizes = set(zip(table.numbers("height"), table.numbers("width"), strict=True))
    assert sizes == {(24.0, 48.0), (40.0, 24.0), (32.0, 32.0)}
    run(replace(config, data=replace(config.data, shards=(str(latents),))))
    with pytest.raises(ConfigError, match=r"latents of other settings \(frames 4 then, 5 now\)"):
        precompute(_config(tmp_path / "run", tmp_path / "clips", aspect_buckets=True, frames=5), None, str(latents))


def test_clips_with_long_keys_give_latents_and_latents_none(tmp_path: Path) -> None:
    key = "folder.of/" + "k" * 150
    write_shard(tmp_path / "0.tar", [(key, *clip(0, size=(32, 48))[1:])], form=tarfile.PAX_FORMAT)
    config = _config(tmp_path / "run", tmp_path / "0.tar", global_batch=1, steps=1)
    assert "1 clips encoded" in precompute(config, None, str(tmp_path / "latents"))
    found = SampleTable.open([str(tmp_path / "latents")])
    assert found.table["key"].to_pylist() == [key]
    made = replace(config, data=replace(config.data, shards=(str(tmp_path / "latents"),)))
    run(made)
    with pytest.raises(DataError, match=r"000000\.tar: holds latents already; set data\.shards to the shards of clips"):
        precompute(made, None, str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_a_shard_without_a_readable_clip_gives_no_shard_of_latents(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    key, _, facts, caption = clip(0, size=(32, 48))
    write_shard(tmp_path / "clips" / "0.tar", [(key, b"no video", facts, caption)])
    write_shard(tmp_path / "clips" / "1.tar", [clip(1, size=(32, 48))])
    config = _config(tmp_path / "run", tmp_path / "clips", steps=1)
    latents = tmp_path / "latents"
    assert "1 clips encoded" in precompute(config, None, str(latents))
    assert [path.name for path in latents.glob("*.tar*")] == ["000001.tar"]
    run(replace(config, data=replace(config.data, shards=(str(latents),))))


def test_two_processes_that_encode_the_same_shard_do_not_write_into_one_file(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `srun` starts them: without RANK. The second begins, and ends, while the first is at its second clip."""
    config = _config(tmp_path / "run", shards)
    precompute(config, None, str(tmp_path / "alone"))
    add, others = precompute_module._add, []

    def add_while_another_works(*args: Any) -> None:
        if not others:
            others.append(None)
            precompute(config, None, str(tmp_path / "both"))
        add(*args)

    monkeypatch.setattr(precompute_module, "_add", add_while_another_works)
    precompute(config, None, str(tmp_path / "both"))
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == names
    tar = "000000.tar"
    assert (tmp_path / "both" / tar).read_bytes() == (tmp_path / "alone" / tar).read_bytes()


def test_a_shard_of_latents_never_stands_there_without_its_index(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(precompute_module, "write_index", killed)
    with pytest.raises(KeyboardInterrupt):
        precompute(_config(tmp_path / "run", shards), None, str(tmp_path / "latents"))
    assert [path.name for path in (tmp_path / "latents").iterdir()] == ["latents.json"]


def test_memory_counts_what_is_trained(tmp_path: Path, shards: Path) -> None:
    def states(**stage: Any) -> int:
        config = _config(tmp_path / "run", shards, **stage)
        return memory_of(config, config.stages[0], starting_point(config, config.stages[0], None, None), 1).states

    everything, little = states(), states(trainable=r"time_embedding\..*")
    assert little < 0.3 * everything  # the weights, of weights, gradient, two moments and average


def test_a_gpu_without_memory_is_said_with_the_way_out(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")

    monkeypatch.setattr("model.training.stage.StageTrainer.run", full)
    (tmp_path / "run.yaml").write_text(CONFIG.format(output=tmp_path / "run", shards=shards))
    found = CliRunner().invoke(train, [str(tmp_path / "run.yaml")])
    assert found.exit_code == 1
    assert found.output.splitlines()[-1].startswith(
        "Error: CUDA out of memory. Tried to allocate 2.00 GiB. With compute.micro_batch: 1"
    )
