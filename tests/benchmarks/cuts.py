"""Cut detection against its peers: F1, precision, recall and cost of four detectors on the same films, in one run.

    python -m tests.benchmarks.cuts                    both halves, edited, graded and real films, the long-shot film
    python -m tests.benchmarks.cuts --detectors cascade,adaptive --one-core
    python -m tests.benchmarks.cuts --media FOLDER     also films of your own (cost only, unless they are known)
    python -m tests.benchmarks.cuts --floors           also what decoding alone costs
    python -m tests.benchmarks.cuts --whole-set        all films at once, by the command, against AdaptiveDetector
    python -m tests.benchmarks.cuts --sweep            writes curation/cuts/SWEEP.md

The films are built once (about ten minutes) under --folder. Each film is given to all detectors in turn, so that they
share whatever else the machine does. Counting rule: cut_scoring.py.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import cv2

import curation.cuts
from curation.probe import probe
from tests.benchmarks.cut_corpus import VERSION, build, built, edited, graded_built, long_shots
from tests.benchmarks.cut_floors import FLOORS
from tests.benchmarks.cut_peers import PEERS
from tests.benchmarks.cut_scoring import Counts, Kind, Span, count, coverage, match
from tests.benchmarks.cut_sweep import report
from tests.media import BIKES_CUTS, Labels, film

# Films of other people that are known; looked at frame by frame.
_KNOWN: dict[str, list[Span]] = {
    "bikes.mp4": [Span("hard", at, at) for at in BIKES_CUTS],
    "bigbuckbunny.mp4": [],
    "carphone_pristine.mp4": [],
    "big_buck_bunny_0_30.webm": [Span("gradual", 5, 50)] + [Span("hard", at, at) for at in (283, 376, 551)],
    "nasa_13013.mp4": [Span("gradual", 126, 150), Span("hard", 202, 202)],
    "bottle-detection.mp4": [],
    "one-by-one-person-detection.mp4": [],
}


@dataclass
class Tally:
    """What one detector did on one set."""

    counts: dict[Kind, Counts] = field(default_factory=lambda: {"hard": Counts(), "gradual": Counts()})
    pairs: list[tuple[Span, Span]] = field(default_factory=list)
    film_s: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0


def labelled(labels: Labels) -> tuple[Path, list[Span]]:
    return labels.path, [
        Span("hard" if join.kind == "hard" else "gradual", join.start_frame, join.end_frame) for join in labels.joins
    ]


def sets(folder: Path, media: Path | None) -> dict[str, list[tuple[Path, list[Span]]]]:
    """The sets of films with their labels."""
    chosen = {half: [labelled(labels) for _, labels in build(half, folder)] for half in ("tuning", "held_out")}  # type: ignore[arg-type]
    chosen["edited"] = [labelled(built(spec, folder / f"v{VERSION}" / "edited")) for spec in edited()]
    for grade in ("dark", "grey"):
        chosen[grade] = [labelled(labels) for labels in graded_built("held_out", folder, grade)]  # type: ignore[arg-type]
    chosen["long 720p"] = [labelled(built(long_shots(), folder / f"v{VERSION}"))]
    real = [film(name) for name in ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")]
    real += sorted(path for path in media.iterdir() if path.name in _KNOWN) if media else []
    chosen["real"] = [(path, _KNOWN[path.name]) for path in real]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "clipmill-cut-films")
    parser.add_argument("--media", type=Path, default=os.environ.get("CLIPMILL_MEDIA"))
    parser.add_argument("--detectors", default=",".join(PEERS))
    parser.add_argument("--sets", help="comma-separated; all by default")
    parser.add_argument("--one-core", action="store_true", help="pin this process to one core")
    parser.add_argument("--each", action="store_true", help="also what each film's detections missed or added")
    parser.add_argument("--floors", action="store_true", help="also what decoding alone costs (cut_floors.py)")
    parser.add_argument("--whole-set", action="store_true", help="instead: wall time for all films on all cores")
    parser.add_argument("--sweep", action="store_true", help="write curation/cuts/SWEEP.md instead")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        cv2.setNumThreads(1)
    if options.sweep:
        assert curation.cuts.__file__
        Path(curation.cuts.__file__).with_name("SWEEP.md").write_text(report(options.folder))
        return
    finders = {name: PEERS[name]() for name in options.detectors.split(",")}
    tallies: dict[str, dict[str, Tally]] = defaultdict(lambda: defaultdict(Tally))
    chosen = sets(options.folder, Path(options.media) if options.media else None)
    if options.whole_set:
        whole_set([path for films in chosen.values() for path, _ in films])
        return
    for label, films in chosen.items():
        if options.sets and label not in options.sets.split(","):
            continue
        for path, truth in films:
            duration = probe(path).duration_s
            runs = {name: functools.partial(finder, path) for name, finder in finders.items()}
            if options.floors:
                runs |= {name: functools.partial(floor, path, truth) for name, floor in FLOORS.items()}
            for name, run in runs.items():
                wall, cpu = time.perf_counter(), time.process_time()
                found = run()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                pairs, surplus = match(truth, found)
                for group in (label, "all"):
                    tally = tallies[group][name]
                    for kind, counts in count(truth, found).items():
                        tally.counts[kind] += counts
                    tally.pairs += pairs
                    tally.film_s, tally.wall_s, tally.cpu_s = (
                        tally.film_s + duration,
                        tally.wall_s + wall,
                        tally.cpu_s + cpu,
                    )
                if options.each:
                    missed = [span for span in truth if not any(span is pair[0] for pair in pairs)]
                    print(f"{label:9} {path.name:34} {name:10} {cpu / duration * 1000:6.1f} ms/s", missed, surplus)
    show(tallies)


def whole_set(paths: list[Path], runs: int = 3) -> None:
    """Print wall times for all films, in turn: `clipmill cuts` given all of them, its start included, and
    AdaptiveDetector on one after another, with as many decoder threads as OpenCV takes, its start not included.
    """
    adaptive = PEERS["adaptive"]()
    command = [str(Path(sys.executable).with_name("clipmill")), "cuts", "--json", *map(str, paths)]
    ratios = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ours = time.perf_counter() - start
        for path in paths:
            adaptive(path)
        ratios.append((time.perf_counter() - start - ours) / ours)
        theirs = ours * ratios[-1]
        print(f"{len(paths)} films: clipmill cuts {ours:.1f} s, AdaptiveDetector {theirs:.1f} s: {ratios[-1]:.2f}x")
    print(f"median {statistics.median(ratios):.2f}x on {len(os.sched_getaffinity(0))} cores")


def show(tallies: dict[str, dict[str, Tally]]) -> None:
    """Print the table; ratios are Adaptive's cost over the detector's."""
    head = "| films | detector | hard P | R | F1 | gradual P | R | F1 | covered | x real time | CPU s |"
    head += " adaptive / this, wall and CPU |"
    print(head)
    print("|" + " --- |" * (head.count("|") - 1))
    for label, by_name in tallies.items():
        for name, tally in by_name.items():
            hard, gradual = tally.counts["hard"], tally.counts["gradual"]
            cells = [f"{v:.3f}" for c in (hard, gradual) for v in (c.precision, c.recall, c.f1)]
            cells.append(f"{coverage(tally.pairs):.2f}")
            cells += [f"{tally.film_s / tally.wall_s:.1f}", f"{tally.cpu_s:.1f}"]
            base = by_name.get("adaptive")
            ratio = f"{base.wall_s / tally.wall_s:.2f} / {base.cpu_s / tally.cpu_s:.2f}" if base else "-"
            print(f"| {label} | {name} | {' | '.join(cells)} | {ratio} |")


if __name__ == "__main__":
    main()
