"""Sampling on a CPU: the same layers through oneDNN's primitives, with weights packed once.

PyTorch's eager layers hand weights to the matrix libraries in their plain order, to be rearranged at every call. Here a
layer's weight is packed at its first use, and the feed-forward layers run as two fused products, `gelu(x B)` and
`(x A) * gate`, on slices of tokens that stay in cache. The primitives are those that torch.compile uses on CPUs.

Nothing about the network changes: names, parameters and state dict stay; a packed copy is made anew when its weight has
changed (a LoRA was merged, a checkpoint loaded); and while gradients are recorded, or on another device, the ordinary
layer runs. The price is memory for a second copy of the weights, once the network has run on a CPU.

Each class here is an ordinary layer with another `forward`; `enable` and `disable` exchange the classes of a network's
layers, so that copying, pickling, adapters and checkpoints work as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .attention import GEGLU, FeedForward
from .resnet import TemporalConv

# Feed-forward tokens per slice; 256 to 2048 measured alike, the whole tensor at once 12 to 25 % slower.
SLICE_TOKENS = 1024

# Elements of a weight compared to see whether it was written to: writes through `weight.data` count nowhere.
WITNESSES = 64


@dataclass
class _Pack:
    """A packed weight, and what it was made from."""

    origin: tuple[object, ...]
    witnesses: Tensor
    weight: Tensor


# Beside the layers, not in them: packed tensors can be neither copied nor saved.
_PACKS: WeakKeyDictionary[nn.Module, dict[str, _Pack]] = WeakKeyDictionary()


def available() -> bool:
    """Whether this build of PyTorch has the primitives."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def enable(network: nn.Module) -> bool:
    """Route the network's linear layers, convolutions and feed-forward layers through oneDNN wherever that applies.

    Returns:
        False, with nothing changed, if this build of PyTorch cannot, or if the weights are sharded.
    """
    if not available() or any(type(p) is not nn.Parameter for p in network.parameters()):
        return False
    for layer in network.modules():
        if type(layer) in _PACKED_CLASS:
            layer.__class__ = _PACKED_CLASS[type(layer)]
    return True


def disable(network: nn.Module) -> None:
    """Undo `enable` and free the packed weights."""
    for layer in network.modules():
        if type(layer) in _PLAIN_CLASS:
            layer.__class__ = _PLAIN_CLASS[type(layer)]
        _PACKS.pop(layer, None)


class PackedLinear(nn.Linear):
    """`nn.Linear` with its weight packed."""

    def forward(self, x: Tensor) -> Tensor:
        """As in `nn.Linear`."""
        if not _applies(x, self.weight):
            return super().forward(x)
        weight = _packed(self, "weight", self.weight, _pack_linear)
        return torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")


class PackedConv2d(nn.Conv2d):
    """`nn.Conv2d` with its weight packed for the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """As in `nn.Conv2d`."""
        if not _applies(x, self.weight):
            return super().forward(x)
        return _convolve(self, x, self.weight, list(self.padding), list(self.stride))


class PackedTemporalConv(TemporalConv):
    """`TemporalConv`, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """As in `TemporalConv`."""
        if not _applies(x, self.weight):
            return super().forward(x)
        return _convolve(self, x, self.weight.squeeze(-1), [1, 0], [1, 1])


class PackedFeedForward(FeedForward):
    """`FeedForward` as three products per slice of tokens, with activation and gate fused into the first two."""

    def forward(self, x: Tensor) -> Tensor:
        """As in `FeedForward`."""
        gated, out = self.net[0], self.net[2]
        plain = type(gated) is GEGLU and type(gated.proj) is PackedLinear  # not wrapped by an adapter
        if not (plain and _applies(x, gated.proj.weight)):
            return super().forward(x)
        product = torch.ops.mkldnn._linear_pointwise
        (value, gate), (value_bias, gate_bias) = gated.proj.weight.chunk(2), gated.proj.bias.chunk(2)
        value, gate = _packed(gated, "value", value, _pack_linear), _packed(gated, "gate", gate, _pack_linear)
        tokens = x.reshape(-1, x.shape[-1])
        result = torch.empty_like(tokens)
        for part, target in zip(tokens.split(SLICE_TOKENS), result.split(SLICE_TOKENS), strict=True):
            opened = product(part, gate, gate_bias, "gelu", [], "none")
            target.copy_(out(product.binary(part, opened, value, value_bias, "mul")))
        return result.view(x.shape)


_PACKED_CLASS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    TemporalConv: PackedTemporalConv,
    FeedForward: PackedFeedForward,
}
_PLAIN_CLASS = {packed: plain for plain, packed in _PACKED_CLASS.items()}


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
    origin = (weight.data_ptr(), weight._version, weight.dtype, size)
    witnesses = weight.flatten()[:: max(1, weight.numel() // WITNESSES)]
    packs = _PACKS.setdefault(layer, {})
    known = packs.get(name)
    if known is None or known.origin != origin or not torch.equal(known.witnesses, witnesses):
        packs[name] = known = _Pack(origin, witnesses.clone(), pack(weight.detach()))
    return known.weight


def _pack_linear(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def _convolve(layer: nn.Module, x: Tensor, weight: Tensor, padding: list[int], stride: list[int]) -> Tensor:
    geometry = [padding, stride, [1, 1], 1]  # dilation, groups
    pack = torch.ops.mkldnn._reorder_convolution_weight
    packed = _packed(layer, "weight", weight, lambda w: pack(w, *geometry, list(x.shape)), size=x.shape)
    return torch.ops.mkldnn._convolution_pointwise(x, packed, layer.bias, *geometry, "none", [], "")
