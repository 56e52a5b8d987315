"""Near-duplicates: copies of real shots are found, other shots are not; the same answer in any order and block size."""

import io

import av
import cv2
import numpy as np
import pytest
from camera_moves import film_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import duplicates
from curation.conse import ConseSimilarity
from curation.duplicates import THRESHOLDS, Neighbour, clip_vectors, near_duplicates, threshold_of

SHOTS = [(0, 30), (30, 76), (76, 137), (137, 187), (187, 242)]


def coded_again(clip: np.ndarray, scale: float) -> np.ndarray:
    """The clip reduced and encoded as a second upload would be."""
    height, width = (round(side * scale / 2) * 2 for side in clip.shape[1:3])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in clip:
            small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        out.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_copies_of_real_shots_are_found_and_other_shots_are_not(conse: ConseSimilarity) -> None:
    film = film_frames("bikes.mp4", 242)
    shots = [film[first:last] for first, last in SHOTS]
    clips = [*shots, *[coded_again(shot[1:-1], 0.6) for shot in shots]]
    embedded = np.stack([conse.embed_images([clip[0], clip[len(clip) // 2], clip[-1]]) for clip in clips])
    vectors = clip_vectors(embedded.astype(np.float16))
    ids = [f"a{k}" for k in range(5)] + [f"b{k}" for k in range(5)]
    found = near_duplicates(vectors, ids, [float(len(c)) for c in clips], threshold=THRESHOLDS["conse"])
    assert [each.duplicate for each in found] == [False] * 5 + [True] * 5
    assert [each.of for each in found[5:]] == ids[:5]
    assert max(each.similarity for each in found[:5]) < threshold_of(conse.name) <= found[5].similarity


def test_the_longer_clip_is_kept_and_ties_go_by_id() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1, 0]]
    found = near_duplicates(vectors, ["d", "b", "c", "a"], [2.0, 5.0, 1.0, 5.0], threshold=0.9)
    assert found[:2] == [Neighbour("a", 1.0, True)] * 2
    assert found[2:] == [Neighbour("a", 0.0, False), Neighbour(None, 0.0, False)]


def test_there_are_no_chains() -> None:
    """a ~ b and b ~ c, but a is unlike c: both a and c stay."""
    angles = np.deg2rad([0, 15, 30])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    found = near_duplicates(vectors, ["a", "b", "c"], [3.0, 1.0, 2.0], threshold=float(np.cos(np.deg2rad(20))))
    assert [each.duplicate for each in found] == [False, True, False]
    assert found[2].similarity == pytest.approx(np.cos(np.deg2rad(30)))  # to a: b is not kept


def made_of_groups(seed: int) -> tuple[np.ndarray, list[str], list[float]]:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(12, 16))
    vectors = centres[generator.integers(0, 12, 60)] + generator.normal(0, 0.12, (60, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    durations = generator.integers(2, 6, 60).astype(float).tolist()
    return vectors.astype(np.float32), [f"clip{k:02d}" for k in range(60)], durations


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_every_duplicate_is_close_to_what_is_kept_and_the_kept_are_far_apart(seed: int) -> None:
    vectors, ids, durations = made_of_groups(seed)
    found = near_duplicates(vectors, ids, durations, threshold=0.9)
    at = {name: k for k, name in enumerate(ids)}
    kept = [k for k, each in enumerate(found) if not each.duplicate]
    for k, each in enumerate(found):
        assert each.duplicate == (each.similarity >= 0.9)
        if each.duplicate:
            assert not found[at[each.of]].duplicate
            assert vectors[k] @ vectors[at[each.of]] == pytest.approx(each.similarity, abs=1e-5)
            assert durations[at[each.of]] >= durations[k]
    apart = vectors[kept] @ vectors[kept].T - 2 * np.eye(len(kept))
    assert apart.max() < 0.9 + 1e-6


@pytest.mark.parametrize("block", [1, 7, 64])
def test_order_and_block_size_do_not_matter(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    vectors, ids, durations = made_of_groups(1)
    expected = dict(zip(ids, near_duplicates(vectors, ids, durations, threshold=0.9), strict=True))
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    shuffle = np.random.default_rng(5).permutation(len(ids))
    names = [ids[k] for k in shuffle]
    found = near_duplicates(vectors[shuffle], names, [durations[k] for k in shuffle], threshold=0.9)
    for name, each in zip(names, found, strict=True):
        wanted = expected[name]
        assert (each.of, each.duplicate) == (wanted.of, wanted.duplicate)
        assert each.similarity == pytest.approx(wanted.similarity, abs=1e-6)


def test_no_clips_is_no_duplicates() -> None:
    assert near_duplicates(np.zeros((0, 4), np.float32), [], [], threshold=0.9) == []


@pytest.mark.parametrize(
    ("vectors", "ids", "threshold", "message"),
    [
        (np.eye(2), ["a"], 0.9, "as many"),
        (np.eye(2), ["a", "a"], 0.9, "twice"),
        (np.eye(2), ["a", "b"], 1.5, "threshold"),
        (np.full((2, 2), np.nan), ["a", "b"], 0.9, "finite"),
    ],
)
def test_wrong_input_is_refused(vectors: np.ndarray, ids: list[str], threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        near_duplicates(vectors, ids, [1.0] * len(ids), threshold=threshold)
