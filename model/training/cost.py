"""What a step costs, before it is run: floating-point operations and bytes, counted without running anything.

Nothing is estimated by formula: the network is built without memory, one sample is sent through it, and operations and
tensors saved for the backward pass are counted as PyTorch itself does them, with the run's own checkpointing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from model.activation_memory import ActivationBytes, count_activations
from model.training.config import ComputeConfig
from model.training.parallelize import KEPT, checkpoint_blocks
from model.unet import UNetConfig, VideoUNet


@dataclass(frozen=True)
class Shape:
    """What goes through the network at once."""

    batch: int
    frames: int
    height: int  # of the latent
    width: int
    tokens: int


@lru_cache
def forward_flops(config: UNetConfig, shape: Shape) -> float:
    """Floating-point operations of one forward pass (a multiply-add counts 2)."""
    with torch.device("meta"):
        network, inputs = _without_memory(config, shape, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops())


def shape_of(x: Tensor, context: Tensor) -> Shape:
    """Of a batch of latents (B, T, C, h, w) and its context (B, S, D)."""
    return Shape(x.shape[0], x.shape[1], x.shape[3], x.shape[4], context.shape[1])


def step_flops(config: UNetConfig, shape: Shape, trained_share: float = 1.0) -> float:
    """Of a forward and a backward pass: forward, gradients of activations and gradients of the weights that are
    trained cost the same each. Recomputation does not count as useful work."""
    return (2 + trained_share) * shape.batch * forward_flops(config, replace(shape, batch=1))


def activation_bytes(config: UNetConfig, shape: Shape, compute: ComputeConfig) -> ActivationBytes:
    """Bytes kept from forward to backward with the run's own checkpointing, and by the largest recomputed block.

    Counts the storages that autograd saves, each once, parameters not. Workspace of kernels comes on top.
    """
    return _counted(config, shape, compute.precision, compute.checkpointing)


@lru_cache
def _counted(config: UNetConfig, shape: Shape, precision: str, checkpointing: str) -> ActivationBytes:
    with FakeTensorMode():
        network, inputs = _without_memory(config, shape, torch.bfloat16 if precision == "bf16" else torch.float32)
        if checkpointing == "none":
            return count_activations(lambda: network(*inputs), network.parameters())
        blocks = [block for unit in network.fsdp_units() for block in unit]
        with _KeptOutputs() as products:
            largest = count_activations(lambda: network(*inputs), network.parameters(), blocks).largest_recompute
        checkpoint_blocks(network, "full")
        kept = count_activations(lambda: network(*inputs), network.parameters()).kept
        if checkpointing == "selective":  # what it keeps beyond `full` is held outside of autograd's sight
            return ActivationBytes(kept + products.total, max(0, largest - products.total // len(blocks)))
        return ActivationBytes(kept, largest)


class _KeptOutputs(TorchDispatchMode):
    """Adds up the outputs of the operations that selective checkpointing keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in KEPT:
            outputs = result if isinstance(result, tuple) else (result,)
            self.total += sum(t.numel() * t.element_size() for t in outputs if isinstance(t, Tensor))
        return result


def _without_memory(config: UNetConfig, shape: Shape, dtype: torch.dtype) -> tuple[VideoUNet, tuple[Tensor, ...]]:
    """The network and one batch; call it where tensors have no data."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # fake parameters cannot be converted in place
    try:
        network = VideoUNet(config)
    finally:
        torch.set_default_dtype(default)
    sample = torch.empty(shape.batch, shape.frames, config.in_channels, shape.height, shape.width, dtype=dtype)
    context = torch.empty(shape.batch, shape.tokens, config.cross_attention_dim, dtype=dtype)
    return network, (sample, torch.empty(shape.batch), context, torch.empty(shape.batch, config.num_vector_ids))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank."""

    states: int  # weights, gradients, optimizer, averages, sharded
    gathered: int  # in the compute precision, two units or all of the network; and the gradients on their way
    activations: int
    recompute: int

    @property
    def total(self) -> int:
        """Everything; real peaks add workspace and fragmentation, some 10 to 20 %."""
        return self.states + self.gathered + self.activations + self.recompute

    def __str__(self) -> str:
        parts = ("states", "gathered", "activations", "recompute")
        listed = ", ".join(f"{name} {getattr(self, name) / 2**30:.2f}" for name in parts)
        return f"{self.total / 2**30:.2f} GiB ({listed})"


def estimate_memory(
    config: UNetConfig,
    shape: Shape,
    compute: ComputeConfig,
    *,
    ranks: int,
    trained_share: float = 1.0,
    ema: bool = True,
) -> MemoryEstimate:
    """Memory of one rank during a step."""
    with torch.device("meta"):
        network = VideoUNet(config)
    parameters = sum(p.numel() for p in network.parameters())
    units = [sum(p.numel() for block in unit for p in block.parameters()) for unit in network.fsdp_units()]
    shards = ranks // compute.replicate
    copies = 1 + trained_share * (3 + ema)  # weights; gradient, two moments, average
    width = 2 if compute.precision == "bf16" else 4
    sharded = ranks > 1 or compute.precision == "bf16"
    reshard = compute.reshard_after_forward and shards > 1  # as parallelize() does: alone, all of it stays gathered
    held = 0 if not sharded else 2 * max(units) if reshard else parameters
    counted = activation_bytes(config, shape, compute)
    return MemoryEstimate(
        states=int(4 * parameters * copies / shards),
        gathered=int(held * width + (max(units) * 4 * trained_share if sharded else 0)),
        activations=counted.kept,
        recompute=counted.largest_recompute,
    )
