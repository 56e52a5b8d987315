"""A whole run: the chain of stages, each from the result of the last, from wherever an earlier attempt stopped."""

from __future__ import annotations

import fcntl
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.activation_memory import available_memory
from model.data.order import micro_batches
from model.data.shards import DataError
from model.tasks.video_model import VideoModel
from model.training.checkpoint import CheckpointProblem, compare_settings, read_manifest, steps_in
from model.training.config import StageConfig, TrainConfig
from model.training.config_file import ConfigError, render
from model.training.cost import MemoryEstimate, Shape, estimate_memory
from model.training.export import LORA, MODEL, export_stage
from model.training.launch import Ranks, process_group
from model.training.stage import StageTrainer, is_trained, run_settings
from model.training.stage_data import StageData, data_fingerprint, motion_map, stage_data
from model.training.starting_point import learned_c_in, starting_point, token_width
from model.training.validation import Validation, validation_clips

log = logging.getLogger("clipmill.train")


def run(config: TrainConfig) -> Path:
    """Train all stages; returns the folder of the last result. Running it again goes on where it stopped.

    Raises:
        ConfigError, DataError: nothing was started.
        NonFiniteLoss, Interrupted, CheckpointProblem: see stage.py.
    """
    result = Path(config.output)
    with (
        process_group(threads=config.compute.threads) as ranks,
        _alone(Path(config.output), ranks),
        _stop_on_signal() as asked,
    ):
        _quiet(ranks)
        previous: VideoModel | None = None
        started = False
        for number, stage in enumerate(config.stages, start=1):
            folder = stage_folder(config, number)
            result = folder / (LORA if stage.lora is not None else MODEL)
            if not is_done(config, number):
                trainer = prepare(config, stage, folder, previous, ranks, stop_asked=asked.is_set)
                if not started:
                    _check_later(config, number, trainer.model, ranks)
                    started = True
                trainer.run(Validation(trainer) if config.saving.validate_every else None)
                export_stage(trainer, result)
                dist.barrier(ranks.control)
                log.info("%s is done: %s", stage.name, result)
            else:
                log.info("%s was done before: %s", stage.name, result)
            if stage.lora is None and number < len(config.stages):
                previous = VideoModel.load(result)
    return result


def is_done(config: TrainConfig, number: int) -> bool:
    """Whether a stage has its result, and has it by this configuration.

    Raises:
        CheckpointProblem: it was trained by another configuration, or a later stage started from what would change.
        DataError: the shards are not there to be compared.
    """
    stage, folder = config.stages[number - 1], stage_folder(config, number)
    if not (folder / (LORA if stage.lora is not None else MODEL)).is_dir():
        return False
    steps = steps_in(folder / "checkpoints")
    if not steps:
        return True  # the checkpoints were deleted: the result is all there is to know
    manifest = read_manifest(folder / "checkpoints", steps[-1])
    compare_settings(manifest, run_settings(config, stage, data_fingerprint(config.data, stage)), folder)
    if manifest.step > stage.steps:
        raise CheckpointProblem(
            f"{folder} was trained for {manifest.step} steps, {stage.steps} are asked: choose another `output`"
        )
    after = [f for n in range(number, len(config.stages)) if (f := stage_folder(config, n + 1)).exists()]
    if manifest.step < stage.steps and after and stage.lora is None:
        raise CheckpointProblem(
            f"{folder} was trained for {manifest.step} steps, {stage.steps} are asked, but {after[0].name} started "
            f"from its result: remove {after[0]} to train it again, or choose another `output`"
        )
    return manifest.step == stage.steps


def prepare(
    config: TrainConfig,
    stage: StageConfig,
    folder: Path,
    previous: VideoModel | None,
    ranks: Ranks,
    *,
    stop_asked: Callable[[], bool] = lambda: False,
    reading: bool = False,
) -> StageTrainer:
    """Everything a stage needs, checked before the first step. `reading`: a run may be going on in the same folder.

    Raises:
        ConfigError: sizes, ranks or memory do not fit.
        DataError: the shards do not.
    """
    check_ranks(config, stage, ranks.world)
    model = starting_point(config, stage, previous, previous.description.motion if previous else None)
    check_trainable(stage, model)
    data = checked_data(config, stage, model)
    motion = motion_map(data, model.description.motion)
    if motion is not model.description.motion:
        model = starting_point(config, stage, previous, motion)
    log.info("%s: %s", stage.name, data.summary)
    estimate = memory_of(config, stage, model, ranks.world)
    free = available_memory(ranks.device, ranks.local_world)
    log.info("%s: about %s per rank, %.1f GiB available", stage.name, estimate, free / 2**30)
    if estimate.total > free:
        raise ConfigError(too_large(stage, estimate, free, config))
    if ranks.first and not reading:
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parent / "config.yaml").write_text(render(config))
    dist.barrier(ranks.control)
    return StageTrainer(config, stage, folder, model, data, ranks, stop_asked=stop_asked, reading=reading)


