"""Activation checkpointing, compilation and sharding, put on the network from outside: it knows of none of them.

Order matters: checkpointing first (inside the block), then compilation of the block with it, then FSDP2's hooks around.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.attention import Attention
from model.training.config import ComputeConfig
from model.training.ordered_reduce import OrderedReduceScatter
from model.unet import VideoUNet

aten = torch.ops.aten
# What `selective` keeps: the outputs that cost most to compute again. Everything else is recomputed.
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def checkpoint_blocks(network: VideoUNet, mode: str) -> None:
    """Recompute residual blocks and transformers, spatial and temporal, in the backward pass."""
    if mode == "none":
        return
    context = partial(create_selective_checkpoint_contexts, _keep_products) if mode == "selective" else None
    for unit in network.fsdp_units():
        for block in unit:
            block.forward = _recomputed(block.forward, context)  # type: ignore[method-assign]


def _keep_products(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _recomputed(forward: Callable[..., Any], context: Callable[[], Any] | None) -> Callable[..., Any]:
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout to replay
    if context is not None:
        options["context_fn"] = context

    def run(*args: Any) -> Any:
        return checkpoint(forward, *args, **options) if torch.is_grad_enabled() else forward(*args)

    return run


def device_mesh(compute: ComputeConfig, world: int, device: torch.device) -> DeviceMesh:
    """All ranks, as (replicate, shard) or as one line.

    Raises:
        ValueError: the ranks do not divide into the replicas.
    """
    if world % compute.replicate:
        raise ValueError(f"compute.replicate: {compute.replicate} copies of the model on {world} ranks do not come out")
    if compute.replicate == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    shape = (compute.replicate, world // compute.replicate)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def _suit_cpus(network: VideoUNet) -> None:
    """Two kernels of PyTorch's CPU build are slow in bfloat16 (measured on one core of a Zen 4): the backward pass of
    attention takes 2 to 4 times as long as in float32, that of group normalisation of channels-last tensors 15 times as
    long as of contiguous ones."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.in_float32 = True
        elif isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _module, args: tuple(x.contiguous() for x in args))


def parallelize(
    network: VideoUNet, compute: ComputeConfig, mesh: DeviceMesh, *, exact: bool
) -> list[OrderedReduceScatter]:
    """Apply all three. Returns the reductions that begin_step() must be called on (only with `exact` on several ranks).

    One rank in float32 needs no FSDP; one rank in bfloat16 gets it for its mixed precision.
    """
    checkpoint_blocks(network, compute.checkpointing)
    if compute.compile:
        # A stage has one shape, or a few (buckets): each is compiled for itself. Symbolic ones fail in the compiler.
        network.compile_blocks(dynamic=False)
    if mesh.size() == 1 and compute.precision == "fp32":
        network.to(mesh.device_type)
        if exact:
            for unit in network.fsdp_units():
                unit[0].register_forward_pre_hook(_group_inputs)
        return []
    low = torch.bfloat16 if compute.precision == "bf16" else None
    if low is not None and mesh.device_type == "cpu":
        _suit_cpus(network)
    # Inputs are cast by the network itself, which keeps c_noise and the scalar conditions in float32.
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    reshard = compute.reshard_after_forward and mesh.size(mesh.ndim - 1) > 1  # alone there is nothing to give back
    # True of the network's output, and harmless: nothing changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    shard = partial(fully_shard, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    for unit in network.fsdp_units():
        shard(list(unit) if len(unit) > 1 else unit[0])
    shard(network)
    reductions = []
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # Losses are divided by the global batch beforehand, so gradients are summed.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if exact and mesh.size() > 1:
                reduction = OrderedReduceScatter()
                module.set_custom_reduce_scatter(reduction)
                reductions.append(reduction)
    return reductions


def forget_gathered(network: VideoUNet) -> None:
    """Free the gathered weights that a pass without a backward one leaves behind where they are not given back after it
    (`reshard_after_forward`): FSDP2 would go on with them, whatever has become of the weights since."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


class _Grouped(torch.autograd.Function):
    """The identity on all inputs of a unit at once."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads


def _group_inputs(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """FSDP2 passes a unit's inputs through one autograd node, so gradients of an input that is used inside and outside
    of the unit are first added up inside. Without FSDP2 the sum would come out in another order."""
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
    if not torch.is_grad_enabled() or not places:
        return args
    grouped, found = _Grouped.apply(*(args[i] for i in places)), list(args)
    for i, value in zip(places, grouped, strict=True):
        found[i] = value
    return tuple(found)
