"""Sampling on a CPU: the same layers through oneDNN's primitives, with weights packed once.

PyTorch's eager layers hand weights to the matrix libraries in their plain order, to be rearranged at every call. Here a
layer's weight is packed at its first use, and the feed-forward layers run as two fused products, `gelu(x B)` and
`(x A) * gate`, on slices of tokens that stay in cache. The primitives are those that torch.compile uses on CPUs.

Nothing about the network changes: names, parameters and state dict stay; a packed copy is made anew when its weight has
changed (a LoRA was merged, a checkpoint loaded); and while gradients are recorded, or on another device, the ordinary
layer runs. The price is memory for a second copy of the weights.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .attention import GEGLU, FeedForward
from .resnet import TemporalConv

# Feed-forward tokens per slice; 256 to 2048 measured alike, the whole tensor at once 12 to 25 % slower.
SLICE_TOKENS = 1024

_PACKED: WeakKeyDictionary[nn.Module, dict[str, tuple[object, Tensor]]] = WeakKeyDictionary()


def available() -> bool:
    """Whether this build of PyTorch has the primitives."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def enable(network: nn.Module) -> bool:
    """Route the network's linear layers, convolutions and feed-forward layers through oneDNN wherever that applies.

    Returns:
        False if this build of PyTorch cannot; the network then runs as before.
    """
    if not available():
        return False
    for layer in network.modules():
        kind: type[nn.Module] = type(layer)
        if kind in _FORWARDS:
            layer.forward = types.MethodType(_FORWARDS[kind], layer)
    return True


def disable(network: nn.Module) -> None:
    """Undo `enable` and free the packed weights."""
    for layer in network.modules():
        if type(layer) in _FORWARDS:
            layer.__dict__.pop("forward", None)
            _PACKED.pop(layer, None)


def _applies(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and type(weight) in (Tensor, nn.Parameter)
        and not weight.is_inference()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _packed(
    layer: nn.Module, name: str, weight: Tensor, pack: Callable[[Tensor], Tensor], size: object = None
) -> Tensor:
    """The packed form of `weight`: from the cache, unless the weight was replaced or written to since."""
    state = (weight.data_ptr(), weight._version, weight.dtype, size)
    cache = _PACKED.setdefault(layer, {})
    if name not in cache or cache[name][0] != state:
        cache[name] = (state, pack(weight.detach()))
    return cache[name][1]


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    if not _applies(x, self.weight):
        return nn.Linear.forward(self, x)
    weight = _packed(self, "weight", self.weight, torch.ops.mkldnn._reorder_linear_weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")


def _conv(self: nn.Conv2d, x: Tensor) -> Tensor:
    if not _applies(x, self.weight):
        return type(self).forward(self, x)
    return _packed_conv(self, x, self.weight, self.padding, self.stride)


def _temporal_conv(self: TemporalConv, x: Tensor) -> Tensor:
    if not _applies(x, self.weight):
        return TemporalConv.forward(self, x)
    return _packed_conv(self, x, self.weight.squeeze(-1), (1, 0), (1, 1))


def _packed_conv(layer: nn.Module, x: Tensor, weight: Tensor, padding: Sequence[int], stride: Sequence[int]) -> Tensor:
    geometry = [list(padding), list(stride), [1, 1], 1]
    # Which packing is best depends on the size of the image; a network is sampled at one size, mostly.
    packed = _packed(
        layer,
        "weight",
        weight,
        lambda w: torch.ops.mkldnn._reorder_convolution_weight(w, *geometry, list(x.shape)),
        size=x.shape,
    )
    return torch.ops.mkldnn._convolution_pointwise(x, packed, layer.bias, *geometry, "none", [], "")


def _feed_forward(self: FeedForward, x: Tensor) -> Tensor:
    gated, out = self.net[0], self.net[2]
    plain = type(gated) is GEGLU and type(gated.proj) is nn.Linear  # not wrapped by an adapter
    if not (plain and _applies(x, gated.proj.weight)):
        return FeedForward.forward(self, x)
    ops = torch.ops.mkldnn
    (w_value, w_gate), (b_value, b_gate) = gated.proj.weight.chunk(2), gated.proj.bias.chunk(2)
    w_value = _packed(gated, "value", w_value, ops._reorder_linear_weight)
    w_gate = _packed(gated, "gate", w_gate, ops._reorder_linear_weight)
    result = torch.empty_like(x)
    for part, target in zip(
        x.view(-1, x.shape[-1]).split(SLICE_TOKENS), result.view(-1, x.shape[-1]).split(SLICE_TOKENS), strict=True
    ):
        gate = ops._linear_pointwise(part, w_gate, b_gate, "gelu", [], "none")
        target.copy_(out(ops._linear_pointwise.binary(part, gate, w_value, b_value, "mul")))
    return result


_FORWARDS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    TemporalConv: _temporal_conv,
    FeedForward: _feed_forward,
}
