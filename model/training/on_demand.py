"""`clipmill train export`: any checkpoint as a model directory, also while the run goes on."""

from __future__ import annotations

from pathlib import Path

import torch

from model.tasks.video_model import VideoModel
from model.training.checkpoint import steps_in
from model.training.config import TrainConfig
from model.training.config_file import ConfigError
from model.training.export import MODEL, export_stage
from model.training.launch import process_group
from model.training.run import prepare, stage_folder


def export_checkpoint(config: TrainConfig, stage_name: str | None, step: int | None, output: Path) -> Path:
    """Write the averaged weights of a checkpoint.

    Args:
        stage_name: default: the newest stage that has a checkpoint.
        step: default: its newest checkpoint.

    Raises:
        ConfigError: no such stage or checkpoint, or the output exists.
        CheckpointProblem: the checkpoint does not belong to this configuration, or is damaged.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; choose another folder")
    names = [stage.name for stage in config.stages]
    if stage_name is not None and stage_name not in names:
        raise ConfigError(f"no stage is called {stage_name!r}; there are {', '.join(names)}")
    numbers = [i for i in range(1, len(names) + 1) if steps_in(stage_folder(config, i) / "checkpoints")]
    if stage_name is not None:
        numbers = [i for i in numbers if names[i - 1] == stage_name]
    if not numbers:
        raise ConfigError(f"{config.output} holds no checkpoint of {stage_name or 'any stage'} yet")
    number = numbers[-1]
    folder = stage_folder(config, number)
    known = steps_in(folder / "checkpoints")
    if step is not None and step not in known:
        raise ConfigError(f"{folder}: no checkpoint of step {step}; there are {', '.join(map(str, known))}")
    stage = config.stages[number - 1]
    previous: VideoModel | None = None
    before = [i for i in range(1, number) if config.stages[i - 1].lora is None]
    if before:
        previous = VideoModel.load(stage_folder(config, before[-1]) / MODEL)
    with process_group(threads=config.compute.threads) as ranks, torch.no_grad():
        trainer = prepare(config, stage, folder, previous, ranks, reading=True)
        trainer.resume(step)
        return export_stage(trainer, output)
