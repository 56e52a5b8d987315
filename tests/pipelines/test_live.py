"""What others can know of a job that runs: progress.json, while it is there and afterwards."""

import json
import time
from pathlib import Path

import pytest

import pipelines.curate
from curation.storage import Storage
from pipelines.curate import JobFailed, curate
from pipelines.live import SILENT_S, Progress, describe, read_live, told
from pipelines.spec import parse_spec


def test_a_job_tells_its_queue_and_the_time_left_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.live.EVERY_S", 0.01)
    storage = Storage(tmp_path)
    progress = Progress(sources=3, stage="curating", waiting={"a.mp4": None, "b.mp4": None}, bytes=100, bytes_done=25)
    with told(storage, lambda ended: describe(progress, ended)):
        while (live := read_live(storage)) is None:
            time.sleep(0.005)
        assert (live.stage, live.waiting, live.next, live.running) == ("curating", 2, ["a.mp4", "b.mp4"], True)
        assert live.left_s == pytest.approx(3 * live.elapsed_s, abs=0.5)
        del progress.waiting["a.mp4"]
        while read_live(storage) in (None, live) or read_live(storage).next != ["b.mp4"]:  # type: ignore[union-attr]
            time.sleep(0.005)
    assert read_live(storage) is None
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_fails_says_why_and_one_that_is_killed_falls_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.mp4").write_bytes(b"not a film")
    spec = parse_spec(
        {"input": {"uris": [str(tmp_path / "films")]}, "output": str(tmp_path / "out"), "scores": {"text": "off"}}, ""
    )

    def fail(*_: object) -> None:
        raise JobFailed("the disk is full")

    monkeypatch.setattr(pipelines.curate, "_curate_sources", fail)
    with pytest.raises(JobFailed):
        curate(spec)
    storage = Storage(tmp_path / "out")
    live = read_live(storage)
    assert live is not None
    assert (live.ended, live.sources, live.running) == ("the disk is full", 1, False)
    data = json.loads(storage.read("progress.json")) | {"ended": None}
    storage.write("progress.json", json.dumps(data).encode())
    assert read_live(storage).running  # type: ignore[union-attr]
    storage.write("progress.json", json.dumps(data | {"written": data["written"] - SILENT_S - 1}).encode())
    assert not read_live(storage).running  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b"\xff"])
def test_a_file_that_says_nothing_is_no_job(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "progress.json").write_bytes(content)
    assert read_live(Storage(tmp_path)) is None
