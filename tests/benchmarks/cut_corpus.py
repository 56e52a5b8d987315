"""The labelled set: real shots joined at known frames, in two halves that share neither shots nor seeds.

`tuning` is what the sweep of the cascade's thresholds sees; `held_out` is only ever measured. Both are full of
transitions, half of them gradual, so that there is much to count. `edited` films are what editors make: shots of 2 to
9 s, joined by hard cuts but for a few; they are only ever measured, too. `graded` films are some of either half again,
dark or in black and white. Films are built once into a cache folder (minutes), never committed.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.media import Join, JoinLabel, Labels, Move, Shot, make_film

Half = Literal["tuning", "held_out"]
Grade = Literal["dark", "grey"]
_GRADES: tuple[Grade, ...] = ("dark", "grey")
VERSION = 3

# Each half has its own pieces of film; the bunny's one shot is split in time.
_PIECES: dict[Half, tuple[tuple[str, int], ...]] = {
    "tuning": (("bikes.0", 0), ("bikes.2", 0), ("bikes.4", 0), ("bunny", 0)),
    "held_out": (("bikes.1", 0), ("bikes.3", 0), ("carphone", 0), ("bunny", 70)),
}
_CROPS = ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.55, 0.8), (0.45, 0.2, 1.0, 1.0), (0.2, 0.0, 0.8, 0.7))


@dataclass(frozen=True)
class FilmSpec:
    """One film of the set, before it is built."""

    name: str
    shots: tuple[Shot, ...]
    joins: tuple[Join, ...]
    encoding: dict[str, Any] = field(default_factory=dict)


# (name, theme, shots, encoding): every codec, GOP, rate and size of the issue occurs in each half.
_PLAN: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("h264-720p-gop250", "hard", 6, {"size": (1280, 720), "rate": 30}),
    ("h264-720p-dissolves", "dissolve", 4, {"size": (1280, 720), "rate": 25}),
    ("h264-360p-noscenecut", "hard", 7, {"size": (640, 360), "rate": 25, "scenecut": False}),
    ("h264-360p-onekey", "mixed", 6, {"size": (640, 360), "rate": Fraction(24000, 1001), "gop": None}),
    ("h264-480p-gop12", "mixed", 6, {"size": (854, 480), "rate": 25, "gop": 12}),
    ("h264-360p-opengop", "mixed", 6, {"size": (640, 360), "rate": 25, "gop": 48, "open_gop": True, "bframes": 3}),
    ("h264-240p-flashes", "flash", 5, {"size": (426, 240), "rate": 25}),
    ("h264-360p-flashes-noscenecut", "flash", 5, {"size": (640, 360), "rate": 30, "scenecut": False}),
    ("h264-360p-pans", "camera", 6, {"size": (640, 360), "rate": 30}),
    ("h264-180p-shake", "shake", 6, {"size": (320, 180), "rate": 25, "gop": None}),
    ("h264-90p-mixed", "mixed", 8, {"size": (160, 90), "rate": 25}),
    ("h264-360p-vfr", "mixed", 7, {"size": (640, 360), "rate": 30, "vfr": True}),
    ("h264-360p-60fps", "mixed", 6, {"size": (640, 360), "rate": 60}),
    ("h264-240p-12fps", "mixed", 7, {"size": (426, 240), "rate": 12}),
    ("h264-1080p-short", "mixed", 4, {"size": (1920, 1080), "rate": 24, "gop": 48}),
    ("h264-360p-fades", "fade", 5, {"size": (640, 360), "rate": 25}),
    ("h264-180p-fades-onekey", "fade", 5, {"size": (320, 180), "rate": 30, "gop": None}),
    ("hevc-480p-gop250", "mixed", 6, {"size": (854, 480), "rate": 25, "codec": "libx265"}),
    ("hevc-360p-10bit", "dissolve", 5, {"size": (640, 360), "rate": 50, "codec": "libx265", "ten_bit": True}),
    ("vp9-360p-gop128", "mixed", 6, {"size": (640, 360), "rate": 30, "codec": "libvpx-vp9", "gop": 128}),
    ("vp9-240p-onekey", "dissolve", 5, {"size": (426, 240), "rate": 15, "codec": "libvpx-vp9", "gop": None}),
    ("av1-360p-gop160", "mixed", 6, {"size": (640, 360), "rate": 24, "codec": "libsvtav1", "gop": 160}),
    ("mpeg4-360p-gop12", "mixed", 6, {"size": (640, 360), "rate": 25, "codec": "mpeg4", "gop": 12}),
    ("mpeg4-240p-gop300", "dissolve", 5, {"size": (426, 240), "rate": 30, "codec": "mpeg4", "gop": 300}),
    ("h264-360p-quick", "quick", 16, {"size": (640, 360), "rate": 25}),
    ("h264-360p-static", "static", 4, {"size": (640, 360), "rate": 25, "gop": 50}),
)


def specs(half: Half) -> list[FilmSpec]:
    """The films of one half (the same on every call)."""
    made = []
    for index, (name, theme, count, encoding) in enumerate(_PLAN):
        rng = np.random.default_rng([VERSION, {"tuning": 1, "held_out": 2}[half], index])
        made.append(_film(half, name, theme, count, encoding, rng))
    return made


_GRADED = (
    "h264-360p-noscenecut", "h264-360p-onekey", "h264-480p-gop12", "h264-360p-opengop", "h264-360p-pans",
    "h264-180p-shake", "h264-360p-vfr", "h264-360p-fades", "hevc-360p-10bit", "mpeg4-240p-gop300", "h264-360p-quick",
)  # fmt: skip


def graded(half: Half, grade: Grade) -> list[FilmSpec]:
    """Films of one half at 0.4 of their brightness and contrast, or in black and white."""

    def changed(shot: Shot) -> Shot:
        return replace(shot, gain=0.4 * shot.gain) if grade == "dark" else replace(shot, colour=False)

    return [replace(spec, shots=tuple(map(changed, spec.shots))) for spec in specs(half) if spec.name in _GRADED]


# (name, encoding) of the films that are cut as films are.
_EDITED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("h264-720p-medium", {"size": (1280, 720), "rate": 25, "preset": "medium"}),
    ("h264-360p-slow", {"size": (640, 360), "rate": 25, "preset": "slow", "crf": 18}),
    ("h264-360p-veryfast", {"size": (640, 360), "rate": 30, "crf": 28}),
    ("h264-480p-fast-gop60", {"size": (854, 480), "rate": 30, "preset": "fast", "crf": 30, "gop": 60}),
    ("h264-180p-medium", {"size": (320, 180), "rate": 25, "preset": "medium", "crf": 33}),
    ("h264-1080p-veryfast", {"size": (1920, 1080), "rate": 24}),
    ("hevc-360p", {"size": (640, 360), "rate": 25, "codec": "libx265"}),
    ("vp9-360p", {"size": (640, 360), "rate": 25, "codec": "libvpx-vp9"}),
)


def edited() -> list[FilmSpec]:
    """Films of ten shots each, as they come from a cutting room; of the pieces of both halves."""
    made = []
    moves: tuple[Move, ...] = ("as_is", "as_is", "static", "pan", "shake")
    for index, (name, encoding) in enumerate(_EDITED):
        rng = np.random.default_rng([VERSION, 3, index])
        rate, shots = encoding["rate"], []
        pieces = [piece for half in _PIECES.values() for piece in half]
        for _k in range(10):
            choice = [p for p in pieces if not shots or p[0].split(".")[0] != shots[-1].piece.split(".")[0]]
            piece, start = choice[int(rng.integers(len(choice)))]
            shots.append(
                Shot(
                    piece,
                    int(rng.integers(2 * rate, 9 * rate)),
                    moves[int(rng.integers(len(moves)))],
                    start,
                    mirror=bool(rng.integers(2)),
                    hue=int(rng.choice([0, 30, 90, 140])),
                    seed=int(rng.integers(1 << 30)),
                    speed=25.0 / rate,
                )
            )
        joins = [Join("dissolve", int(rng.integers(12, 30))) if rng.random() < 0.07 else Join() for _ in shots[1:]]
        made.append(FilmSpec(name, tuple(shots), tuple(joins), encoding))
    return made


def long_shots() -> FilmSpec:
    """Two minutes of 720p H.264 in long shots, as x264 makes it by default: the film of the speed target."""
    moves: tuple[tuple[str, int, Move], ...] = (
        ("bikes.3", 0, "as_is"), ("carphone", 0, "as_is"), ("bunny", 0, "pan"), ("bikes.4", 0, "shake"),
        ("bikes.1", 20, "zoom_in"), ("bunny", 30, "as_is"), ("bikes.0", 0, "as_is"), ("bikes.3", 0, "static"),
    )  # fmt: skip
    lengths = (600, 450, 330, 420, 300, 720, 360, 420)
    shots = tuple(
        Shot(piece, frames, move, start, mirror=bool(k % 2), seed=k, speed=1.0)
        for k, ((piece, start, move), frames) in enumerate(zip(moves, lengths, strict=True))
    )
    joins = (Join(), Join("dissolve", 25), Join(), Join(), Join("fade_black", 30), Join(), Join("dissolve", 40))
    return FilmSpec("h264-720p-long-shots", shots, joins, {"size": (1280, 720), "rate": 30})


def build(half: Half, folder: Path) -> Iterator[tuple[str, Labels]]:
    """Build what is missing under `folder` and yield (name, labels) of each film."""
    for spec in specs(half):
        yield spec.name, built(spec, folder / f"v{VERSION}" / half)


def graded_built(half: Half, folder: Path, grade: Grade | None = None) -> Iterator[Labels]:
    """The graded films of one half, of both grades by default; built where they are missing under `folder`."""
    for each in [grade] if grade else _GRADES:
        for spec in graded(half, each):
            yield built(spec, folder / f"v{VERSION}" / f"{half}-{each}")


def built(spec: FilmSpec, folder: Path) -> Labels:
    """The film's labels; it is encoded only if the folder does not hold it yet."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".webm" if spec.encoding.get("codec") == "libvpx-vp9" else ".mp4"
    path, note = folder / f"{spec.name}{suffix}", folder / f"{spec.name}.labels.npz"
    if not note.exists():
        labels = make_film(path, spec.shots, spec.joins, **spec.encoding)
        np.savez(
            note,
            frames=labels.frames,
            kinds=[join.kind for join in labels.joins],
            spans=np.array([(join.start_frame, join.end_frame) for join in labels.joins]).reshape(-1, 2),
            pts_s=labels.pts_s,
        )
    with np.load(note) as stored:
        joins = tuple(
            JoinLabel(str(kind), int(start), int(end))  # type: ignore[arg-type]
            for kind, (start, end) in zip(stored["kinds"], stored["spans"], strict=True)
        )
        return Labels(path, int(stored["frames"]), joins, tuple(stored["pts_s"].tolist()))


