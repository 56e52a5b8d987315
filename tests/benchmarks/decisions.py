"""What-if and statistics over ten million clips: how long a page of the dashboard takes, and in how much memory.

    python -m tests.benchmarks.decisions [--clips 10000000] [--keep FOLDER]

Writes a synthetic dataset (`tests.benchmarks.many_clips`), opens it as the dashboard does, and then
(1) asks for the effect of all thresholds at once, each time with other thresholds, and (2) computes a page's whole
statistics. The peer is pandas with the columns of three scores in memory, comparing and grouping the same way. Both
run here, one after the other, on the same rows; ours a second time with rules on every score of the schema.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from curation import schema
from curation.rules import Rules, parse_rules
from tests.benchmarks.many_clips import LABELS, write_dataset

AS_THE_PEER = ("motion.coarse", "camera", "text_area")


def some_rules(i: int, names: Sequence[str]) -> Rules:
    """Rules on these scores, other ones for every i."""
    by_kind = {
        "number": {"drop_lowest": f"{10 + i}%", "max": 2.0 + 0.1 * i},
        "label": {"in": list(LABELS[: 1 + i % 5])},
        "per_frame": {"max": 0.02 + 0.01 * i, "frames": ("any", "all", "mean")[i % 3]},
    }
    return parse_rules({name: by_kind[schema.score(name).kind] for name in names})


def measure(root: str) -> None:
    """Run in a process of its own, so that its peak memory is the dashboard's."""
    from curation.decisions import outcome, resolve
    from curation.statistics import statistics
    from pipelines.dataset import Dataset
    from pipelines.decide import open_scores

    begun, cpu = time.perf_counter(), time.process_time()
    scores = open_scores(Dataset(root))
    scores.prepare()
    print(
        f"open          {time.perf_counter() - begun:7.2f} s, {time.process_time() - cpu:.1f} s of processor; "
        f"{scores.clips} clips, {len(scores.known)} scores"
    )
    for what, names in (("three scores", AS_THE_PEER), ("every score", [score.name for score in scores.known])):
        kept = 0

        def ask(i: int, names: Sequence[str] = names) -> None:
            nonlocal kept
            kept = outcome(scores, resolve(scores, some_rules(i, names))).kept[0]

        print(f"what-if       {_timed(ask, 15, 1000, 'ms')}; rules on {what}; kept {kept}")

        def tell(i: int, names: Sequence[str] = names) -> None:
            statistics(scores, resolve(scores, some_rules(i, names)))

        print(f"statistics    {_timed(tell, 5, 1, 's')}; rules on {what}, all statistics of every score")
    print(f"peak memory   {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:7.2f} GiB")


def _timed(work: Callable[[int], None], rounds: int, per_s: int, unit: str) -> str:
    taken, spent = [], []
    for i in range(rounds):
        begun, cpu = time.perf_counter(), time.process_time()
        work(i)
        taken.append(per_s * (time.perf_counter() - begun))
        spent.append(per_s * (time.process_time() - cpu))
    digits = 0 if unit == "ms" else 2
    return (
        f"{float(np.median(taken)):7.{digits}f} {unit} median, {max(taken):.{digits}f} at most (first "
        f"{taken[0]:.{digits}f}); {float(np.median(spent)):.{digits}f} {unit} of processor"
    )


def measure_pandas(root: str, rounds: int = 5) -> None:
    """The peer: the same columns as a data frame, the same masks and groups."""
    import pandas as pd

    begun = time.perf_counter()
    columns = ["duration_s", "motion_coarse", "camera", "text_area"]
    pieces = []
    for path in sorted(Path(root, "clips").glob("*.parquet")):
        table = pq.read_table(path, columns=columns)
        lists = table["text_area"].combine_chunks()
        area = np.full((len(lists), 3), np.nan, np.float32)
        area[np.asarray(lists.is_valid())] = np.asarray(lists.drop_null().flatten()).reshape(-1, 3)
        frame = table.drop_columns(["text_area"]).to_pandas()
        frame["camera"] = frame["camera"].astype("category")
        frame["text_any"], frame["text_all"], frame["text_mean"] = area.max(1), area.min(1), area.mean(1)
        pieces.append(frame)
    data = pd.concat(pieces, ignore_index=True)
    data["camera"] = data["camera"].astype("category")
    print(f"pandas open   {time.perf_counter() - begun:7.2f} s")
    taken, spent = [], []
    for i in range(rounds):
        begun, cpu = time.perf_counter(), time.process_time()
        motion, area = data["motion_coarse"], data[f"text_{('any', 'all', 'mean')[i % 3]}"]
        low = motion.quantile((10 + i) / 100, interpolation="lower")
        mask = (motion < low).astype(np.uint8) | (motion > 2.0 + 0.1 * i).astype(np.uint8) * 2
        mask |= motion.isna().astype(np.uint8) * 4 | (~data["camera"].isin(LABELS[: 1 + i % 5])).astype(np.uint8) * 8
        mask |= (area > 0.02 + 0.01 * i).astype(np.uint8) * 16
        data.groupby(mask)["duration_s"].agg(["count", "sum"])
        taken.append(time.perf_counter() - begun)
        spent.append(time.process_time() - cpu)
    print(
        f"pandas what-if{1000 * float(np.median(taken)):7.0f} ms median; "
        f"{1000 * float(np.median(spent)):.0f} ms of processor"
    )
    print(f"pandas memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:7.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--keep", help="write the dataset here and leave it, or use the one that is here")
    parser.add_argument("--no-peer", action="store_true", help="leave pandas out")
    parser.add_argument("--part", choices=("ours", "pandas"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        {"ours": measure, "pandas": measure_pandas}[args.part](args.keep)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.keep or temporary)
        if not (root / "job.yaml").exists():
            write_dataset(root, args.clips)
        for part in ("ours",) if args.no_peer else ("ours", "pandas"):
            command = [sys.executable, "-m", "tests.benchmarks.decisions", "--part", part, "--keep", str(root)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
