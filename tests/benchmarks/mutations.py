"""Mutated films through the decoding stage: each must end as clips or as a reason, in bounded time and memory.

    python -m tests.benchmarks.mutations --files 10000

The films are cut from real ones. A mutation flips bits, cuts the file off, moves, repeats or swaps boxes, or writes
absurd numbers into headers. Each file goes through `curation.source.SourceStage` in a child process, as in an actor;
what is counted: outcomes by reason, children that died (and of which file), files over the time limit, peak memory.
Exit code 1 if a child died, hung or grew past the limit, or if a file has no reason.
"""

import argparse
import json
import multiprocessing
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.media import Join, Shot, make_film

Mutation = Callable[[bytearray, np.random.Generator], bytes]

TIMEOUT_S = 120.0
LIMIT_BYTES = 2 << 30


def flip_bits(data: bytearray, random: np.random.Generator) -> bytes:
    """1 to 200 bits anywhere."""
    for at in random.integers(0, len(data), int(random.integers(1, 200))):
        data[at] ^= 1 << int(random.integers(8))
    return bytes(data)


def flip_header_bits(data: bytearray, random: np.random.Generator) -> bytes:
    """1 to 20 bits in one box that is not frames."""
    start, end = _box(data, random)
    for at in random.integers(start, end, int(random.integers(1, 20))):
        data[at] ^= 1 << int(random.integers(8))
    return bytes(data)


def truncate(data: bytearray, random: np.random.Generator) -> bytes:
    """Ends anywhere."""
    return bytes(data[: int(random.integers(0, len(data)))])


def noise(data: bytearray, random: np.random.Generator) -> bytes:
    """Up to a quarter of the file is noise."""
    length = int(random.integers(1, len(data) // 4))
    start = int(random.integers(0, len(data) - length))
    data[start : start + length] = random.bytes(length)
    return bytes(data)


def splice_boxes(data: bytearray, random: np.random.Generator) -> bytes:
    """One box is put into the place of another, left out, or repeated."""
    (a, b), (c, d) = _box(data, random), _box(data, random)
    action = random.integers(3)
    if action == 0:
        return bytes(data[:c] + data[a:b] + data[d:])
    if action == 1:
        return bytes(data[:a] + data[b:])
    return bytes(data[:b] + data[a:b] * int(random.integers(1, 50)) + data[b:])


def absurd_numbers(data: bytearray, random: np.random.Generator) -> bytes:
    """Sizes, counts, rates and dimensions that cannot be, in 1 to 4 places of a header."""
    start, end = _box(data, random)
    for _ in range(int(random.integers(1, 5))):
        at = int(random.integers(start, max(start + 1, end - 4)))
        value = int(random.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x10000000]))
        data[at : at + 4] = struct.pack(">I", value)
    return bytes(data)


MUTATIONS: tuple[Mutation, ...] = (flip_bits, flip_header_bits, truncate, noise, splice_boxes, absurd_numbers)


@dataclass
class Seen:
    """What came of the files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    slowest_s: float = 0.0


def write_originals(folder: Path) -> list[Path]:
    """Small films of several containers and codecs."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, options in (("h264.mp4", {}), ("h264.mkv", {}), ("h264.mov", {"gop": 12}), ("h264.ts", {})):
        path = folder / name
        make_film(path, [Shot("bikes.1", 30), Shot("bunny", 30)], [Join("dissolve", 6)], **options)
        found.append(path)
    return found


def mutate(originals: list[bytes], seed: int, number: int) -> tuple[str, int, bytes]:
    """(mutation, which film, bytes) of file `number`: a function of the two numbers."""
    random = np.random.default_rng([seed, number])
    which, kind = int(random.integers(len(originals))), MUTATIONS[number % len(MUTATIONS)]
    return kind.__name__, which, kind(bytearray(originals[which]), random)


