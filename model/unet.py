"""The video UNet of Stable Video Diffusion: F_theta of the paper, in plain PyTorch.

Stable Diffusion 2.1's 2-D UNet, with a temporal layer after every spatial one (SVD, arXiv 2311.15127, appendix D; Video
LDM, arXiv 2304.08818, section 3.1). Read it top to bottom: `VideoUNet` holds the levels, `resnet.py` the convolutional
blocks, `attention.py` the transformers, `embedding.py` the scalars, `unet_config.py` the sizes. Parameter names are
those of diffusers' `UNetSpatioTemporalConditionModel`, so published checkpoints load as they are.

The network knows nothing of diffusion (`model/diffusion/`), of parallelism or of files (`checkpoints.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import onednn
from .attention import VideoTransformer
from .embedding import EmbeddingMLP, sinusoid
from .resnet import GROUPS, Downsample, Upsample, VideoResBlock, channels_last, silu
from .unet_config import ATTENTION_DOWN, ATTENTION_UP, UNetConfig

__all__ = ["UNetConfig", "VideoUNet"]


class Level(nn.Module):
    """The layers of one resolution: residual blocks, a transformer behind each where there are any, and one resampler.

    Only a container: `VideoUNet.forward` says in which order they run.
    """

    def __init__(
        self,
        resnets: list[VideoResBlock],
        attentions: list[VideoTransformer],
        resampler: Downsample | Upsample | None = None,
    ) -> None:
        super().__init__()
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        if resampler is not None:
            self.add_module(
                "downsamplers" if isinstance(resampler, Downsample) else "upsamplers", nn.ModuleList([resampler])
            )

    @property
    def transformers(self) -> list[VideoTransformer | None]:
        """One entry per residual block; None where a level has no attention."""
        return list(self.attentions) if hasattr(self, "attentions") else [None] * len(self.resnets)

    @property
    def resampler(self) -> Downsample | Upsample | None:
        """The layer that leads to the next level, if there is one."""
        for name in ("downsamplers", "upsamplers"):
            if hasattr(self, name):
                return getattr(self, name)[0]
        return None


class VideoUNet(nn.Module):
    """`F_theta(x; c_noise, context, vector)`: a clip of latents in, a clip of latents out.

    Freshly built, the last layer of every branch is zero, as published: the output is 0 until weights are loaded or
    trained.

    Args:
        config: the size; see the presets of `UNetConfig`.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        channels, levels = config.block_out_channels, len(config.block_out_channels)
        emb_channels = 4 * channels[0]

        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = EmbeddingMLP(channels[0], emb_channels)
        self.add_embedding = EmbeddingMLP(config.projection_class_embeddings_input_dim, emb_channels)

        def resnet(c_in: int, c_out: int, block_type: str | None) -> VideoResBlock:
            return VideoResBlock(c_in, c_out, emb_channels, config.group_norm_eps(block_type))

        def transformer(level: int) -> VideoTransformer:
            depth = config.transformer_layers_per_block
            return VideoTransformer(
                channels[level], config.num_attention_heads[level], config.cross_attention_dim, depth
            )

        # Down. Every layer's output is kept for the way up: `skips` counts their channels.
        skips, width = [channels[0]], channels[0]
        self.down_blocks = nn.ModuleList()
        for i, block_type in enumerate(config.down_block_types):
            resnets = []
            for _ in range(config.layers_per_block):
                resnets.append(resnet(width, channels[i], block_type))
                width = channels[i]
                skips.append(width)
            attentions = [transformer(i) for _ in resnets] if block_type == ATTENTION_DOWN else []
            last = i == levels - 1
            self.down_blocks.append(Level(resnets, attentions, None if last else Downsample(width)))
            if not last:
                skips.append(width)

        self.mid_block = Level([resnet(width, width, None), resnet(width, width, None)], [transformer(levels - 1)])

        # Up. Every residual block reads the state together with one of the kept outputs.
        self.up_blocks = nn.ModuleList()
        for j, block_type in enumerate(config.up_block_types):
            i = levels - 1 - j
            resnets = []
            for _ in range(config.layers_per_block + 1):
                resnets.append(resnet(width + skips.pop(), channels[i], block_type))
                width = channels[i]
            attentions = [transformer(i) for _ in resnets] if block_type == ATTENTION_UP else []
            self.up_blocks.append(Level(resnets, attentions, None if i == 0 else Upsample(width)))

        self.conv_norm_out = nn.GroupNorm(GROUPS, channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(
        self,
        sample: Tensor,
        c_noise: Tensor | float,
        context: Tensor,
        vector_ids: Tensor,
        *,
        time_context: Tensor | None = None,
        image_only: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            sample: (B, T, in_channels, H, W), already multiplied by `c_in`; H and W: multiples of
                `config.size_multiple`.
            c_noise: (B,) or a scalar, `ln(sigma) / 4`, used as it is.
            context: (B, S, cross_attention_dim) text or image tokens, or (B, T, S, cross_attention_dim), a set for
                each frame.
            vector_ids: (B, K) raw scalars: fps - 1, motion bucket, augmentation strength [, elevation].
            time_context: (B, S', cross_attention_dim) tokens for the temporal cross-attention (temporal prompting).
                Default: `context`, that of the first frame if there is one per frame.
            image_only: (B, T) bool; frames marked True skip the temporal layers and see the 2-D network only.
        Returns:
            (B, T, out_channels, H, W), in the dtype of `sample`.
        Raises:
            ValueError: a shape does not fit; the message says which and what would.
        """
        self._check(sample, context, vector_ids, time_context, image_only)
        b, frames = sample.shape[:2]
        dtype = self.conv_in.weight.dtype
        context = context.to(dtype)
        time_context = (
            (context[:, 0] if context.ndim == 4 else context) if time_context is None else time_context.to(dtype)
        )

        # Noise level and scalar conditions: one vector per clip.
        c_noise = torch.as_tensor(c_noise, device=sample.device).expand(b)
        emb = self.time_embedding(sinusoid(c_noise, self.config.block_out_channels[0]).to(dtype))
        emb = emb + self.add_embedding(sinusoid(vector_ids, self.config.addition_time_embed_dim).flatten(1).to(dtype))

        def residual(block: nn.Module, x: Tensor) -> Tensor:
            return self._run(block, x, emb, image_only)

        def attend(block: nn.Module | None, x: Tensor) -> Tensor:
            return x if block is None else self._run(block, x, frames, context, time_context, image_only)

        x = self.conv_in(channels_last(sample.flatten(0, 1).to(dtype)))
        skips = [x]
        for level in self.down_blocks:
            for block, transformer in zip(level.resnets, level.transformers, strict=True):
                x = attend(transformer, residual(block, x))
                skips.append(x)
            if level.resampler is not None:
                x = level.resampler(x)
                skips.append(x)

        x = residual(self.mid_block.resnets[0], x)
        x = attend(self.mid_block.attentions[0], x)
        x = residual(self.mid_block.resnets[1], x)

        for level in self.up_blocks:
            for block, transformer in zip(level.resnets, level.transformers, strict=True):
                x = attend(transformer, residual(block, torch.cat([x, skips.pop()], dim=1)))
            if level.resampler is not None:
                x = level.resampler(x)

        x = self.conv_out(silu(self.conv_norm_out(x)))
        return x.to(sample.dtype).contiguous().unflatten(0, (b, frames))

    # ---- training and deployment ---------------------------------------------------------------------------------

    @torch.no_grad()
    def start_as_image_model(self) -> None:
        """Zero the last layers of all temporal branches: until it is trained, the network treats frames as images.

        Fresh temporal convolutions start that way as published; fresh temporal attention does not, and disturbs the
        image model it was put into by a weight of 1 - sigmoid(0.5) = 0.38. This is an option, not what the paper did.
        """
        for module in self.modules():
            if isinstance(module, VideoTransformer):
                last = [module.time_pos_embed.linear_2]
                for block in module.temporal_transformer_blocks:
                    last += [block.ff_in.net[2], block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]]
            elif isinstance(module, VideoResBlock):
                last = [module.temporal_res_block.conv2]
            else:
                continue
            for layer in last:
                layer.weight.zero_()
                layer.bias.zero_()

    def enable_activation_checkpointing(self, enabled: bool = True) -> None:
        """Recompute every residual block and every transformer, spatial and temporal, in the backward pass."""
        self.activation_checkpointing = enabled

    def fsdp_units(self) -> list[tuple[nn.Module, ...]]:
        """Groups of modules that run one right after the other: what to shard together, e.g. `fully_shard(list(unit))`.

        A residual block with the transformer behind it: at most 161M parameters each in the published size. What is
        left (first and last convolution, embeddings, resamplers) belongs to the root.
        """
        levels = [*self.down_blocks, self.mid_block, *self.up_blocks]
        units: list[tuple[nn.Module, ...]] = []
        for level in levels:
            transformers = level.transformers + [None] * (len(level.resnets) - len(level.transformers))
            units += [(r,) if t is None else (r, t) for r, t in zip(level.resnets, transformers, strict=True)]
        return units

    def compile_blocks(self, **options: Any) -> None:
        """`torch.compile` each residual block and each transformer on its own, in place.

        They repeat, so this costs a few compilations instead of one of the whole graph, and it composes with activation
        checkpointing and FSDP2. `options` go to `torch.nn.Module.compile`.
        """
        modules = [module for unit in self.fsdp_units() for module in unit]
        # All blocks of a kind share one function, compiled once for each combination of channels.
        limit = torch._dynamo.config
        limit.recompile_limit = max(limit.recompile_limit, 2 * len(modules))
        for module in modules:
            module.compile(**options)

    def train(self, mode: bool = True) -> VideoUNet:
        """As in every module. In addition, `eval()` lets a network on a CPU pack its weights when it first runs without
        gradients (`onednn.py`; memory for a second copy of them), and `train()` undoes it.
        """
        super().train(mode)
        (onednn.disable if mode else onednn.enable)(self)
        return self

    def prepare_for_sampling(self) -> None:
        """Choose the fastest layout for evaluation on the device the weights are on; call it once they are there.

        Evaluation mode, and on a GPU convolution weights in channels-last order. Results stay the same up to rounding.
        """
        self.eval()
        if self.conv_in.weight.device.type == "cuda":
            self.to(memory_format=torch.channels_last)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _check(
        self,
        sample: Tensor,
        context: Tensor,
        vector_ids: Tensor,
        time_context: Tensor | None,
        image_only: Tensor | None,
    ) -> None:
        config = self.config
        if sample.ndim != 5:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}; expected (batch, frames, channels, height, width)"
            )
        b, t, c, h, w = sample.shape
        if c != config.in_channels:
            raise ValueError(f"sample has {c} channels; this network takes {config.in_channels}")
        if h % config.size_multiple or w % config.size_multiple:
            m = config.size_multiple
            raise ValueError(
                f"latent size {h}x{w}: height and width must be multiples of {m}, "
                f"that is {8 * m} pixels behind the f8 autoencoder"
            )
        for name, tensor, ndims in (("context", context, (3, 4)), ("time_context", time_context, (3,))):
            if tensor is None:
                continue
            if tensor.ndim not in ndims or tensor.shape[-1] != config.cross_attention_dim or tensor.shape[0] != b:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; expected ({b}, tokens, {config.cross_attention_dim})"
                )
        if context.ndim == 4 and context.shape[1] != t:
            raise ValueError(f"context has {context.shape[1]} sets of tokens for {t} frames")
        if vector_ids.shape != (b, config.num_vector_ids):
            raise ValueError(f"vector_ids has shape {tuple(vector_ids.shape)}; expected ({b}, {config.num_vector_ids})")
        if image_only is not None and image_only.shape != (b, t):
            raise ValueError(f"image_only has shape {tuple(image_only.shape)}; expected ({b}, {t})")
