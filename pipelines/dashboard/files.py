"""What the pages load besides themselves: clips and thumbnails straight out of the media tars, and downloads.

A clip is served by HTTP range (RFC 9110, section 14): the range asked for becomes a range of the tar. A request names
a dataset and a clip, never a path. The path comes from the clip's row; because a dataset is data too, it must be the
plain name of a tar that lies in the dataset's own media folder.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pyarrow import csv
from starlette.background import BackgroundTask

from curation import schema
from curation.decisions import TABLE
from curation.rules import RulesError
from curation.score_table import SchemaError
from pipelines.dashboard.datasets import OpenDataset, Registry
from pipelines.dashboard.view import read_view
from pipelines.decide import DatasetError

_MEDIA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.tar")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = 1 << 20


def routes(registry: Registry) -> APIRouter:
    """The routes for these datasets."""
    router = APIRouter()

    def dataset(name: str) -> OpenDataset:
        found = registry.get(name)
        if found is None:
            raise HTTPException(404, f"no dataset is called {name!r}")
        return found

    def row(name: str, clip_id: str, place: int | None) -> tuple[OpenDataset, dict[str, Any]]:
        where = dataset(name)
        try:
            found = where.clip(clip_id, place)
        except (DatasetError, SchemaError) as error:
            raise HTTPException(404, str(error)) from None
        if found is None:
            raise HTTPException(404, f"no clip of {name!r} is called {clip_id!r}")
        return where, found

    @router.get("/d/{name}/clip/{clip_id}.mp4")
    def clip(request: Request, name: str, clip_id: str, place: int | None = None) -> Response:
        where, found = row(name, clip_id, place)
        return _piece(request, where, found, "media", "video/mp4")

    @router.get("/d/{name}/clip/{clip_id}.jpg")
    def thumbnail(request: Request, name: str, clip_id: str, place: int | None = None) -> Response:
        where, found = row(name, clip_id, place)
        return _piece(request, where, found, "thumbnail", "image/jpeg")

    @router.get("/d/{name}/download.{kind}")
    def download(request: Request, name: str, kind: str) -> Response:
        where = dataset(name)
        if kind not in ("csv", "parquet"):
            raise HTTPException(404, "there are download.csv and download.parquet")
        try:
            where.reopen()  # the rows are read from the files of now
            view = read_view(where, request.query_params)
            bounds = where.bounds(view.rules, view.recorded)
        except (RulesError, DatasetError, SchemaError) as error:
            raise HTTPException(400, str(error)) from None
        handle, path = tempfile.mkstemp(suffix=f".{kind}", prefix="clipmill-")
        os.close(handle)
        where.write_decided(bounds, _SHOWN, _CsvWriter(path) if kind == "csv" else pq.ParquetWriter(path, _schema()))
        media_type = "text/csv; charset=utf-8" if kind == "csv" else "application/vnd.apache.parquet"
        name = f"{view.saved or 'decision'}.{kind}"
        return FileResponse(path, media_type=media_type, filename=name, background=BackgroundTask(os.unlink, path))

    return router


_SHOWN = ("source_uri", "start_s", "duration_s", *(score.column for score in schema.SCORES))


def _schema() -> pa.Schema:
    return pa.schema([*TABLE, *[schema.CLIPS.field(name) for name in _SHOWN]], TABLE.metadata)


class _CsvWriter:
    """Record batches as CSV, with the interface of a ParquetWriter."""

    def __init__(self, path: str) -> None:
        self._writer = csv.CSVWriter(path, pa.schema([(name, pa.string()) for name in _schema().names]))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self._writer.write_table(pa.table({name: as_cells(batch[name]) for name in batch.schema.names}))

    def close(self) -> None:
        self._writer.close()


def as_cells(column: pa.Array) -> pa.Array:
    """A column as text for a spreadsheet: lists by semicolons, and no text that one would run as a formula."""
    if pa.types.is_list(column.type):
        return pc.binary_join(column.cast(pa.list_(pa.string())), ";")
    if pa.types.is_string(column.type):
        return pc.replace_substring_regex(column, r"^([=+\-@\t\r])", r"'\1")
    return column.cast(pa.string())


def _piece(request: Request, where: OpenDataset, row: dict[str, Any], what: str, kind: str) -> Response:
    """A clip or a thumbnail, whole or the range asked for."""
    name, offset, size = row["media_file"], row[f"{what}_offset"], row[f"{what}_size"]
    if not name or not size or offset is None or offset < 0 or size < 0:
        raise HTTPException(404, f"this clip has no {what}")
    check_media(where, name)
    first, last, partial = _asked(request.headers.get("range"), size)
    storage = where.dataset.storage
    try:
        if offset + size > storage.fs.size(storage.path(f"media/{name}")):
            raise HTTPException(404, f"media/{name} is shorter than the clip's row says")
    except FileNotFoundError:
        raise HTTPException(404, f"media/{name} is missing") from None
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(last - first + 1),
        "Cache-Control": "private, max-age=3600",
        "ETag": f'"{row["clip_id"]}-{what}-{size}"',
        "X-Content-Type-Options": "nosniff",
    }
    if partial:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"

    def body() -> Iterator[bytes]:
        at = offset + first
        while at <= offset + last:
            count = min(_CHUNK, offset + last + 1 - at)
            yield storage.read_range(f"media/{name}", at, count)
            at += count

    return StreamingResponse(body(), status_code=206 if partial else 200, media_type=kind, headers=headers)


def check_media(where: OpenDataset, name: str) -> None:
    """Refuse (404) whatever is not a tar directly inside the dataset's media folder, links out of it included."""
    if not _MEDIA.fullmatch(name):
        raise HTTPException(404, "this clip's row does not name a media tar")
    storage = where.dataset.storage
    if storage.is_local:
        folder = os.path.realpath(storage.path("media"))
        if os.path.dirname(os.path.realpath(storage.path(f"media/{name}"))) != folder:
            raise HTTPException(404, "this clip's media lies outside the dataset")


def _asked(header: str | None, size: int) -> tuple[int, int, bool]:
    """(first, last, whether it is a part) of the range that a request asks for. Raises HTTPException(416)."""
    if header is None:
        return 0, size - 1, False
    match = _RANGE.fullmatch(header.strip())
    if match is None:  # several ranges, or another unit: the whole thing is a correct answer
        return 0, size - 1, False
    begin, end = match.groups()
    if begin:
        first, last = int(begin), min(int(end), size - 1) if end else size - 1
    elif end and int(end) > 0:
        first, last = max(0, size - int(end)), size - 1
    else:
        first, last = size, size - 1
    if first >= size or first > last:
        raise HTTPException(416, "no such range", headers={"Content-Range": f"bytes */{size}"})
    return first, last, True
