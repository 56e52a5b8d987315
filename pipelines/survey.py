"""What a run of a job has to do: the sources that its inputs name, less those that its dataset has already.

Both may be more than memory holds. They go into spools (`pipelines.spool`), so that memory is needed for one part of
them at a time, and for a number per source whose size is known.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice

import numpy as np

from pipelines.dataset import Dataset
from pipelines.inputs import SourceFile
from pipelines.spool import Spool, parts_of

Earlier = tuple[int | None, str, int]
"""What is kept of a source's row: size in bytes, status, number of clips."""


Named = Spool[int | None]
"""Uris and sizes as the inputs name them, one perhaps twice."""


@dataclass
class Survey:
    """The sources of a run, counted. `survey` makes it.

    Attributes:
        sources: how many the inputs name, each counted once.
        pending: those without a row, or whose size has changed since they got it; `size`: bytes of those
            whose size is known.
        clips: of the dataset's rows; `failed`: rows of sources that failed.
        alike: sources whose size another one has too, so that their content may be the same.
        curated: uris of those of them whose clips are in the dataset.
    """

    sources: int = 0
    pending: int = 0
    size: int = 0
    clips: int = 0
    failed: int = 0
    alike: list[SourceFile] = field(default_factory=list)
    curated: set[str] = field(default_factory=set)
    _named: Named = field(default_factory=Spool)
    _wanted: list[tuple[int | None, bytes]] = field(default_factory=list)  # part, and which of its pairs are pending

    def todo(self) -> Iterator[tuple[str, int | None]]:
        """Uri and size of the pending sources; sorted by uri while they are few enough to be in memory."""
        for part, wanted in self._wanted:
            yield from compress(self._named.part(part), wanted)

    def rounds(self, most: int, without: Collection[str]) -> Iterator[dict[str, int | None]]:
        """The same, but for some uris, up to `most` at a time: size by uri."""
        left = (pair for pair in self.todo() if pair[0] not in without) if without else self.todo()
        while some := dict(islice(left, most)):
            yield some


def gather(sources: Iterable[SourceFile]) -> Named:
    """What the inputs name. Raises NoRoom."""
    named: Named = Spool()
    named.add((source.uri, source.size) for source in sources)
    named.sort()
    return named


def survey(named: Named, dataset: Dataset) -> Survey:
    """Compare what the inputs name with what the dataset has.

    Raises:
        NoRoom: the temporary folder takes no more.
    """
    done: Spool[Earlier] = Spool()
    done.add(_rows(dataset))
    found, sizes = Survey(_named=named), [np.empty(0, np.int64)]
    for part in parts_of(named, done):
        earlier = dict(done.part(part))  # of two rows for a uri, the one written last
        found.clips += sum(clips for _, _, clips in earlier.values())
        found.failed += [status for _, status, _ in earlier.values()].count("failed")
        mine = list(named.part(part))
        wanted, sources = _wanted(mine, earlier)
        found._wanted.append((part, wanted))
        found.sources += sources
        found.pending += sum(wanted)
        found.size += sum(size or 0 for _, size in compress(mine, wanted))
        sizes.append(np.array([size for size in _each_once(mine).values() if size], np.int64))
    _find_alike(found, named, done, np.concatenate(sizes))
    return found


def _wanted(pairs: Sequence[tuple[str, int | None]], earlier: dict[str, Earlier]) -> tuple[bytes, int]:
    """For each pair 1 if the source is pending, 0 if it is not or was named before; and how many sources these are."""
    wanted, seen = bytearray(), set()
    for uri, size in pairs:
        row = earlier.get(uri)
        new = row is None or (size is not None and row[0] not in (None, size))
        wanted.append(new and uri not in seen)
        seen.add(uri)
    return bytes(wanted), len(seen)


def _find_alike(found: Survey, named: Named, done: Spool[Earlier], sizes: np.ndarray) -> None:
    values, counts = np.unique(sizes, return_counts=True)
    shared = set(values[counts > 1].tolist())
    for part in parts_of(named, done) if shared else ():
        mine = {uri: size for uri, size in _each_once(named.part(part)).items() if size in shared}
        found.alike += [SourceFile(uri, size) for uri, size in mine.items()]
        earlier = dict(done.part(part))
        found.curated |= {uri for uri in mine if uri in earlier and earlier[uri][1] == "ok"}


def _each_once(pairs: Iterable[tuple[str, int | None]]) -> dict[str, int | None]:
    """Sizes by uri; of two for one uri, the first."""
    return dict(reversed(list(pairs)))


def _rows(dataset: Dataset) -> Iterator[tuple[str, Earlier]]:
    for table in dataset.source_parts(["source_uri", "size_bytes", "status", "clips"]):
        clips = table["clips"].fill_null(0).to_pylist()
        rows = zip(table["size_bytes"].to_pylist(), table["status"].to_pylist(), clips, strict=True)
        yield from zip(table["source_uri"].to_pylist(), rows, strict=True)
