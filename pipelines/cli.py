"""The `clipmill` command: a table of subcommands, each loaded only when it is called.

A subcommand is a click command that lives beside the code it drives; naming it by string keeps `clipmill --help`
fast and keeps this package from importing `model`.
"""

import importlib
import os
import sys

import click

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:attribute, one line of help)
    "train": ("model.train_cli:train", "train a model on exported shards"),
    "sample": ("model.sample_cli:sample", "Sample videos from a model: text, image, interpolation, orbit."),
    "evaluate": ("model.evaluate_cli:evaluate", "measure sampled videos: FVD, likeness, a study with raters"),
    "curate": ("pipelines.curate_cli:command", "turn videos into a dataset of training clips"),
    "demo": ("pipelines.demo:command", "curate a few real films and show the report"),
    "spec": ("pipelines.spec_cli:command", "write, check and look at job specs"),
    "cluster": ("pipelines.serve_cli:cluster_command", "run Ray on this machine, for serve and submit"),
    "serve": ("pipelines.serve_cli:serve_command", "serve jobs over HTTP, with a page and the dashboard"),
    "token": ("pipelines.serve_cli:token_command", "who may use the service"),
    "plan": ("pipelines.plan_cli:plan_command", "hours, nodes and cost of a corpus, from what a sample has measured"),
    "submit": ("pipelines.submit_cli:submit", "send a job to the service (or, with --ray, to a cluster)"),
    "list": ("pipelines.submit_cli:list_jobs", "all submitted jobs"),
    "status": ("pipelines.submit_cli:status", "how a submitted job is doing"),
    "logs": ("pipelines.submit_cli:logs", "what a submitted job has printed"),
    "stop": ("pipelines.submit_cli:stop", "stop a submitted job; it can be continued"),
    "resume": ("pipelines.submit_cli:resume", "carry a stopped or failed job on"),
    "decide": ("pipelines.decide_cli:decide_command", "choose which clips are kept"),
    "diff": ("pipelines.decide_cli:diff_command", "what changed between two decisions, and why"),
    "ablate": ("pipelines.decide_cli:ablate_command", "the paper's four nested subsets of one axis, as decisions"),
    "dashboard": ("pipelines.dashboard_cli:dashboard_command", "choose thresholds on a web page"),
    "export": ("pipelines.decide_cli:export_command", "write a decision's WebDataset shards"),
    "report": ("pipelines.decide_cli:report_command", "write a decision's report.html"),
    "cuts": ("pipelines.cuts_cli:cuts", "print the cuts of films"),
    "clip": ("pipelines.clip_cli:clip", "cut films into clips, and print the yield"),
    "models": ("pipelines.models_cli:models", "what each model role needs, where its weights are, getting them"),
}


class _LazyGroup(click.Group):
    """A click group whose subcommands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clipmill")
def main() -> None:
    """Clipmill turns raw video into training clips, and trains a latent video diffusion model on them.

    Start with `clipmill curate FOLDER -o OUT`; then open OUT/report.html.
    """


def _main_and_no_more() -> None:
    """`main`, and then the end of the process without Python's own.

    That is how Ray Jobs run it. Ray's native threads have been seen to abort a process that had done all its work (two
    of eight jobs, on a busy machine), and a finished job would have counted as one that died.
    """
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        click.echo(code, err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _main_and_no_more()
