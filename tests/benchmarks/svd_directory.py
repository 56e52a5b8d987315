"""The published configuration end to end: SVD's directory layout, every part at its real size, random weights.

    python -m tests.benchmarks.svd_directory WORK

1. diffusers and transformers build every part of SVD from its published config (UNet 1.52 G parameters, ViT-H image
   encoder 0.63 G, VAE 0.10 G) and write the directory: WORK/published.
2. `VideoModel.load` reads it, samples a video, and exports it to WORK/export.
3. diffusers' StableVideoDiffusionPipeline opens WORK/export and samples from the same seed.
4. The two videos are compared.

Each step is a process of its own, so that one set of weights is in memory at a time. The weights are random: this says
that everything fits together, and nothing of quality. Needs 19 GB of disk.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from curation.compat import ensure_torchvision
from tests.model import published_directory

ensure_torchvision()

SEED = 23
STEPS = ("build", "ours", "diffusers", "compare")


def build(work: Path) -> None:
    """The published sizes are the defaults of diffusers' classes; the encoder is OpenCLIP ViT-H/14's image tower."""
    sizes = published_directory.save(
        work / "published",
        unet={"num_frames": 14, "num_attention_heads": (5, 10, 20, 20)},
        vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 768},
        vision={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "projection_dim": 1024,
            "hidden_act": "gelu",
        },
    )
    assert sizes["unet"] == 1_524_623_082
    for name, parameters in sizes.items():
        print(f"{name}: {parameters:,} parameters")


def picture(size: tuple[int, int]) -> torch.Tensor:
    """A smooth random image (1, 3, H, W) on [-1, 1], exact in 8 bits."""
    noise = torch.randn(1, 3, size[1], size[0], generator=torch.Generator().manual_seed(3))
    smooth = nn.functional.avg_pool2d(noise, 9, 1, 4).mul(4).clamp(-1, 1)
    return ((smooth + 1) * 127.5).round() / 127.5 - 1


def ours(work: Path, size: tuple[int, int], steps: int, frames: int) -> None:
    """Load, sample, write the video and its contact sheet, export."""
    from model.tasks import ImageToVideo, VideoModel
    from model.video_io import contact_sheet, write_image, write_video

    start = time.perf_counter()
    model = VideoModel.load(work / "published")
    loaded = time.perf_counter()
    video = ImageToVideo(model)(picture(size), frames=frames, options=model.options(steps=steps, seed=SEED))[0]
    sampled = time.perf_counter()
    torch.save(video, work / "ours.pt")
    write_video(video, work / "ours.mp4", fps=7)
    write_image(contact_sheet(video), work / "ours.png")
    model.save(work / "export")
    print(f"loaded in {loaded - start:.1f} s, sampled in {sampled - loaded:.1f} s")


def theirs(work: Path, size: tuple[int, int], steps: int, frames: int) -> None:
    """The exported directory in diffusers."""
    from diffusers import StableVideoDiffusionPipeline
    from PIL import Image

    from model.video_io import contact_sheet, to_bytes, write_image

    pipeline = StableVideoDiffusionPipeline.from_pretrained(work / "export")
    pipeline.set_progress_bar_config(disable=True)
    start = time.perf_counter()
    video = pipeline(
        Image.fromarray(to_bytes(picture(size))[0]),
        width=size[0],
        height=size[1],
        num_frames=frames,
        num_inference_steps=steps,
        min_guidance_scale=1.0,
        max_guidance_scale=2.5,
        fps=7,
        motion_bucket_id=127,
        noise_aug_strength=0.02,
        decode_chunk_size=14,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
    ).frames[0]
    print(f"sampled in {time.perf_counter() - start:.1f} s")
    torch.save(video * 2 - 1, work / "diffusers.pt")
    write_image(contact_sheet(video * 2 - 1), work / "diffusers.png")


def compare(work: Path) -> None:
    """Fails if one frame of the two videos differs by half a grey level or more."""
    a, b = (torch.load(work / f"{name}.pt", weights_only=True) for name in ("ours", "diffusers"))
    levels = ((a - b).abs().max() * 127.5).item()
    print(f"{tuple(a.shape)}: largest difference {levels:.4f} of 255 grey levels; standard deviation {b.std():.3f}")
    assert a.shape == b.shape
    assert b.std() > 0.01  # not one flat colour
    assert levels < 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", default="256x128")
    parser.add_argument("--frames", type=int, default=14)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=STEPS, help="one step, in this process")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    if args.only is None:
        for step in STEPS:
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.svd_directory", *sys.argv[1:], "--only", step], check=True
            )
        return
    args.work.mkdir(parents=True, exist_ok=True)
    run = {
        "build": lambda: build(args.work),
        "ours": lambda: ours(args.work, (width, height), args.steps, args.frames),
        "diffusers": lambda: theirs(args.work, (width, height), args.steps, args.frames),
        "compare": lambda: compare(args.work),
    }
    start = time.process_time()
    run[args.only]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.only}: {time.process_time() - start:.0f} CPU s, peak {peak:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
