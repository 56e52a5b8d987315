"""Near-duplicates: clips whose image embeddings nearly coincide, within and across sources, with the one that is kept.

Clips are looked at in order of preference (longest first). A clip close enough to one that is kept is a duplicate of
it; otherwise it is kept itself. No chains arise: every duplicate is within the threshold of its own representative,
which would not hold for connected components. The result depends on the set of clips only, not on their order. Stage
contract:

    clip_vectors(embeddings (N, F, D)) -> (N, D) unit vectors
    near_duplicates(vectors, clip_ids, durations_s, threshold=...) -> one Neighbour per clip
    threshold_of(model) -> cosine from which two clips are duplicates

Exact, in blocks: 100,000 clips of 768 numbers need about 8e12 multiplications where few are duplicates, two minutes on
2 cores, seconds on a GPU; memory is that of the vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = {"conse": 0.93, "clip": 0.95}
"""Cosine per embedding model. `conse` comes from measuring the packaged films: copies of a shot that were trimmed,
resized and encoded again are at 0.938 and above, other shots at 0.891 and below; two halves of one quiet shot are
above it too, and are near-duplicates indeed. `clip` was not measured here: no package carries CLIP's weights."""

_BLOCK = 2048


def threshold_of(model: str) -> float:
    """The threshold for embeddings of this model, by the beginning of its name. Raises KeyError for an unknown one."""
    for family, threshold in THRESHOLDS.items():
        if model.startswith(family):
            return threshold
    raise KeyError(f"no threshold is known for embeddings of {model}")


@dataclass(frozen=True)
class Neighbour:
    """The most alike clip among those that are kept before this one, and the cosine between the two.

    Attributes:
        of: its id; None for the first clip, which has none before it.
        similarity: 0 where there is none.
        duplicate: this clip is not kept, because that one is.
    """

    of: str | None
    similarity: float
    duplicate: bool


def clip_vectors(embeddings: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(N, D) unit vectors of clips from (N, F, D) embeddings of their frames: the direction of the mean."""
    mean = np.asarray(embeddings, np.float32).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def near_duplicates(
    vectors: NDArray[np.floating[Any]],
    clip_ids: Sequence[str],
    durations_s: Sequence[float],
    *,
    threshold: float,
    device: str = "cpu",
) -> list[Neighbour]:
    """For each clip the most alike one that is kept before it, and whether it duplicates that one.

    Args:
        vectors: (N, D) unit vectors, for example from `clip_vectors`; float16 as stored is fine.
        clip_ids: N ids, each once; they break ties between equal durations.
        durations_s: N durations; the longer clip of a pair is kept.
        threshold: cosine from which two clips are duplicates.

    Raises:
        ValueError: lengths that differ, an id that is there twice, vectors that are not finite, or a threshold outside
        (0, 1].
    """
    import torch

    count = len(clip_ids)
    if vectors.ndim != 2 or len(vectors) != count or len(durations_s) != count:
        raise ValueError(f"{len(vectors)} vectors, {count} ids and {len(durations_s)} durations: they must be as many")
    if len(set(clip_ids)) != count:
        raise ValueError("a clip id is there twice")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors are not finite")
    order = sorted(range(count), key=lambda k: (-durations_s[k], clip_ids[k]))
    ordered = torch.from_numpy(np.asarray(vectors, np.float32)[order]).to(device)
    found: dict[int, Neighbour] = {}
    kept: list[int] = []  # positions in `order`
    kept_vectors = ordered.new_empty((0, ordered.shape[1]))
    for start in range(0, count, _BLOCK):
        block = ordered[start : start + _BLOCK]
        best = block.new_full((len(block),), -2.0)
        where = torch.zeros(len(block), dtype=torch.long, device=block.device)
        for first in range(0, len(kept_vectors), _BLOCK):  # bounds the matrix of cosines
            value, index = (block @ kept_vectors[first : first + _BLOCK].T).max(dim=1)
            better = value > best
            best, where = torch.where(better, value, best), torch.where(better, index + first, where)
        inside = (block @ block.T).cpu().numpy()
        best_values, best_places = best.cpu().numpy(), where.cpu().numpy()
        fresh: list[int] = []
        for row in range(len(block)):
            value, place = float(best_values[row]), int(best_places[row])
            target = kept[place] if value > -2 else -1
            if fresh:
                column = fresh[int(np.argmax(inside[row, fresh]))]
                if inside[row, column] > value:
                    value, target = float(inside[row, column]), start + column
            duplicate = target >= 0 and value >= threshold
            of, likeness = (clip_ids[order[target]], min(1.0, value)) if target >= 0 else (None, 0.0)
            found[order[start + row]] = Neighbour(of, likeness, duplicate)
            if not duplicate:
                fresh.append(row)
        kept += [start + row for row in fresh]
        kept_vectors = torch.cat([kept_vectors, block[fresh]])
    return [found[index] for index in range(count)]
