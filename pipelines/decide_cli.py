"""`clipmill decide`, `export`, `report`, `diff` and `ablate`: what is done with a dataset once it is scored."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from curation import presets
from curation.data_files import read_yaml
from curation.rules import RulesError, parse_rules
from curation.score_table import SchemaError
from pipelines.ablate import ablate
from pipelines.dataset import Dataset
from pipelines.decide import (
    DatasetError,
    bounds_of,
    check_name,
    open_scores,
    outdated,
    read_decision,
    write_decision,
)
from pipelines.diff import diff
from pipelines.export import export
from pipelines.figures import clock, count, percent, rule_words, value
from pipelines.figures import size as file_size
from pipelines.report import write_report
from pipelines.units import size_bytes


def plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a person can mend into one line on stderr and exit code 2."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (RulesError, DatasetError, SchemaError) as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            click.echo(
                f"error: {error.filename or ''}: {error.strerror or error}".replace("error: : ", "error: "), err=True
            )
            sys.exit(2)

    return run


def _read_rules(path: str) -> Any:
    try:
        return read_yaml(Path(path).read_bytes())
    except ValueError as error:
        raise RulesError(f"{path}: not YAML ({error})") from None


@click.command("decide")
@click.argument("dataset")
@click.option("--rules", "path", metavar="FILE", help="Rules as YAML; see below.")
@click.option("--preset", help=f"Ready-made rules: {', '.join(presets.names())}.")
@click.option("--name", help="What to call the decision [default: the preset's name, or 'default'].")
@plainly
def decide_command(dataset: str, path: str | None, preset: str | None, name: str | None) -> None:
    """Choose which clips of DATASET are kept. No frame is decoded; decide as often as you like.

    \b
    A rules file:
        rules:
          motion.coarse: {drop_lowest: 25%}
          text_area: {max: 0.07, frames: any}
          camera: {in: [static, horizontal]}
        on_error: drop        # clips without a score: drop or keep
    \b
    Per score: min, max, range: [low, high], drop_lowest, drop_highest (shares of the scored clips),
    in, not_in (for labels), frames: any, all or mean (how many frames must break the bound), on_error.
    """
    if (path is None) == (preset is None):
        raise click.UsageError("give either --rules FILE or --preset NAME")
    where, name = Dataset(dataset), check_name(name or preset or "default")
    scores = open_scores(where)
    if not scores.clips:
        raise DatasetError(f"{dataset} holds no clips, so there is nothing to decide")
    if preset is not None:
        rules, left_out = presets.fitted(preset, scores)
        if left_out:
            click.echo(f"left out, because no clip of this dataset has the score: {', '.join(left_out)}")
    else:
        rules = parse_rules(_read_rules(str(path)))
    click.echo(as_table(write_decision(where, scores, rules, name)))


def as_table(summary: dict[str, Any]) -> str:
    """A decision for a terminal."""
    clips, seconds = summary["clips"], summary["seconds"]
    share = seconds["kept"] / seconds["candidates"] if seconds["candidates"] else None
    lines = [
        f"decision {summary['name']}: {count(clips['kept'])} of {count(clips['candidates'])} clips kept, "
        f"{clock(seconds['kept'])} of {clock(seconds['candidates'])} ({percent(share)})"
    ]
    if summary["rules"]:
        lines.append(f"  {'score':<18} {'rule':<34} {'bound':<22} {'drops alone':>11} {'unscored':>9}")
    for name, rule in summary["rules"].items():
        bound = ", ".join(
            f"{k} {value(v) if isinstance(v, float) else '/'.join(v)}" for k, v in rule["resolved"].items()
        )
        unscored = (
            f"{count(rule['clips']['unscored'])} {rule['rule']['on_error'][:4]}" if rule["clips"]["unscored"] else "0"
        )
        dropped = count(rule["clips"]["dropped_alone"])
        lines.append(f"  {name:<18} {rule_words(rule['rule']):<34} {bound:<22} {dropped:>11} {unscored:>9}")
    for name, stopped in summary["gates"].items():
        lines.append(f"  gate {name}: {count(stopped)} clips")
    return "\n".join(lines)


def _is_outdated(dataset: Dataset, name: str) -> bool:
    decision = read_decision(dataset, name)
    scores = open_scores(dataset)
    return outdated(scores, bounds_of(scores, decision), decision)


@click.command("export")
@click.argument("dataset")
@click.option("--decision", "name", default="default", show_default=True)
@click.option("--shard-size", default="500 MB", show_default=True, help="Target size of a shard.")
@click.option("--shard-clips", type=click.IntRange(1), default=1000, show_default=True, help="Most clips in a shard.")
@click.option("--verify", is_flag=True, help="Read shards that are there, and write damaged ones again.")
@plainly
def export_command(dataset: str, name: str, shard_size: str, shard_clips: int, verify: bool) -> None:
    """Write the WebDataset shards of a decision to DATASET/shards/NAME. No frame is decoded.

    Shards that are complete are not written again. Exit code 1 if some clips could not be exported; they are listed in
    shards/NAME/errors.parquet.
    """
    try:
        size = size_bytes(shard_size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shard-size") from None
    where = Dataset(dataset)
    if _is_outdated(where, name):
        click.echo(
            f"warning: the dataset has other clips or scores than when decision {name!r} was made; this exports what "
            "was decided then. `clipmill decide` again to decide on those of now",
            err=True,
        )
    made = export(where, name, shard_bytes=size, shard_clips=shard_clips, verify=verify)
    shards = len(made["shardlist"])
    click.echo(
        f"{dataset}/shards/{name}: {count(shards)} shard{'s' * (shards != 1)}, {count(made['clips'])} clips, "
        f"{clock(made['seconds'])}, {file_size(made['bytes'])}"
    )
    if not made["clips"] and not made["errors"]:
        click.echo(f"warning: decision {name!r} keeps no clip, so there is nothing to train on", err=True)
    if made["errors"]:
        click.echo(f"{count(made['errors'])} clips could not be exported: see shards/{name}/errors.parquet", err=True)
        sys.exit(1)


@click.command("report")
@click.argument("dataset")
@click.option("--decision", "name", default="default", show_default=True)
@plainly
def report_command(dataset: str, name: str) -> None:
    """Write DATASET/report.html and DATASET/statistics/NAME.json."""
    click.echo(write_report(dataset, name))


@click.command("diff")
@click.argument("names", nargs=-1, required=True, metavar="[DATASET] NAME1 NAME2")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, with every clip that moved.")
@plainly
def diff_command(names: tuple[str, ...], as_json: bool) -> None:
    """Which clips two decisions treat differently, and why. DATASET is the current folder unless given."""
    if len(names) not in (2, 3):
        raise click.UsageError("name two decisions, and before them the dataset unless it is the current folder")
    dataset, first, second = names if len(names) == 3 else (".", *names)
    found = diff(dataset, first, second, most=None if as_json else 20)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    click.echo(f"kept by both {count(found['both'])}, by neither {count(found['neither'])}")
    for key, keeps, drops in (("only_first", first, second), ("only_second", second, first)):
        click.echo(f"kept only by {keeps}: {count(found[key])}")
        for reason, n in found["reasons"][key].items():
            click.echo(f"  {drops} drops {count(n)}: {reason}")
    for clip in found["clips"]:
        click.echo(f"  {clip['clip_id']}  kept by {clip['kept_by']}  {', '.join(clip['reasons'])}")
    left = found["only_first"] + found["only_second"] - len(found["clips"])
    if left > 0:
        click.echo(f"  and {count(left)} more (--json lists them all)")


@click.command("ablate")
@click.argument("dataset")
@click.option("--axis", required=True, help="motion, aesthetic, similarity, text, or the name of a score.")
@plainly
def ablate_command(dataset: str, axis: str) -> None:
    """Write four nested decisions for one axis: all, and without the worst 12.5, 25 and 50 %.

    Train one model on each with the same number of steps, as the paper does to choose its thresholds.
    """
    for summary in ablate(dataset, axis):
        click.echo(as_table(summary).splitlines()[0])
