"""It learns: three small experiments on the CPU, each with numbers, a verdict and a picture of what was sampled.

    python -m tests.benchmarks.training_learns overfit      image-to-video on ten of the demo's clips
    python -m tests.benchmarks.training_learns image-start  stage II from an image-pretrained start against from random
    python -m tests.benchmarks.training_learns pan          a camera LoRA trained on pans makes the model pan

Run `make demo` first: the clips are those of its shards (--shards names others). Each experiment trains through
`clipmill train`'s own code in one thread, ten minutes of one core (pan: 25); --folder keeps its files and sheet.png,
and the same command goes on there after an interruption.

Latents are those of one Haar level, 12 channels: a network of 32 channels has to tell noise in each of them.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from torch import Tensor

from curation.motion import CoarseMotion
from model.data.decode import fit
from model.data.selection import SampleTable
from model.data.shards import read_member
from model.tasks import ImageToVideo, VideoModel
from model.tasks.camera_lora import LoraAdapters
from model.training.config import TrainConfig
from model.training.config_file import parse_config
from model.training.precompute import precompute
from model.training.run import run
from model.training.stage_data import stage_data
from model.training.validation import psnr
from tests.model.training_shards import encode, write_shard

HEIGHT, WIDTH, FRAMES = 24, 32, 4
NOISE = {"p_mean": 0.0, "p_std": 1.4}  # small pictures need less noise than those of 320x576 to be lost in it
SHEET_SCALE = 4  # pictures are this much larger on the sheet
HEAD = """
output: {output}
data: {{shards: [{shards}], workers: 0}}
model: {{size: tiny, autoencoder: haar-1, image_encoder: untrained, text_encoder: untrained}}
compute: {{precision: fp32, checkpointing: none, micro_batch: {batch}, threads: 1}}
saving: {{every: 100, keep: 1, validate_every: 0, log_every: 50}}
stages:
"""


def config(output: Path, shards: Path, *stages: dict[str, Any], batch: int = 5) -> TrainConfig:
    """A run of tiny stages, each given by what it changes of its preset."""
    text = HEAD.format(output=output, shards=shards, batch=batch)
    common = {
        "tiny": True, "height": HEIGHT, "width": WIDTH, "frames": FRAMES, "global_batch": batch, "crop": "center",
        "drop_context": 0.0, "drop_concat": 0.0, "ema_decay": 0.99, "warmup_steps": 50, "learning_rate": 1e-3,
    }  # fmt: skip
    return parse_config(text + "".join(f"  - {json.dumps(common | stage)}\n" for stage in stages))


def losses(folder: Path) -> np.ndarray:
    """The loss of every step of a stage."""
    return np.array([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])


def some_clips(shards: str, folder: Path, count: int) -> Path:
    """The first clips of the demo's shards in one shard of their own, scaled down once, each with its number as
    caption."""
    samples = []
    for i, (key, media, meta) in enumerate(members(shards)):
        if i < count:
            with av.open(io.BytesIO(media)) as container:
                frames = np.stack([fit(f, (HEIGHT, WIDTH), (0.5, 0.5)) for f in container.decode(video=0)])
            facts = meta | {"width": WIDTH, "height": HEIGHT, "rate_fps": float(round(meta["rate_fps"]))}
            samples.append((key, encode(frames, round(meta["rate_fps"])), facts, f"clip {i}"))
    folder.mkdir(parents=True, exist_ok=True)
    return write_shard(folder / "000000.tar", samples)


def members(shards: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Key, video and json of every clip."""
    table = SampleTable.open([shards])
    for i in range(len(table)):
        row: Any = table.row(i)
        url, key = table.urls[int(table.shard[i])], row["key"]
        media, meta = (
            read_member(url, f"{key}.{name}", row[f"{kind}_offset"], row[f"{kind}_size"], row[f"{kind}_crc32"])
            for kind, name in (("media", row["media"]), ("json", "json"))
        )
        yield key, media, json.loads(meta)


def sheet(path: Path, rows: Sequence[np.ndarray]) -> None:
    """A picture with one strip of frames (T, H, W, 3) per row."""
    strips = [np.concatenate(list(frames), axis=1) for frames in rows]
    picture = cv2.resize(np.concatenate(strips), None, fx=SHEET_SCALE, fy=SHEET_SCALE, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(path), picture[..., ::-1])


def signed(frames: np.ndarray) -> Tensor:
    """uint8 (T, H, W, 3) -> (T, 3, H, W) on [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def pixels(frames: Tensor) -> np.ndarray:
    """The inverse of `signed`."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def sample(model: VideoModel, image: Tensor, *, fps: float, bucket: float, seed: int, steps: int = 25) -> Tensor:
    """One video (T, 3, H, W) from an image (1, 3, H, W), without guidance."""
    options = model.options(steps=steps, guider=model.description.default_guider(1.0, 1.0), seed=seed)
    return ImageToVideo(model)(image, frames=FRAMES, fps=fps, motion_bucket=bucket, options=options)[0]


