"""Dense Farneback flow as batched torch code that agrees with OpenCV's, so that a GPU worker needs no flow on the CPU.

The algorithm of Farneback 2003 (Two-Frame Motion Estimation Based on Polynomial Expansion) with OpenCV's choices: the
pyramid by Gaussian blur and bilinear reduction that ends at 32 px, separable polynomial expansion with replicated
borders, damping of the five outermost pixels, a box window, and a regularised 2x2 solve. On real frames the mean
end-point difference to OpenCV at equal parameters is below 0.01 px (tests/curation/test_farneback_torch.py). Stage
contract: see `curation.batched_motion`.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from curation import motion
from curation.batched_motion import BatchedMotion

_MIN_LEVEL_PX = 32
_BORDER = (0.14, 0.14, 0.4472, 0.4472, 0.4472)  # OpenCV's confidence of the pixels next to the border


def farneback(
    before: torch.Tensor,
    after: torch.Tensor,
    *,
    start: torch.Tensor | None = None,
    pyramid_scale: float = motion.PYRAMID_SCALE,
    levels: int = motion.LEVELS,
    window_px: int = motion.WINDOW_PX,
    iterations: int = motion.ITERATIONS,
    poly_n: int = motion.POLY_N,
    poly_sigma: float = motion.POLY_SIGMA,
) -> torch.Tensor:
    """(B, 2, H, W) flow in px between (B, H, W) grey frames in [0, 255].

    Args:
        start: (B, 2) common shift of each pair that the pyramid starts from; zero if left out.
    """
    height, width = before.shape[1:]
    depth = 0
    scale = 1.0
    while depth < levels:
        scale *= pyramid_scale
        if width * scale < _MIN_LEVEL_PX or height * scale < _MIN_LEVEL_PX:
            break
        depth += 1
    flow: torch.Tensor | None = None
    frames = torch.stack([before, after]).flatten(0, 1)[:, None].float()
    for level in range(depth, -1, -1):
        scale = pyramid_scale**level
        size = (_round(height * scale), _round(width * scale))
        if flow is None:
            flow = before.new_zeros((len(before), 2, *size), dtype=torch.float32)
            if start is not None:
                flow = flow + (start * scale)[:, :, None, None]
        else:
            flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False) / pyramid_scale
        reduced = F.interpolate(_blur(frames, scale), size=size, mode="bilinear", align_corners=False)
        first, second = _expand(reduced, poly_n, poly_sigma).chunk(2)
        damping = _damping(size, flow)
        for _ in range(iterations):
            flow = _solve(_equations(first, second, flow, damping), window_px)
    assert flow is not None
    return flow


def _round(value: float) -> int:
    """To the nearest even integer at .5, as OpenCV's cvRound."""
    return int(np.rint(value))


def _blur(frames: torch.Tensor, scale: float) -> torch.Tensor:
    """Gaussian blur before the reduction by `scale`, with OpenCV's kernel size and mirrored borders."""
    sigma = (1 / scale - 1) / 2
    size = max(_round(sigma * 5) | 1, 3)
    kernel = torch.from_numpy(cv2.getGaussianKernel(size, sigma, cv2.CV_32F)[:, 0]).to(frames)
    radius = size // 2
    padded = F.pad(frames, (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])


def _expand(frames: torch.Tensor, n: int, sigma: float) -> torch.Tensor:
    """Quadratic fit around every pixel: (B, 1, H, W) to (B, 5, H, W), the coefficients of y, x, yy, xx, xy."""
    x = torch.arange(-n, n + 1, device=frames.device, dtype=torch.float64)
    g = torch.exp(-(x**2) / (2 * sigma**2))
    g = g / g.sum()
    # Moments of the separable weight; the normal equations of the fit decouple but for {1, xx, yy}.
    m2, m4 = float((g * x**2).sum()), float((g * x**4).sum())
    normal = np.array([[1, m2, m2], [m2, m4, m2 * m2], [m2, m2 * m2, m4]])
    inverse = np.linalg.inv(normal)
    for_x, for_xy = 1 / m2, 1 / (m2 * m2)
    kernels = torch.stack([g, x * g, x * x * g]).to(frames.dtype)
    padded = F.pad(frames, (n, n, n, n), mode="replicate")
    # Moments m[i][j]: sum of weight * y^i * x^j * value.
    down = F.conv2d(padded, kernels[:, None, :, None])
    both = [F.conv2d(down[:, i : i + 1], kernels[:, None, None, :]) for i in range(3)]
    m00, m01, m02 = both[0].unbind(1)
    m10, m11 = both[1][:, 0], both[1][:, 1]
    m20 = both[2][:, 0]
    # The inverse couples xx and yy with the constant only: its xx-yy element is zero for a separable weight.
    return torch.stack(
        [
            m10 * for_x,
            m01 * for_x,
            m00 * float(inverse[0, 1]) + m20 * float(inverse[1, 1]),
            m00 * float(inverse[0, 1]) + m02 * float(inverse[1, 1]),
            m11 * for_xy,
        ],
        1,
    )


