"""What training leaves behind: a model directory in diffusers' layout, or a LoRA in peft's, of the averaged weights."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor

from model.checkpoints import CheckpointError
from model.tasks.camera_lora import add_lora, save_lora
from model.tasks.video_model import VideoModel
from model.training.checkpoint import CheckpointProblem
from model.training.stage import StageTrainer
from model.unet import VideoUNet

MODEL, LORA = "model", "lora"


def export_stage(trainer: StageTrainer, destination: Path) -> Path:
    """Write the stage's result; all ranks call it together, the first one writes.

    Returns:
        `destination`, which holds a model directory or a LoRA and is complete or absent.

    Raises:
        CheckpointProblem: it could not be written.
    """
    averaged = trainer.ema.swapped_in() if trainer.ema is not None else nullcontext()
    with averaged, torch.no_grad():
        weights = {name: _whole(p) for name, p in trainer.model.unet.named_parameters() if _wanted(trainer, p)}
        if trainer.ranks.first:
            partial, leaving = (destination.with_name(f".{destination.name}.{kind}") for kind in ("partial", "old"))
            for leftover in (partial, leaving):
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                _save(trainer, weights, partial)
                if destination.exists():  # renamed first, so that a kill leaves no half of a result under its name
                    destination.rename(leaving)
                partial.rename(destination)
                shutil.rmtree(leaving, ignore_errors=True)
            except (OSError, SafetensorError, CheckpointError) as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise CheckpointProblem(
                    f"the result of {trainer.stage.name} could not be written to {destination}: {error}. "
                    "Its checkpoints are untouched: free space and run again"
                ) from error
    return destination


def _save(trainer: StageTrainer, weights: dict[str, torch.Tensor], folder: Path) -> None:
    with torch.device("meta"):
        network = VideoUNet(trainer.model.unet.config)
    lora = trainer.stage.lora
    if lora is not None:
        add_lora(network, name="camera", rank=lora.rank, alpha=lora.alpha)
        network.load_state_dict(weights, strict=False, assign=True)
        save_lora(network, folder, name="camera")
    else:
        network.load_state_dict(weights, assign=True)
        _parts(trainer, network).save(folder)


def _wanted(trainer: StageTrainer, parameter: nn.Parameter) -> bool:
    return trainer.stage.lora is None or parameter.requires_grad


def _whole(parameter: nn.Parameter) -> torch.Tensor:
    """The full tensor on the CPU; a collective operation where it is sharded."""
    found = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return found.detach().to("cpu", copy=True)


def _parts(trainer: StageTrainer, network: VideoUNet) -> VideoModel:
    model = trainer.model
    return VideoModel(
        description=model.description,
        unet=network,
        autoencoder=model.autoencoder,
        image_encoder=model.image_encoder,
        text_encoder=model.text_encoder,
        input_scale=copy.deepcopy(model.input_scale),
        mask_embedding=copy.deepcopy(model.mask_embedding),
    )
