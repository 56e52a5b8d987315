"""Prompts as cross-attention tokens: OpenCLIP ViT-H's text tower up to its penultimate layer, 77 x 1024 (as SD 2.1).

The last of 24 blocks is skipped and the final layer norm applied. Two containers: open_clip's own, and transformers'
CLIPTextModel in SD 2.1's diffusers layout, whose 23 layers already leave the last one out. One tokenizer serves both
(open_clip's; it comes with the package and pads with 0, as SD 2.1's does).
"""

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class TextEncoder(Protocol):
    """A text encoder: `dim` is the width D of a token, `kind` the name in clipmill.json."""

    kind: str
    dim: int

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> (N, S, D)."""
        ...


def tokenize(prompts: Sequence[str], context_length: int = 77) -> Tensor:
    """CLIP's byte-pair tokens, (N, context_length) int64; longer prompts are cut."""
    tokens: Tensor = _tokenizer(context_length)(list(prompts))
    return tokens


def warn_of_cut_prompts(prompts: Sequence[str], context_length: int = 77) -> None:
    """A UserWarning for each prompt that is too long for `tokenize`, with the words that are not read."""
    tokenizer = _tokenizer(context_length)
    for prompt in prompts:
        cut = tokenizer.encode(prompt)[context_length - 2 :]  # two mark the start and the end
        if cut:
            warnings.warn(f"the prompt is too long: not read is {tokenizer.decode(cut).strip()!r}", stacklevel=3)


@lru_cache
def _tokenizer(context_length: int) -> Any:
    """Made once: it unpacks and sorts its vocabulary, 0.2 s."""
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


class OpenClipTextEncoder(nn.Module):
    """The text tower of an open_clip model: its penultimate layer, after the final layer norm."""

    kind = "open_clip"

    def __init__(self, clip: nn.Module, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        source: Any = clip
        self.config = config  # open_clip's model configuration, needed only to write it out
        self.token_embedding = source.token_embedding
        self.positional_embedding = source.positional_embedding
        self.transformer = source.transformer
        self.ln_final = source.ln_final
        self.register_buffer("attn_mask", source.attn_mask, persistent=False)
        self.context_length = int(source.context_length)
        self.dim = int(self.positional_embedding.shape[1])

    @classmethod
    def pretrained(cls, name: str = "ViT-H-14", weights: str = "laion2b_s32b_b79k") -> "OpenClipTextEncoder":
        """The published encoder: `weights` is a tag of open_clip's (fetched from the hub) or a local file."""
        from model.conditioning.open_clip_weights import open_clip_model

        return cls(*open_clip_model(name, weights))

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> (N, 77, D)."""
        weight = self.positional_embedding
        tokens = tokenize(prompts, self.context_length).to(weight.device)
        x = self.token_embedding(tokens).to(weight.dtype) + weight
        batch_first = getattr(self.transformer, "batch_first", True)
        x = x if batch_first else x.transpose(0, 1)
        mask: Any = self.attn_mask
        for block in self.transformer.resblocks[:-1]:
            x = block(x, attn_mask=mask.to(x.dtype))
        x = x if batch_first else x.transpose(0, 1)
        normalised: Tensor = self.ln_final(x)
        return normalised


class TransformersTextEncoder(nn.Module):
    """transformers' CLIPTextModel, used as it is: in SD 2.1's `text_encoder/` the last layer is already absent."""

    kind = "transformers"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.dim = int(self.model.config.hidden_size)
        self.context_length = int(self.model.config.max_position_embeddings)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> (N, 77, D)."""
        device = next(self.model.parameters()).device
        hidden: Tensor = self.model(tokenize(prompts, self.context_length).to(device)).last_hidden_state
        return hidden
