"""`clipmill sample TASK --model DIR`: videos from a model, on the command line.

One subcommand per task; what they share is in `sample_options.py` (options) and `sample_run.py` (the run itself).
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from model import sample_options as option
from model.sample_list import read_list
from model.sample_options import DTYPES, SharedOptions, TaskCommand, shared, task_option
from model.sample_run import RANDOM_WARNING, Run, clear_errors
from model.tasks.description import FILE, TASKS, ModelDescription
from model.tasks.video_model import VideoModel
from model.video_io import VideoFileError, check_writable, film_frames, probe_film, read_image


class _Group(click.Group):
    """Commands whose errors are one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        with clear_errors():
            return super().invoke(ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def sample() -> None:
    """Sample videos from a model directory.

    \b
    Try it without any model; the weights are random, so is the result:
      clipmill sample init image-to-video tiny --tiny
      clipmill sample image-to-video --model tiny --image photo.jpg --preview
    \b
    With the published Stable Video Diffusion (14 or 25 frames), on a GPU:
      clipmill sample image-to-video --model stable-video-diffusion-img2vid --dtype bfloat16 \\
          --image photo.jpg -o video.mp4
    """


@sample.command("text-to-video", cls=TaskCommand)
@task_option("--prompt", required=True, help="What the video shows.")
@task_option("--temporal-prompt", help="What the temporal layers read instead, e.g. a camera motion.")
@task_option("--negative-prompt", help="Guide away from this text.")
@option.frames
@shared
def text_to_video(
    shared: SharedOptions,
    prompt: str,
    temporal_prompt: str | None,
    negative_prompt: str | None,
    frames: int | None,
) -> None:
    """A video from a prompt.

    \b
      clipmill sample text-to-video --model DIR --prompt "a dog on a beach" \\
          --temporal-prompt "zooming in" -o dog.mp4
    """
    from model.tasks.text_to_video import TextToVideo

    run = Run(shared, "text_to_video", frames)
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
            **run.arguments,
            progress=progress,
        )[0]
    )


@sample.command("image-to-video", cls=TaskCommand)
@option.first_image
@option.augmentation
@option.frames
@shared
def image_to_video(shared: SharedOptions, image: Path, **given: Any) -> None:
    """A video that starts from an image.

    \b
      clipmill sample image-to-video --model DIR --image photo.jpg --seed 7 -o video.mp4
    Less memory, slower: --dtype bfloat16 --offload --two-pass --decode-chunk 1
    """
    from model.tasks.image_to_video import ImageToVideo

    run = Run(shared, "image_to_video", given["frames"], inputs=[image])
    task, picture = ImageToVideo(run.model), read_image(image, run.size)
    run.write(lambda progress: task(picture, **given, fps=run.fps, **run.arguments, progress=progress)[0])


@sample.command("orbit", cls=TaskCommand)
@option.object_image
@task_option(
    "--elevation", type=option.Finite(-90, 90), default=0.0, show_default=True, help="Of the camera, in degrees."
)
@option.augmentation
@option.frames
@shared
def orbit(shared: SharedOptions, image: Path, **given: Any) -> None:
    """Views from all around an object, from one image.

    \b
      clipmill sample orbit --model DIR --image chair.png --elevation 10 -o views
    """
    from model.tasks.orbit import Orbit

    run = Run(shared, "orbit", given["frames"], inputs=[image])
    task, picture = Orbit(run.model), read_image(image, run.size)
    run.write(lambda progress: task(picture, **given, fps=run.fps, **run.arguments, progress=progress)[0])


@sample.command("interpolation", cls=TaskCommand)
@task_option(
    "--video",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A clip: new frames go between all of its frames.",
)
@option.end_images
@task_option("--max-frames", type=click.IntRange(2), help="Use only the clip's first frames.")
@option.augmentation
@shared
def interpolation(
    shared: SharedOptions,
    video: Path | None,
    image: tuple[Path, ...],
    max_frames: int | None,
    augmentation: float | None,
) -> None:
    """New frames between two images, or a clip at four times its frame rate.

    \b
      clipmill sample interpolation --model DIR --image start.png --image end.png -o between
      clipmill sample interpolation --model DIR --video clip.mp4 -o four-times-the-rate.mp4
    """
    from model.tasks.interpolation import Interpolation

    if (video is None) == (len(image) != 2) or (video is not None and image):
        raise click.UsageError("give --video CLIP, or --image START --image END")
    run = Run(shared, "interpolation", inputs=[*image, *([] if video is None else [video])])
    task, times = Interpolation(run.model), run.frames - 1
    clip: Iterable[Tensor]
    if video is not None:
        film = probe_film(video, max_frames=max_frames)
        clip, given = film_frames(video, size=run.size, max_frames=max_frames), film.frames
        run.fps = shared.fps or film.fps * times
        check_writable(run.output, (given - 1) * times + 1, run.size)
    else:
        clip, given = torch.cat([read_image(path, run.size) for path in image]), 2
    run.write(
        lambda progress: task.upsample(
            clip, fps=run.fps / times, augmentation=augmentation, **run.arguments, progress=progress
        ),
        videos=given - 1,
    )