def _film(
    half: Half, name: str, theme: str, count: int, encoding: dict[str, Any], rng: np.random.Generator
) -> FilmSpec:
    rate = float(encoding["rate"])
    shots, joins, used = [], [], [(-1, -1)]
    for _k in range(count):
        while True:  # neighbours show different scenes
            piece, crop = int(rng.integers(len(_PIECES[half]))), int(rng.integers(len(_CROPS)))
            if piece != used[-1][0]:
                break
        used.append((piece, crop))
        seconds = {
            "quick": rng.uniform(0.5, 1.1),
            "static": rng.uniform(3, 6),
            "dissolve": rng.uniform(3, 5.5),
        }.get(theme, rng.uniform(1.6, 4.5))
        frames = max(8, round(seconds * rate))
        move = _move(theme, rng)
        flashes: tuple[int, ...] = ()
        if theme == "flash":
            first = int(rng.integers(frames // 4, frames // 2))
            flashes = tuple(range(first, first + int(rng.integers(1, 4))))
            if rng.random() < 0.5:
                flashes += tuple(f + frames // 4 for f in flashes)
        name_of_piece, start = _PIECES[half][piece]
        if move in ("static", "pan", "zoom_in", "zoom_out"):
            start += int(rng.integers(0, 25))
        crops = _CROPS[crop] if move != "pan" else _CROPS[0]
        shots.append(
            Shot(
                name_of_piece,
                frames,
                move,
                start,
                mirror=bool(rng.integers(2)),
                hue=int(rng.choice([0, 0, 30, 90, 140])),
                gain=float(rng.choice([1.0, 1.0, 0.7, 1.2])),
                crop=crops,
                flashes=flashes,
                seed=int(rng.integers(1 << 30)),
                speed=25.0 / rate if rate > 12 else 2.0,
            )
        )
    for a, b in itertools.pairwise(shots):
        joins.append(_join(theme, min(a.frames, b.frames), rate, rng))
    if theme == "fade":
        opening, closing = (Join("fade_black", int(rng.integers(10, 30))) for _ in range(2))
        return FilmSpec(name, tuple(shots), (opening, *joins, closing), encoding)
    return FilmSpec(name, tuple(shots), tuple(joins), encoding)


def _move(theme: str, rng: np.random.Generator) -> Move:
    choices: dict[str, tuple[Move, ...]] = {
        "camera": ("pan", "zoom_in", "zoom_out", "pan"),
        "shake": ("shake", "shake", "as_is"),
        "static": ("static",),
        "flash": ("as_is", "static", "shake"),
        "fade": ("as_is", "static", "pan"),
    }
    options: tuple[Move, ...] = choices.get(theme, ("as_is", "as_is", "as_is", "static", "pan", "zoom_in", "shake"))
    return options[int(rng.integers(len(options)))]


def _join(theme: str, shorter: int, rate: float, rng: np.random.Generator) -> Join:
    if theme in ("hard", "quick", "flash", "static"):
        return Join()
    longest = max(8, min(50, 2 * shorter // 5))
    frames = int(rng.integers(8, longest + 1))
    kinds = {"dissolve": ("dissolve",), "fade": ("fade_black", "fade_white", "fade_black")}
    kind = rng.choice(kinds.get(theme, ("hard", "hard", "dissolve", "dissolve", "fade_black", "fade_white")))
    if kind == "hard":
        return Join()
    hold = int(rng.integers(0, 6)) if kind != "dissolve" else 0
    return Join(kind, max(frames, 8 + hold), hold)
