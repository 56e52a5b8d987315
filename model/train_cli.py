"""`clipmill train`: run, template, validate, render, index, precompute, export.

clipmill train RUN.yaml                                       one process
torchrun --nproc-per-node 8 -m model.train_cli RUN.yaml       one process per GPU
clipmill train RUN.yaml --ray --workers 16                    on a Ray cluster
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

INTERRUPTED = 143  # as a process that SIGTERM ended: schedulers start it again


class _RunByDefault(click.Group):
    """`train FILE` is `train run FILE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault, context_settings={"help_option_names": ["-h", "--help"]})
def train() -> None:
    """Train a latent video diffusion model on exported shards.

    `clipmill train RUN.yaml` runs a configuration, and goes on where an earlier attempt stopped.
    `clipmill train template video-256 > RUN.yaml` writes one to start from.
    """


@train.command("run")
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--ray", "on_ray", is_flag=True, help="Run on a Ray cluster with Ray Train.")
@click.option(
    "--address",
    help="Ray cluster; default: the one in RAY_ADDRESS, else one that runs on this machine, else one started for it.",
)
@click.option("--workers", default=1, show_default=True, help="Ranks on the Ray cluster.")
@click.option("--gpus/--no-gpus", default=False, help="One GPU for each of them.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Times that failed workers start again, from the last checkpoint.",
)
@click.option("--quiet", is_flag=True, help="Warnings only.")
def run_command(
    config: str, on_ray: bool, address: str | None, workers: int, gpus: bool, retries: int, quiet: bool
) -> None:
    """Train every stage of CONFIG, or go on with it."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    from model.training.config_file import from_anywhere, load_config

    def act() -> None:
        loaded = load_config(config)
        if on_ray:
            from model.training.on_ray import ray_train

            ray_train(from_anywhere(loaded), workers=workers, gpus=gpus, address=address, retries=retries)
            return
        from model.training.run import run

        click.echo(f"done: {run(loaded)}")

    _explained(act)


@train.command("template")
@click.argument("presets", nargs=-1)
@click.option("--tiny", is_flag=True, help="Small variants for two CPU cores.")
def template_command(presets: tuple[str, ...], tiny: bool) -> None:
    """Print a commented configuration for a chain of PRESETS; without any, list them."""
    from model.training.config_file import template
    from model.training.presets import DOCS

    if not presets:
        width = max(map(len, DOCS))
        for name, text in DOCS.items():
            click.echo(f"{name:<{width}}  {text}")
        return
    _explained(lambda: click.echo(template(presets, tiny=tiny), nl=False))


@train.command("render")
@click.argument("config", type=click.Path(dir_okay=False))
def render_command(config: str) -> None:
    """Print CONFIG with every default written out."""
    from model.training.config_file import load_config, render

    _explained(lambda: click.echo(render(load_config(config)), nl=False))


@train.command("validate")
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--ranks", default=1, show_default=True, help="Ranks it will run on.")
@click.option("--memory-gib", type=float, help="Memory of one rank; default: of this machine.")
def validate_command(config: str, ranks: int, memory_gib: float | None) -> None:
    """Check CONFIG against the data and the memory, stage by stage, without training."""
    from model.training.config_file import load_config
    from model.training.validate import validate

    def act() -> None:
        for line in validate(load_config(config), ranks=ranks, memory_gib=memory_gib):
            click.echo(line)

    _explained(act)


@train.command("index")
@click.argument("shards", nargs=-1, required=True)
def index_command(shards: tuple[str, ...]) -> None:
    """Write a full index (offsets, checksums, what stages filter on) beside each of SHARDS: runs then start at once."""
    from model.data.shards import find_shards, reindex

    def act() -> None:
        for url in find_shards(shards):
            click.echo(f"{url}: {reindex(url)} samples")

    _explained(act)


@train.command("precompute")
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--stage", "stage_name", help="Stage whose size and frames are used; default: the first.")
@click.option("-o", "--output", required=True, help="Folder for the shards of latents.")
def precompute_command(config: str, stage_name: str | None, output: str) -> None:
    """Encode the clips once: shards of latents, which `data.shards` reads like any others. Resumable."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from model.training.config_file import load_config
    from model.training.precompute import precompute

    _explained(lambda: click.echo(precompute(load_config(config), stage_name, output)))


@train.command("export")
@click.argument("config", type=click.Path(dir_okay=False))
@click.option("--stage", "stage_name", help="Default: the newest stage that has a checkpoint.")
@click.option("--step", type=int, help="Default: its newest checkpoint.")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="Model directory to write.")
def export_command(config: str, stage_name: str | None, step: int | None, output: str) -> None:
    """Write a checkpoint as a model directory (or LoRA), while training goes on or after."""
    from model.training.config_file import load_config
    from model.training.on_demand import export_checkpoint

    _explained(lambda: click.echo(f"written: {export_checkpoint(load_config(config), stage_name, step, Path(output))}"))


def _explained(act: Any) -> None:
    """Run, and turn the failures that a person can mend into one sentence."""
    import torch

    from model.checkpoints import CheckpointError
    from model.data.shards import DataError
    from model.tasks.description import ModelDirectoryError
    from model.tasks.sampling import SamplingError
    from model.training.checkpoint import CheckpointProblem
    from model.training.config_file import ConfigError
    from model.training.stage import Interrupted, NonFiniteLoss

    known = (
        ConfigError, DataError, CheckpointProblem, NonFiniteLoss, SamplingError, CheckpointError, ModelDirectoryError
    )  # fmt: skip
    try:
        act()
    except known as error:
        raise click.ClickException(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise click.ClickException(
            f"{str(error).splitlines()[0]} With compute.micro_batch: 1, compute.checkpointing: full, a smaller "
            "compute.encode_chunk or more ranks, the run goes on from its last checkpoint"
        ) from error
    except OSError as error:  # a full disk, rights, a server that is gone
        raise click.ClickException(f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")) from error
    except Interrupted as error:
        click.echo(str(error), err=True)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    train()
