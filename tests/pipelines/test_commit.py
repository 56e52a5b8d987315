"""Killing a job at any moment, as often as one likes, and running it again gives the same files."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.schema import CLIPS, SOURCES
from curation.segment import FinishedClip, Segment, write_segment
from curation.source import failed_row
from curation.storage import Storage
from pipelines import commit
from pipelines.commit import Committer, compact, finish_compaction
from pipelines.dataset import Dataset


@pytest.fixture(autouse=True)
def _merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few sources are enough for what otherwise takes thousands."""
    monkeypatch.setattr(commit, "_SMALL_FILES", 3)


class Killed(BaseException):
    """The process ends here."""


def clip(source: str, k: int) -> FinishedClip:
    row = {"clip_id": f"{source}-{k}", "source_id": source, "source_uri": f"/films/{source}", "start_pts": 100 * k}
    row |= {"duration_s": 2.0, "end_pts": 100 * k + 50}
    return FinishedClip(row, f"mp4 {source} {k}".encode(), b"jpeg")


def segments(source: str, sizes: list[int]) -> list[Segment]:
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [
        Segment(source, k, [clip(source, n) for n in range(start, start + size)])
        for k, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


SOURCES_MADE = {f"{k:032x}": sizes for k, sizes in enumerate([[2], [1, 3, 1], [], [4, 1], [2, 2]])}
BAD = "/films/bad"


def work(root: Path, order: list[str]) -> None:
    """A job, in miniature: what is committed is skipped, the rest is done in this order."""
    dataset = Dataset(root)
    finish_compaction(dataset)
    known = set(dataset.sources()["source_uri"].to_pylist())
    committer = Committer(dataset, flush_rows=2)
    if BAD not in known:
        committer.add(failed_row(BAD, "not_a_video", "is none"))
    for source in order:
        uri = f"/films/{source}"
        if uri in known:
            continue
        made = segments(source, SOURCES_MADE[source])
        row = {"source_id": source, "source_uri": uri, "status": "ok", "clips": sum(SOURCES_MADE[source])}
        row |= {"duration_s": 10.0, "kept_s": 2.0 * row["clips"], "lost_short_s": 10.0 - 2.0 * row["clips"]}
        committer.report(uri, row, len(made))
        for segment in reversed(made):  # receipts come in any order
            write_segment(dataset.storage, segment)
            committer.receipt(uri, segment.index)
    committer.flush()
    compact(dataset)


def files(root: Path) -> dict[str, str]:
    """Every file and a hash of its content."""
    found = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("undisturbed")
    work(root, list(SOURCES_MADE))
    return files(root)


def test_the_canonical_form(undisturbed: dict[str, str], tmp_path: Path) -> None:
    work(tmp_path, list(SOURCES_MADE))
    names = [name for name in undisturbed if not name.startswith("media/")]
    assert names == ["clips/part-00000.parquet", "sources/part-00000.parquet"]
    clips = pq.read_table(tmp_path / "clips" / "part-00000.parquet")
    assert clips.schema.names == CLIPS.names
    assert clips.schema.metadata == CLIPS.metadata
    assert clips.schema.field("duration_s").metadata == CLIPS.field("duration_s").metadata
    expected = [f"{source}-{k}" for source, sizes in SOURCES_MADE.items() for k in range(sum(sizes))]
    assert clips["clip_id"].to_pylist() == expected
    sources = pq.read_table(tmp_path / "sources" / "part-00000.parquet")
    assert sources.schema.equals(SOURCES, check_metadata=True)
    assert sources["source_uri"].to_pylist() == sorted([BAD, *(f"/films/{source}" for source in SOURCES_MADE)])
    dataset = Dataset(tmp_path)
    for row in clips.to_pylist():
        assert dataset.clip_bytes(row).startswith(b"mp4 " + row["source_id"].encode())


def mortal(original: Callable[..., Any], lives: list[int], *, after: bool) -> Callable[..., Any]:
    """The operation, until the process dies at it: before it has done anything, or right after."""

    @functools.wraps(original)
    def operation(*args: Any, **kwargs: Any) -> Any:
        lives[0] -= 1
        if lives[0] == 0 and not after:
            raise Killed
        result = original(*args, **kwargs)
        if lives[0] == 0:
            raise Killed
        return result

    return operation


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kills=st.lists(st.tuples(st.integers(1, 45), st.booleans()), max_size=4),
    orders=st.lists(st.permutations(list(SOURCES_MADE)), min_size=5, max_size=5),
)
def test_a_killed_job_continued_gives_the_same_bytes(
    kills: list[tuple[int, bool]],
    orders: list[list[str]],
    undisturbed: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("killed")
    for (steps, after), order in zip(kills, orders, strict=False):
        with pytest.MonkeyPatch.context() as patch:
            lives = [steps]
            for name in ("write", "rename", "remove"):
                patch.setattr(Storage, name, mortal(getattr(Storage, name), lives, after=after))
            try:
                work(root, order)
            except Killed:
                readable = Dataset(root)  # a reader at this moment sees whole sources, each once
                ids = readable.clips(["clip_id"])["clip_id"].to_pylist()
                whole = {source for source in readable.committed_ids() if SOURCES_MADE[source]}
                assert len(ids) == len(set(ids))
                assert len(ids) == sum(sum(SOURCES_MADE[source]) for source in whole)
    work(root, orders[-1])
    assert files(root) == undisturbed


def test_a_writer_that_is_killed_leaves_nothing_under_a_final_name(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("media/part-a.tar", b"whole")
    with pytest.raises(Killed), storage.writing("media/part-a.tar") as path:  # noqa: PT012
        Path(path).write_bytes(b"ha")
        raise Killed
    assert list(files(tmp_path)) == ["media/part-a.tar"]
    assert storage.read("media/part-a.tar") == b"whole"
    (tmp_path / "media" / ".tmp-x-part-b.tar").write_bytes(b"ha")  # the process died without a chance to clean up
    assert storage.list("media") == ["part-a.tar"]
    storage.remove_leftovers("media")
    assert list(files(tmp_path)) == ["media/part-a.tar"]


def test_more_sources_later_join_the_same_files(undisturbed: dict[str, str], tmp_path: Path) -> None:
    work(tmp_path, list(SOURCES_MADE)[:3])
    first = files(tmp_path)
    work(tmp_path, list(SOURCES_MADE)[:3])
    assert files(tmp_path) == first  # running a finished job again changes nothing
    work(tmp_path, list(SOURCES_MADE)[::-1])
    assert files(tmp_path) == undisturbed


def test_large_tables_are_divided_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "ROWS_PER_FILE", 5)
    work(tmp_path / "at once", list(SOURCES_MADE))
    for count in range(1, len(SOURCES_MADE) + 1):
        work(tmp_path / "bit by bit", list(SOURCES_MADE)[-count:])
    assert files(tmp_path / "at once") == files(tmp_path / "bit by bit")
    assert [name for name in files(tmp_path / "at once") if name.startswith("clips/")] == [
        f"clips/part-{k:05d}.parquet" for k in range(4)
    ]


def test_media_of_a_source_that_was_not_committed_is_deleted(undisturbed: dict[str, str], tmp_path: Path) -> None:
    orphan = f"{99:032x}"
    write_segment(Storage(tmp_path), Segment(orphan, 0, [clip(orphan, 0)]))
    work(tmp_path, list(SOURCES_MADE))
    assert files(tmp_path) == undisturbed


def test_a_source_counts_once_its_last_segment_is_stored(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    committer = Committer(dataset, flush_rows=1)
    row = {"source_uri": "/films/x", "source_id": "x", "status": "ok"}
    assert committer.receipt("/films/x", 1) is None
    assert committer.report("/films/x", row, 2) is None
    assert dataset.sources().num_rows == 0
    assert committer.receipt("/films/x", 1) is None  # the same one again is not another one
    assert committer.receipt("/films/x", 0) == row
    assert dataset.sources()["source_uri"].to_pylist() == ["/films/x"]


def test_many_sources_leave_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "ROWS_PER_FILE", 6)
    dataset = Dataset(tmp_path)
    committer = Committer(dataset, flush_rows=1)
    for number in range(30):
        committer.add(failed_row(f"{number:02d}", "missing", "gone"))
        seen = dataset.sources()["source_uri"].to_pylist()
        assert seen == [f"{k:02d}" for k in range(number + 1)]
        assert len(dataset.part_files("sources")) <= 3 + 3 + number // 6
    compact(dataset)
    assert dataset.sources()["source_uri"].to_pylist() == seen


def test_content_that_turns_out_to_be_there_already_is_a_duplicate(tmp_path: Path) -> None:
    """Sources whose size a server does not say cannot be compared before they are fetched."""
    committer = Committer(Dataset(tmp_path), flush_rows=1)
    for uri in ("http://x/1", "http://x/2"):
        committer.report(uri, {"source_uri": uri, "source_id": "x", "status": "ok", "duration_s": 1.0}, 0)
    table = Dataset(tmp_path).sources()
    assert table["status"].to_pylist() == ["ok", "duplicate"]
    assert table["duplicate_of"].to_pylist() == [None, "http://x/1"]
    again = Committer(Dataset(tmp_path), flush_rows=1)
    again.report("http://x/0", {"source_uri": "http://x/0", "source_id": "x", "status": "ok"}, 0)
    assert Dataset(tmp_path).sources()["duplicate_of"].to_pylist() == ["http://x/1", None, "http://x/1"]
