"""Small networks with random weights everywhere, and inputs for them."""

from __future__ import annotations

import torch

from model.unet import UNetConfig, VideoUNet

TINY = UNetConfig.tiny(layers_per_block=2)
MEDIUM = UNetConfig.tiny(
    block_out_channels=(64, 96, 128, 128),
    num_attention_heads=(1, 3, 2, 2),
    down_block_types=UNetConfig.svd().down_block_types,
    up_block_types=UNetConfig.svd().up_block_types,
    layers_per_block=2,
    transformer_layers_per_block=2,
    cross_attention_dim=48,
)


def randomised(config: UNetConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> VideoUNet:
    """A network in which every layer matters (a fresh one has zeros in the last layer of every branch)."""
    unet = VideoUNet(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in unet.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2:
                p.copy_(noise / p[0].numel() ** 0.5)
            elif "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            else:
                p.copy_(0.2 * noise)
    return unet.to(dtype).eval()


def inputs(config: UNetConfig, *, tokens: int, batch: int = 2, frames: int = 5, size: tuple[int, int] = (8, 16)):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, frames, config.in_channels, *size, generator=generator)
    context = torch.randn(batch, tokens, config.cross_attention_dim, generator=generator)
    c_noise = torch.tensor([0.3, -1.1])[:batch]
    ids = torch.tensor([[6.0, 127.0, 0.02, 10.0], [24.0, 30.0, 0.1, -5.0]])[:batch, : config.num_vector_ids]
    return sample, c_noise, context, ids


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
