"""`clipmill sample TASK --model DIR`: videos from a model directory, on the command line.

One subcommand per task, all with the same options; `clipmill sample init` makes a tiny model with random weights to try
them with.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from model.tasks.camera_lora import LoraAdapters
from model.tasks.description import GUIDERS, TASKS, make_guider
from model.tasks.preview import StepSheet
from model.tasks.sampling import Progress, SamplingError, SamplingOptions
from model.tasks.video_model import VideoModel
from model.video_io import check_writable, contact_sheet, format_of, read_image, read_video, write_image, write_video

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RANDOM_WARNING = (
    "RANDOM WEIGHTS: this model was never trained. What it writes shows that everything runs, nothing else."
)


@dataclass(frozen=True)
class CommonOptions:
    """The options every task has, as click delivers them."""

    model: Path
    output: Path | None
    steps: int | None
    sampler: str
    seed: int
    guidance: float | None
    min_guidance: float | None
    guider: str | None
    fps: float | None
    motion_bucket: float
    motion_score: float | None
    lora: tuple[str, ...]
    device: str | None
    dtype: str
    two_pass: bool
    decode_chunk: int
    offload: bool
    preview: bool
    contact_sheet: bool


_OPTIONS = [
    click.option("--model", type=click.Path(path_type=Path), required=True, help="Model directory."),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path), help=".mp4, .gif, or a folder for PNGs. [TASK.mp4]"
    ),
    click.option("--steps", type=click.IntRange(1), help="Sampling steps. [the model's]"),
    click.option("--sampler", type=click.Choice(["euler", "heun"]), default="euler", show_default=True),
    click.option(
        "--seed", type=int, default=23, show_default=True, help="The same seed gives the same video, bit for bit."
    ),
    click.option("--guidance", type=float, help="Guidance scale; its maximum over the frames. [the model's]"),
    click.option("--min-guidance", type=float, help="Guidance scale of the first frame. [the model's]"),
    click.option("--guider", type=click.Choice(GUIDERS), help="How guidance runs over the frames. [the model's]"),
    click.option("--fps", type=click.FloatRange(1), help="Frame rate, told to the model and written. [the model's]"),
    click.option(
        "--motion-bucket", type=click.FloatRange(0, 255), default=127, show_default=True, help="More moves more."
    ),
    click.option("--motion-score", type=float, help="The same as a motion score, by the model's own map."),
    click.option("--lora", multiple=True, metavar="DIR[:SCALE]", help="Camera LoRA; several add up."),
    click.option("--device", help="cpu, cuda, cuda:1 ... [cuda where there is one]"),
    click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True),
    click.option("--two-pass", is_flag=True, help="Guidance in two passes: half the memory of the network."),
    click.option(
        "--decode-chunk", type=click.IntRange(1), default=14, show_default=True, help="Frames decoded at a time."
    ),
    click.option("--offload", is_flag=True, help="Keep on the device only the part that works."),
    click.option("--preview", is_flag=True, help="While sampling, keep OUTPUT.preview.png up to date: steps x frames."),
    click.option("--contact-sheet", is_flag=True, help="Also write OUTPUT.sheet.png, all frames side by side."),
]


def _common(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options, packed into its first argument, and turn our errors into messages."""
    names = list(CommonOptions.__dataclass_fields__)

    @functools.wraps(function)
    def command(**values: Any) -> None:
        with _errors():
            function(CommonOptions(**{name: values.pop(name) for name in names}), **values)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def sample() -> None:
    """Sample videos from a model directory.

    No model at hand? `clipmill sample init image-to-video DIR --tiny` makes one with random weights.
    """


@sample.command("text-to-video")
@click.option("--prompt", required=True, help="What the video shows.")
@click.option("--temporal-prompt", help="What the temporal layers read instead, e.g. a camera motion.")
@click.option("--negative-prompt", help="Guide away from this text.")
@click.option("--frames", type=click.IntRange(2), help="Number of frames. [the model's]")
@click.option("--size", metavar="WxH", help="Width and height in pixels. [the model's]")
@_common
def text_to_video(
    common: CommonOptions,
    prompt: str,
    temporal_prompt: str | None,
    negative_prompt: str | None,
    frames: int | None,
    size: str | None,
) -> None:
    """A video from a prompt."""
    from model.tasks.text_to_video import TextToVideo

    run = _Run(common, "text_to_video", frames, size)
    task = TextToVideo(run.model)
    run.write(
        lambda progress: task(
            prompt,
            temporal_prompt=temporal_prompt,
            negative_prompt=negative_prompt,
            frames=frames,
            width=run.size[0],
            height=run.size[1],
            fps=run.fps,
            motion_bucket=run.motion_bucket,
            options=run.options,
            progress=progress,
        )[0]
    )


