"""Object stores that answer slowly or not at all, and disks that fill up: nothing is lost."""

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines import curate as curate_module
from pipelines.cli import main
from pipelines.curate import JobFailed, curate
from pipelines.live import KEPT
from tests.media import film
from tests.pipelines.conftest import Faults
from tests.pipelines.test_job import content, job, rows

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(900)]


def test_a_busy_object_store_costs_time_and_nothing_else(s3: Any, s3_faults: Faults, tmp_path: Path) -> None:
    for k in range(2):
        s3.pipe_file(f"films/busy/{k}.mp4", film("bikes.mp4").read_bytes() + b"\0" * (8 + k))
    quiet = curate(job("s3://films/busy", "s3://films/quiet-out"))
    s3_faults.share, before = 0.15, s3_faults.seen.total()
    try:
        busy = curate(job("s3://films/busy", "s3://films/busy-out"))
    finally:
        s3_faults.share = 0.0
    assert s3_faults.seen.total() - before >= 10, "faults were injected"
    assert {row["status"] for row in rows(busy).values()} == {"ok"}
    s3.invalidate_cache()
    for folder in ("clips", "media", "shards/default"):
        names = busy.storage.list(folder)
        assert names == quiet.storage.list(folder)
        for name in names:
            assert busy.storage.read(f"{folder}/{name}") == quiet.storage.read(f"{folder}/{name}")


def test_a_disk_that_fills_up_ends_the_job_and_space_carries_it_on(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for k in range(2):
        (tmp_path / "films" / f"{k}.mp4").write_bytes(film("bikes.mp4").read_bytes() + b"\0" * (8 + k))
    undisturbed = content(curate(job(tmp_path / "films", tmp_path / "undisturbed")))
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 70 << 20  # what `check_space` asks for, and too little once somebody else writes, too
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "x", disk]).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        spec = job(tmp_path / "films", disk / "out")

        def fill(progress: Any) -> None:
            if progress.stage == "curating" and not (disk / "other").exists():
                free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
                (disk / "other").write_bytes(b"\0" * (free - (256 << 10)))

        with pytest.raises(JobFailed, match="cannot write to"):
            curate(spec, show=fill)
        (disk / "other").unlink()
        assert content(curate(spec)) == undisturbed
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_disk_that_is_full_at_the_end_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / "out" / "sources" / "part-00000.parquet"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))

    monkeypatch.setattr(curate_module, "_curate_sources", lambda *_: None)
    monkeypatch.setattr(curate_module, "compact", full)
    result = CliRunner().invoke(main, ["curate", str(film("bikes.mp4")), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last.startswith(
        f"clipmill: cannot write to {tmp_path}/out/sources/part-00000.parquet: No space left on device"
    )
    assert KEPT in last
