"""`clipmill plan`: what a corpus will cost."""

import math
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from pipelines.curate_cli import refuse
from pipelines.figures import count, size
from pipelines.plan import HOURS_PER_YEAR, Node, Plan, PlanError, make_plan, measured
from pipelines.spec import SpecError, read_spec


class _Number(click.FloatRange):
    """A number between two others, which `nan` is not, though it is outside of no range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


@click.command("plan", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("spec", type=click.Path())
@click.option("--measured", "sample", required=True, metavar="DATASET", help="Finished dataset to take the rates from.")
@click.option("--years", type=_Number(1e-6, 1e9), help="Of video in the corpus; the paper's had 212.")
@click.option("--hours", type=_Number(0.001, 1e13), help="Of video in the corpus.")
@click.option("--nodes", type=click.IntRange(1, 10**6), help="How many machines there are.")
@click.option("--within", "days", type=_Number(0.001, 1e6), metavar="DAYS", help="When it is to be done.")
@click.option("--node-cpus", type=_Number(1, 1e5), default=16.0, show_default=True, help="CPUs of one machine.")
@click.option("--node-gpus", type=_Number(0, 1e5), default=0.0, show_default=True, help="GPUs of one machine.")
@click.option("--price", type=_Number(0, 1e9), help="Of one machine for an hour.")
def plan_command(
    spec: str, sample: str, years: float | None, hours: float | None, nodes: int | None, days: float | None,
    node_cpus: float, node_gpus: float, price: float | None,
) -> None:  # fmt: skip
    """Estimate hours, machines and cost of curating a corpus with SPEC, and say which stage holds it up.

    The rates come from a dataset that the same SPEC has made of a sample of the corpus.
    """
    from pipelines.dataset import Dataset

    if (years is None) == (hours is None):
        refuse("say how much video there is: --years or --hours")
    if nodes is not None and days is not None:
        refuse("--nodes and --within: give one, the other follows")
    try:
        rates = measured(Dataset(sample))
        video_hours = hours if hours is not None else (years or 0.0) * HOURS_PER_YEAR
        within_h = None if days is None else 24 * days
        node = Node(node_cpus, node_gpus, price)
        found = make_plan(read_spec(spec), rates, video_hours, node, nodes=nodes, within_h=within_h)
    except (PlanError, SpecError, OSError) as error:
        refuse(str(error))
    show(found, rates.video_s)


def show(plan: Plan, video_s: float) -> None:
    """Print a plan."""
    console = Console(highlight=False)
    table = Table("actors of", "stages", "processor h", "share", "actors", "alone", "balanced", box=None)
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    for group in plan.groups:
        share = f"{100 * group.cpu_hours / plan.cpu_hours:.1f} %"
        row = [group.name, ", ".join(group.stages), count(group.cpu_hours), share, str(group.actors)]
        table.add_row(*row, _span(group.hours), str(group.balanced))
    console.print(table)
    console.print()
    total = f"{count(plan.video_hours)} h of video, {count(plan.cpu_hours)} processor hours"
    console.print(f"{total}, by the rates of {video_s / 3600:.2f} h of video", soft_wrap=True)
    console.print(f"as the spec is     {_span(plan.hours)} on {plan.nodes} nodes; {plan.bottleneck} holds it up")
    if plan.hours > 1.5 * plan.balanced_hours:
        actors = {group.name: group.balanced for group in plan.groups}[plan.bottleneck]
        console.print(f"                   first set {_KEYS[plan.bottleneck]} to {actors}", soft_wrap=True)
    console.print(f"actors as balanced {_span(plan.balanced_hours)}" + _price(plan))
    console.print(
        f"comes out          {count(plan.clips)} clips, {count(plan.clip_hours)} h, {size(round(plan.clip_bytes))}"
    )


_KEYS = {"text": "scores.text.actors", "sources": "resources.source_actors"} | {
    stage: f"resources.{stage}.actors" for stage in ("flow", "captions", "images")
}


def _span(hours: float) -> str:
    if hours >= 2 * HOURS_PER_YEAR:
        return f"{count(round(hours / HOURS_PER_YEAR))} years"
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} h"


def _price(plan: Plan) -> str:
    gpus = f", {plan.gpus:g} GPUs" if plan.gpus else ""
    return gpus + ("" if plan.cost is None else f", costs {count(plan.cost)}")
