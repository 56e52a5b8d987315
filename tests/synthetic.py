"""A small dataset directory with real, tiny mp4 clips and known scores, as the pipeline would have written it.

The scores are drawn from a seed; nothing here measures anything. For tests of what comes after scoring.
"""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import schema

Row = dict[str, Any]


def mp4(colour: tuple[int, int, int], *, frames: int = 6, size: tuple[int, int] = (64, 36)) -> bytes:
    """A real H.264 clip of one colour with a moving bar."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=12, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), colour, np.uint8)
            picture[:, 4 * i : 4 * i + 8] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode())
    return buffer.getvalue()


def jpeg(colour: tuple[int, int, int]) -> bytes:
    picture = np.full((90, 160, 3), colour[::-1], np.uint8)
    cv2.circle(picture, (80, 45), 30, (255, 255, 255), -1)
    return cv2.imencode(".jpg", picture)[1].tobytes()


def make_dataset(
    root: Path,
    *,
    clips: int = 40,
    sources: int = 4,
    seed: int = 0,
    change: Callable[[int, Row], None] | None = None,
    media: bool = True,
) -> Path:
    """Write job.yaml, sources/, clips/ and media/ under `root`. `change(i, row)` may edit the i-th clip's row.

    Every 13th clip has no motion score, every 17th no text score; the last two sources failed.
    """
    rng = np.random.default_rng(seed)
    for folder in ("sources", "clips", "media"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "job.yaml").write_text("inputs: []\n")
    names = [hashlib.sha256(f"source {seed} {i}".encode()).hexdigest()[:32] for i in range(sources)]
    rows: list[Row] = []
    at = [0.0] * sources
    colours = [(int(r), int(g), int(b)) for r, g, b in rng.integers(40, 220, (8, 3))]
    films = [mp4(colour) for colour in colours] if media else []
    with tarfile.open(root / "media/part-00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(clips):
            of = i % sources
            length = float(rng.integers(48, 240)) / 24
            start, at[of] = at[of], at[of] + length
            clip_id = hashlib.sha256(f"{names[of]} {start}".encode()).hexdigest()[:32]
            failed_motion, failed_text = i % 13 == 12, i % 17 == 16
            row: Row = dict.fromkeys(schema.CLIPS.names)
            row |= {
                "clip_id": clip_id,
                "source_id": names[of],
                "source_uri": f"/films/film {of}.mp4",
                "start_pts": int(start * 24),
                "end_pts": int((start + length) * 24),
                "time_base": 1 / 24,
                "start_s": start,
                "duration_s": length,
                "start_frame": round(start * 24),
                "frames": round(length * 24),
                "rate_fps": 24.0,
                "width": 64,
                "height": 36,
                "codec": "h264",
                "has_audio": False,
                "mode": "smart",
                "shot": i // sources,
                "copied_s": length / 2,
                "motion_coarse": None if failed_motion else float(np.float32(rng.gamma(1.2, 0.4))),
                "motion_coarse_error": "too_short: one sampled frame" if failed_motion else None,
                "motion_coarse_model": "farneback",
                "camera": None if failed_motion else str(rng.choice(["static", "horizontal", "zooming", "complex"])),
                "camera_error": "too_short: one sampled frame" if failed_motion else None,
                "camera_model": "farneback",
                "text_area": None if failed_text else [float(np.float32(v)) for v in rng.beta(0.3, 6, 3)],
                "text_area_error": "undecodable: last frame" if failed_text else None,
                "text_area_model": "craft",
            }
            if media:
                for kind, data in (("mp4", films[i % 8]), ("jpg", jpeg(colours[i % 8]))):
                    member = tarfile.TarInfo(f"{clip_id}.{kind}")
                    member.size = len(data)
                    at_byte = tar.offset + 512
                    tar.addfile(member, io.BytesIO(data))
                    which = "media" if kind == "mp4" else "thumbnail"
                    row |= {"media_file": "part-00000.tar", f"{which}_offset": at_byte, f"{which}_size": len(data)}
            if change is not None:
                change(i, row)
            rows.append(row)
    half = len(rows) // 2
    for part, chunk in enumerate((rows[:half], rows[half:])):
        if chunk:
            pq.write_table(pa.Table.from_pylist(chunk, schema.CLIPS), root / f"clips/part-{part:05d}.parquet")
    table = []
    for i in range(sources):
        kept = sum(row["duration_s"] for row in rows if row["source_id"] == names[i])
        lost = {"lost_transition_s": 1.5, "lost_short_s": 0.75, "lost_keyframe_s": 0.0, "lost_error_s": 0.25}
        table.append(
            dict.fromkeys(schema.SOURCES.names)
            | lost
            | {
                "source_id": names[i],
                "source_uri": f"/films/film {i}.mp4",
                "status": "ok",
                "size_bytes": 1000,
                "container": "mp4",
                "codec": "h264",
                "width": 64,
                "height": 36,
                "rate_fps": 24.0,
                "frames": 24 * 60,
                "duration_s": kept + sum(lost.values()),
                "hard_cuts": 5,
                "gradual_cuts": 1,
                "clips": sum(row["source_id"] == names[i] for row in rows),
                "kept_s": kept,
                "probe_s": 0.1,
                "cuts_s": 1.0,
                "clips_s": 0.5,
                "scores_s": 2.0,
            }
        )
    for name, reason, message in (
        ("broken.mp4", "truncated", "the moov atom is missing"),
        ("<script>alert(1)</script>.mp4", "not_video", "no video stream in <b>this</b> file"),
    ):
        table.append(
            dict.fromkeys(schema.SOURCES.names)
            | {"source_uri": f"/films/{name}", "status": "failed", "reason": reason, "message": message}
        )
    pq.write_table(pa.Table.from_pylist(table, schema.SOURCES), root / "sources/part-00000.parquet")
    return root


def exchange_scores(root: Path) -> None:
    """Another model's motion under the same file names: each clip has that of its neighbour."""
    for part in (root / "clips").iterdir():
        table = pq.read_table(part)
        moved = table["motion_coarse"].combine_chunks().take(pa.array([*range(1, len(table)), 0]))
        place = table.column_names.index("motion_coarse")
        pq.write_table(table.set_column(place, table.schema.field(place), moved), part)
