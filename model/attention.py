"""Attention half of the network: a spatial transformer over the pixels of a frame, then a temporal one over its frames.

Video LDM (arXiv 2304.08818) section 3.1, as used by SVD (arXiv 2311.15127) appendix D. Tokens stay in one layout from
beginning to end, `(B, T, P, C)` with `P = H*W`: what differs between the spatial and the temporal block is only
along which axis attention looks, and that is a view of the same memory.

Three things are computed once here that are usually computed for every pixel:

* keys and values of the *text or image context* do not depend on the pixel, so all queries of a clip share one set;
* over a context of *one token* (image-to-video) the softmax is 1: cross-attention is the same vector for every query,
  `to_out(to_v(context))`, exactly. `norm2`, `to_q` and `to_k` have no gradient then (None here, zeros elsewhere);
* the embedding of the frame index is computed once per frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .embedding import EmbeddingMLP, sinusoid
from .resnet import GROUPS, TimeMixer, channels_last

# CUDA kernels put (batch, heads) into grid dimensions that end at 65,535; temporal attention has B*H*W*heads sequences.
MAX_SEQUENCES = 32_768
# Not cuDNN's, which PyTorch prefers on recent GPUs: it builds a plan per shape, for sequences much longer than a clip.
SHORT_SEQUENCE_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Attention(nn.Module):
    """Multi-head attention with bias-free projections; named as in diffusers and peft (to_q, to_k, to_v, to_out.0)."""

    in_float32 = False
    """Compute the attention itself in float32 (training in bfloat16 on CPUs, see training/parallelize.py)."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def spatial(self, x: Tensor) -> Tensor:
        """Each frame over its own pixels. `x` (B, T, P, C) -> (B, T, P, C)."""
        n = x.shape[0] * x.shape[1]
        q, k, v = (self._split_heads(project(x), n, -1) for project in (self.to_q, self.to_k, self.to_v))
        return self._merge_heads(self._attend(q, k, v), x.shape)

    def temporal(self, x: Tensor) -> Tensor:
        """Each pixel over its own column of frames. `x` (B, T, P, C) -> (B, T, P, C).

        Pixels and heads together are the "heads" of the call: a strided view of (B, T, P*heads, d), so nothing moves.
        """
        b, t, p, c = x.shape
        q, k, v = (
            project(x).view(b, t, p * self.heads, c // self.heads).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        with sdpa_kernel(SHORT_SEQUENCE_KERNELS):
            parts = [
                self._attend(*part) for part in zip(*(y.split(MAX_SEQUENCES, dim=1) for y in (q, k, v)), strict=True)
            ]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.to_out[0](y.transpose(1, 2).reshape(x.shape))

    def cross(self, x: Tensor, norm: nn.LayerNorm, context: Tensor) -> Tensor:
        """All tokens over a context.

        Args:
            x: (B, T, P, C); read through `norm`, and not at all when the context is a single token.
            context: (B, S, D), or (B, T, S, D) for one per frame.
        Returns:
            (B, T, P, C), or a tensor that broadcasts to it when the context is a single token.
        """
        if context.shape[-2] == 1:
            y = self.to_out[0](self.to_v(context))
            return y if context.ndim == 4 else y.unsqueeze(1)
        n = x.shape[0] if context.ndim == 3 else x.shape[0] * x.shape[1]
        q = self._split_heads(self.to_q(norm(x)), n, -1)
        k, v = (self._split_heads(project(context), n, -1) for project in (self.to_k, self.to_v))
        return self._merge_heads(self._attend(q, k, v), x.shape)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.in_float32:
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v)

    def _split_heads(self, x: Tensor, batch: int, length: int) -> Tensor:
        return x.reshape(batch, length, self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def _merge_heads(self, y: Tensor, shape: torch.Size) -> Tensor:
        return self.to_out[0](y.transpose(1, 2).reshape(shape))


class GEGLU(nn.Module):
    """Gated linear unit with GELU gate (Shazeer 2020): `a * gelu(b)` with `[a, b] = proj(x)`."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., hidden_dim)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """`net.2(GEGLU(x))`, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.net[2](self.net[0](x))


class SpatialTransformerBlock(nn.Module):
    """Self-attention over pixels, cross-attention to the context, feed-forward; each normalises its input."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` (B, T, P, C), `context` (B, S, D) or (B, T, S, D) -> (B, T, P, C)."""
        x = x + self.attn1.spatial(self.norm1(x))
        x = x + self.attn2.cross(x, self.norm2, context)
        return x + self.ff(self.norm3(x))


class TemporalTransformerBlock(nn.Module):
    """The same along time, with a feed-forward layer in front."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.ff_in = FeedForward(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` (B, T, P, C), `context` (B, S, D) or (B, T, S, D) -> (B, T, P, C)."""
        x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1.temporal(self.norm1(x))
        x = x + self.attn2.cross(x, self.norm2, context)
        return x + self.ff(self.norm3(x))


class VideoTransformer(nn.Module):
    """Spatial and temporal transformer blocks in turn, blended, between two projections and a skip connection."""

    def __init__(self, channels: int, heads: int, context_dim: int, depth: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            SpatialTransformerBlock(channels, heads, context_dim) for _ in range(depth)
        )
        self.temporal_transformer_blocks = nn.ModuleList(
            TemporalTransformerBlock(channels, heads, context_dim) for _ in range(depth)
        )
        self.time_pos_embed = EmbeddingMLP(channels, 4 * channels, channels)
        self.time_mixer = TimeMixer()
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(
        self, x: Tensor, frames: int, context: Tensor, time_context: Tensor, image_only: Tensor | None = None
    ) -> Tensor:
        """Transform a stack of frames.

        Args:
            x: (B*T, C, H, W), with `frames` = T.
            context: (B, S, D), or (B, T, S, D) for a context per frame; read by the spatial cross-attention.
            time_context: (B, S', D), read by the temporal cross-attention.
            image_only: (B, T) bool, frames that skip the temporal branch; None = none of them.
        Returns:
            (B*T, C, H, W)
        """
        n, c, h, w = x.shape
        tokens = channels_last(self.norm(x)).permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c)
        tokens = self.proj_in(tokens)
        # The frame index enters as a sinusoid, so the number of frames is not baked into the weights.
        index = sinusoid(torch.arange(frames, device=x.device), c).to(tokens.dtype)
        position = self.time_pos_embed(index)[:, None, :]
        weight = self.time_mixer.temporal_weight(image_only)[:, :, None, None].to(tokens.dtype)
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            tokens = spatial(tokens, context)
            tokens = torch.lerp(tokens, temporal(tokens + position, time_context), weight)
        tokens = self.proj_out(tokens)
        return x + tokens.reshape(n, h, w, c).permute(0, 3, 1, 2)
