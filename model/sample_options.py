"""The options of `clipmill sample`: each is declared once here, whatever number of tasks has it.

`TaskCommand` shows them under headings, with the examples of its docstring left as they are written.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
import torch

from model.tasks.description import GUIDERS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class SharedOptions:
    """The options every task has, as click delivers them."""

    model: Path
    output: Path | None
    size: tuple[int, int] | None
    fps: float | None
    steps: int | None
    sampler: str
    seed: int
    guidance: float | None
    min_guidance: float | None
    guider: str | None
    motion_bucket: float
    motion_score: float | None
    lora: tuple[tuple[str, float], ...]
    device: str | None
    dtype: str
    allow_pickle: bool
    two_pass: bool
    decode_chunk: int
    offload: bool
    preview: bool
    contact_sheet: bool


class Size(click.ParamType):
    """WIDTHxHEIGHT in pixels, as (width, height)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Refuse what is not two whole numbers above 0."""
        width, _, height = str(value).lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
            self.fail(f"{value!r}: width x height in pixels, like 1024x576", param, ctx)
        return int(width), int(height)


class Lora(click.ParamType):
    """DIR or DIR:SCALE, as (directory, scale)."""

    name = "DIR[:SCALE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """A directory of that very name wins over a scale."""
        directory, separator, scale = str(value).rpartition(":")
        if not separator or Path(str(value)).exists():
            return str(value), 1.0
        try:
            number = float(scale)
        except ValueError:
            return str(value), 1.0
        if not math.isfinite(number):
            self.fail(f"{value!r}: the scale {scale} is no finite number", param, ctx)
        return directory, number


class Finite(click.FloatRange):
    """A number within bounds; click's own lets NaN and infinity pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse NaN and infinity too."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class Device(click.ParamType):
    """A device of PyTorch's that this machine has."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse unknown and absent devices."""
        try:
            torch.empty(0, device=str(value))
        except (RuntimeError, AssertionError) as error:  # what PyTorch raises depends on how it was built
            self.fail(f"{value!r} cannot be used here ({str(error).splitlines()[0]})", param, ctx)
        return str(value)


class Option(click.Option):
    """An option under a heading of the help."""

    def __init__(self, *args: Any, heading: str = "The task", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class TaskCommand(click.Command):
    """A command whose help shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The task's own options first, `--help` last."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                headings.setdefault(getattr(parameter, "heading", "Other"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _option(heading: str, *names: str, **settings: Any) -> Decorator:
    return click.option(*names, cls=Option, heading=heading, **settings)


def _image(help_text: str, **settings: Any) -> Decorator:
    kind = click.Path(path_type=Path, exists=True, dir_okay=False)
    return _option("The task", "--image", type=kind, help=help_text, **settings)


# ---- of some tasks -----------------------------------------------------------------------------------------------

first_image = _image("The picture the video starts from. It is scaled to cover --size and cropped.", required=True)
object_image = _image("The object, seen from azimuth 0.", required=True)
end_images = _image("Give it twice: first and last frame.", multiple=True)
frames = _option(
    "The task",
    *("--frames", "frames"),
    type=click.IntRange(2),
    help="Frames of the video; other numbers than the model was trained for look worse. [the model's]",
)
augmentation = _option(
    "The task",
    "--augmentation",
    type=Finite(0),
    help="Noise put on the given picture: more lets the video depart from it. [the model's, 0.02]",
)


def task_option(*names: str, **settings: Any) -> Decorator:
    """An option that one task alone has."""
    return _option("The task", *names, **settings)


# ---- of every task -----------------------------------------------------------------------------------------------

_SHARED = [
    _option(
        "Model and result",
        "--model",
        type=click.Path(path_type=Path, exists=True),
        required=True,
        help="Model directory, or a generative-models file like svd.safetensors.",
    ),
    _option(
        "Model and result",
        *("-o", "--output"),
        type=click.Path(path_type=Path),
        help="A file .mp4 or .gif, or a folder for PNGs. [TASK.mp4]",
    ),
    _option("Model and result", "--size", type=Size(), metavar="WxH", help="Pixels, like 1024x576. [the model's]"),
    _option("Model and result", "--fps", type=Finite(1, 1000), help="Told to the model, and written. [the model's]"),
    _option(
        "Model and result",
        "--preview",
        is_flag=True,
        help="Keep OUTPUT.preview.png up to date while sampling: a row per step, a few frames across.",
    ),
    _option(
        "Model and result", "--contact-sheet", is_flag=True, help="Also write OUTPUT.sheet.png, all frames in one."
    ),
    _option("Sampling", "--steps", type=click.IntRange(1), help="More take longer and look finer. [the model's]"),
    _option(
        "Sampling",
        "--sampler",
        type=click.Choice(["euler", "heun"]),
        default="euler",
        show_default=True,
        help="heun: two evaluations a step, more exact.",
    ),
    _option(
        "Sampling",
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=23,
        show_default=True,
        help="The same seed gives the same file, bit for bit, on the same device.",
    ),
    _option(
        "Sampling",
        "--guidance",
        type=Finite(),
        help="How closely to follow the condition; the largest over the frames. [the model's]",
    ),
    _option("Sampling", "--min-guidance", type=Finite(), help="The same for the first frame. [the model's]"),
    _option(
        "Sampling",
        "--guider",
        type=click.Choice(GUIDERS),
        help="How guidance runs over the frames: constant; linear from --min-guidance to --guidance; or triangle, up "
        "and back. [the model's]",
    ),
    _option(
        "Motion",
        "--motion-bucket",
        type=Finite(0, 255),
        default=127,
        show_default=True,
        help="0 hardly moves, 255 moves most.",
    ),
    _option(
        "Motion",
        "--motion-score",
        type=Finite(),
        help="Instead: a motion score of the data set, through the map stored with the model.",
    ),
    _option(
        "Motion",
        "--lora",
        type=Lora(),
        multiple=True,
        metavar="DIR[:SCALE]",
        help="Camera LoRA, at this scale [1]; give several and they add up. Negative scales reverse.",
    ),
    _option(
        "Device and memory",
        "--device",
        type=Device(),
        metavar="NAME",
        help="cpu, cuda, cuda:1 ... [cuda where there is one]",
    ),
    _option(
        "Device and memory",
        "--dtype",
        type=click.Choice(list(DTYPES)),
        default="float32",
        show_default=True,
        help="bfloat16: half the memory for weights.",
    ),
    _option(
        "Device and memory", "--two-pass", is_flag=True, help="Guidance in two passes: half the network's activations."
    ),
    _option(
        "Device and memory",
        "--decode-chunk",
        type=click.IntRange(1),
        default=14,
        show_default=True,
        help="Frames decoded at a time: fewer need less memory.",
    ),
    _option("Device and memory", "--offload", is_flag=True, help="Keep on the device only the part that works."),
    _option(
        "Device and memory",
        "--allow-pickle",
        is_flag=True,
        help="Also read .ckpt and .bin weights. They can run code: only from sources you trust.",
    ),
]


def shared(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that every task has, packed into its first argument."""
    names = [field.name for field in fields(SharedOptions)]

    def command(**values: Any) -> None:
        function(SharedOptions(**{name: values.pop(name) for name in names}), **values)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_SHARED):
        option(command)
    return command