@sample.command("image-to-video")
@click.option("--image", type=click.Path(path_type=Path), required=True, help="The first frame; cropped to --size.")
@click.option(
    "--augmentation", type=click.FloatRange(0), help="Noise on the image: more frees the video. [the model's]"
)
@click.option("--frames", type=click.IntRange(2), help="Number of frames. [the model's]")
@click.option("--size", metavar="WxH", help="Width and height in pixels. [the model's]")
@_common
def image_to_video(
    common: CommonOptions, image: Path, augmentation: float | None, frames: int | None, size: str | None
) -> None:
    """A video that starts from an image."""
    from model.tasks.image_to_video import ImageToVideo

    run = _Run(common, "image_to_video", frames, size)
    task = ImageToVideo(run.model)
    pixels = read_image(image, run.size)
    run.write(
        lambda progress: task(
            pixels,
            frames=frames,
            fps=run.fps,
            motion_bucket=run.motion_bucket,
            augmentation=augmentation,
            options=run.options,
            progress=progress,
        )[0]
    )


@sample.command("orbit")
@click.option("--image", type=click.Path(path_type=Path), required=True, help="The object, seen from azimuth 0.")
@click.option(
    "--elevation", type=click.FloatRange(-90, 90), default=0.0, show_default=True, help="Of the camera, degrees."
)
@click.option("--augmentation", type=click.FloatRange(0), help="Noise on the image. [the model's]")
@click.option("--frames", type=click.IntRange(2), help="Number of views. [the model's]")
@click.option("--size", metavar="WxH", help="Width and height in pixels. [the model's]")
@_common
def orbit(
    common: CommonOptions,
    image: Path,
    elevation: float,
    augmentation: float | None,
    frames: int | None,
    size: str | None,
) -> None:
    """Views from all around an object, from one image."""
    from model.tasks.orbit import Orbit

    run = _Run(common, "orbit", frames, size)
    task = Orbit(run.model)
    pixels = read_image(image, run.size)
    run.write(
        lambda progress: task(
            pixels,
            elevation=elevation,
            frames=frames,
            fps=run.fps,
            motion_bucket=run.motion_bucket,
            augmentation=augmentation,
            options=run.options,
            progress=progress,
        )[0]
    )


@sample.command("interpolation")
@click.option("--video", type=click.Path(path_type=Path), help="A clip: new frames between all of its frames.")
@click.option("--image", type=click.Path(path_type=Path), multiple=True, help="Twice: start and end.")
@click.option("--max-frames", type=click.IntRange(2), help="Use only the clip's first frames.")
@click.option("--augmentation", type=click.FloatRange(0), help="Noise on the given frames. [the model's]")
@click.option("--size", metavar="WxH", help="Width and height in pixels. [the model's]")
@_common
def interpolation(
    common: CommonOptions,
    video: Path | None,
    image: tuple[Path, ...],
    max_frames: int | None,
    augmentation: float | None,
    size: str | None,
) -> None:
    """New frames between two images, or a clip at four times its frame rate."""
    from model.tasks.interpolation import Interpolation

    if (video is None) == (len(image) != 2):
        raise click.UsageError("give --video CLIP, or --image START --image END")
    run = _Run(common, "interpolation", None, size)
    task = Interpolation(run.model)
    if video is not None:
        clip, rate = read_video(video, size=run.size, max_frames=max_frames)
    else:
        clip, rate = torch.cat([read_image(path, run.size) for path in image]), run.fps / (run.frames - 1)
    if video is not None and common.fps is None:
        run.fps = rate * (run.frames - 1)
    run.write(
        lambda progress: task.upsample(
            clip,
            fps=rate,
            motion_bucket=run.motion_bucket,
            augmentation=augmentation,
            options=run.options,
            progress=progress,
        ),
        evaluations=len(clip) - 1,
    )


