"""`clipmill clip`: cut films into clips, and say where the seconds went."""

import os
import re
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from curation.clips import MODES, Clip, ClipFailure, Mode, Plan, cut_clips, plan
from curation.cuts import DETECTORS, detector
from curation.cuts.cut import CutDetector
from curation.errors import CannotDecode
from curation.frames import FilmFrames
from curation.probe import VideoInfo, probe
from curation.source import MOTION_FPS, damage_in
from pipelines.film_bar import FilmBar
from pipelines.units import seconds

_MARK = struct.pack(">I", 16) + b"free" + b"clipmill"
"""Ends every file that is written here: an empty box of mp4, which players pass over. It tells our clips from films."""
_CUTS_SHARE = 0.5  # of the time that a film takes, roughly, until its cuts are found
_LOOK_SHORT_SIDE_PX = 16  # frames are decoded to see whether they can be; what they show is not looked at
_NAME_BYTES = 235  # of a film's name in its clips' names: file systems take 255, number and suffix included


class _Seconds(click.ParamType):
    """A duration with its unit, as in a job's spec."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("clip")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "--output", type=click.Path(file_okay=False), required=True, help="Folder for the clips.")
@click.option("--mode", type=click.Choice(MODES), default="smart", show_default=True)
@click.option("--min", "min_s", type=_Seconds(), default="2 s", show_default=True, help="Shortest clip.")
@click.option("--max", "max_s", type=_Seconds(), default="20 s", show_default=True, help="Longest clip.")
@click.option("--detector", "name", type=click.Choice(DETECTORS), default="cascade", show_default=True)
def clip(files: tuple[str, ...], output: str, mode: Mode, min_s: float, max_s: float, name: str) -> None:
    """Cut each FILE into clips of one shot each, as OUTPUT/<name>_<number>.mp4.

    Prints the yield: seconds in, kept and lost. The other modes' columns are what they would keep.
    Running it again replaces the clips that it wrote, and no other file.
    Exit code 1 if any file or clip failed; the others are written all the same.
    """
    if not 0 <= min_s <= max_s or max_s <= 0:
        raise click.UsageError(f"--min {min_s:g} s and --max {max_s:g} s leave no length a clip could have")
    folder = Path(output)
    names = _names(files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_to_replace(folder, files, set(names.values()))
    except OSError as error:
        raise click.UsageError(f"--output {output}: {error.strerror}; choose a folder that can be written to") from None
    finder = detector(name)
    with FilmBar(len(files)) as bar:
        whole = [
            _clip(file, folder / names[file], mode, (min_s, max_s), finder, bar, bar.part(at))
            for at, file in enumerate(files)
        ]
    sys.exit(0 if all(whole) else 1)


def _clip(
    file: str,
    stem: Path,
    mode: Mode,
    lengths_s: tuple[float, float],
    finder: CutDetector,
    bar: FilmBar,
    seen: Callable[[float], None],
) -> bool:
    """Cut one film into STEM_0000.mp4 and so on, and print its yield. Whether all of it went well.

    `seen` is told how much is done, from 0 to 1.
    """
    try:
        info = probe(file)
        if info.note:
            bar.print(f"warning: {file}: {info.note}", error=True)
        frames = FilmFrames(info, small_short_side_px=_LOOK_SHORT_SIDE_PX)
        cuts = finder.detect(info, frames, seen=lambda share: seen(_CUTS_SHARE * share))
        plans: dict[Mode, Plan] = {
            each: plan(info, cuts, mode=each, min_s=lengths_s[0], max_s=lengths_s[1]) for each in MODES
        }
    except CannotDecode as error:
        bar.print(f"error: {error} [{error.reason}]", error=True)
        return False
    spans, made = plans[mode].spans, list[Clip]()
    well = True
    for number, result in enumerate(cut_clips(info, spans, mode=mode)):
        seen(_CUTS_SHARE + (1 - _CUTS_SHARE) * (number + 1) / len(spans))
        if isinstance(result, Clip):
            result = _looked_at(info, frames, result)
        if not isinstance(result, Clip):
            well = False
            bar.print(f"error: {result.message} [{result.reason}]", error=True)
            continue
        path = stem.with_name(f"{stem.name}_{number:04d}.mp4")
        try:
            _write(path, result.data)
        except OSError as error:  # the film's other clips would meet the same
            well = False
            bar.print(f"error: {file}: cannot write {path}: {error.strerror} [cannot_write]", error=True)
            break
        made.append(result)
    made_s = float(sum(c.span.end_pts - c.span.start_pts for c in made) * info.time_base)
    copied_s = sum(each.copied_s for each in made)
    bar.print(
        f"{file}: {info.duration_s:.2f} s, {len(cuts)} cuts, {len(made)} clips in {stem.parent}\n"
        f"  {mode}: {copied_s:.2f} s copied, {made_s - copied_s:.2f} s re-encoded\n"
        + _yield_table(plans, mode, lost_error_s=float(plans[mode].kept_pts * info.time_base) - made_s)
    )
    return well


def _looked_at(info: VideoInfo, frames: FilmFrames, made: Clip) -> Clip | ClipFailure:
    """The clip, unless the film is damaged there, which copied packets do not tell; a job scores motion and sees it."""
    span = made.span
    frames.prefetch(frames.grid(MOTION_FPS, span.start_pts, span.end_pts), [], None, loop_filter=False)
    return damage_in(info, frames, span) or made


def _names(files: Sequence[str]) -> dict[str, str]:
    """What each file's clips are called: its name without suffix; numbered where several files share it."""
    names: dict[str, str] = {}
    for file in files:
        stem = Path(file).stem
        if len(os.fsencode(stem)) > _NAME_BYTES:
            stem = os.fsencode(stem)[:_NAME_BYTES].decode(errors="ignore")
        name, k = stem, 2
        while name in names.values() and file not in names:
            name, k = f"{stem}-{k}", k + 1
        names.setdefault(file, name)
    return names


