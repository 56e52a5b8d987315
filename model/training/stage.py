"""One stage of training, top to bottom: read, step, save, until the last update."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.data.loader import load_batches
from model.data.sample import TrainingSample
from model.diffusion.loss import DiffusionLoss
from model.key_layouts import is_temporal
from model.tasks.camera_lora import add_lora
from model.tasks.video_model import VideoModel
from model.training.adamw import ExactAdamW
from model.training.checkpoint import Checkpointer, CheckpointProblem, compare_settings, read_manifest, steps_in
from model.training.config import StageConfig, TrainConfig
from model.training.config_file import from_anywhere
from model.training.cost import shape_of, step_flops
from model.training.ema import Ema
from model.training.encode import Encoder
from model.training.gradients import Gradients
from model.training.launch import Ranks
from model.training.metrics import Metrics, SigmaBuckets, peak_memory, peak_tflops
from model.training.parallelize import device_mesh, parallelize
from model.training.stage_data import StageData

log = logging.getLogger("clipmill.train")


class NonFiniteLoss(Exception):
    """The loss or its gradient is NaN or infinite; the weights were not updated."""


class Interrupted(Exception):
    """The run was asked to stop and has saved."""


@dataclass
class StepResult:
    """Numbers of one update, the same on every rank."""

    losses: np.ndarray  # (global batch,), in order
    sigmas: np.ndarray
    waited_s: float
    flops: float  # of one rank
    stop: bool
    replaced: int


class StageTrainer:
    """Holds everything a stage needs. All ranks build one together and call its methods together."""

    def __init__(
        self,
        config: TrainConfig,
        stage: StageConfig,
        folder: Path,
        model: VideoModel,
        data: StageData,
        ranks: Ranks,
        *,
        stop_asked: Callable[[], bool] = lambda: False,
        reading: bool = False,
    ) -> None:
        self.config, self.stage, self.folder, self.data, self.ranks = config, stage, folder, data, ranks
        self.model, self._stop_asked = model, stop_asked
        compute = config.compute
        exact = compute.exact if compute.exact is not None else ranks.device.type == "cpu" and compute.replicate == 1
        # What is trained, by name. Order is that of the modules: the same on every rank.
        if stage.lora is not None:
            with torch.random.fork_rng(devices=[]):  # the same fresh adapter on every rank
                torch.manual_seed(config.seed)
                add_lora(model.unet, name="camera", rank=stage.lora.rank, alpha=stage.lora.alpha)
        else:
            for name, parameter in model.unet.named_parameters():
                parameter.requires_grad_(is_trained(stage, name))
        self.extras = [m for m in (model.input_scale, model.mask_embedding) if m is not None]
        for module in self.extras:
            module.to(ranks.device).requires_grad_(stage.lora is None)
        mesh = device_mesh(compute, ranks.world, ranks.device)
        reductions = parallelize(model.unet, compute, mesh, exact=exact)
        self.trained: dict[str, nn.Parameter] = {n: p for n, p in model.unet.named_parameters() if p.requires_grad}
        replicated = {
            f"{type(m).__name__}.{n}": p for m in self.extras for n, p in m.named_parameters() if p.requires_grad
        }
        count = sum(p.numel() for p in model.unet.parameters())
        self.trained_share = sum(p.numel() for p in self.trained.values()) / count
        self.gradients = Gradients(list(self.trained.values()), list(replicated.values()), reductions, exact=exact)
        groups = [{"params": list(each.values())} for each in (self.trained, replicated) if each]
        self.trained |= replicated
        betas = (stage.beta1, stage.beta2)
        settings: dict[str, Any] = {"lr": stage.learning_rate, "betas": betas, "weight_decay": stage.weight_decay}
        # Apart, because the fused kernel takes sharded and whole tensors only apart.
        self.optimizer: torch.optim.Optimizer = (
            ExactAdamW(groups, **settings) if exact else torch.optim.AdamW(groups, fused=True, **settings)
        )
        self.ema = Ema(self.trained, stage.ema_decay) if stage.ema_decay else None
        self.denoiser = model.denoiser
        self.loss = DiffusionLoss()
        self.encoder = Encoder(model, stage, data.streams, ranks.device, chunk=compute.encode_chunk)
        self.checkpoints = Checkpointer(
            folder / "checkpoints", keep=config.saving.keep, asynchronous=config.saving.asynchronous, reading=reading
        )
        self.step = 0

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self, validate: Callable[[int], dict[str, float]] | None = None) -> None:
        """Train from the newest checkpoint, or the beginning, to the last step.

        Raises:
            NonFiniteLoss: before the update.
            Interrupted: after saving.
            CheckpointProblem: the last checkpoint could not be written.
        """
        stage, saving = self.stage, self.config.saving
        self.resume()
        metrics = None
        if self.ranks.first:
            metrics = Metrics(self.folder, every=saving.log_every, first=self.step, steps=stage.steps)
        buckets = SigmaBuckets(stage.p_mean, stage.p_std)
        peak = peak_tflops(self.ranks.device, saving.peak_tflops)
        loader = load_batches(
            self.data.dataset, first_step=self.step, last_step=stage.steps,
            micro_batch=self.config.compute.micro_batch, rank=self.ranks.rank, world=self.ranks.world,
            workers=self.config.data.workers, prefetch=self.config.data.prefetch,
        )  # fmt: skip
        try:
            while self.step < stage.steps:
                started = time.perf_counter()
                result, norm = self.update(loader)
                seconds = time.perf_counter() - started
                values = {"loss": float(result.losses.mean()), "grad_norm": norm, "learning_rate": self.learning_rate()}
                buckets.add(result.sigmas.tolist(), result.losses.tolist())
                self.step += 1
                if self.step % saving.log_every == 0:
                    values |= buckets.means()
                rate = stage.global_batch / seconds
                values |= {"samples_per_s": rate, "data_wait_share": result.waited_s / seconds}
                if result.replaced:
                    values["replaced_samples"] = result.replaced
                if peak:
                    values["mfu"] = result.flops / seconds / (peak * 1e12)
                values["memory_gib"] = peak_memory(self.ranks.device) / 2**30
                if validate is not None and saving.validate_every and self.step % saving.validate_every == 0:
                    values |= validate(self.step)
                if metrics is not None:
                    metrics.step(self.step, values)
                if result.stop or self.step == stage.steps:
                    self._save_last()
                    if result.stop:
                        raise Interrupted(f"stopped at step {self.step} of {stage.name}, saved; run again to go on")
                elif self.step % saving.every == 0:
                    self._save()
        finally:
            loader.close()
            self.checkpoints.settle()
            if metrics is not None:
                metrics.close()

    def update(self, loader: Any) -> tuple[StepResult, float]:
        """One update of the weights from one global batch."""
        stage = self.stage
        self.gradients.begin_step()
        micro_steps = stage.global_batch // (self.config.compute.micro_batch * self.ranks.world)
        losses, sigmas, samples, waited, flops = [], [], [], 0.0, 0.0
        for _ in range(micro_steps):
            asked = time.perf_counter()
            loaded: list[TrainingSample] = next(loader)
            waited += time.perf_counter() - asked
            batch = self.encoder(loaded)
            self.gradients.begin_micro_step()
            each = self.loss(
                self.denoiser, batch.x0, batch.noise, batch.sigma, batch.conditioning, image_only=batch.image_only
            )
            (each.sum() / stage.global_batch).backward()
            self.gradients.end_micro_step()
            losses.append(each.detach())
            sigmas.append(batch.sigma)
            samples += loaded
            shape = shape_of(batch.x0, batch.conditioning.context)
            flops += step_flops(self.model.unet.config, shape, self.trained_share)
        result = self._gather(torch.cat(losses), torch.cat(sigmas), samples, waited, flops)
        if not np.isfinite(result.losses).all():
            self._stop_non_finite(result, samples, "loss")
        norm = self.gradients.clip(stage.max_grad_norm)
        if not np.isfinite(norm):
            self._stop_non_finite(result, samples, "gradient")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        return result, norm

    def learning_rate(self) -> float:
        """Of the update that follows `self.step` others."""
        return self.stage.learning_rate * min(1.0, (self.step + 1) / max(1, self.stage.warmup_steps))

    # ---- what ranks tell each other ------------------------------------------------------------------------------

    def _gather(
        self, losses: Tensor, sigmas: Tensor, samples: list[TrainingSample], waited: float, flops: float
    ) -> StepResult:
        """Every rank's losses, in the order of the global batch; and whether anyone was asked to stop."""
        for sample in samples:
            for message in sample.replaced:
                log.warning("replaced: %s", message)
        flags = torch.tensor([waited, float(self._stop_asked()), float(sum(len(s.replaced) for s in samples))])
        mine = torch.cat([losses.cpu().double(), sigmas.cpu().double(), flags.double()])
        world, micro = self.ranks.world, self.config.compute.micro_batch
        parts = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(parts, mine, group=self.ranks.control)
        table = torch.stack(parts).numpy()
        n = len(losses)

        def ordered(columns: np.ndarray) -> np.ndarray:  # rank, micro-step, place -> micro-step, rank, place
            return columns.reshape(world, -1, micro).transpose(1, 0, 2).reshape(-1)

        return StepResult(
            losses=ordered(table[:, :n]), sigmas=ordered(table[:, n : 2 * n]), waited_s=float(table[:, -3].max()),
            flops=flops, stop=bool(table[:, -2].any()), replaced=int(table[:, -1].sum()),
        )  # fmt: skip

    def _stop_non_finite(self, result: StepResult, samples: list[TrainingSample], what: str) -> None:
        """Say which samples it was, on the console and in a file, and stop before the update."""
        mine = [(s.ordinal, s.key, s.shard) for s in samples]
        everyone: list[Any] = [None] * self.ranks.world
        dist.all_gather_object(everyone, mine, group=self.ranks.control)
        ids = sorted(entry for part in everyone for entry in part)
        bad = [i for i in range(len(ids)) if what == "gradient" or not np.isfinite(result.losses[i])]
        report = [
            {"sample": ids[i][1], "shard": ids[i][2], "ordinal": ids[i][0], "sigma": float(result.sigmas[i]),
             "loss": str(result.losses[i])}
            for i in bad
        ]  # fmt: skip
        path = self.folder / f"non-finite-step-{self.step + 1:08d}.json"
        if self.ranks.first:
            path.write_text(json.dumps(report, indent=1) + "\n")
        listed = ", ".join(f"{r['sample']} (sigma {r['sigma']:.3g})" for r in report[:5])
        more = f" and {len(report) - 5} more" if len(report) > 5 else ""
        raise NonFiniteLoss(
            f"step {self.step + 1} of {self.stage.name}: the {what} is NaN or infinite, from samples {listed}{more}. "
            f"The weights were not updated; all of them are in {path}. Look at these clips, lower learning_rate, or "
            "use precision fp32"
        )

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What must be the same to go on from a checkpoint."""
        known = run_settings(self.config, self.stage, self.data.fingerprint)
        return known | {"network": asdict(self.model.unet.config)}

    def state(self, names: set[str] | None = None) -> dict[str, Tensor]:
        """Every tensor that training changes: weights, AdamW's moments, averages.

        Args:
            names: when loading, what the checkpoint holds: moments exist only for parameters that ever had a gradient.
        """
        found: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            found[f"model.{name}"] = parameter
            known = self.optimizer.state[parameter]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                full = f"optimizer.{name}.{key}"
                if names is not None and full in names and key not in known:
                    known[key] = torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(parameter)
                    if key == "step" and parameter.device.type == "cuda":
                        known[key] = known[key].to(parameter.device)  # where the fused optimizer keeps it
                if key in known:
                    found[full] = known[key]
            if not known:
                del self.optimizer.state[parameter]
            if self.ema is not None:
                found[f"ema.{name}"] = self.ema.averages[name]
        return found

    def resume(self, step: int | None = None) -> None:
        """Go on from a checkpoint (default: the newest), if there is one.

        Raises:
            CheckpointProblem: it is damaged, or of another configuration.
        """
        # One rank looks: on a network file system the others may not see the newest yet.
        found: list[Any] = [steps_in(self.checkpoints.folder)]
        dist.broadcast_object_list(found, src=0, group=self.ranks.control)
        steps: list[int] = found[0]
        if not steps:
            return
        step = steps[-1] if step is None else step
        manifest = read_manifest(self.checkpoints.folder, step)
        compare_settings(manifest, self.settings(), self.checkpoints.folder)
        state = self.state(self.checkpoints.names(step))
        with torch.no_grad():
            self.checkpoints.load(step, {name: value.detach() for name, value in state.items()})
        self.step = step
        if self.ema is not None:
            self.ema.updates = manifest.ema_updates
        log.info("%s goes on from step %d", self.stage.name, step)

    def _save(self) -> None:
        """A checkpoint on the way. If it cannot be written, training goes on and the next one is tried."""
        try:
            self.checkpoints.wait()
        except CheckpointProblem as error:
            log.error("%s; training goes on, the next checkpoint is tried at its time", error)
        try:
            self.checkpoints.save(self.step, self.state(), self.settings(), self.ema.updates if self.ema else 0)
        except CheckpointProblem as error:
            log.error("%s; training goes on, the next checkpoint is tried at its time", error)

    def _save_last(self) -> None:
        """A checkpoint that must succeed."""
        try:
            self.checkpoints.wait()
        except CheckpointProblem as error:
            log.error("%s; trying once more", error)
        self.checkpoints.save(self.step, self.state(), self.settings(), self.ema.updates if self.ema else 0)
        self.checkpoints.wait()


def is_trained(stage: StageConfig, name: str) -> bool:
    """Whether a stage without adapters trains a parameter of the network. One of single images leaves the temporal
    layers out: their gradients are zero, by which AdamW would do nothing but decay them."""
    return re.fullmatch(stage.trainable, name) is not None and not (stage.frames == 1 and is_temporal(name))


def run_settings(config: TrainConfig, stage: StageConfig, fingerprint: str) -> dict[str, Any]:
    """What a stage must keep to be gone on with: all but its name and length, the data, their order and the model."""
    kept = {key: value for key, value in asdict(stage).items() if key not in ("name", "steps")}
    model = {f"model.{key}": value for key, value in asdict(from_anywhere(config).model).items()}
    order = {"seed": config.seed, "data": fingerprint, "data.window_shards": config.data.window_shards}
    return kept | model | order
