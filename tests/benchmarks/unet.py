"""Our network against diffusers' `UNetSpatioTemporalConditionModel`: same weights, same input, one run.

    python -m tests.benchmarks.unet                 one forward pass (on the GPU where there is one)
    python -m tests.benchmarks.unet --mode train    forward and backward pass
    python -m tests.benchmarks.unet --memory        activations kept for the backward pass (counted, needs no GPU)

The two are run in turn, `--repeats` times each after one warm-up, and the medians are compared. The last column is the
largest difference of their outputs relative to the largest output.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from curation.compat import ensure_torchvision
from model.activation_memory import ActivationBytes, count_activations, training_activations
from model.unet import UNetConfig, VideoUNet

ensure_torchvision()

from diffusers import UNetSpatioTemporalConditionModel  # noqa: E402

MEDIUM = UNetConfig.svd(block_out_channels=(128, 256, 512, 512), num_attention_heads=(2, 4, 8, 8))
SIZES = {"medium": MEDIUM, "svd": UNetConfig.svd()}
DIFFUSERS_BLOCKS = ("SpatioTemporalResBlock", "TransformerSpatioTemporalModel")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def diffusers_arguments(config: UNetConfig) -> dict[str, Any]:
    """What diffusers' class takes to build the same network."""
    return {k: v for k, v in config.to_diffusers().items() if not k.startswith("_")}


def twins(config: UNetConfig, dtype: torch.dtype, device: str) -> tuple[VideoUNet, UNetSpatioTemporalConditionModel]:
    """Both networks with one set of random weights, none of them zero."""
    torch.manual_seed(0)
    with torch.device(device):
        ours = VideoUNet(config)
        for p in ours.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=p[0].numel() ** -0.5)
        theirs = UNetSpatioTemporalConditionModel(**diffusers_arguments(config))
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def clip(
    config: UNetConfig, shape: tuple[int, int, int, int], tokens: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """A batch: noisy latent, noise level, context, scalar conditions."""
    b, t, h, w = shape
    with torch.device(device):
        sample = torch.randn(b, t, config.in_channels, h, w, dtype=dtype)
        context = torch.randn(b, tokens, config.cross_attention_dim, dtype=dtype)
        return [sample, torch.linspace(-1, 1, b), context, torch.tensor([[6.0, 127.0, 0.02]]).repeat(b, 1)]


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step(network: nn.Module, batch: list[Tensor], train: bool) -> Tensor:
    """One forward pass, or one forward and backward pass."""
    with torch.set_grad_enabled(train):
        out = network(*batch)
        out = out if isinstance(out, Tensor) else out.sample
        if train:
            network.zero_grad(set_to_none=True)
            out.float().square().mean().backward()
    return out.detach().float()


def speed(args: argparse.Namespace) -> None:
    """Print one line per dtype and number of context tokens."""
    device, train = args.device, args.mode == "train"
    config = SIZES[args.size]
    shape = (args.batch, args.frames, args.height, args.width)
    print(
        f"{args.size} {config.block_out_channels}, latents {shape}, {args.mode}, {device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, median of {args.repeats}, CPU seconds in brackets"
    )
    print(f"{'dtype':6}{'tokens':>7}{'ours':>20}{'diffusers':>20}{'ratio':>8}{'(CPU s)':>9}{'difference':>12}")
    for name in args.dtype:
        ours, theirs = twins(config, DTYPES[name], device)
        if not train:
            ours.prepare_for_sampling()
        if args.compile:
            ours.compile_blocks()
            for module in theirs.modules():
                if type(module).__name__ in DIFFUSERS_BLOCKS:
                    module.compile()
        for tokens in args.tokens:
            batch = clip(config, shape, tokens, DTYPES[name], device)
            a, b = step(ours, batch, train), step(theirs, batch, train)  # warm-up
            difference = ((a - b).abs().max() / b.abs().max()).item()
            wall: dict[nn.Module, list[float]] = {ours: [], theirs: []}
            cpu: dict[nn.Module, list[float]] = {ours: [], theirs: []}
            for _ in range(args.repeats):
                for network in (ours, theirs):
                    start, start_cpu = clock(device), time.process_time()
                    step(network, batch, train)
                    wall[network].append(clock(device) - start)
                    cpu[network].append(time.process_time() - start_cpu)
            (s, t), (s_cpu, t_cpu) = ([statistics.median(x[n]) for n in (ours, theirs)] for x in (wall, cpu))
            print(
                f"{name:6}{tokens:7}{s:10.3f} s ({s_cpu:6.2f}){t:10.3f} s ({t_cpu:6.2f})"
                f"{t / s:7.2f}x{t_cpu / s_cpu:8.2f}x{difference:12.1e}",
                flush=True,
            )


def memory(args: argparse.Namespace) -> None:
    """Count saved tensors of a training step of both, in bf16 with flash-style attention."""
    config = SIZES[args.size]
    shape = (args.batch, args.frames, args.height, args.width)
    print(f"{args.size}, latents {shape}, bf16, {args.tokens[0]} context token(s): GiB kept for the backward pass")
    print(f"{'':42}{'kept':>8}{'recompute':>11}{'peak':>8}")
    for checkpointing in (False, True):
        ours = training_activations(
            config,
            frames=args.frames,
            height=args.height,
            width=args.width,
            batch=args.batch,
            tokens=args.tokens[0],
            checkpointing=checkpointing,
        )
        show("ours", checkpointing, ours)
    for checkpointing in (False, True):
        with FakeTensorMode():
            default = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            try:
                theirs = UNetSpatioTemporalConditionModel(**diffusers_arguments(config))
                batch = clip(config, shape, args.tokens[0], torch.bfloat16, "cpu")
            finally:
                torch.set_default_dtype(default)
            units = []
            if checkpointing:
                theirs.enable_gradient_checkpointing()
                units = [
                    m
                    for m in theirs.modules()
                    if type(m).__name__ in ("SpatioTemporalResBlock", "BasicTransformerBlock")
                ]
            show(
                "diffusers",
                checkpointing,
                count_activations(lambda n=theirs, b=batch: n(*b), theirs.parameters(), units),
            )


def show(name: str, checkpointing: bool, found: ActivationBytes) -> None:
    label = f"{name}, {'its activation checkpointing' if checkpointing else 'no checkpointing'}"
    print(
        f"{label:42}{found.kept / 2**30:8.2f}{found.largest_recompute / 2**30:11.2f}{found.peak / 2**30:8.2f}",
        flush=True,
    )


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="count activations; default size: svd at 14x576x1024")
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--mode", choices=["sample", "train"], default="sample")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bf16"] if cuda else list(DTYPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 77])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--height", type=int, help="of the latent: pixels / 8")
    parser.add_argument("--width", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks of both")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    args = parser.parse_args()
    large = cuda or args.memory
    for name, value in (("size", "svd"), ("frames", 14), ("height", 72), ("width", 128)):
        small = {"size": "medium", "frames": 8}.get(name, 32)
        setattr(args, name, getattr(args, name) or (value if large else small))
    (memory if args.memory else speed)(args)


if __name__ == "__main__":
    main()
