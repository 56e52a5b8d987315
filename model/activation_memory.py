"""How much memory training will need for activations, counted without running anything; and how much there is.

The forward pass is traced with fake tensors (shapes, no data), and every tensor that autograd keeps for the backward
pass is counted once per storage, parameters excepted. What a GPU needs beyond this is parameters, gradients, optimiser
state, work space, and the allocator's fragmentation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .unet import VideoUNet
from .unet_config import UNetConfig


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes kept for the backward pass."""

    kept: int
    """Kept from the forward pass until the backward pass gets there."""
    largest_recompute: int
    """What the largest checkpointed module keeps while it is recomputed; 0 without checkpointing."""

    @property
    def peak(self) -> int:
        """Upper bound of both together."""
        return self.kept + self.largest_recompute


def count_activations(
    forward: Callable[[], object], parameters: Iterable[Tensor], checkpointed: Iterable[nn.Module] = ()
) -> ActivationBytes:
    """Count what `forward()` keeps for its backward pass.

    Args:
        forward: runs the network; call this inside a `FakeTensorMode`, or pay for the run.
        parameters: not counted.
        checkpointed: the modules whose own activations are dropped and recomputed one at a time.
    """
    weights = {p.untyped_storage()._cdata for p in parameters}
    outer = _SavedTensors(weights)
    largest = 0
    handles = []
    for module in checkpointed:
        inner = _SavedTensors(weights)

        def before(_module: nn.Module, _args: object, inner: _SavedTensors = inner) -> None:
            inner.start()

        def after(_module: nn.Module, _args: object, _out: object, inner: _SavedTensors = inner) -> None:
            nonlocal largest
            largest = max(largest, inner.stop())

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        outer.start()
        result = forward()
    finally:
        kept = outer.stop()
        for handle in handles:
            handle.remove()
    del result
    return ActivationBytes(kept, largest)


def training_activations(
    config: UNetConfig,
    *,
    frames: int,
    height: int,
    width: int,
    batch: int = 1,
    tokens: int = 1,
    checkpointing: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> ActivationBytes:
    """Activations of one training step on a batch of latents.

    Args:
        height, width: of the latent (pixels / 8).
        tokens: context tokens: 1 for image-to-video, 77 for text.
    """
    with FakeTensorMode():
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # fake parameters cannot be converted in place
        try:
            unet = VideoUNet(config)
        finally:
            torch.set_default_dtype(default)
        unet.enable_activation_checkpointing(checkpointing)
        sample = torch.randn(batch, frames, config.in_channels, height, width, dtype=dtype)
        context = torch.randn(batch, tokens, config.cross_attention_dim, dtype=dtype)
        c_noise, ids = torch.zeros(batch), torch.zeros(batch, config.num_vector_ids)
        units = [module for unit in unet.fsdp_units() for module in unit] if checkpointing else []
        return count_activations(lambda: unet(sample, c_noise, context, ids), unet.parameters(), units)


def sampling_at_least(config: UNetConfig, *, frames: int, height: int, width: int, element_size: int) -> int:
    """Bytes that the network needs to sample at the very least: what the finest level keeps for the way up.

    Args:
        height, width: of the latent.
    """
    kept = config.layers_per_block + 1
    return kept * frames * config.block_out_channels[0] * height * width * element_size


def available_memory(device: torch.device, ranks_here: int) -> int:
    """Bytes that one rank may use: of its GPU, or its share of what this machine has free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = 0
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return free // max(1, ranks_here)


class _SavedTensors:
    """Collects what autograd saves between start() and stop()."""

    def __init__(self, ignore: set[int]) -> None:
        self._ignore = ignore
        self._kept: dict[int, Tensor] = {}

    def start(self) -> None:
        self._kept = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self._hooks.__enter__()

    def stop(self) -> int:
        self._hooks.__exit__(None, None, None)
        total = sum(x.untyped_storage().nbytes() for x in self._kept.values())
        self._kept = {}
        return total

    def _pack(self, x: Tensor) -> Tensor:
        key = x.untyped_storage()._cdata
        if key not in self._ignore:
            self._kept[key] = x.detach()  # keeps the storage, hence its address, alive
        return x
