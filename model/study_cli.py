"""`clipmill evaluate study`: make a study of human preference, show its page, count its votes."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from model.evaluation.errors import EvaluationError


@click.group("study")
def study() -> None:
    """Which of two videos people prefer, and the models' Elo ratings from that.

    \b
      clipmill evaluate study make ours=samples/a theirs=samples/b -o study --prompts prompts.csv
      clipmill evaluate study serve study          # prints the address for the raters
      clipmill evaluate study score study
    """


@study.command("make")
@click.argument("models", nargs=-1, required=True, metavar="NAME=FOLDER...")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--prompts", type=click.Path(path_type=Path), help="CSV with the columns name and prompt.")
@click.option("--votes", type=click.IntRange(min=1), default=3, show_default=True, help="Raters of each task.")
@click.option("--seed", default=0, show_default=True, help="Of the order of tasks.")
def make_command(models: tuple[str, ...], output: Path, prompts: Path | None, votes: int, seed: int) -> None:
    """Every two models meet on every video of the same name. With --prompts raters see the prompt, and are asked which
    video follows it better. Videos are copied under names that tell nothing."""
    from model.data.shards import DataError
    from model.evaluation.study_make import make_study

    places = dict(each.partition("=")[::2] for each in models)
    if len(places) < len(models) or not all(places) or not all(places.values()):
        raise click.BadParameter("each must be NAME=FOLDER, with different names", param_hint="NAME=FOLDER")
    try:
        made = make_study(places, output, prompts=prompts, votes=votes, seed=seed)
    except (EvaluationError, DataError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{output}: {len(made.tasks)} tasks with {votes} raters each, {len(made.checks)} attention checks. "
        f"Next: clipmill evaluate study serve {output}"
    )


@study.command("serve")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(1, 65535), default=8090, show_default=True)
@click.option("--secret", help="Of the address; default: one that is kept in FOLDER/secret.")
def serve_command(folder: Path, host: str, port: int, secret: str | None) -> None:
    """Show the page to raters until Ctrl-C. Whoever has its address may vote; a rater's name may be given with it, as
    ?rater=NAME. Votes are appended to FOLDER/votes.jsonl, and the same command goes on after a stop."""
    import uvicorn

    from model.evaluation.study import read_study
    from model.evaluation.study_server import make_app, new_secret

    try:
        found = read_study(folder)
        kept = folder / "secret"
        if secret is None and not kept.exists():
            kept.write_text(new_secret())
        secret = kept.read_text().strip() if secret is None else secret
        app = make_app(found, secret)
    except (EvaluationError, OSError) as error:
        raise click.ClickException(str(error)) from error
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # Python adds the address, which stands there already
        raise click.ClickException(f"{host}, port {port}: {why}; choose another --port") from error
    everywhere = host in ("0.0.0.0", "::")
    name = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
    click.echo(f"for the raters: http://{name}:{port}/{secret}/")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


@study.command("score")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def score_command(folder: Path, as_json: bool) -> None:
    """The models' Elo ratings (start 1000, K = 1, mean of 1000 orders of the votes) with 95 % intervals."""
    from model.evaluation.study import read_study, read_votes, score

    try:
        found = read_study(folder)
        result = score(found, read_votes(found))
    except (EvaluationError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        said = asdict(result)
        said["wins"] = {
            question: [{"winner": a, "loser": b, "votes": n} for (a, b), n in pairs.items()]
            for question, pairs in result.wins.items()
        }
        click.echo(json.dumps(said, indent=1))
        return
    width = max(map(len, found.models))
    for question, rated in result.ratings.items():
        click.echo(found.questions[question])
        for model, each in sorted(rated.items(), key=lambda pair: -pair[1].elo):
            votes = each.wins + each.losses
            share = f"preferred in {100 * each.wins / votes:.0f} % of {votes} votes" if votes else "no votes"
            click.echo(f"  {model:<{width}}  Elo {each.elo:7.1f}  [{each.low:.1f}, {each.high:.1f}]  {share}")
    click.echo(
        f"{result.tasks_done} of {result.tasks} tasks are done, by {result.raters} raters"
        + (f"; {len(result.inattentive)} are not counted, who preferred a mosaic" if result.inattentive else "")
    )
