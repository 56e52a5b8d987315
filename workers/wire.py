"""What travels between the actors: one row of a Ray Data block is one message.

A segment's clips travel as one Arrow IPC stream in a large_binary column, so that an actor reads the bytes of a clip
from shared memory without copying them. A source's report and every receipt are small JSON.
"""

import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curation.schema import CLIPS
from curation.segment import FinishedClip, Segment

Kind = Literal["segment", "report", "receipt", "abort"]

MESSAGE = pa.schema(
    [
        pa.field("kind", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("note", pa.string()),  # JSON
        pa.field("clips", pa.large_binary()),  # Arrow IPC stream of _CLIP rows
    ]
)
_CLIP = pa.schema(
    [
        *CLIPS,
        pa.field("data", pa.large_binary()),
        pa.field("thumbnail", pa.large_binary()),
        pa.field("pictures", pa.large_list(pa.large_binary())),
        pa.field("picture_shapes", pa.list_(pa.list_(pa.int32()))),
        pa.field("small", pa.large_binary()),
        pa.field("small_shape", pa.list_(pa.int32())),
        pa.field("small_times_s", pa.list_(pa.float64())),
    ]
)


def message(kind: Kind, uri: str, note: dict[str, Any], clips: pa.Buffer | None = None) -> pa.Table:
    """A block of one message. `clips` is not copied."""
    if clips is None:
        column = pa.nulls(1, pa.large_binary())
    else:
        ends = pa.py_buffer(np.array([0, clips.size], np.int64))
        column = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, clips])
    return pa.table({"kind": [kind], "uri": [uri], "note": [json.dumps(note)], "clips": column}, schema=MESSAGE)


def messages(batch: pa.Table) -> list[tuple[Kind, str, dict[str, Any], pa.Buffer | None]]:
    """The messages of a block: kind, uri, note, clips."""
    return [
        (kind.as_py(), uri.as_py(), json.loads(note.as_py()), clips.as_buffer() if clips.is_valid else None)
        for kind, uri, note, clips in zip(*(batch.column(name) for name in MESSAGE.names), strict=True)
    ]


def pack(segment: Segment) -> pa.Buffer:
    """The clips of a segment as bytes."""
    columns: dict[str, Any] = {name: [clip.row.get(name) for clip in segment.clips] for name in CLIPS.names}
    columns["data"] = [clip.data for clip in segment.clips]
    columns["thumbnail"] = [clip.thumbnail for clip in segment.clips]
    columns["pictures"] = [[picture.tobytes() for picture in clip.frames] for clip in segment.clips]
    columns["picture_shapes"] = [[picture.shape for picture in clip.frames] for clip in segment.clips]
    small = [clip.small for clip in segment.clips]
    columns["small"] = [None if each is None else np.ascontiguousarray(each[0]).data.cast("B") for each in small]
    columns["small_shape"] = [None if each is None else each[0].shape for each in small]
    columns["small_times_s"] = [None if each is None else each[1] for each in small]
    arrays = [pa.array(columns[field.name], field.type) for field in _CLIP]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _CLIP) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=_CLIP))
    return sink.getvalue()


def unpack(source_id: str, index: int, clips: pa.Buffer) -> Segment:
    """The segment that `pack` made bytes of. Its clips' bytes are views into `clips`."""
    table = pa.ipc.open_stream(clips).read_all()
    rows = table.select(CLIPS.names).to_pylist()
    finished = []
    for k, row in enumerate(rows):
        pictures = [
            np.frombuffer(picture.as_buffer(), np.uint8).reshape(shape)
            for picture, shape in zip(
                table["pictures"][k].values or (), table["picture_shapes"][k].as_py() or (), strict=True
            )
        ]
        data, thumbnail = (memoryview(table[name][k].as_buffer()) for name in ("data", "thumbnail"))
        small = None
        if table["small"][k].is_valid:
            shape = table["small_shape"][k].as_py()
            frames = np.frombuffer(table["small"][k].as_buffer(), np.uint8).reshape(shape)
            small = frames, np.array(table["small_times_s"][k].as_py())
        finished.append(FinishedClip(row, data, thumbnail, pictures, small))
    return Segment(source_id, index, finished)
