"""`clipmill spec`: write, check and look at job specs."""

import json

import click

from pipelines.curate_cli import refuse
from pipelines.spec import Spec, SpecError, read_spec

TEMPLATE = """\
# A clipmill job. Every key but `input` may be left out; the values here are the defaults.
version: 1
input:
  uris: [films/]          # files, folders, globs, .csv or .parquet lists; local paths or URLs (s3://...)
  column: uri             # column of the lists that names the source
output: clipmill-out      # folder or URL of the dataset

cuts:
  detector: cascade       # or transnetv2: slower, a neural network

clips:
  mode: smart             # smart: copy whole GOPs, re-encode the edges. keyframe: copy only. exact: re-encode all
  min: 2 s                # shorter shots are dropped
  max: 20 s               # longer shots are split evenly

scores:
  motion: coarse          # or off
  text:
    implementation: craft # or ppocr: ten times faster. Or off
    cpus: 1
    gpus: 0               # per actor: 0.25 is a quarter of one
    actors: 1             # or [1, 4]: Ray adds some where work waits for them, and takes idle ones away
    batch: 12             # frames per call of the network

models:                   # what else is measured; see `clipmill models list`
  profile: "off"          # or offline: weights that come with packages. Or paper: those of the paper
  roles: {}               # a role's model: a name, "off", or a path to weights. E.g. {flow: raft_small, nsfw: "off",
                          # similarity: {implementation: conse, batch: 16}, caption_spatial: {implementation:
                          # coca_vit_l14, weights: /models/coca}}
  near_duplicates: true   # look for clips that are alike, where the role similarity is on

gates: {}                 # e.g. {motion.coarse: {min: 0.05}}: a clip that breaks it is not read for text

on_error: drop            # or keep: what happens to a clip that could not be scored

decision:                 # which clips go into the shards; can be changed later without scoring again
  name: default
  rules: {}               # e.g. {motion.coarse: {drop_lowest: 25%}, text_area: {max: 0.07}}

shards:
  write: true
  size: 500 MB
  clips: 1000

resources:
  cpus: null              # of a Ray started for this job; null: all of this machine
  source_cpus: 1          # per source actor
  source_actors: null     # a number, or [2, 64]; null: as many as find a CPU
  flow: {cpus: 1.0, gpus: 0.0, actors: 1}      # workers of the models: learned flow;
  captions: {cpus: 1.0, gpus: 0.0, actors: 1}  # captions and their merging;
  images: {cpus: 1.0, gpus: 0.0, actors: 1}    # similarity, aesthetic, nsfw
  timeout: 1 h            # of work on one source
  attempts: 3             # for a source whose worker process dies
  segment: 64 MB          # clips of one source that are stored together
  round: 4096             # sources given to Ray at a time
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Write, check and look at job specs."""


@command.command()
def template() -> None:
    """Print a spec with every key, its default and what it means."""
    click.echo(TEMPLATE, nl=False)


@command.command()
@click.argument("spec", type=click.Path())
def validate(spec: str) -> None:
    """Say whether SPEC can be run; exit code 2 and one line when not."""
    try:
        read_spec(spec)
    except SpecError as error:
        refuse(str(error))
    click.echo(f"{spec}: good")


@command.command()
@click.argument("spec", type=click.Path())
def render(spec: str) -> None:
    """Print SPEC with every default written out."""
    try:
        click.echo(read_spec(spec).as_yaml(), nl=False)
    except SpecError as error:
        refuse(str(error))


@command.command()
def schema() -> None:
    """Print the JSON schema of a spec, for editors."""
    click.echo(json.dumps(Spec.model_json_schema(), indent=2))