def run(folder: Path, files: int, seed: int = 0, show: Callable[[int, Seen], object] = lambda n, seen: None) -> Seen:
    """Put `files` mutated films through the decoding stage."""
    paths = write_originals(folder / "originals")
    originals = [path.read_bytes() for path in paths]
    seen = Seen()
    child = _Child()
    try:
        for number in range(files):
            name, which, data = mutate(originals, seed, number)
            path = folder / f"mutated{paths[which].suffix}"
            path.write_bytes(data)
            began = time.monotonic()
            answer = child.curate(path)
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
            if isinstance(answer, str):
                seen.outcomes[answer] += 1
                seen.faults.append(f"file {number} ({name} of {paths[which].name}, seed {seed}): {answer}")
                child.end()
                child = _Child()
            else:
                status, reason, peak = answer
                seen.outcomes[f"{status} {reason or ''}".strip()] += 1
                seen.peak_bytes = max(seen.peak_bytes, peak)
                if status == "failed" and not reason:
                    seen.faults.append(f"file {number}: failed without a reason")
                if reason == "internal_error":
                    seen.faults.append(f"file {number} ({name} of {paths[which].name}, seed {seed}): internal_error")
                if peak > LIMIT_BYTES:
                    seen.faults.append(f"file {number} ({name}): {peak / 2**30:.1f} GiB")
            show(number + 1, seen)
    finally:
        child.end()
    return seen


class _Child:
    """A process with a source stage of its own."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it is up; EOFError when it cannot start

    def curate(self, path: Path) -> tuple[str, str | None, int] | str:
        """(status, reason, peak bytes), or what went wrong with the process."""
        self._pipe.send(str(path))
        try:
            if not self._pipe.poll(TIMEOUT_S):
                return "hung"
            answer: tuple[str, str | None, int] = self._pipe.recv()
            return answer
        except (EOFError, ConnectionError):
            self._process.join(5)
            return f"died (exit code {self._process.exitcode})"

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def _work(pipe: Connection) -> None:
    from curation.source import SourceReport, SourceSettings, SourceStage

    stage = SourceStage(SourceSettings(min_s=0.5, max_s=2.0))
    pipe.send("up")
    while True:
        report = [part for part in stage.run(pipe.recv()) if isinstance(part, SourceReport)][-1]
        pipe.send((report.row["status"], report.row["reason"], _peak_memory()))


def _peak_memory() -> int:
    """Bytes. Not getrusage's, which starts from what the process that started this one had."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _box(data: bytearray, random: np.random.Generator) -> tuple[int, int]:
    """A random mp4 box other than mdat; in other containers, a random piece near the start."""
    boxes = [box for box in _boxes(data, 0, len(data)) if data[box[0] + 4 : box[0] + 8] != b"mdat"]
    if boxes:
        return boxes[int(random.integers(len(boxes)))]
    start = int(random.integers(0, min(len(data) - 64, 4096)))
    return start, start + int(random.integers(8, 64))


_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"stsd")


def _boxes(data: bytearray, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start + 8 <= end:
        size, kind = int.from_bytes(data[start : start + 4], "big"), bytes(data[start + 4 : start + 8])
        if size < 8 or start + size > end or not kind.isascii():
            return
        yield start, start + size
        if kind in _CONTAINERS:
            yield from _boxes(data, start + (16 if kind == b"stsd" else 8), start + size)
        start += size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()

    def show(number: int, seen: Seen) -> None:
        if number % 100 == 0:
            print(f"{number} files, {time.monotonic() - began:.0f} s, {len(seen.faults)} faults", flush=True)

    with tempfile.TemporaryDirectory(prefix="clipmill-") as folder:
        seen = run(Path(folder), options.files, options.seed, show)
    report: dict[str, Any] = {
        "files": options.files,
        "outcomes": dict(seen.outcomes.most_common()),
        "peak_mib": round(seen.peak_bytes / 2**20),
        "slowest_s": round(seen.slowest_s, 2),
        "faults": seen.faults,
    }
    print(json.dumps(report, indent=1))
    sys.exit(1 if seen.faults else 0)


if __name__ == "__main__":
    main()
