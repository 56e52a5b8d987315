"""What the server may and may not be asked for: bytes of clips by range, and no path outside the dataset."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipelines.dashboard.pages import (
    fetch,
)
from tests.synthetic import make_dataset


def test_ranges_of_a_clip_are_the_bytes_of_its_tar_member(server: str, root: Path) -> None:
    row = pq.read_table(root / "clips/part-00000.parquet").to_pylist()[3]
    with open(root / f"media/{row['media_file']}", "rb") as tar:
        tar.seek(row["media_offset"])
        whole = tar.read(row["media_size"])
    address, size = f"{server}/d/films/clip/{row['clip_id']}.mp4", len(whole)
    assert fetch(address)[::2] == (200, whole)
    for asked, first, last in (("0-0", 0, 0), ("10-99", 10, 99), ("100-", 100, size - 1), ("-7", size - 7, size - 1)):
        status, headers, body = fetch(address, Range=f"bytes={asked}")
        assert (status, body) == (206, whole[first : last + 1])
        assert headers["content-range"] == f"bytes {first}-{last}/{size}"
    assert fetch(address, Range=f"bytes={size - 1}-{size + 50}")[2] == whole[-1:]
    status, headers, _ = fetch(address, Range=f"bytes={size}-")
    assert (status, headers["content-range"]) == (416, f"bytes */{size}")
    assert fetch(f"{address}?place=99999")[2] == whole  # a stale place in a link costs a search, nothing else


@pytest.mark.parametrize(
    "path",
    [
        "/d/films/clip/..%2f..%2fjob.yaml.mp4",
        "/d/films/../../job.yaml",
        "/d/..%2f..%2fetc/clip/passwd.mp4",
        "/d/films/job.yaml",
        "/d/films/media/part-00000.tar",
        "/d/other/clip/0.mp4",
        "/d/films/download.exe",
    ],
)
def test_no_path_leads_outside(server: str, path: str) -> None:
    status, _, body = fetch(f"{server}{path}")
    assert status == 404 or b"There is no dataset" in body
    assert b"inputs:" not in body


@pytest.mark.parametrize("media_file", ["../secret.tar", "/etc/passwd", "link.tar", "..", "part-00000.tar/../x.tar"])
def test_a_dataset_cannot_point_the_server_at_other_files(tmp_path: Path, media_file: str) -> None:
    import httpx
    from fastapi import FastAPI

    from pipelines.dashboard.datasets import Registry
    from pipelines.dashboard.files import routes

    made = make_dataset(
        tmp_path / "data",
        clips=2,
        media=False,
        change=lambda i, row: row.update(
            media_file=media_file, media_offset=0, media_size=6, thumbnail_offset=0, thumbnail_size=6
        ),
    )
    (tmp_path / "data/secret.tar").write_bytes(b"secret")
    (tmp_path / "secret.tar").write_bytes(b"secret")
    (made / "media/link.tar").symlink_to(tmp_path / "secret.tar")
    clip_id = pq.read_table(made / "clips/part-00000.parquet")["clip_id"][0].as_py()
    app = FastAPI()
    app.include_router(routes(Registry([str(made)])))

    async def ask(kind: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.get(f"/d/data/clip/{clip_id}.{kind}")

    for kind in ("mp4", "jpg"):
        with ThreadPoolExecutor(1) as apart:  # Playwright keeps an event loop in this thread
            answer = apart.submit(asyncio.run, ask(kind)).result()
        assert answer.status_code == 404
        assert b"secret" not in answer.content


def test_only_requests_that_name_this_machine_are_answered(server: str) -> None:
    assert fetch(f"{server}/d/films/download.csv", Host="evil.example")[0] == 400


def test_a_cell_that_a_spreadsheet_would_run_is_disarmed() -> None:
    from pipelines.dashboard.files import as_cells

    assert as_cells(pa.array(["=HYPERLINK(1)", "a=b", None])).to_pylist() == ["'=HYPERLINK(1)", "a=b", None]
    assert as_cells(pa.array([-3.5])).to_pylist() == ["-3.5"]
    assert as_cells(pa.array([["a", "b"], []])).to_pylist() == ["a;b", ""]
