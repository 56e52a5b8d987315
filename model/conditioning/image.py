"""The conditioning image as one cross-attention token: the projection of an OpenCLIP ViT-H/14 image encoder (1024).

Two containers of the same network: open_clip's (the original) and transformers' (what diffusers directories hold).
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.conditioning.resize import CLIP_MEAN, CLIP_STD, clip_pixels


class ImageEncoder(Protocol):
    """An image encoder: `dim` is the width D of its embedding, `kind` the name in clipmill.json."""

    kind: str
    dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) on [-1, 1] -> embeddings (N, D)."""
        ...


class TransformersImageEncoder(nn.Module):
    """transformers' CLIPVisionModelWithProjection: `image_encoder/` of a diffusers directory."""

    kind = "transformers"

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.mean, self.std = tuple(mean), tuple(std)
        self.dim = int(self.model.config.projection_dim)
        self.image_size = int(self.model.config.image_size)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) on [-1, 1] -> (N, D)."""
        pixels = clip_pixels(images, self.image_size, self.mean, self.std)
        weight = next(self.model.parameters())
        embeds: Tensor = self.model(pixels.to(weight.device, weight.dtype)).image_embeds
        return embeds


class OpenClipImageEncoder(nn.Module):
    """The image tower of an open_clip model (`visual`), e.g. ViT-H-14, laion2b_s32b_b79k."""

    kind = "open_clip"

    def __init__(
        self,
        visual: nn.Module,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = visual
        self.config = config  # open_clip's model configuration, needed only to write it out
        self.mean, self.std = tuple(mean), tuple(std)
        self.dim = int(self.model.output_dim)
        size = self.model.image_size
        self.image_size = int(size[0] if isinstance(size, tuple | list) else size)

    @classmethod
    def pretrained(cls, name: str = "ViT-H-14", weights: str = "laion2b_s32b_b79k") -> "OpenClipImageEncoder":
        """The published encoder: `weights` is a tag of open_clip's (fetched from the hub) or a local file."""
        from model.conditioning.open_clip_weights import open_clip_model

        clip, config = open_clip_model(name, weights)
        return cls(clip.visual, config=config)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) on [-1, 1] -> (N, D), not normalised to unit length."""
        pixels = clip_pixels(images, self.image_size, self.mean, self.std)
        weight = next(self.model.parameters())
        embeds: Tensor = self.model(pixels.to(weight.device, weight.dtype))
        return embeds
