"""Pairs of a key and a value, too many for memory: in temporary files, to be looked at part by part."""

import marshal
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, Generic, TypeVar

PARTS = 64
FEW = 100_000
"""As many pairs are kept in memory: some 25 MB."""

Value = TypeVar("Value")


class NoRoom(Exception):
    """The temporary folder takes no more. One line for a person."""


class Spool(Generic[Value]):
    """Pairs, each in the part that its key belongs to, in the order of their adding. A value may be of numbers, text,
    None and tuples of these.

    The files have no name, so a process that is killed leaves none behind.
    """

    def __init__(self, few: int = FEW) -> None:
        """`few`: how many pairs are held in memory before they go into files."""
        self._few = few
        self._held: list[tuple[str, Value]] = []
        self._files: list[IO[bytes]] = []
        self._sizes: list[list[int]] = []  # of the pieces of each file
        self._filed = 0

    def __len__(self) -> int:
        return self._filed + len(self._held)

    @property
    def in_memory(self) -> bool:
        """Whether nothing had to go into files."""
        return not self._files

    def add(self, pairs: Iterable[tuple[str, Value]]) -> None:
        """Take pairs in. Raises NoRoom."""
        left = iter(pairs)
        while some := list(islice(left, self._few - len(self._held))):
            self._held += some
            if len(self._held) == self._few:
                self._spill()

    def sort(self) -> None:
        """Put the pairs in order by their keys, if they are in memory; those of one key stay as they were."""
        if self.in_memory:
            self._held.sort(key=lambda pair: pair[0])

    def part(self, number: int | None) -> Iterator[tuple[str, Value]]:
        """The pairs of one part; with None, of all parts. Only one such iterator may be in use at a time."""
        for part in range(PARTS) if number is None else (number,):
            if self._files:
                self._files[part].seek(0)
                for size in self._sizes[part]:
                    yield from marshal.loads(self._files[part].read(size))
        yield from self._held if number is None else _divided(self._held)[number]

    def _spill(self) -> None:
        try:
            if not self._files:
                self._files = [tempfile.TemporaryFile(prefix="clipmill-") for _ in range(PARTS)]  # noqa: SIM115
                self._sizes = [[] for _ in range(PARTS)]
            for file, sizes, pairs in zip(self._files, self._sizes, _divided(self._held), strict=True):
                file.seek(0, os.SEEK_END)
                sizes.append(file.write(marshal.dumps(pairs)))  # ten times faster than pickle, for what a pair may hold
                file.flush()
        except OSError as error:
            room = f"{tempfile.gettempdir()} has no room for the list of sources ({error.strerror or error})"
            raise NoRoom(f"{room}; name another folder in TMPDIR") from None
        self._filed += len(self._held)
        self._held = []


def parts_of(*spools: Spool[Any]) -> Iterable[int | None]:
    """The parts to look at, one after the other, to see all pairs of these spools with those of one key together."""
    return (None,) if all(spool.in_memory for spool in spools) else range(PARTS)


def _divided(pairs: list[tuple[str, Value]]) -> list[list[tuple[str, Value]]]:
    """The pairs of each part."""
    parts: list[list[tuple[str, Value]]] = [[] for _ in range(PARTS)]
    for pair in pairs:
        parts[hash(pair[0]) % PARTS].append(pair)
    return parts
