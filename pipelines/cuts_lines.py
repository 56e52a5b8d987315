"""What `clipmill cuts` prints of one film. Imported where films are worked on, not by the command itself."""

import dataclasses
import functools
import json
from typing import NamedTuple

from curation.cuts import detector
from curation.cuts.cut import Cut, CutDetector, Seen
from curation.errors import CannotDecode
from curation.probe import VideoInfo, probe


class Lines(NamedTuple):
    """What is printed of one film."""

    text: str
    failed: bool = False  # then the text is the error
    warning: str = ""


def lines(name: str, as_json: bool, file: str, seen: Seen) -> Lines:
    """Find the cuts of a file by the detector called `name`."""
    try:
        info = probe(file)
        found = _detector(name).detect(info, seen=seen)
    except CannotDecode as error:
        return Lines(f"error: {error} [{error.reason}]", failed=True)
    text = json.dumps(_as_object(file, info, found)) if as_json else _as_table(file, info, found)
    return Lines(text, warning=f"warning: {file}: {info.note}" if info.note else "")


@functools.cache
def _detector(name: str) -> CutDetector:
    return detector(name)


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
        minutes, ms = divmod(round(1000 * cut.time_s), 60_000)
        clock = f"{minutes}:{ms / 1000:06.3f}"
        lines.append(
            f"  {clock:>10}  {cut.frame:>7}  {cut.kind:<7}  {mixed:<15}  {cut.score:>7.2f}  {cut.pass_fps:g} fps"
        )
    return "\n".join(lines)
