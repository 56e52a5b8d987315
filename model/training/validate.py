"""`clipmill train validate`: every stage of a run checked against data and memory, without training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from model.activation_memory import available_memory
from model.tasks.video_model import VideoModel
from model.training.config import TrainConfig
from model.training.config_file import ConfigError
from model.training.run import check_ranks, check_trainable, checked_data, memory_of, too_large
from model.training.starting_point import starting_point


def validate(config: TrainConfig, *, ranks: int = 1, memory_gib: float | None = None) -> Iterator[str]:
    """One line per stage that is in order.

    Raises:
        ConfigError, DataError: the first thing that is not.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # On one machine, ranks on CPUs share its memory; GPUs have their own.
    here = ranks if device.type == "cpu" else 1
    free = available_memory(device, here) if memory_gib is None else int(memory_gib * 2**30)
    previous: VideoModel | None = None
    for stage in config.stages:
        check_ranks(config, stage, ranks)
        try:
            model = starting_point(config, stage, previous, None)
        except ValueError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from error
        check_trainable(stage, model)
        data = checked_data(config, stage, model)
        estimate = memory_of(config, stage, model, ranks)
        if estimate.total > free:
            raise ConfigError(too_large(stage, estimate, free, config))
        epochs = stage.steps * stage.global_batch / max(1, sum(len(o) for o in data.dataset.plan.orders))
        parameters = sum(p.numel() for p in model.unet.parameters())
        yield (
            f"{stage.name}: {data.summary}; {stage.steps} steps of {stage.global_batch} are {epochs:.1f} epochs; "
            f"{parameters / 1e6:,.1f} M parameters; about {estimate} per rank of {free / 2**30:.1f} GiB"
        )
        if stage.lora is None:
            previous = replace(model)
