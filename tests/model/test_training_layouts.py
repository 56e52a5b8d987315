"""The layout on ranks changes nothing: joint training and LoRAs on 2, replicas of shards on 4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from model.training.config_file import parse_config
from model.training.run import run
from tests.model.training_runs import finish, same_bits, start
from tests.model.training_shards import make_shards

pytestmark = pytest.mark.timeout(1500)

CONFIG = """
output: {output}
data: {{shards: [{shards}], workers: 0}}
model: {{size: tiny, autoencoder: haar, image_encoder: untrained, text_encoder: untrained}}
compute: {{precision: fp32, checkpointing: none{compute}}}
saving: {{every: 100, validate_every: 0, log_every: 1, peak_tflops: 1.0}}
stages:
  - {{preset: joint-image-video, image_share: 0.5, {small}, steps: 3}}
"""
LATER = """
  - {{preset: image-to-video-320, {small}, steps: 1}}
  - {{preset: camera-static, {small}, steps: 2}}
"""
SMALL = "tiny: true, height: 32, width: 32, frames: 4, global_batch: 4, warmup_steps: 1"
STAGE = "01-joint-image-video"
UNET, LORA = "01-joint-image-video/model/unet/diffusion_pytorch_model.safetensors", "03-camera-static/lora"


def _text(output: Path, shards: Path, compute: str = "", later: str = LATER) -> str:
    return (CONFIG + later).format(output=output, shards=shards, small=SMALL, compute=compute)


def _numbers(output: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / stage / "metrics.jsonl").read_text().splitlines()]


def _on_ranks(folder: Path, shards: Path, ranks: int, *changes: str) -> Path:
    (folder / "c.yaml").write_text(_text(folder / "run", shards, *changes))
    logs = folder / "log"
    assert finish(start(folder / "c.yaml", ranks, logs)) == [0] * ranks, logs.with_suffix(".0.log").read_text()[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), shards=2, clips=3, size=(32, 48))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    output = tmp_path_factory.mktemp("one") / "run"
    run(parse_config(_text(output, shards)))
    return output


def test_joint_training_and_a_lora_give_the_same_bits_on_two_ranks(
    tmp_path: Path, shards: Path, one_rank: Path
) -> None:
    two = _on_ranks(tmp_path, shards, 2)
    assert same_bits(load_file(one_rank / UNET), load_file(two / UNET)) == []
    adapters = [load_file(output / LORA / "adapter_model.safetensors") for output in (one_rank, two)]
    assert same_bits(*adapters) == []
    kinds = {round(line["mfu"] / line["samples_per_s"], 5) for line in _numbers(two, STAGE)}
    assert len(kinds) == 2, "batches of images count fewer operations than batches of clips"


def test_replicas_of_shards_train_alike(tmp_path: Path, shards: Path, one_rank: Path) -> None:
    """Two groups of two ranks (HSDP): the same losses and gradients, up to rounding."""
    four = _on_ranks(tmp_path, shards, 4, ", replicate: 2", "")
    for ours, theirs in zip(_numbers(four, STAGE), _numbers(one_rank, STAGE), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-2)
