"""The published preprocessing of the conditioning image for CLIP (generative-models, FrozenOpenCLIPImageEmbedder).

The image is squashed to a square (no crop) by a bicubic resize with align_corners=True; when it shrinks, it is blurred
first by a Gaussian of sigma = (factor - 1) / 2, cut off at 2 sigma, with reflected borders. Then [-1, 1] becomes
[0, 1], and CLIP's mean and standard deviation are taken out. Trained models saw exactly this, so it is done exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_antialiased(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Blur and resize: (N, C, H, W) -> (N, C, *size), (height, width)."""
    for axis in (-1, -2):
        images = _blur(images, axis, images.shape[axis] / size[axis])
    return F.interpolate(images, size=size, mode="bicubic", align_corners=True)


def clip_pixels(
    images: Tensor,
    size: int = 224,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> Tensor:
    """Images (N, 3, H, W) on [-1, 1] -> CLIP's input (N, 3, size, size), float32. Bicubic overshoot is not clamped."""
    unit = (resize_antialiased(images.float(), (size, size)) + 1) / 2
    return (unit - unit.new_tensor(mean).view(3, 1, 1)) / unit.new_tensor(std).view(3, 1, 1)


def _blur(images: Tensor, axis: int, factor: float) -> Tensor:
    """Gaussian blur along one axis (-1 or -2) for shrinking by `factor`; a factor up to 1 blurs by nothing visible."""
    sigma = max((factor - 1) / 2, 0.001)
    length = int(max(4 * sigma, 3)) | 1  # odd
    x = torch.arange(length, dtype=images.dtype, device=images.device) - length // 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels, pad = images.shape[1], length // 2
    if pad >= images.shape[axis]:
        raise ValueError(f"an image side of {images.shape[axis]} px cannot be reflected by the blur of {length} px")
    if axis == -1:
        padded = F.pad(images, (pad, pad, 0, 0), mode="reflect")
        weight = kernel.view(1, 1, 1, -1)
    else:
        padded = F.pad(images, (0, 0, pad, pad), mode="reflect")
        weight = kernel.view(1, 1, -1, 1)
    return F.conv2d(padded, weight.expand(channels, 1, *weight.shape[2:]), groups=channels)
