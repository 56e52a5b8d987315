"""A segment: some consecutive finished clips of one source, the unit that is stored at once.

A segment becomes two files: `media/part-<source_id>-<k>.tar` with the clips' bytes and thumbnails, and
`clips/part-<source_id>-<k>.parquet` with their rows. Both depend on nothing but the source's content and the job's
settings (names, order, timestamps in the tar are all fixed), so writing a segment again writes the same bytes.
"""

import io
import tarfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.schema import CLIPS
from curation.storage import Storage

_BLOCK = tarfile.BLOCKSIZE


@dataclass
class FinishedClip:
    """A clip that is cut and scored.

    Attributes:
        row: columns of `schema.CLIPS` but the media ones; a column that is not there is null.
        data: the mp4 file.
        thumbnail: a JPEG of the middle frame; empty when that frame could not be decoded.
        frames: first, middle and last frame, (H, W, 3) RGB uint8, where a later stage needs them; else empty.
        small: the frames of the 2 fps grid, (N, h, w, 3) RGB uint8, and their times in seconds (N,), where a later
            stage needs them; else None.
    """

    row: dict[str, Any]
    data: bytes | memoryview
    thumbnail: bytes | memoryview
    frames: list[np.ndarray] = field(default_factory=list)
    small: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the clip holds in memory."""
        pictures = sum(frame.nbytes for frame in self.frames) + (0 if self.small is None else self.small[0].nbytes)
        return len(self.data) + len(self.thumbnail) + pictures


@dataclass
class Segment:
    """Consecutive clips of one source. `index` counts the source's segments from 0."""

    source_id: str
    index: int
    clips: list[FinishedClip]

    @property
    def name(self) -> str:
        """The stem of both files."""
        return f"part-{self.source_id}-{self.index:04d}"


def write_segment(storage: Storage, segment: Segment) -> int:
    """Store a segment under its two names: first the media, then the rows that point into it. Returns bytes written.

    Raises:
        OSError: nothing was left under a final name that is not complete.
    """
    media, rows = _tar(segment)
    table = pa.Table.from_pylist(rows, schema=CLIPS)
    storage.write(f"media/{segment.name}.tar", media)
    parquet = parquet_bytes(table)
    storage.write(f"clips/{segment.name}.parquet", parquet)
    return len(media) + len(parquet)


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _tar(segment: Segment) -> tuple[memoryview, list[dict[str, Any]]]:
    """The tar's bytes and the rows with the members' offsets filled in."""
    buffer = io.BytesIO()
    rows = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in segment.clips:
            row = dict(clip.row, media_file=f"{segment.name}.tar")
            row["media_offset"], row["media_size"] = _add(tar, f"{row['clip_id']}.mp4", clip.data)
            if len(clip.thumbnail):
                row["thumbnail_offset"], row["thumbnail_size"] = _add(tar, f"{row['clip_id']}.jpg", clip.thumbnail)
            rows.append(row)
    return buffer.getbuffer(), rows


def _add(tar: tarfile.TarFile, name: str, data: bytes | memoryview) -> tuple[int, int]:
    """Append a member that carries no date and no owner; returns (offset of its first byte, size)."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o644, 0
    offset = tar.offset + _BLOCK
    tar.addfile(member, io.BytesIO(data))
    return offset, len(data)
