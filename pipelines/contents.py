"""Which content is in the dataset already, and under which name, for millions of sources."""

from collections.abc import Collection

import numpy as np
import pyarrow.compute as pc

from pipelines.dataset import Dataset

_MANY = 100_000


class Contents:
    """`source_id` -> the uri of the source whose clips are in the dataset.

    Of the sources whose rows are stored only a number each is kept, the hash of its id; the rare row whose hash is
    there is read again.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._fresh: dict[str, str] = {}
        parts = dataset.source_parts(["source_id", "status"])
        stored = (_hashes(table.filter(pc.equal(table["status"], "ok"))["source_id"].to_pylist()) for table in parts)
        self._hashes = np.concatenate([np.empty(0, np.int64), *stored])
        self._hashes.sort()

    def first(self, source_id: str, uri: str) -> str:
        """The uri under which this content is known; from now on `uri` if it was not."""
        known = self._fresh.get(source_id)
        if known is None and self._is_kept(source_id):
            known = self._read(source_id)
        return known or self._fresh.setdefault(source_id, uri)

    def stored(self) -> None:
        """All rows given to `first` so far are in the dataset's files now."""
        if len(self._fresh) > _MANY:
            self._hashes = np.append(self._hashes, _hashes(self._fresh))
            self._hashes.sort()
            self._fresh = {}

    def _is_kept(self, source_id: str) -> bool:
        at = int(np.searchsorted(self._hashes, hash(source_id)))
        return at < len(self._hashes) and bool(self._hashes[at] == hash(source_id))

    def _read(self, source_id: str) -> str | None:
        for table in self._dataset.source_parts(["source_id", "source_uri", "status"]):
            found = table.filter((pc.field("source_id") == source_id) & (pc.field("status") == "ok"))
            if found.num_rows:
                uri: str = found["source_uri"][0].as_py()
                return uri
        return None


def _hashes(ids: Collection[str]) -> np.ndarray:
    return np.fromiter(map(hash, ids), np.int64, len(ids))
