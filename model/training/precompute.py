"""`clipmill train precompute`: clips encoded once, into shards of the same form, one for each shard of clips.

A shard of latents appears complete or not at all, with its index, and only if a clip of it could be encoded. Shards
that are there are skipped, so running the command again goes on where it stopped. `RANK` and `WORLD_SIZE` split the
shards among processes that know nothing of each other.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from model.conditioning.latents import Autoencoder
from model.data.buckets import Bucket
from model.data.latents import pack_latents, posterior
from model.data.sample import TrainingSample
from model.data.selection import SampleTable
from model.data.shards import DataError, SampleError, Shard, read_member, scan_tar, write_index
from model.training.config import StageConfig, TrainConfig
from model.training.config_file import ConfigError
from model.training.stage_data import StageData, stage_data
from model.training.starting_point import starting_point

log = logging.getLogger("clipmill.train")


def precompute(config: TrainConfig, stage_name: str | None, output: str) -> str:
    """Encode every clip that the stage can use, each at the size of its bucket; returns a sentence with counts.

    Raises:
        ConfigError: no such stage, or the folder holds latents of other settings.
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
    # Joint training has sources of single images too: they are the first frames of what is encoded here.
    source_of = {
        int(sample): source
        for source, order in zip(data.dataset.sources, data.dataset.plan.orders, strict=True)
        if source.bucket.frames == stage.frames and source.table is data.table
        for sample in order.samples
    }
    members = np.array(sorted(source_of), dtype=np.int64)
    _refuse_latents(data.table, members)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, config, stage, data, model.autoencoder.kind)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    shards = data.table.shard[members]
    made, skipped, failed = 0, 0, 0
    for number in np.unique(shards)[rank::world]:
        final = folder / f"{number:06d}.tar"
        if final.exists():
            skipped += 1
            continue
        with _partial(final) as partial:
            with tarfile.open(partial, "w") as tar:  # pax, which has room for keys of any length
                for sample in members[shards == number]:
                    source = source_of[int(sample)]
                    try:
                        # The draws of a sample are those of its number: the same crop and frames in every run.
                        read = data.dataset.read(source, int(sample), int(sample))
                    except SampleError as error:
                        log.warning("left out: %s", error)
                        failed += 1
                        continue
                    meta = _meta(data, int(sample), read, source.bucket)
                    _add(tar, read, _encoded(read, model.autoencoder, device, config), meta)
                    made += 1
                empty = not tar.getmembers()
            if empty:  # no shard of latents is one without samples
                continue
            write_index(Shard(str(final), partial.stat().st_size, scan_tar(str(partial))))
            partial.rename(final)  # last, so that no shard is without its index
    return f"{made} clips encoded into {folder}, {skipped} shards were there already, {failed} clips could not be read"


@contextmanager
def _partial(final: Path) -> Iterator[Path]:
    """Where to write a shard before it is complete. A name of its own: processes started without RANK work on the
    same shards, and must not write into each other's files."""
    path = final.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _refuse_latents(table: SampleTable, members: np.ndarray) -> None:
    """There is nothing to encode in them. Raises DataError."""
    media = np.asarray(table.table["media"].to_pylist(), dtype=object)[members]
    found = members[media == "latents"]
    if len(found):
        shard = table.urls[int(table.shard[found[0]])]
        raise DataError(f"{shard}: holds latents already; set data.shards to the shards of clips they were made of")


def _claim(folder: Path, config: TrainConfig, stage: StageConfig, data: StageData, autoencoder: str) -> None:
    """Note what the latents are made of; refuse to add others to them."""
    keys = ("name", "task", "frames", "height", "width", "fps", "crop", "aspect_buckets", "camera")
    made_of = {key: getattr(stage, key) for key in keys}
    made_of |= {"seed": config.seed, "autoencoder": autoencoder, "data": data.fingerprint}
    text = json.dumps(made_of, indent=1) + "\n"
    note = folder / "latents.json"
    if note.exists() and note.read_text() != text:
        then, now = json.loads(note.read_text()), json.loads(text)
        differ = ", ".join(f"{k} {then.get(k)} then, {now[k]} now" for k in now if then.get(k) != now[k])
        raise ConfigError(f"{folder} holds latents of other settings ({differ}): choose another folder, or remove it")
    partial = note.with_suffix(f".{os.getpid()}.tmp")  # several processes may start at once
    partial.write_text(text)
    partial.replace(note)


def _encoded(sample: TrainingSample, autoencoder: Autoencoder, device: torch.device, config: TrainConfig) -> bytes:
    assert sample.frames is not None
    frames = torch.from_numpy(sample.frames).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
    mean, logvar = posterior(autoencoder, frames, chunk=config.compute.encode_chunk)
    return pack_latents(mean, logvar, torch.from_numpy(sample.frames[[0, -1]].copy()), sample.fps)


def _meta(data: StageData, number: int, sample: TrainingSample, bucket: Bucket) -> dict[str, object]:
    """The clip's own json, with what is now fixed."""
    row: dict[str, object] = data.table.row(number)
    meta: dict[str, object] = {}
    if row["json_offset"] is not None:
        url = data.table.urls[int(data.table.shard[number])]
        text = read_member(url, f"{row['key']}.json", row["json_offset"], row["json_size"], row["json_crc32"])  # type: ignore[arg-type]
        meta = json.loads(text)
    return meta | {
        "frames": bucket.frames, "rate_fps": sample.fps, "width": bucket.width, "height": bucket.height,
        "latents_of": row["media"],
    }  # fmt: skip


def _add(tar: tarfile.TarFile, sample: TrainingSample, latents: bytes, meta: dict[str, object]) -> None:
    caption = sample.caption.encode()
    text = json.dumps(meta, sort_keys=True, separators=(",", ":")).encode()
    for extension, content in (("latents", latents), ("json", text), ("txt", caption)):
        member = tarfile.TarInfo(f"{sample.key}.{extension}")
        member.size, member.mtime = len(content), 0
        tar.addfile(member, io.BytesIO(content))