def _check_later(config: TrainConfig, number: int, model: VideoModel, ranks: Ranks) -> None:
    """Refuse now what would stop a stage behind number `number`, after all the training before it.

    Raises:
        ConfigError: ranks, sizes, encoders, kinds of learned c_in or memory do not fit.
        DataError: the shards do not.
    """
    free = available_memory(ranks.device, ranks.local_world)
    kind = model.input_scale.kind if model.input_scale else None
    for stage in config.stages[number:]:
        check_ranks(config, stage, ranks.world)
        token_width(stage, model.text_encoder, model.image_encoder, model.unet.config)
        kind = learned_c_in(stage, kind)
        check_trainable(stage, model)
        checked_data(config, stage, model)
        estimate = memory_of(config, stage, model, ranks.world)  # its network has at most a few more inputs
        if estimate.total > free:
            raise ConfigError(too_large(stage, estimate, free, config))


def check_ranks(config: TrainConfig, stage: StageConfig, world: int) -> None:
    """Refuse a number of ranks that the batch or the replicas do not divide into. Raises ConfigError."""
    if world % config.compute.replicate:
        raise ConfigError(
            f"compute.replicate: {config.compute.replicate} copies of the model on {world} ranks do not come out"
        )
    try:
        micro_batches(stage.global_batch, config.compute.micro_batch, 0, world)
    except ValueError as error:
        raise ConfigError(f"stage {stage.name}: {error}") from error


def checked_data(config: TrainConfig, stage: StageConfig, model: VideoModel) -> StageData:
    """A stage's data, and that of its validation. Raises ConfigError or DataError that name the stage."""
    try:
        data = stage_data(config.data, stage, seed=config.seed, size_multiple=model.size_multiple)
        if config.saving.validate_every:
            validation_clips(config.data, stage, data.table)
    except ValueError as error:
        raise ConfigError(f"stage {stage.name}: {error}") from error
    except DataError as error:
        raise DataError(f"stage {stage.name}: {error}") from error
    return data


def check_trainable(stage: StageConfig, model: VideoModel) -> None:
    """Refuse a stage that trains nothing. Raises ConfigError."""
    names = (name for name, _ in model.unet.named_parameters())
    if stage.lora is None and not any(is_trained(stage, name) for name in names):
        where = " outside of the temporal layers, which single images do not train" if stage.frames == 1 else ""
        raise ConfigError(f"stage {stage.name}: no parameter{where} matches trainable {stage.trainable!r}")


def memory_of(config: TrainConfig, stage: StageConfig, model: VideoModel, ranks: int) -> MemoryEstimate:
    """The memory one rank needs for a stage."""
    factor = model.autoencoder.factor
    tokens = {"text_to_video": 77, "interpolation": 2}.get(stage.task, 1)
    shape = Shape(config.compute.micro_batch, stage.frames, stage.height // factor, stage.width // factor, tokens)
    parameters = {name: p.numel() for name, p in model.unet.named_parameters()}
    trained = sum(size for name, size in parameters.items() if is_trained(stage, name))
    share = 0.01 if stage.lora is not None else trained / sum(parameters.values())
    return estimate_memory(
        model.unet.config, shape, config.compute, ranks=ranks, trained_share=share, ema=stage.ema_decay > 0
    )


def too_large(stage: StageConfig, estimate: MemoryEstimate, free: int, config: TrainConfig) -> str:
    """What to change when a stage does not fit."""
    advice = []
    if config.compute.checkpointing != "full":
        advice.append("compute.checkpointing: full")
    if config.compute.micro_batch > 1:
        advice.append("compute.micro_batch: 1")
    if config.compute.precision == "fp32":
        advice.append("compute.precision: bf16")
    if config.compute.replicate > 1:
        advice.append("compute.replicate: 1")
    advice += ["more ranks", "a smaller size", "fewer frames", "a LoRA"]
    return (
        f"stage {stage.name} cannot fit: about {estimate} per rank, but {free / 2**30:.1f} GiB are available. "
        f"Try {', '.join(advice)}"
    )


def stage_folder(config: TrainConfig, number: int) -> Path:
    """`OUTPUT/02-video-256`, stages counted from 1."""
    return Path(config.output) / f"{number:02d}-{config.stages[number - 1].name}"


@contextmanager
def _alone(output: Path, ranks: Ranks) -> Iterator[None]:
    """Keep a second run out of the output while the block runs. The first rank holds the lock; it dies with it.

    Raises:
        ConfigError: another run holds it, or the folder cannot be made; on every rank.
    """
    with ExitStack() as held:
        refusal: list[Any] = [None]
        if ranks.first:
            try:
                output.mkdir(parents=True, exist_ok=True)
                file = held.enter_context(open(output / ".lock", "a"))
            except OSError as error:
                refusal[0] = f"output: {output} cannot be written to: {error.strerror}"
            else:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    refusal[0] = f"{output}: another `clipmill train` is at work there; choose another `output`"
                except OSError as error:  # a cluster's file system may be mounted without locks
                    log.warning("%s cannot be locked (%s): see that no second run writes to it", output, error.strerror)
        dist.broadcast_object_list(refusal, src=0, group=ranks.control)
        if refusal[0]:
            raise ConfigError(refusal[0])
        yield


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """SIGTERM, SIGUSR1 (how schedulers announce the end) and Ctrl-C ask the loop to save and stop; a second Ctrl-C does
    not wait for that."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(which: int, _: object) -> None:
        asked.set()
        if which == signal.SIGINT:
            signal.signal(which, before[signal.SIGINT])
            log.warning("stopping after this step, which will be saved; Ctrl-C once more stops at once, without")

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield asked
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _quiet(ranks: Ranks) -> None:
    """Only the first rank talks."""
    if not ranks.first:
        log.setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("high" if ranks.device.type == "cuda" else "highest")
