"""`clipmill evaluate`: measure sampled videos."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from model.evaluation.errors import EvaluationError
from model.study_cli import study


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def evaluate() -> None:
    """Measure sampled videos: against real ones, against references, and by people.

    \b
    How far 2,048 samples are from real clips, 16 frames each at 25 fps:
      clipmill evaluate fvd demo-out/shards/default samples/ --frames 16 --fps 25
    How like samples are to the videos of the same names (PSNR; LPIPS, CLIP-S):
      clipmill evaluate likeness references/ samples/
    \b
    Which of two models people prefer:
      clipmill evaluate study --help
    """


evaluate.add_command(study)


@dataclass
class _Set:
    """What is said of the videos that were measured."""

    sizes: set[str] = field(default_factory=set)
    rates: list[float] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        return float(np.median(self.rates)) if self.rates else None


def _device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from model.sample_options import Device  # here, because it imports torch

    return value and Device().convert(value, param, ctx)


@evaluate.command("fvd")
@click.argument("real")
@click.argument("sampled")
@click.option(
    "--frames", type=click.IntRange(min=10), default=16, show_default=True, help="First frames of each video."
)
@click.option("--fps", type=click.FloatRange(0, 1000, min_open=True), help="Rate of the frames; default: every frame.")
@click.option(
    "--fit",
    type=click.Choice(["squash", "crop"]),
    default="squash",
    show_default=True,
    help="How frames become squares: `squash` is the published distance; `crop` keeps the aspect ratio.",
)
@click.option("--max", "most", type=click.IntRange(min=2), help="Only the first so many usable videos of each set.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Videos at once.")
@click.option("--device", callback=_device, help="Default: cuda where there is one.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def fvd_command(
    real: str, sampled: str, frames: int, fps: float | None, fit: Any, most: int | None, batch: int,
    device: str | None, as_json: bool,
) -> None:  # fmt: skip
    """The Fréchet video distance between the videos of REAL and SAMPLED: folders, files, or shards.

    Lower is nearer. It falls with the number of videos, so compare numbers of the same --max, --frames, --fps and
    --fit only; publications use 2,048 videos or more.
    """
    import torch

    from model.data.shards import DataError
    from model.evaluation.fvd import frechet_distance, gather
    from model.evaluation.i3d import WEIGHTS, load_i3d
    from model.evaluation.videos import Video, find_videos, first_frames

    with _explained():
        network = load_i3d(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        sets = [find_videos([place]) for place in (real, sampled)]
        about = [_Set(), _Set()]

        def read(videos: Sequence[Video], found: _Set) -> Iterator[np.ndarray]:
            for video in _watched(videos, most):
                try:
                    taken = first_frames(video, frames, fps)
                except (EvaluationError, DataError, OSError) as error:
                    found.left_out.append(str(error))
                    continue
                found.sizes.add(f"{taken.pixels.shape[2]}x{taken.pixels.shape[1]}")
                found.rates += [taken.fps] if taken.fps else []  # PNGs have none
                yield taken.pixels

        moments = [
            gather(islice(read(videos, found), most), network, fit=fit, batch=batch)
            for videos, found in zip(sets, about, strict=True)
        ]
        for place, gathered, found in zip((real, sampled), moments, about, strict=True):
            if gathered.count < 2:
                why = f": {found.left_out[0]}" if found.left_out else ""
                raise EvaluationError(f"{place}: {gathered.count} usable videos; a distribution needs 2{why}")
        distance = frechet_distance(*moments)
    counts = [each.count for each in moments]
    result = {
        "fvd": distance, "fit": fit, "frames": frames, "fps": fps, "weights_sha256": WEIGHTS.sha256,
        "videos": {"real": counts[0], "sampled": counts[1]},
        "rates_fps": {"real": about[0].rate, "sampled": about[1].rate},
        "sizes": {"real": sorted(about[0].sizes), "sampled": sorted(about[1].sizes)},
        "left_out": {"real": about[0].left_out, "sampled": about[1].left_out},
    }  # fmt: skip
    _warn(counts, about, fps)
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    rate = f"{fps:g} fps" if fps else "every frame"
    click.echo(f"FVD {distance:.2f}")
    click.echo(f"  {counts[0]:,} real and {counts[1]:,} sampled videos, {frames} frames ({rate}), {fit}")
    click.echo(f"  I3D of Kinetics-400, weights {WEIGHTS.sha256[:8]}")


def _warn(counts: Sequence[int], about: Sequence[_Set], fps: float | None) -> None:
    for name, found in zip(("real", "sampled"), about, strict=True):
        if found.left_out:
            click.echo(f"warning: {len(found.left_out)} {name} videos were left out: {found.left_out[0]}", err=True)
    if counts[0] != counts[1]:
        click.echo("warning: the distance depends on the number of videos, which differs; see --max", err=True)
    if min(counts) < 2048:
        click.echo("warning: with fewer than 2,048 videos the distance is larger than those published", err=True)
    one, other = (each.rate for each in about)
    if fps is None and one and other and max(one, other) > 1.1 * min(one, other):
        click.echo(f"warning: {one:.3g} fps are compared with {other:.3g} fps; see --fps", err=True)


@evaluate.command("likeness")
@click.argument("reference")
@click.argument("sampled")
@click.option("--frames", type=click.IntRange(min=1), help="First frames of each video; default: all.")
@click.option("--lpips", type=click.Path(path_type=Path), help="torchvision's AlexNet, a file: adds LPIPS.")
@click.option("--clip", type=click.Path(path_type=Path), help="A model directory with an image encoder: adds CLIP-S.")
@click.option("--device", default="cpu", show_default=True, callback=_device, help="Of the networks.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def likeness_command(
    reference: str, sampled: str, frames: int | None, lpips: Path | None, clip: Path | None, device: str, as_json: bool
) -> None:
    """How like the videos of SAMPLED are to those of the same names in REFERENCE: PSNR in dB, and if asked for LPIPS
    and CLIP-S.

    Means over videos of the means over frames. Sizes and numbers of frames must agree. Equal frames have an infinite
    PSNR, `null` in JSON.
    """
    from model.evaluation.likeness import Metric, load_clip, load_lpips, psnr
    from model.evaluation.videos import by_name, find_videos, first_frames

    with _explained():
        metrics: dict[str, Metric] = {"psnr_db": psnr}
        if lpips is not None:
            metrics["lpips"] = load_lpips(lpips, device)
        if clip is not None:
            metrics["clip_s"] = load_clip(clip, device)
        references, videos = (by_name(find_videos([place])) for place in (reference, sampled))
        alone = [each.where for name, each in videos.items() if name not in references]
        if alone:
            raise EvaluationError(f"{alone[0]}: {reference} has no video of that name ({len(alone)} have none)")
        found: dict[str, dict[str, float]] = {}
        for name, video in _watched([*videos.items()]):
            one, other = (first_frames(each, frames).pixels for each in (references[name], video))
            if one.shape != other.shape:
                raise EvaluationError(
                    f"{video.where}: {_shape(other)} cannot be compared with {_shape(one)}; frames of both must agree"
                )
            found[name] = {key: float(np.mean(metric(one, other))) for key, metric in metrics.items()}
    means = {name: float(np.mean([each[name] for each in found.values()])) for name in metrics}
    if as_json:
        said = {"means": _finite(means), "videos": {name: _finite(each) for name, each in found.items()}}
        click.echo(json.dumps(said, indent=1))
        return
    units = {"psnr_db": "PSNR {:.2f} dB", "lpips": "LPIPS {:.4f}", "clip_s": "CLIP-S {:.4f}"}
    worst = min(found, key=lambda name: found[name]["psnr_db"])
    click.echo(", ".join(units[name].format(mean) for name, mean in means.items()))
    click.echo(f"  over {len(found):,} videos; the lowest PSNR is that of {worst}, {found[worst]['psnr_db']:.2f} dB")


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: each if np.isfinite(each) else None for name, each in numbers.items()}


def _shape(frames: np.ndarray) -> str:
    return f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}"


@contextmanager
def _explained() -> Iterator[None]:
    """What a person can mend is one line."""
    from model.data.shards import DataError
    from model.tasks.description import ModelDirectoryError

    try:
        yield
    except (EvaluationError, DataError, ModelDirectoryError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _watched(things: Sequence[Any], most: int | None = None) -> Iterator[Any]:
    """Videos, of which `most` are needed, with a progress bar on terminals."""
    from rich.console import Console
    from rich.progress import track

    console, total = Console(stderr=True), min(most or len(things), len(things))
    yield from track(
        things, f"{total:,} videos", total=total, console=console, disable=not sys.stderr.isatty(), transient=True
    )
