"""A picture of sampling while it runs: what the video looks like after some of the steps."""

from pathlib import Path

import torch
from torch import Tensor

from model.tasks.sampling import SamplingOptions
from model.tasks.video_model import VideoModel
from model.video_io import contact_sheet, write_image

ROWS = 6
COLUMNS = 4


class StepSheet:
    """Decodes a few frames of the denoised estimate at a few steps and keeps one PNG: steps downwards, frames across.

    It costs ROWS x COLUMNS decoded frames a video; the last row is the estimate of the last step, that is, the result.
    Where several videos are sampled one after the other, it shows the one at work.
    """

    def __init__(self, model: VideoModel, path: Path, options: SamplingOptions) -> None:
        self.model, self.path, self.options = model, path, options
        self.steps: list[int] = []
        self._rows: list[Tensor] = []

    def add(self, step: int, steps: int, denoised: Tensor) -> None:
        """Take a look if it is time: `denoised` (B, T, C, h, w) after `step` of `steps`; the first video is shown."""
        wanted = {max(1, round(steps * (i + 1) / ROWS)) for i in range(ROWS)}
        if step not in wanted:
            return
        if self.steps and step <= self.steps[-1]:  # the next video begins
            self.steps, self._rows = [], []
        frames = denoised.shape[1]
        columns = torch.linspace(0, frames - 1, min(COLUMNS, frames)).round().long()
        # Shown at once and frame by frame: neighbours in the strip are not neighbours in time.
        shown = [self.model.decode(denoised[:1, i : i + 1], self.options)[0] for i in columns.tolist()]
        self._rows.append(torch.cat(shown))
        self.steps.append(step)
        write_image(contact_sheet(torch.cat(self._rows), columns=len(columns)), self.path)
