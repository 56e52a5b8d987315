"""Near-duplicates of a whole dataset, within and across sources: the columns that compaction adds to the clips.

    near_duplicate        cosine to the most alike clip that is kept before this one (longer clips come first)
    duplicate_of          that clip, where the cosine reaches the model's threshold
    near_duplicate_error  for a clip without an embedding

They depend on every clip of the dataset, so they are filled in when all sources are committed, and anew when clips have
come or gone since. Memory: one vector of 4 bytes a number for each clip.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.duplicates import clip_vectors, near_duplicates, threshold_of
from curation.schema import CLIPS
from pipelines.commit import Complete
from pipelines.dataset import Dataset
from pipelines.spec import Spec

_COLUMNS = ("near_duplicate", "near_duplicate_error", "near_duplicate_model", "duplicate_of")
_DIGITS = 4  # so that the last bits of a matrix product do not show in the dataset


def near_duplicates_of(spec: Spec, dataset: Dataset) -> Complete:
    """What `compact` calls for every table of clips. Does nothing where the job has no embeddings or wants none of
    this."""
    if "similarity" not in spec.choices() or not spec.models.near_duplicates:
        return lambda clips: clips
    state = dataset.clips(["clip_id", "gate", "embedding_model", *_COLUMNS])
    if _is_current(state):
        return lambda clips: clips
    found = _find(dataset)

    def complete(clips: pa.Table) -> pa.Table:
        rows = [found.get(each, {}) for each in clips["clip_id"].to_pylist()]
        for name in _COLUMNS:
            column = pa.array([row.get(name) for row in rows], CLIPS.field(name).type)
            clips = clips.set_column(clips.schema.get_field_index(name), CLIPS.field(name), column)
        return clips

    return complete


def _is_current(clips: pa.Table) -> bool:
    """Whether every clip that was looked at has its columns, and every clip that they name is still there."""
    looked_at = pc.is_valid(clips["embedding_model"])
    done = pc.is_valid(clips["near_duplicate_model"])
    if pc.any(pc.xor(looked_at, done)).as_py():
        return False
    named = pc.drop_null(clips["duplicate_of"])
    return bool(pc.all(pc.is_in(named, clips["clip_id"])).as_py() is not False)


def _find(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The columns of every clip that the image models have looked at."""
    committed = pa.array(sorted(dataset.committed_ids()), pa.string())
    ids: list[str] = []
    durations: list[float] = []
    vectors: list[np.ndarray] = []
    found: dict[str, dict[str, Any]] = {}
    model = ""
    wanted = ["clip_id", "source_id", "duration_s", "embedding", "embedding_error", "embedding_model"]
    for name in dataset.part_files("clips"):  # a part at a time: three vectors of a clip are read, one is kept
        table = dataset.read_table(f"clips/{name}", wanted)
        table = table.filter(pc.is_in(table["source_id"], committed)).filter(pc.is_valid(pc.field("embedding_model")))
        for row in table.drop_columns("embedding").to_pylist():
            model = row["embedding_model"]
            found[row["clip_id"]] = {"near_duplicate_model": model, "near_duplicate_error": row["embedding_error"]}
        table = table.filter(pc.is_valid(table["embedding"]))
        if table.num_rows:
            ids += table["clip_id"].to_pylist()
            durations += table["duration_s"].to_pylist()
            values = pc.list_flatten(table["embedding"]).to_numpy()
            vectors.append(clip_vectors(values.reshape(table.num_rows, 3, -1)))
    if not ids:
        return found
    neighbours = near_duplicates(np.concatenate(vectors), ids, durations, threshold=threshold_of(model))
    for clip_id, neighbour in zip(ids, neighbours, strict=True):
        found[clip_id]["near_duplicate"] = round(neighbour.similarity, _DIGITS)
        if neighbour.duplicate:
            found[clip_id]["duplicate_of"] = neighbour.of
    return found