def _refuse_to_replace(folder: Path, files: Sequence[str], names: set[str]) -> None:
    """Refuse a folder where a clip could take the place of one of the films, or of a file that is no clip of ours."""
    films = {os.path.realpath(file) for file in files}
    for path in sorted(folder.iterdir()):
        clip_of = re.fullmatch(r"(.*)_\d{4,}\.mp4", path.name, re.DOTALL)
        if clip_of is None or clip_of[1] not in names:
            continue
        if os.path.realpath(path) in films:
            raise click.UsageError(f"a clip could replace the film {path}: choose another folder for the clips")
        if not _is_ours(path):
            raise click.UsageError(
                f"a clip could replace {path}, which `clipmill clip` did not write: choose another folder, or move it"
            )


def _is_ours(path: Path) -> bool:
    """Whether `_write` wrote the file."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_MARK), os.SEEK_END)
            return file.read() == _MARK
    except OSError:
        return False


def _write(path: Path, data: bytes) -> None:
    """Complete under its name, or not there."""
    part = path.with_suffix(".part")
    try:
        part.write_bytes(data + _MARK)
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _yield_table(plans: dict[Mode, Plan], chosen: Mode, lost_error_s: float) -> str:
    """Seconds by mode; every column adds up to the seconds in."""
    rows: dict[str, list[float]] = {
        "seconds in": [each.seconds_in for each in plans.values()],
        "kept": [
            each.seconds_in
            - each.lost_transition_s
            - each.lost_short_s
            - each.lost_keyframe_s
            - (lost_error_s if mode == chosen else 0.0)
            for mode, each in plans.items()
        ],
        "lost: inside transitions": [each.lost_transition_s for each in plans.values()],
        "lost: too short": [each.lost_short_s for each in plans.values()],
        "lost: to the next key frame": [each.lost_keyframe_s for each in plans.values()],
        "lost: could not be written": [lost_error_s if mode == chosen else 0.0 for mode in plans],
    }
    head = " ".join(f"{mode + ('*' if mode == chosen else ''):>16}" for mode in plans)
    lines = [f"  {'yield':<28}{head}"]
    for label, values in rows.items():
        shares = (
            f"{value:>9.2f} {100 * value / each.seconds_in if each.seconds_in else 0.0:>5.1f}%"
            for value, each in zip((round(value, 6) + 0.0 for value in values), plans.values(), strict=True)  # no -0.00
        )
        lines.append(f"  {label:<28}" + " ".join(shares))
    return "\n".join(lines)
