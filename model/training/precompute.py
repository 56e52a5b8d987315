"""`clipmill train precompute`: clips encoded once, into shards of the same form, one for each shard of clips.

A shard of latents appears complete or not at all, with its index; shards that are there are skipped, so running the
command again goes on where it stopped. `RANK` and `WORLD_SIZE` split the shards among processes that know nothing of
each other.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import torch

from model.conditioning.latents import Autoencoder
from model.data.dataset import TrainingSample
from model.data.latents import pack_latents, posterior
from model.data.shards import SampleError, read_member, reindex
from model.training.config import StageConfig, TrainConfig
from model.training.config_file import ConfigError
from model.training.stage_data import StageData, stage_data
from model.training.starting_point import starting_point

log = logging.getLogger("clipmill.train")


def precompute(config: TrainConfig, stage_name: str | None, output: str) -> str:
    """Encode every clip that the stage can use; returns a sentence with counts.

    Raises:
        ConfigError: no such stage, or one with aspect-ratio buckets of more than one shape.
        DataError: a shard cannot be read.
    """
    names = [stage.name for stage in config.stages]
    if stage_name is not None and stage_name not in names:
        raise ConfigError(f"no stage is called {stage_name!r}; there are {', '.join(names)}")
    stage = config.stages[names.index(stage_name) if stage_name else 0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = starting_point(config, stage, None, None)
    if isinstance(model.autoencoder, torch.nn.Module):
        model.autoencoder.to(device)
    data = stage_data(config.data, stage, seed=config.seed, size_multiple=model.size_multiple)
    if len(data.dataset.sources) > 1:
        raise ConfigError(
            f"stage {stage.name}: precompute one shape at a time: turn aspect_buckets and image_share off"
        )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    members = np.sort(data.dataset.plan.orders[0].samples)
    shards = data.table.shard[members]
    made, skipped, failed = 0, 0, 0
    for number in np.unique(shards)[rank::world]:
        final = folder / f"{number:06d}.tar"
        if final.exists():
            skipped += 1
            continue
        partial = final.with_suffix(".tar.tmp")
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in members[shards == number]:
                try:
                    # The draws of a sample are those of its number: the same crop and frames in every run.
                    read = data.dataset.read(data.dataset.sources[0], int(sample), int(sample))
                except SampleError as error:
                    log.warning("left out: %s", error)
                    failed += 1
                    continue
                _add(
                    tar, read, _encoded(read, model.autoencoder, device, config), _meta(data, int(sample), read, stage)
                )
                made += 1
        partial.rename(final)
        reindex(str(final))
    return f"{made} clips encoded into {folder}, {skipped} shards were there already, {failed} clips could not be read"


def _encoded(sample: TrainingSample, autoencoder: Autoencoder, device: torch.device, config: TrainConfig) -> bytes:
    assert sample.frames is not None
    frames = torch.from_numpy(sample.frames).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
    mean, logvar = posterior(autoencoder, frames, chunk=config.compute.encode_chunk)
    return pack_latents(mean, logvar, torch.from_numpy(sample.frames[[0, -1]].copy()), sample.fps)


def _meta(data: StageData, number: int, sample: TrainingSample, stage: StageConfig) -> dict[str, object]:
    """The clip's own json, with what is now fixed."""
    row: dict[str, object] = data.table.row(number)
    meta: dict[str, object] = {}
    if row["json_offset"] is not None:
        url = data.table.urls[int(data.table.shard[number])]
        text = read_member(url, f"{row['key']}.json", row["json_offset"], row["json_size"], row["json_crc32"])  # type: ignore[arg-type]
        meta = json.loads(text)
    return meta | {
        "frames": stage.frames, "rate_fps": sample.fps, "width": stage.width, "height": stage.height,
        "latents_of": row["media"],
    }  # fmt: skip


def _add(tar: tarfile.TarFile, sample: TrainingSample, latents: bytes, meta: dict[str, object]) -> None:
    caption = sample.caption.encode()
    text = json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()
    for extension, content in (("latents", latents), ("json", text), ("txt", caption)):
        member = tarfile.TarInfo(f"{sample.key}.{extension}")
        member.size, member.mtime = len(content), 0
        tar.addfile(member, io.BytesIO(content))
