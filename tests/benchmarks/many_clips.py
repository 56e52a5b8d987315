"""A dataset of millions of clips, drawn from a seed, as a finished job would have left it: for benchmarks of deciding.

Every score of the schema has values, one clip in a hundred has an error instead, every caption column has captions.
Media is there only for the few clips whose motion lies above `MEDIA_ABOVE` (3 in 10,000), tiny and the same for all,
so that a decision that keeps those can really be looked at and exported; the other clips name tars that are missing.

    python -m tests.benchmarks.many_clips FOLDER [--clips 10000000]
"""

import argparse
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import schema
from curation.caption_words import caption_columns
from tests.synthetic import jpeg, mp4

ROWS_PER_FILE = 122_880
PER_SOURCE = 10
MEDIA_ABOVE = 3.5  # of motion.coarse
LABELS = ("static", "horizontal", "vertical", "zooming", "rotating", "complex")
WORDS = 5000  # of the captions' vocabulary


def write_dataset(root: Path, clips: int, seed: int = 0) -> None:
    """`clips` rows in clips/, a tenth as many in sources/, and the media described above."""
    rng = np.random.default_rng(seed)
    for folder in ("clips", "sources", "media"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    film, picture = mp4((60, 120, 180)), jpeg((60, 120, 180))
    for part, start in enumerate(range(0, clips, ROWS_PER_FILE)):
        columns = _clips(rng, np.arange(start, min(start + ROWS_PER_FILE, clips)))
        _add_media(root / f"media/bench-{part:05d}.tar", columns, film, picture)
        _write(root / f"clips/part-{part:05d}.parquet", columns, schema.CLIPS)
    n = -(-clips // PER_SOURCE)
    numbers = np.arange(n)
    columns = {
        "source_id": _padded(numbers),
        "source_uri": _uri(numbers),
        "status": pa.array(["ok"]).take(pa.array(np.zeros(n, np.int8))),
        "duration_s": np.full(n, 120.0),
        "clips": np.full(n, PER_SOURCE, np.int32),
        "kept_s": np.full(n, 110.0),
        "lost_short_s": np.full(n, 10.0),
        "cuts_s": np.full(n, 1.5),
    }
    _write(root / "sources/part-00000.parquet", columns, schema.SOURCES)
    (root / "job.yaml").write_text("inputs: []\n")  # last: a folder with it is complete


def _clips(rng: np.random.Generator, index: np.ndarray) -> dict[str, Any]:
    n = len(index)
    ids = np.frombuffer(rng.bytes(16 * n).hex().encode(), "S32").astype("U32")
    duration = np.round(rng.uniform(2, 20, n), 3)
    columns: dict[str, Any] = {
        "clip_id": ids,
        "source_id": _padded(index // PER_SOURCE),
        "source_uri": _uri(index // PER_SOURCE),
        "start_s": (index % PER_SOURCE) * 20.0,
        "duration_s": duration,
        "frames": (duration * 24).astype(np.int32),
        "media_file": _numbered("part-", index // 1000, ".tar"),
        "media_offset": index % 1000 * 2_000_000 + 512,
        "media_size": rng.integers(10**5, 2 * 10**6, n),
    }
    for score in schema.SCORES:
        failed = rng.random(n) < 0.01
        if score.kind == "label":
            values: Any = pa.array(np.array(LABELS)[rng.integers(0, len(LABELS), n)], mask=failed)
        elif score.kind == "per_frame":
            frames = rng.beta(0.3, 8, 3 * n).astype(np.float32)
            frames[rng.random(3 * n) < 0.5] = 0
            offsets = pa.array(np.arange(0, 3 * n + 1, 3, dtype=np.int32))
            values = pa.ListArray.from_arrays(offsets, frames, mask=pa.array(failed))
        else:
            values = pa.array(rng.gamma(1.2, 0.4, n).astype(np.float32), mask=failed)
        columns[score.column] = values
        columns[f"{score.column}_error"] = pa.array(["too_short: one frame"]).take(
            pa.array(np.zeros(n, np.int8), mask=~failed)
        )
        columns[f"{score.column}_model"] = pa.array([f"a model of {score.name}"]).take(pa.array(np.zeros(n, np.int8)))
    for column in caption_columns():
        words = _numbered("word", rng.zipf(1.3, 8 * n) % WORDS, "")
        offsets = pa.array(np.arange(0, 8 * n + 1, 8, dtype=np.int32))
        columns[column] = pc.binary_join(pa.ListArray.from_arrays(offsets, words), " ")
    return columns


def _numbered(before: str, numbers: np.ndarray, after: str, width: int = 0) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(before, digits, after, "")


def _padded(numbers: np.ndarray) -> pa.Array:
    """The numbers as ids in ascending order."""
    return _numbered("", numbers, "", 32)


def _uri(numbers: np.ndarray) -> pa.Array:
    return _numbered("s3://bucket/films/", numbers, ".mp4")


def _add_media(path: Path, columns: dict[str, Any], film: bytes, picture: bytes) -> None:
    """Write the tar of the clips that have media, and say in their rows where it is."""
    names = columns["media_file"].to_pylist()
    size, offset = columns["media_size"], columns["media_offset"]
    jpeg_size, jpeg_offset = np.zeros(len(size), np.int64), np.zeros(len(size), np.int64)
    moving = np.nan_to_num(np.asarray(columns["motion_coarse"].to_numpy(zero_copy_only=False)))
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in np.flatnonzero(moving > MEDIA_ABOVE):
            names[i], size[i], jpeg_size[i] = path.name, len(film), len(picture)
            for kind, data, places in (("mp4", film, offset), ("jpg", picture, jpeg_offset)):
                member = tarfile.TarInfo(f"{columns['clip_id'][i]}.{kind}")
                member.size = len(data)
                places[i] = tar.offset + tarfile.BLOCKSIZE
                tar.addfile(member, io.BytesIO(data))
    columns["media_file"] = names
    columns["thumbnail_size"] = pa.array(jpeg_size, mask=jpeg_size == 0)
    columns["thumbnail_offset"] = pa.array(jpeg_offset, mask=jpeg_size == 0)


def _write(path: Path, columns: dict[str, Any], wanted: pa.Schema) -> None:
    n = len(next(iter(columns.values())))
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in wanted]
    pq.write_table(pa.Table.from_arrays(arrays, schema=wanted), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--clips", type=int, default=10_000_000)
    args = parser.parse_args()
    write_dataset(args.root, args.clips)
    digest = hashlib.sha256((args.root / "clips/part-00000.parquet").read_bytes()).hexdigest()[:16]
    print(f"{args.root}: {args.clips} clips (first file {digest})")


if __name__ == "__main__":
    main()