@sample.command("init")
@click.argument("task", type=click.Choice([name.replace("_", "-") for name in TASKS]))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--tiny", is_flag=True, required=True, help="Under a million parameters: the only size there is here.")
@click.option("--autoencoder", type=click.Choice(["haar", "kl"]), default="haar", show_default=True)
@click.option("--frames", type=click.IntRange(2), help="Clip length. [the task's]")
@click.option("--seed", type=int, default=0, show_default=True)
def init(task: str, directory: Path, tiny: bool, autoencoder: str, frames: int | None, seed: int) -> None:
    """Make a tiny model with RANDOM WEIGHTS, to see that everything runs."""
    from model.tasks.random_model import tiny_random_model

    with _errors():
        model = tiny_random_model(task.replace("-", "_"), autoencoder=autoencoder, frames=frames, seed=seed)  # type: ignore[arg-type]
        model.save(directory)
    click.secho(RANDOM_WARNING, fg="yellow", err=True)
    click.echo(
        f"{directory}: {task}, {model.description.frames} frames of {model.description.width} x "
        f"{model.description.height}, {sum(p.numel() for p in model.unet.parameters()):,} parameters"
    )


class _Run:
    """What the commands share: check the output, load the model, settle the options; then sample and write."""

    def __init__(self, common: CommonOptions, task: str, frames: int | None, size: str | None) -> None:
        self.common = common
        self.output = common.output or Path(f"{task.replace('_', '-')}.mp4")
        format_of(self.output)
        device = common.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = VideoModel.load(common.model, device=device, dtype=DTYPES[common.dtype], offload=common.offload)
        description = self.model.description
        if description.random_weights:
            click.secho(RANDOM_WARNING, fg="yellow", err=True)
        self.model.require(task)
        self.frames = frames or description.frames
        self.size = _parse_size(size) if size else (description.width, description.height)
        self.fps = common.fps or description.fps
        check_writable(self.output, self.frames * self.size[0] * self.size[1] * 3)
        self.motion_bucket = common.motion_bucket
        if common.motion_score is not None:
            if description.motion is None:
                raise click.UsageError(
                    "--motion-score: this model does not say how its motion buckets were computed "
                    "(the published ones never did); use --motion-bucket"
                )
            self.motion_bucket = float(description.motion.bucket(common.motion_score))
        self.options = self._options()
        loras = LoraAdapters(self.model.unet)
        for i, argument in enumerate(common.lora):
            directory, scale = _parse_lora(argument)
            loras.load(directory, name=f"{i}-{Path(directory).name}", scale=scale)
        if common.lora:
            loras.merge()  # no adapter costs anything during the steps
        self.model.unet.prepare_for_sampling()
        self.model.unet.prepare_for_sampling()

    def _options(self) -> SamplingOptions:
        common, description = self.common, self.model.description
        changes: dict[str, Any] = {
            "sampler": common.sampler,
            "seed": common.seed,
            "two_pass": common.two_pass,
            "decode_chunk": common.decode_chunk,
            "offload": common.offload,
            "guider": make_guider(
                common.guider or description.guider,
                description.min_guidance if common.min_guidance is None else common.min_guidance,
                description.max_guidance if common.guidance is None else common.guidance,
            ),
        }
        if common.steps:
            changes["steps"] = common.steps
        return self.model.options(**changes)

    def write(self, sample_frames: Callable[[Progress], Tensor], *, evaluations: int = 1) -> None:
        """Sample with a progress bar (and a preview), then write the video."""
        sheet = (
            StepSheet(self.model, _beside(self.output, "preview.png"), self.options) if self.common.preview else None
        )
        with _progress(evaluations * self.options.steps) as advance:

            def progress(step: int, steps: int, denoised: Tensor) -> None:
                advance()
                if sheet is not None:
                    sheet.add(step, steps, denoised)

            frames = sample_frames(progress)
        path = write_video(frames, self.output, fps=self.fps)
        click.echo(f"{path}: {len(frames)} frames of {frames.shape[-1]} x {frames.shape[-2]} at {self.fps:g} fps")
        if sheet is not None:
            click.echo(f"{sheet.path}: the video after {', '.join(map(str, sheet.steps))} steps")
        if self.common.contact_sheet:
            click.echo(f"{write_image(contact_sheet(frames), _beside(self.output, 'sheet.png'))}: all frames")


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(f"{output.stem}.{suffix}")


def _parse_size(text: str) -> tuple[int, int]:
    width, separator, height = text.lower().partition("x")
    if not (separator and width.isdigit() and height.isdigit()):
        raise click.BadParameter(f"--size {text!r}: width x height in pixels, like 1024x576")
    return int(width), int(height)


def _parse_lora(text: str) -> tuple[str, float]:
    directory, separator, scale = text.rpartition(":")
    if not separator or Path(text).exists():
        return text, 1.0
    try:
        return directory, float(scale)
    except ValueError:
        return text, 1.0


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
def _errors() -> Iterator[None]:
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