# ---- overfit -------------------------------------------------------------------------------------------------------


def overfit(folder: Path, shards: str, steps: int) -> dict[str, float]:
    """Ten clips, again and again; then each is sampled from its first frame."""
    stage = {"preset": "image-to-video-320", "name": "overfit", "steps": steps, "fps": [5, 6.3]} | NOISE
    clips = some_clips(shards, folder / "clips", 10)
    made = config(folder / "run", clips, stage)
    precompute(made, None, str(folder / "latents"))  # five frames of each clip, fixed, as latents
    made = replace(made, data=replace(made.data, shards=(str(folder / "latents"),)))
    model = VideoModel.load(run(made))
    data = stage_data(made.data, made.stages[0], seed=0, size_multiple=model.size_multiple)
    sampled, copied, rows = [], [], []
    for i in range(len(data.table)):
        clip = data.dataset.read(data.dataset.sources[0], i, i)
        truth = model.autoencoder.decode(torch.from_numpy(clip.mean))
        bucket = model.description.motion.bucket(clip.motion)
        frames = sample(model, signed(clip.ends[:1]), fps=clip.fps, bucket=bucket, seed=i)
        sampled.append(psnr(frames[1:], truth[1:]))
        copied.append(psnr(truth[:1].expand_as(truth[1:]), truth[1:]))
        rows += [pixels(truth), pixels(frames)]
    sheet(folder / "sheet.png", rows)
    curve, better = losses(folder / "run" / "01-overfit"), np.array(sampled) - copied
    return {
        "psnr_sampled": float(np.mean(sampled)), "psnr_first_frame_copied": float(np.mean(copied)),
        "clips": len(sampled), "clips_better_than_copying": int((better > 0).sum()),
        "least_gain_db": float(better.min()),
        "loss_first_50": float(curve[:50].mean()), "loss_last_50": float(curve[-50:].mean()),
        "it_learns": bool(better.mean() > 3 and (better > 0).mean() >= 0.9),
    }  # fmt: skip


# ---- image start ---------------------------------------------------------------------------------------------------


def image_start(folder: Path, shards: str, steps: int) -> dict[str, float]:
    """The paper's figure 3a in miniature: a video stage after image training, and the same from random weights.

    The two see the same clips, noise and noise levels at the same steps: these depend on the seed and the stage's name.
    """
    clips = some_clips(shards, folder / "clips", 100)
    video = {"preset": "video-320", "name": "video", "steps": steps, "fps": [5, 12]}
    image = {"preset": "image-finetune", "name": "image", "steps": 2 * steps, "frames": 1, "global_batch": 15}
    run(config(folder / "random", clips, video))
    run(config(folder / "images", clips, image, video))
    random, pretrained = losses(folder / "random" / "01-video"), losses(folder / "images" / "02-video")
    last = steps // 4
    lower = float((pretrained < random).mean())
    return {
        "loss_from_random": float(random[-last:].mean()), "loss_from_images": float(pretrained[-last:].mean()),
        "first_quarter_from_random": float(random[:last].mean()),
        "first_quarter_from_images": float(pretrained[:last].mean()), "share_of_steps_lower": lower,
        "it_learns": bool(pretrained[-last:].mean() < random[-last:].mean() and lower > 0.75),
    }  # fmt: skip


# ---- pan -----------------------------------------------------------------------------------------------------------

MOVES = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
STEP_PX = 2  # of the camera, per frame
RATE_FPS = 6
PICTURES = 4  # that the camera moves over: as many as a network this small learns to move in half an hour
SAMPLES = 20


def moved(picture: np.ndarray, move: str, top: int, left: int) -> np.ndarray:
    """What a camera sees that moves over a picture, (FRAMES, HEIGHT, WIDTH, 3)."""
    dx, dy = (STEP_PX * d for d in MOVES[move])
    return np.stack([picture[top + t * dy :, left + t * dx :][:HEIGHT, :WIDTH] for t in range(FRAMES)])


def pictures(shards: str) -> list[np.ndarray]:
    """First frames of some of the demo's clips, 64 px high, and smooth, which a small network learns sooner."""
    found = []
    for _, media, _ in islice(members(shards), PICTURES):
        with av.open(io.BytesIO(media)) as container:
            small = fit(next(container.decode(video=0)), (24, 36), (0.5, 0.5))
            found.append(cv2.resize(small, (96, 64), interpolation=cv2.INTER_CUBIC))
    return found