@sample.command("many", cls=TaskCommand)
@click.argument("listed", metavar="LIST.csv", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@option.augmentation
@option.frames
@shared
def many(shared: SharedOptions, listed: Path, augmentation: float | None, frames: int | None) -> None:
    """A video for each row of a list, into the folder --output (default: samples): what `clipmill evaluate` compares.

    \b
    The list is a CSV:
      name,prompt                    for a text-to-video model
      name,image                     for an image-to-video model; paths from the list's folder
    Row k, counted from 0, has the seed --seed + k, or that of its column `seed`.
    \b
      clipmill sample many prompts.csv --model DIR -o samples
    Videos that are there are not sampled again. RANK and WORLD_SIZE split the rows among processes:
      for k in 0 1; do RANK=$k WORLD_SIZE=2 clipmill sample many ... --device cuda:$k & done
    """
    from model.tasks.image_to_video import ImageToVideo
    from model.tasks.text_to_video import TextToVideo

    described = (shared.model / FILE).exists()  # else VideoModel takes it for a published one
    kind = ModelDescription.load(shared.model).task if described else "image_to_video"
    if kind not in ("text_to_video", "image_to_video"):
        raise click.UsageError(f"{shared.model}: {kind.replace('_', '-')} models are not sampled from a list")
    column = "prompt" if kind == "text_to_video" else "image"
    rows = read_list(listed, column=column, seed=shared.seed)
    if kind == "text_to_video" and augmentation is not None:
        raise click.UsageError("--augmentation is of models that start from an image")
    folder = shared.output or Path("samples")
    rank, world_size = _share()
    mine = rows[rank::world_size]
    left, failed = [row for row in mine if not (folder / f"{row.name}.mp4").exists()], 0
    if left:
        run = Run(replace(shared, output=folder / f"{left[0].name}.mp4"), kind, frames)
        given = {"frames": frames, "fps": run.fps}
        for row in left:
            run.output, options = folder / f"{row.name}.mp4", replace(run.options, seed=row.seed)
            settled = given | run.arguments | {"options": options}
            if row.image is not None:
                try:
                    picture = read_image(row.image, run.size)
                except VideoFileError as error:  # costs this row only
                    click.secho(f"left out: {error}", fg="red", err=True)
                    failed += 1
                    continue
                of_image = ImageToVideo(run.model)
                run.write(partial(_start_from, of_image, picture, settled | {"augmentation": augmentation}))
            else:
                size = {"width": run.size[0], "height": run.size[1]}
                run.write(partial(_start_from, TextToVideo(run.model), row.prompt, settled | size))
    click.echo(f"{folder}: {len(left) - failed} videos sampled, {len(mine) - len(left)} were there already")
    if failed:
        raise click.ClickException(f"{failed} images cannot be read")


def _share() -> tuple[int, int]:
    """RANK and WORLD_SIZE. Raises click.UsageError for those of no process."""
    rank, world_size = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise click.UsageError(f"RANK={rank} WORLD_SIZE={world_size}: RANK goes from 0 to WORLD_SIZE - 1")
    return int(rank), int(world_size)


def _start_from(task: Any, start: Any, settled: dict[str, Any], progress: Any) -> Tensor:
    frames: Tensor = task(start, **settled, progress=progress)[0]
    return frames


@sample.command("init")
@click.argument("task", type=click.Choice([name.replace("_", "-") for name in TASKS]))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--tiny", is_flag=True, required=True, help="About a million parameters: the only size there is here.")
@click.option("--autoencoder", type=click.Choice(["haar", "kl"]), default="haar", show_default=True)
@click.option("--frames", type=click.IntRange(2), help="Clip length. [the task's]")
@click.option("--seed", type=int, default=0, show_default=True)
def init(task: str, directory: Path, tiny: bool, autoencoder: str, frames: int | None, seed: int) -> None:
    """Make a tiny model with RANDOM WEIGHTS, to see that everything runs."""
    from model.tasks.random_model import tiny_random_model

    model = tiny_random_model(task.replace("-", "_"), autoencoder=autoencoder, frames=frames, seed=seed)  # type: ignore[arg-type]
    model.save(directory)
    click.secho(RANDOM_WARNING, fg="yellow", err=True)
    click.echo(
        f"{directory}: {task}, {model.description.frames} frames of {model.description.width} x "
        f"{model.description.height}, {sum(p.numel() for p in model.unet.parameters()):,} parameters"
    )


@sample.command("convert")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float32", show_default=True)
@click.option("--allow-pickle", is_flag=True, help="Also read .ckpt and .bin weights, which can run code.")
def convert(source: Path, target: Path, dtype: str, allow_pickle: bool) -> None:
    """Write a model in another layout: a directory, or a generative-models file where TARGET ends in .safetensors.

    \b
      clipmill sample convert svd_xt.safetensors svd-xt
      clipmill sample convert svd-xt svd_xt.safetensors
    """
    VideoModel.load(source, dtype=DTYPES[dtype], allow_pickle=allow_pickle).save(target)
    click.echo(f"{target}: written")
