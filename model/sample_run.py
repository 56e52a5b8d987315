"""One run of `clipmill sample`: load the model, settle the options, sample with a progress bar, write the video."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from model.activation_memory import available_memory, sampling_at_least
from model.sample_options import DTYPES, SharedOptions
from model.tasks.camera_lora import LoraAdapters
from model.tasks.preview import StepSheet
from model.tasks.sampling import Progress, SamplingError, SamplingOptions
from model.tasks.video_model import VideoModel
from model.video_io import GIF_FPS, check_writable, contact_sheet, format_of, write_image, write_video

RANDOM_WARNING = (
    "RANDOM WEIGHTS: this model was never trained. What it writes shows that everything runs, nothing else."
)


class Run:
    """What the commands share. Whatever can be refused without the model is refused before it is loaded.

    Args:
        inputs: the files that the task reads; the output must be none of them.

    Attributes:
        model, frames, fps: settled from the options and the model's own description.
        size: (width, height) in pixels.
        arguments: what every task object is called with.
    """

    def __init__(
        self, shared: SharedOptions, task: str, frames: int | None = None, *, inputs: Sequence[Path] = ()
    ) -> None:
        self.shared = shared
        self.output = shared.output or Path(f"{task.replace('_', '-')}.mp4")
        format_of(self.output)
        if self.output.exists() and any(self.output.samefile(path) for path in inputs):
            raise click.UsageError(f"{self.output} is read: it would be replaced by the result; give another --output")
        device = shared.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = VideoModel.load(
            shared.model,
            device=device,
            dtype=DTYPES[shared.dtype],
            offload=shared.offload,
            allow_pickle=shared.allow_pickle,
        )
        description = self.model.description
        if description.random_weights:
            click.secho(RANDOM_WARNING, fg="yellow", err=True)
        self.model.require(task)
        self.frames = frames or description.frames
        self.size = shared.size or (description.width, description.height)
        self.fps = shared.fps or description.fps
        check_writable(self.output, self.frames, self.size)
        self._check_memory()
        self.options = self._options()
        self.arguments: dict[str, Any] = {"motion_bucket": self._motion_bucket(), "options": self.options}
        self._merge_loras()
        self.model.unet.prepare_for_sampling()

    def _check_memory(self) -> None:
        """Refuse a size that cannot fit whatever the options: the frames in memory, the network where it runs."""
        (width, height), model = self.size, self.model
        factor = model.autoencoder.factor
        frames = self.frames * 3 * height * width * 4
        network = sampling_at_least(
            model.unet.config,
            frames=self.frames,
            height=height // factor,
            width=width // factor,
            element_size=model.dtype.itemsize,
        )
        for device, needed in ((torch.device("cpu"), frames), (torch.device(model.device), network)):
            free = available_memory(device, 1)
            if needed > free:
                raise click.UsageError(
                    f"{self.frames} frames of {width} x {height} cannot fit: at least {needed / 2**30:.1f} GiB are "
                    f"needed, {free / 2**30:.1f} GiB are available on {device}; give a smaller --size"
                )

    def _motion_bucket(self) -> float:
        if self.shared.motion_score is None:
            return self.shared.motion_bucket
        motion = self.model.description.motion
        if motion is None:
            raise click.UsageError(
                "--motion-score: this model does not say how its motion buckets were computed "
                "(the published ones never did); use --motion-bucket"
            )
        return float(motion.bucket(self.shared.motion_score))

    def _merge_loras(self) -> None:
        loras = LoraAdapters(self.model.unet)
        for i, (directory, scale) in enumerate(self.shared.lora):
            loras.load(directory, name=f"{i}-{Path(directory).name}", scale=scale)
        if self.shared.lora:
            loras.merge()  # no adapter costs anything during the steps

    def _options(self) -> SamplingOptions:
        shared, description = self.shared, self.model.description
        changes: dict[str, Any] = {
            "sampler": shared.sampler,
            "seed": shared.seed,
            "two_pass": shared.two_pass,
            "decode_chunk": shared.decode_chunk,
            "offload": shared.offload,
            "guider": replace(description, guider=shared.guider or description.guider).default_guider(
                shared.min_guidance, shared.guidance
            ),
        }
        if shared.steps:
            changes["steps"] = shared.steps
        return self.model.options(**changes)

    def write(self, sample_frames: Callable[[Progress], Iterable[Tensor]], *, videos: int = 1) -> None:
        """Sample with a progress bar (and a preview), and write the video.

        Args:
            sample_frames: given a progress callback, the frames (3, H, W): all, or one by one as they are sampled.
            videos: how many it samples one after the other.
        """
        if format_of(self.output) == "gif" and self.fps > GIF_FPS:
            click.secho(
                f"warning: a gif shows at most {GIF_FPS} frames a second: it plays slower", fg="yellow", err=True
            )
        shared = self.shared
        sheet = StepSheet(self.model, self._beside("preview.png"), self.options) if shared.preview else None
        written = 0
        shown: list[Tensor] = []  # a contact sheet needs all frames at once

        def pass_on(frames: Iterable[Tensor]) -> Iterator[Tensor]:
            nonlocal written
            for frame in frames:
                written += 1
                if shared.contact_sheet:
                    shown.append(frame)
                yield frame

        with _progress(videos * self.options.steps) as advance:

            def progress(step: int, steps: int, denoised: Tensor) -> None:
                advance()
                if sheet is not None:
                    sheet.add(step, steps, denoised)

            path = write_video(pass_on(sample_frames(progress)), self.output, fps=self.fps)
        click.echo(f"{path}: {written} frames of {self.size[0]} x {self.size[1]} at {self.fps:g} fps")
        if sheet is not None:
            click.echo(f"{sheet.path}: the video after {', '.join(map(str, sheet.steps))} steps")
        if shared.contact_sheet:
            click.echo(f"{write_image(contact_sheet(torch.stack(shown)), self._beside('sheet.png'))}: all frames")

    def _beside(self, suffix: str) -> Path:
        return self.output.with_name(f"{self.output.stem}.{suffix}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, on terminals only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        job = bar.add_task("sampling", total=total)
        yield lambda: bar.advance(job)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Our errors become one line; warnings too. Anything else is a bug and keeps its traceback."""

    def show(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
        click.secho(f"warning: {message}", fg="yellow", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        try:
            yield
        except click.ClickException:
            raise
        except (SamplingError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
