"""Videos sampled while training goes on, from the averaged weights, beside the clips they should resemble.

A clip is taken at the size of its aspect-ratio bucket. Every rank samples its own clips with the same number of
evaluations, so that a sharded network runs on all of them in step. Written as video, one file per clip: left the clip,
right the sample.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.data.buckets import nearest_size
from model.data.dataset import ClipDataset, Source
from model.data.sample import TrainingSample
from model.data.selection import SampleTable, Wanted, select
from model.tasks.image_to_video import ImageToVideo
from model.tasks.interpolation import Interpolation
from model.tasks.orbit import Orbit
from model.tasks.sampling import SamplingError
from model.tasks.text_to_video import TextToVideo
from model.training.config import DataConfig, StageConfig
from model.training.parallelize import forget_gathered
from model.training.stage import StageTrainer
from model.video_io import write_video

log = logging.getLogger("clipmill.train")


def validation_clips(data: DataConfig, stage: StageConfig, trained: SampleTable) -> tuple[SampleTable, np.ndarray]:
    """The clips that can be sampled, and the table they are in: their own shards, or else those that are trained on.

    Raises:
        DataError: a shard cannot be used, or no clip suits the stage.
    """
    table = SampleTable.open(data.validation) if data.validation else trained
    wanted = Wanted(
        stage.frames, stage.fps, stage.camera, stage.task == "text_to_video", elevation=stage.task == "orbit"
    )
    return table, select(table, wanted).samples


class Validation:
    """`validation(step)` -> metrics, and videos in the stage's folder."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer
        saving = trainer.config.saving
        table, chosen = validation_clips(trainer.config.data, trainer.stage, trainer.data.table)
        ranks = trainer.ranks
        each = max(1, math.ceil(saving.validation_clips / ranks.world))
        reader: ClipDataset = trainer.data.dataset
        buckets = [source.bucket for source in reader.sources if source.bucket.frames == trainer.stage.frames]
        width, height = (np.nan_to_num(table.numbers(side)[chosen], nan=1) for side in ("width", "height"))
        nearest = nearest_size(width, height, [(bucket.height, bucket.width) for bucket in buckets])

        def from_(place: int) -> Iterator[tuple[Source, int]]:
            for at in itertools.count(place):
                i = at % len(chosen)
                yield Source(buckets[nearest[i]], table), int(chosen[i])

        # Ordinals of training samples are far below 2**62.
        places = range(ranks.rank * each, (ranks.rank + 1) * each)
        self.samples = [reader.read_first(from_(place), 2**62 + place) for place in places]
        for message in (said for sample in self.samples for said in sample.replaced):
            log.warning("replaced: %s", message)

    def __call__(self, step: int) -> dict[str, float]:
        """Sample every clip; returns mean PSNR of samples, and of the first frame repeated, against the clips."""
        trainer = self.trainer
        folder = trainer.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        averaged = trainer.ema.swapped_in() if trainer.ema is not None else nullcontext()
        scores = []
        trainer.model.unet.eval()
        with averaged, torch.no_grad():
            for sample in self.samples:
                try:
                    made = self._sample(sample)
                except SamplingError as error:  # its advice is for sampling alone
                    raise SamplingError(
                        f"step {step} of {trainer.stage.name} cannot be sampled for validation: {error}. "
                        "`saving: {validate_every: 0}` trains without"
                    ) from error
                truth = self._truth(sample)
                if truth is not None and trainer.stage.task != "text_to_video":
                    scores.append([psnr(made, truth), psnr(truth[:1].expand_as(truth), truth)])
                picture = made if truth is None else torch.cat([truth.expand(len(made), -1, -1, -1), made], dim=-1)
                key = sample.key[-24:].replace("/", "-")  # a key may name folders of its shard
                name = f"step-{step:08d}-{key}-{sample.ordinal - 2**62}.mp4"
                write_video(picture, folder / name, fps=max(1.0, sample.fps))
        forget_gathered(trainer.model.unet)  # they are the averages
        trainer.model.unet.train()
        everyone: list[Any] = [None] * trainer.ranks.world
        dist.all_gather_object(everyone, scores, group=trainer.ranks.control)
        table = np.array([pair for part in everyone for pair in part])
        if not len(table):
            return {}
        return {
            "validation/psnr": float(table[:, 0].mean()),
            "validation/psnr_of_first_frame": float(table[:, 1].mean()),
        }

    def _sample(self, sample: TrainingSample) -> Tensor:
        """Frames (T, 3, H, W) on [-1, 1]."""
        model, stage = self.trainer.model, self.trainer.stage
        model.device = self.trainer.ranks.device
        options = model.options(steps=self.trainer.config.saving.validation_steps, seed=7)
        motion = model.description.motion
        bucket = motion.bucket(sample.motion) if motion is not None and np.isfinite(sample.motion) else 127
        common: dict[str, Any] = {"fps": sample.fps, "motion_bucket": bucket, "options": options}
        first, last = self._ends(sample)
        if stage.task == "text_to_video":
            height, width = first.shape[-2:]
            common |= {"width": width, "height": height, "frames": max(2, stage.frames)}
            return TextToVideo(model)([sample.caption], **common)[0]
        if stage.task == "interpolation":
            return Interpolation(model)(first, last, frames=stage.frames, **common)[0]
        if stage.task == "orbit":
            return Orbit(model)(first, elevation=sample.elevation_deg, frames=stage.frames, **common)[0]
        return ImageToVideo(model)(first, frames=stage.frames, **common)[0]

    def _ends(self, sample: TrainingSample) -> tuple[Tensor, Tensor]:
        if sample.frames is not None:
            pair = sample.frames[[0, -1]]
        else:
            assert sample.ends is not None
            pair = sample.ends
        both = torch.from_numpy(pair).permute(0, 3, 1, 2).float() / 127.5 - 1
        return both[:1], both[1:]

    def _truth(self, sample: TrainingSample) -> Tensor | None:
        if sample.frames is None:
            return None
        return torch.from_numpy(sample.frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(made: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of frames on [-1, 1], over all of them."""
    error = float(((made.clamp(-1, 1) - truth) / 2).square().mean())
    return 99.0 if error == 0 else -10 * math.log10(error)