def _damping(size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """(H, W) factors below 1 in the outermost five pixels."""
    lines = []
    for length in size:
        line = torch.ones(length, device=like.device)
        for k, factor in enumerate(_BORDER[:length]):
            line[k] *= factor
            line[length - 1 - k] *= factor
        lines.append(line)
    return lines[0][:, None] * lines[1][None, :]


def _equations(first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """Per pixel, the five numbers of the 2x2 system A d = b: A_yy, A_xy, A_xx, b_y, b_x."""
    height, width = flow.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    at_x, at_y = x + flow[:, 0], y + flow[:, 1]
    inside = (at_x >= 0) & (at_x < width - 1) & (at_y >= 0) & (at_y < height - 1)
    grid = torch.stack([2 * at_x / (width - 1) - 1, 2 * at_y / (height - 1) - 1], -1)
    moved = F.grid_sample(second, grid, mode="bilinear", padding_mode="border", align_corners=True)
    weight = inside[:, None].to(flow.dtype)
    b = (first[:, :2] - moved[:, :2] * weight) / 2
    quadratic = torch.where(inside[:, None], (first[:, 2:] + moved[:, 2:]) / 2, first[:, 2:])
    yy, xx, xy = quadratic[:, 0], quadratic[:, 1], quadratic[:, 2] / 2
    dx, dy = flow[:, 0], flow[:, 1]
    b_y = (b[:, 0] + yy * dy + xy * dx) * damping
    b_x = (b[:, 1] + xy * dy + xx * dx) * damping
    yy, xx, xy = yy * damping, xx * damping, xy * damping
    return torch.stack([yy**2 + xy**2, (yy + xx) * xy, xx**2 + xy**2, yy * b_y + xy * b_x, xy * b_y + xx * b_x], 1)


def _solve(equations: torch.Tensor, window_px: int) -> torch.Tensor:
    """Average the systems over the window and solve them, regularised as OpenCV does."""
    radius = window_px // 2
    size = 2 * radius + 1
    padded = F.pad(equations, (radius, radius, radius, radius), mode="replicate")
    averaged = F.avg_pool2d(F.avg_pool2d(padded, (size, 1), 1), (1, size), 1)
    yy, xy, xx, b_y, b_x = averaged.unbind(1)
    determinant = yy * xx - xy * xy + 1e-3
    return torch.stack([(yy * b_x - xy * b_y) / determinant, (xx * b_y - xy * b_x) / determinant], 1)


def common_shift(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(B, 2) shift x, y in px of whole (B, H, W) pictures; zero where they did not move far. See `curation.motion`."""
    count, height, width = before.shape
    window = torch.hann_window(height, periodic=False, device=before.device)[:, None]
    window = window * torch.hann_window(width, periodic=False, device=before.device)[None, :]
    cross = torch.fft.rfft2(after * window) * torch.fft.rfft2(before * window).conj()
    surface = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-9), s=(height, width))
    peak = surface.flatten(1).argmax(1)
    offsets = torch.arange(-2, 3, device=before.device)
    rows = (peak[:, None] // width + offsets) % height
    columns = (peak[:, None] % width + offsets) % width
    around = surface[torch.arange(count, device=before.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    response = around.sum((1, 2))
    mass = response.clamp_min(1e-9)
    y = peak // width + (around.sum(2) * offsets).sum(1) / mass
    x = peak % width + (around.sum(1) * offsets).sum(1) / mass
    y = torch.where(y > height / 2, y - height, y)
    x = torch.where(x > width / 2, x - width, x)
    far = torch.hypot(x, y) >= motion.PHASE_SHIFT * min(height, width)
    taken = far & (response >= motion.PHASE_RESPONSE) & _explains(before, after, x.round(), y.round())
    return torch.stack([x, y], 1) * taken[:, None]


def _explains(before: torch.Tensor, after: torch.Tensor, dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """Whether moving a picture by whole pixels takes most of the difference away."""
    height, width = before.shape[1:]
    y = torch.arange(height, device=before.device)[None, :, None] + dy[:, None, None]
    x = torch.arange(width, device=before.device)[None, None, :] + dx[:, None, None]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
    moved = after.flatten(1).gather(1, index.flatten(1)).view_as(before)
    shifted = ((before - moved).abs() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
    unshifted = (before - after).abs().mean((1, 2))
    overlap = (dx.abs() < width // 2) & (dy.abs() < height // 2)
    return overlap & (shifted < motion.PHASE_GAIN * unshifted)


class FarnebackTorchMotion(BatchedMotion):
    """Coarse motion score on a GPU: the same flow and the same score as `curation.motion.CoarseMotion`."""

    name = "farneback_torch"

    def __init__(
        self,
        *,
        weights: Sequence[Path] | None = None,
        device: str = "cuda",
        batch: int = 256,
        flow_short_side_px: int = motion.FLOW_SHORT_SIDE_PX,
    ) -> None:
        """`weights` is there because every model takes it; Farneback has none."""
        super().__init__(device=device, batch=batch)
        self.frame_short_side_px = flow_short_side_px

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if min(height, width) <= self.frame_short_side_px:
            return height, width
        columns, rows = motion.scaled_size(height, width, self.frame_short_side_px)
        return rows, columns

    def _flow(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        grey = before.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]
        first, second = ((frames * grey).sum(1).round() for frames in (before, after))
        return farneback(first, second, start=common_shift(first, second))
