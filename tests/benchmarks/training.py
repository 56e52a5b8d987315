"""The trainer beside a plain loop around diffusers' UNet, and the loader beside bare decoding.

    python -m tests.benchmarks.training speed     samples per second, same data, weights' shapes, batch and precision
    python -m tests.benchmarks.training memory    activations kept for the backward pass at 14x576x1024 (nothing is run)
    python -m tests.benchmarks.training loader    clips per second of the loader and of decoding alone

The plain loop is what one writes with diffusers: its UNetSpatioTemporalConditionModel, its gradient checkpointing, bf16
by autocast (as accelerate does), torch's AdamW. Both get the same latents; only the step is timed. Repeats alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from model.activation_memory import count_activations
from model.conditioning.conditioning import Conditioning
from model.diffusion.loss import DiffusionLoss
from model.diffusion.preconditioning import Denoiser
from model.training.config import ComputeConfig
from model.training.cost import Shape, activation_bytes
from model.unet import UNetConfig, VideoUNet


def diffusers_unet(config: UNetConfig) -> Any:
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from diffusers import UNetSpatioTemporalConditionModel

    values = {k: v for k, v in config.to_diffusers().items() if not k.startswith("_") and k != "norm_eps"}
    return UNetSpatioTemporalConditionModel(**values)


def batches(config: UNetConfig, shape: Shape, device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(shape.batch, shape.frames, config.out_channels, shape.height, shape.width, generator=generator)
    concat = torch.randn(x0.shape, generator=generator)
    context = torch.randn(shape.batch, 1, config.cross_attention_dim, generator=generator)
    ids = torch.tensor([[6.0, 127.0, 0.02]]).expand(shape.batch, 3)
    return tuple(t.to(device) for t in (x0, concat, context, ids))


def speed(args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        config, shape = UNetConfig.svd(), Shape(1, 14, 40, 72, 1)
    else:
        torch.set_num_threads(args.threads)
        config = UNetConfig.tiny(
            block_out_channels=(64, 128), num_attention_heads=(4, 8), in_channels=8, out_channels=4, num_frames=14
        )
        shape = Shape(1, 14, 16, 24, 1)
    x0, concat, context, ids = batches(config, shape, device)
    low = torch.bfloat16 if args.precision == "bf16" else torch.float32
    steps: dict[str, Any] = {}

    theirs = diffusers_unet(config).to(device).train()
    if args.checkpointing:
        theirs.enable_gradient_checkpointing()
    their_adam = torch.optim.AdamW(theirs.parameters(), lr=1e-5)

    def plain() -> None:
        sigma = torch.randn(shape.batch, device=device).exp()
        s = sigma.view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(x0)
        sample = torch.cat([(x0 + s * noise) / (s**2 + 1).sqrt(), concat], dim=2)
        with torch.autocast(device.type, dtype=low, enabled=low is torch.bfloat16):
            output = theirs(sample, 0.25 * sigma.log(), context, added_time_ids=ids).sample
        target = (noise - s * x0) / (1 + s**2).sqrt()
        (output.float() - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        their_adam.step()
        their_adam.zero_grad(set_to_none=True)

    ours = VideoUNet(config)
    adam_of: dict[str, Any] = {}

    def build() -> Denoiser:
        import torch.distributed as dist

        from model.training.parallelize import device_mesh, parallelize

        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        compute = ComputeConfig(
            precision=args.precision, checkpointing="full" if args.checkpointing else "none", compile=args.compile
        )
        parallelize(ours, compute, device_mesh(compute, 1, device), exact=False)
        adam_of["ours"] = torch.optim.AdamW(ours.parameters(), lr=1e-5, fused=True)
        return Denoiser(ours)

    denoiser, loss = build(), DiffusionLoss()
    conditioning = Conditioning(context=context, vector_ids=ids, concat=concat)

    def trainer() -> None:
        sigma = torch.randn(shape.batch, device=device).exp()
        loss(denoiser, x0, torch.randn_like(x0), sigma, conditioning).mean().backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        adam_of["ours"].step()
        adam_of["ours"].zero_grad(set_to_none=True)

    for step in (plain, trainer):
        for _ in range(2):
            step()
    times: dict[str, list[float]] = {"diffusers": [], "clipmill": []}
    used: dict[str, list[float]] = {"diffusers": [], "clipmill": []}
    for _ in range(args.repeats):
        for name, step in (("diffusers", plain), ("clipmill", trainer)):
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            _wait(device)
            times[name].append(time.perf_counter() - wall)
            used[name].append(time.process_time() - cpu)
    for name in times:
        steps[name] = {"s_per_sample": statistics.median(times[name]), "cpu_s": statistics.median(used[name])}
    steps["ratio"] = steps["diffusers"]["s_per_sample"] / steps["clipmill"]["s_per_sample"]
    steps["ratio_cpu_s"] = steps["diffusers"]["cpu_s"] / steps["clipmill"]["cpu_s"]
    return steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def memory(args: argparse.Namespace) -> dict[str, Any]:
    shape = Shape(1, 14, 72, 128, 1)
    found: dict[str, Any] = {}
    for mode in ("full", "selective"):
        counted = activation_bytes(UNetConfig.svd(), shape, ComputeConfig(checkpointing=mode))  # type: ignore[arg-type]
        found[f"clipmill_{mode}_gib"] = counted.kept / 2**30
        found[f"clipmill_{mode}_with_recompute_gib"] = counted.peak / 2**30
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)
        theirs = diffusers_unet(UNetConfig.svd()).train()
        inputs = (torch.empty(1, 14, 8, 72, 128), torch.empty(1), torch.empty(1, 1, 1024), torch.empty(1, 3))
        torch.set_default_dtype(torch.float32)
        theirs.enable_gradient_checkpointing()
        kept = count_activations(lambda: theirs(*inputs), theirs.parameters()).kept
    found["diffusers_checkpointing_gib"] = kept / 2**30
    found["share_of_diffusers"] = found["clipmill_full_with_recompute_gib"] / found["diffusers_checkpointing_gib"]
    return found


def loader(args: argparse.Namespace) -> dict[str, Any]:
    """One process each, the same clips, frames and sizes."""
    import tempfile

    import numpy as np

    from model.data.buckets import Bucket
    from model.data.dataset import ClipDataset, Source
    from model.data.decode import read_clip
    from model.data.loader import load_batches
    from model.data.order import BatchPlan, EpochOrder
    from model.data.randomness import Purpose, Streams
    from model.data.selection import SampleTable
    from model.data.shards import read_member
    from tests.model.training_shards import make_shards

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), shards=2, clips=4, size=(240, 320), frames=48, rate=24)
        table = SampleTable.open([folder])
        streams, bucket = Streams(0), Bucket(14, 192, 256)
        plan = BatchPlan([EpochOrder(np.arange(len(table)), table.shard, streams)], 4, streams)
        dataset = ClipDataset(
            [Source(bucket, table)],
            plan,
            streams,
            rates_fps=(8, 30),
            random_crop=True,
            caption_weights={"spatial": 1.0},
        )
        files = []
        for i in range(len(table)):
            row: Any = table.row(i)
            place = (row["media_offset"], row["media_size"], row["media_crc32"])
            files.append(read_member(table.urls[int(table.shard[i])], f"{row['key']}.mp4", *place))
        bare, loaded = [], []
        for repeat in range(args.repeats):
            first = repeat * 8
            used = time.process_time()
            for step in range(first, first + 8):
                batch = plan[step]
                for place, sample in enumerate(batch.samples):
                    ordinal = int(batch.ordinals[place])
                    read_clip(
                        files[int(sample)], 14, (192, 256), rates_fps=(8, 30),
                        choose=streams.draws(Purpose.FRAMES, ordinal), crop=streams.draws(Purpose.CROP, ordinal),
                    )  # fmt: skip
            bare.append(time.process_time() - used)
            used = time.process_time()
            for _ in load_batches(dataset, first_step=first, last_step=first + 8, micro_batch=1):
                pass
            loaded.append(time.process_time() - used)
    share = statistics.median(b / ours for b, ours in zip(bare, loaded, strict=True))
    rates = {"bare": 32 / statistics.median(bare), "loader": 32 / statistics.median(loaded)}
    return {f"clips_per_cpu_s_{name}": rate for name, rate in rates.items()} | {"share_of_bare_decode": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "loader"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    result = {"speed": speed, "memory": memory, "loader": loader}[args.what](args)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
