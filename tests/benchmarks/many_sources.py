"""How long a job of ten million inputs takes to start and to carry on, and in how much memory.

    python -m tests.benchmarks.many_sources --sources 10000000

For a CSV and a Parquet list: `prepare` (the list is read), the survey (what is done is left out) and the committer, for
a new job and for one of which nine tenths are done, then all rounds are handed out. Nothing is decoded: the sources
need not exist. Each case runs in a process of its own; seconds are the processor's, and the peak of its memory includes
Python and its libraries.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curation.schema import SOURCES
from pipelines.commit import ROWS_PER_FILE, Committer
from pipelines.curate import prepare
from pipelines.spec import parse_spec
from pipelines.survey import survey


def uris(number: int) -> Iterator[list[str]]:
    """The sources, a chunk at a time, in an order that is not theirs."""
    for start in range(0, number, ROWS_PER_FILE):
        ids = range(start, min(number, start + ROWS_PER_FILE))
        yield [f"s3://films/{k * 7919 % 10007:05d}/video-{k:09d}-{k * 2654435761 % 2**32:08x}.mp4" for k in ids]


def write_lists(folder: Path, number: int) -> dict[str, Path]:
    """The same list in both formats, by name of the format."""
    lists = {"csv": folder / "list.csv", "parquet": folder / "list.parquet"}
    with lists["csv"].open("w") as text, pq.ParquetWriter(lists["parquet"], pa.schema([("uri", "string")])) as table:
        text.write("uri\n")
        for some in uris(number):
            text.writelines(f"{uri}\n" for uri in some)
            table.write_table(pa.table({"uri": some}))
    return lists


def write_done(folder: Path, number: int) -> None:
    """The rows of a dataset whose first nine tenths are done."""
    (folder / "sources").mkdir()
    for part, some in enumerate(uris(number * 9 // 10)):
        rows = {"source_uri": some, "source_id": [f"{part:016x}{k:016x}" for k in range(len(some))]}
        rows |= {"status": ["ok"] * len(some), "size_bytes": [10**7] * len(some), "clips": [5] * len(some)}
        table = pa.table([pa.array(rows[f.name], f.type) if f.name in rows else pa.nulls(len(some), f.type)
                          for f in SOURCES], SOURCES)  # fmt: skip
        pq.write_table(table, folder / "sources" / f"part-{part:05d}.parquet")


def work(path: Path, out: Path, answers: "SimpleQueue[str]") -> None:
    """One case; says what it took."""
    times, began = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal began
        times[name], began = time.process_time() - began, time.process_time()

    spec = parse_spec({"input": {"uris": [str(path)]}, "output": str(out), "scores": {"text": "off"}}, "benchmark")
    dataset, named = prepare(spec)
    lap("list")
    found = survey(named, dataset)
    lap("survey")
    Committer(dataset)
    lap("committer")
    rounds = found.rounds(spec.resources.round, without=())
    next(rounds)
    started = sum(times.values()) + time.process_time() - began
    left = found.pending - spec.resources.round
    assert sum(map(len, rounds)) == left
    lap("rounds")
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in times.items())
    answers.put(f"{found.pending} of {found.sources} pending: starts after {started:.1f} s ({parts}), {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=10_000_000)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="clipmill-") as name:
        lists = write_lists(Path(name), options.sources)
        for kind, path in lists.items():
            for state in ("new", "resumed"):
                out = Path(name) / f"{kind}-{state}"
                out.mkdir()
                if state == "resumed":
                    spec = parse_spec({"input": {"uris": [str(path)]}, "scores": {"text": "off"}}, "benchmark")
                    (out / "job.yaml").write_text(spec.as_yaml())
                    write_done(out, options.sources)
                answers = context.SimpleQueue()
                process = context.Process(target=work, args=(path, out, answers))
                process.start()
                process.join()
                print(f"{kind}, {state}: {answers.get() if process.exitcode == 0 else 'failed'}", flush=True)


if __name__ == "__main__":
    main()
