"""`clipmill cuts`: print the shot boundaries of films."""

import dataclasses
import json
import sys

import click

from curation.cuts import DETECTORS, Cut, detector
from curation.errors import CannotDecode
from curation.probe import VideoInfo, probe


@click.command("cuts")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--detector", "name", type=click.Choice(DETECTORS), default="cascade", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per file, one per line.")
def cuts(files: tuple[str, ...], name: str, as_json: bool) -> None:
    """Print the cuts of each FILE: hard ones, and gradual ones as spans.

    Exit code 1 if any file could not be read; the others are printed all the same.
    """
    finder = detector(name)
    failed = False
    for file in files:
        try:
            info = probe(file)
            found = finder.detect(info)
        except CannotDecode as error:
            failed = True
            click.echo(f"error: {error} [{error.reason}]", err=True)
            continue
        click.echo(json.dumps(_as_object(file, info, found)) if as_json else _as_table(file, info, found))
    sys.exit(1 if failed else 0)


def _as_object(file: str, info: VideoInfo, found: list[Cut]) -> dict[str, object]:
    return {
        "file": file,
        "fps": round(float(info.nominal_rate), 6),
        "frames": info.frames,
        "duration_s": round(info.duration_s, 6),
        "cuts": [
            {
                key: round(value, 6) if isinstance(value, float) else value
                for key, value in dataclasses.asdict(cut).items()
            }
            for cut in found
        ],
    }


def _as_table(file: str, info: VideoInfo, found: list[Cut]) -> str:
    rate = f"{float(info.nominal_rate):.3f}".rstrip("0").rstrip(".")
    lines = [f"{file}: {info.frames} frames, {rate} fps, {info.duration_s:.2f} s, {len(found)} cuts"]
    if found:
        lines.append(f"  {'time':>10}  {'frame':>7}  {'kind':<7}  {'mixed frames':<15}  {'score':>7}  pass")
    for cut in found:
        mixed = f"{cut.start_frame}-{cut.end_frame - 1}" if cut.kind == "gradual" else ""
        clock = f"{int(cut.time_s // 60)}:{cut.time_s % 60:06.3f}"
        lines.append(
            f"  {clock:>10}  {cut.frame:>7}  {cut.kind:<7}  {mixed:<15}  {cut.score:>7.2f}  {cut.pass_fps:g} fps"
        )
    return "\n".join(lines)
