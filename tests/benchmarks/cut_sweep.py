"""The sweep that chose the cascade's thresholds: each varied alone around its default, on the tuning half only."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.cuts.cascade import PASSES, CascadeDetector, Pass
from curation.cuts.pairs import thumb
from curation.cuts.shots import Limits
from curation.cuts.sparse import Steadiness, spared_frames
from curation.decode import SKIPS
from curation.frames import FilmFrames
from curation.probe import VideoInfo, probe
from tests.benchmarks.cut_corpus import build, graded_built
from tests.benchmarks.cut_peers import spans
from tests.benchmarks.cut_scoring import Counts, Kind, Span, count
from tests.media import Labels

# One value below and one above each default.
LIMITS: dict[str, tuple[float, ...]] = {
    "step": (8.0, 16.0),
    "outlier": (1.5, 3.0),
    "unexplained": (7.0, 9.0),
    "histogram": (0.09, 0.16),
    "flash_s": (0.2, 0.5),
    "one_step": (0.65, 0.85),
    "unsure": (1.0, 1.5),
}
MIXTURE: dict[str, tuple[float, ...]] = {
    "change": (10.0, 18.0),
    "off_line": (0.35, 0.55),
    "bend": (0.08, 0.16),
    "ramp_error": (0.08, 0.16),
    "slack": (0.4, 0.8),
    "doubt": (3.2, 5.2),
    "unexplained": (0.3, 0.42),
    "same": (0.5, 0.85),
    "sloppiness": (10.0, 60.0),
}
STEADINESS: dict[str, tuple[float, ...]] = {
    "swell": (1.3, 2.0),
    "swell_alike": (1.5, 2.4),
    "cost": (0.05, 0.4),
    "even": (1.6, 3.2),
    "light": (0.4, 1.0),
    "dip": (0.25, 0.6),
    "alike": (0.4, 0.8),
    "clear": (1.0, 1.8),
    "undone": (0.4, 0.9),
    "follows": (0.35, 0.6),
    "margin_s": (0.5, 1.5),
    "beyond_s": (1.5, 3.5),
}
THRESHOLDS = (8.0, 16.0, 24.0)
_HEAD = "| threshold | default | here | hard: hit / missed / surplus | F1 | gradual: hit / missed / surplus | F1 |"


@dataclass(frozen=True)
class Film:
    info: VideoInfo
    labels: list[Span]
    numbers: np.ndarray
    thumbs: np.ndarray


def films(chosen: Iterable[Labels]) -> list[Film]:
    """Labelled films, decoded as the cascade decodes what it looks at closely."""
    made = []
    for labels in chosen:
        info = probe(labels.path)
        skip = np.where(spared_frames(info), SKIPS.index("nothing"), SKIPS.index("nonref"))
        rows = [(n, thumb(f)) for n, f in FilmFrames(info).draft(np.arange(info.frames), skip)]
        truth = [Span("hard" if j.kind == "hard" else "gradual", j.start_frame, j.end_frame) for j in labels.joins]
        made.append(Film(info, truth, np.array([n for n, _ in rows]), np.stack([row for _, row in rows])))
    return made


def measured(detector: CascadeDetector, chosen: list[Film]) -> dict[Kind, Counts]:
    """Hits, misses and surplus over the films, of which only what is in doubt is decoded again."""
    total: dict[Kind, Counts] = {"hard": Counts(), "gradual": Counts()}
    for film in chosen:
        found = spans(detector._cuts(film.info, FilmFrames(film.info), film.numbers, film.thumbs))
        for kind, counts in count(film.labels, found).items():
            total[kind] += counts
    return total


# What depends on the contrast and the colours of a film, on the graded films of the tuning half.
GRADED: dict[str, tuple[float, ...]] = {
    "contrast": (1e-3, 30.0, 50.0),
    "least_contrast": (0.25, 0.5),
    "grey": (0.3, 0.7),
}


def graded_variations() -> Iterator[tuple[str, float, float, CascadeDetector]]:
    """(name, value, default, detector) for every variation of what depends on contrast and colours."""
    return _varied(GRADED)


def _varied(chosen: dict[str, tuple[float, ...]]) -> Iterator[tuple[str, float, float, CascadeDetector]]:
    """The defaults, and each of these limits at each of its values."""
    default = Limits()
    yield "all at their defaults", 0.0, 0.0, CascadeDetector()
    for name, values in chosen.items():
        for value in values:
            limits = dataclasses.replace(default, **{name: value})  # type: ignore[arg-type]
            yield name, value, getattr(default, name), CascadeDetector(limits)


def variations() -> Iterator[tuple[str, float, float, CascadeDetector]]:
    """(name, value, default, detector) for every variation of the other thresholds."""
    default = Limits()
    yield from _varied(LIMITS)
    for name, values in MIXTURE.items():
        for value in values:
            mixture = dataclasses.replace(default.mixture, **{name: value})  # type: ignore[arg-type]
            limits = dataclasses.replace(default, mixture=mixture)
            yield f"mixture.{name}", value, getattr(default.mixture, name), CascadeDetector(limits)
    for k, step in enumerate(PASSES):
        for value in THRESHOLDS:
            passes = [*PASSES[:k], Pass(step.rate_fps, value), *PASSES[k + 1 :]]
            yield f"pass {step.rate_fps:g} fps", value, step.threshold, CascadeDetector(passes=passes)


def passed_over(chosen: list[Film], steadiness: Steadiness | None) -> str:
    """Cells of a row: what is found where GOPs are passed over, and the share of the frames that are decoded."""
    total: dict[Kind, Counts] = {"hard": Counts(), "gradual": Counts()}
    decoded = frames = 0
    for film in chosen:
        with pytest.MonkeyPatch.context() as patch:
            counted: list[int] = []
            one = FilmFrames._decode

            def each(*given: Any, **named: Any) -> Iterator[Any]:
                for item in one(*given, **named):  # noqa: B023
                    counted.append(1)  # noqa: B023
                    yield item

            patch.setattr(FilmFrames, "_decode", each)
            found = spans(CascadeDetector(steadiness=steadiness).detect(film.info))
        decoded, frames = decoded + len(counted), frames + film.info.frames
        for kind, counts in count(film.labels, found).items():
            total[kind] += counts
    cells = [f"{c.hit} / {c.missed} / {c.surplus} | {c.f1:.3f}" for c in (total["hard"], total["gradual"])]
    return f"{' | '.join(cells)} | {decoded / frames:.2f}"


def steadiness_rows(chosen: list[Film]) -> Iterator[str]:
    default = Steadiness()
    yield f"| everything is decoded | | | {passed_over(chosen, None)} |"
    yield f"| all at their defaults | | | {passed_over(chosen, default)} |"
    for name, values in STEADINESS.items():
        for value in values:
            changed = dataclasses.replace(default, **{name: value})  # type: ignore[arg-type]
            yield f"| {name} | {getattr(default, name):g} | {value:g} | {passed_over(chosen, changed)} |"


def _rows(chosen: list[Film], variations: Iterator[tuple[str, float, float, CascadeDetector]]) -> Iterator[str]:
    for name, value, default, detector in variations:
        total = measured(detector, chosen)
        shown = f"{default:g} | {value:g}" if default else "|"
        cells = [f"{c.hit} / {c.missed} / {c.surplus} | {c.f1:.3f}" for c in (total["hard"], total["gradual"])]
        yield f"| {name} | {shown} | {' | '.join(cells)} |"


def _shown(row: str) -> str:
    """The row, printed as soon as it is known: the sweep takes minutes."""
    print(row, flush=True)
    return row


def report(folder: Path) -> str:
    """The sweep as a Markdown page."""
    chosen = films(labels for _, labels in build("tuning", folder))
    lines = [
        "# Where the cascade's thresholds come from",
        "",
        "Each threshold varied alone around its default, on the tuning half of the labelled set of",
        "`tests/benchmarks/cut_corpus.py`: hits, misses and surplus, and F1. The held-out half was not looked at.",
        "Repeat it with `python -m tests.benchmarks.cuts --sweep`. Two were chosen on more sets: `same` on three from",
        "the same pieces (other seeds; gradual F1 .965 at 0.7, .955 at 0.5), `unexplained` on three from other films.",
        "",
        _HEAD,
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += map(_shown, _rows(chosen, variations()))
    lines += [
        "",
        "## Dark and grey films",
        "",
        "Some of the same films at 0.4 of their brightness and contrast, and in black and white, with their numbers",
        "added up. Contrast 0.001: no threshold follows the pictures' contrast.",
        "",
        _HEAD,
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += map(_shown, _rows(films(graded_built("tuning", folder)), graded_variations()))
    lines += [
        "",
        "## What is passed over",
        "",
        "The same films, and when their GOPs count as steady (`curation/cuts/sparse.py`). Decoded: frames that came",
        "out of the decoder, some of them twice, over frames of the films, which are full of cuts. `even` and `light`",
        "were read off the packets of the edited films and of both halves in three seeds: of 191 GOPs that hide a",
        "transition between different key frames they pass over none, of 122 that hide none but looked unsteady 46.",
        "",
        f"{_HEAD} decoded |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += map(_shown, steadiness_rows(chosen))
    return "\n".join(lines) + "\n"