def moves_shard(folder: Path, films: Sequence[np.ndarray], moves: Sequence[str], count: int) -> tuple[Path, list[str]]:
    """Clips of a camera that moves over the pictures, as the curation would describe them; and their labels."""
    draws, samples, labels = np.random.default_rng(0), [], []
    reach = STEP_PX * (FRAMES - 1)
    for i in range(count):
        picture = films[i % len(films)]
        top = int(draws.integers(reach, picture.shape[0] - HEIGHT - reach + 1))
        left = int(draws.integers(reach, picture.shape[1] - WIDTH - reach + 1))
        frames = moved(picture, moves[int(draws.integers(len(moves)))], top, left)
        score = label(frames)
        labels.append(score.camera)
        facts = {"frames": FRAMES, "rate_fps": RATE_FPS, "width": WIDTH, "height": HEIGHT}
        facts |= {"motion_coarse": score.score, "camera": score.camera}
        samples.append((f"move{i:04d}", encode(frames, RATE_FPS), facts, "a picture"))
    folder.mkdir(parents=True, exist_ok=True)
    return write_shard(folder / "000000.tar", samples), labels


def label(frames: np.ndarray) -> Any:
    """Curation's own motion score and camera label of frames at RATE_FPS."""
    larger = np.stack([cv2.resize(f, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for f in frames])
    return CoarseMotion().score(larger, np.arange(len(frames)) / RATE_FPS)


def pan(folder: Path, shards: str, steps: int) -> dict[str, float]:
    """A base model of camera moves in all four directions, then a LoRA on those to the right.

    Half of the base's steps are at a fifth of the learning rate: without them its later frames are noise, in which no
    move is seen. Samples begin at new places of the pictures, without the LoRA and with it.
    """
    films = pictures(shards)
    every, _ = moves_shard(folder / "every", films, list(MOVES), 200)
    right, labels = moves_shard(folder / "right", films, ["right"], 60)
    stage = {"preset": "image-to-video-320", "name": "base", "steps": steps, "fps": [5, 7]} | NOISE
    base = run(config(folder / "base", every, stage, stage | {"name": "settle", "learning_rate": 2e-4}))
    lora = {"preset": "camera-horizontal", "name": "lora", "steps": steps // 2, "learning_rate": 5e-3, "fps": [5, 7]}
    lora |= {"lora": {"rank": 16, "alpha": 16.0}, "p_mean": 1.0, "p_std": 1.6}  # moves are settled in high noise
    started = config(folder / "lora", right, lora)
    started = replace(started, model=replace(started.model, start=str(base), autoencoder="from start"))
    adapter = run(started)
    model = VideoModel.load(base)
    bucket = model.description.motion.bucket(label(moved(films[0], "right", 8, 8)).score)
    loras, draws = LoraAdapters(model.unet), np.random.default_rng(99)
    places = [(films[k % len(films)], *draws.integers(8, 24, 2)) for k in range(SAMPLES)]
    firsts = [picture[top : top + HEIGHT, left : left + WIDTH] for picture, top, left in places]
    found: dict[str, float] = {"clips_labelled_horizontal": labels.count("horizontal") / len(labels)}
    rows = []
    for name in ("without", "with"):
        if name == "with":
            loras.load(adapter, name="pan")
        videos = [
            pixels(sample(model, signed(first[None]), fps=RATE_FPS, bucket=bucket, seed=i))
            for i, first in enumerate(firsts)
        ]
        scores = [label(video) for video in videos]
        found[f"labelled_horizontal_{name}"] = float(np.mean([s.camera == "horizontal" for s in scores]))
        # The camera to the right moves the picture to the left.
        found[f"panning_right_{name}"] = float(np.mean([s.mean_dx < -abs(s.mean_dy) for s in scores]))
        found[f"mean_dx_{name}"] = float(np.mean([s.mean_dx for s in scores]))
        rows += videos[:8]
    sheet(folder / "sheet.png", [np.concatenate(pair) for pair in zip(rows[:8], rows[8:], strict=True)])
    more = found["labelled_horizontal_with"] - found["labelled_horizontal_without"]
    found["it_learns"] = bool(found["panning_right_with"] >= 0.8 and more >= 0.3)
    return found


def main() -> None:
    experiments = {"overfit": (overfit, 1500), "image-start": (image_start, 200), "pan": (pan, 1600)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=experiments)
    parser.add_argument("--shards", default="demo-out/shards/default")
    parser.add_argument("--steps", type=int, help="fewer or more than the experiment's own")
    parser.add_argument("--folder", type=Path, help="keep clips, runs and sheet.png here")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    experiment, steps = experiments[asked.experiment]
    with tempfile.TemporaryDirectory() as made:
        started, used = time.perf_counter(), time.process_time()
        result = experiment(asked.folder or Path(made), asked.shards, asked.steps or steps)
        times = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - used}
    print(json.dumps({k: v if isinstance(v, bool) else round(v, 4) for k, v in (result | times).items()}, indent=1))
    raise SystemExit(0 if result["it_learns"] else 1)


if __name__ == "__main__":
    main()
