"""Names that come from content: the same footage has the same ids in every job, on every machine, under every path."""

import hashlib
from typing import BinaryIO

ID_BYTES = 16
SAMPLE_BYTES = 1 << 20
SAMPLES = 16
"""A file of up to SAMPLES blocks is hashed whole. A longer one is hashed by its size and SAMPLES blocks, evenly spaced
from the first byte to the last: 16 MiB read, whatever its length. Two films of the same size that agree in all sixteen
megabytes, of which the ends hold their headers and indexes, are taken for the same film."""


def source_id(file: BinaryIO, size: int) -> str:
    """Content hash of a seekable binary file of `size` bytes: 32 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=ID_BYTES, person=b"clipmill-source1")
    digest.update(size.to_bytes(8, "little"))
    if size <= SAMPLES * SAMPLE_BYTES:
        offsets = list(range(0, size, SAMPLE_BYTES))
    else:
        last = size - SAMPLE_BYTES
        offsets = [last * k // (SAMPLES - 1) for k in range(SAMPLES)]
    for offset in offsets:
        file.seek(offset)
        digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def clip_id(source: str, start_pts: int, end_pts: int, mode: str) -> str:
    """Name of the clip [start_pts, end_pts) of a source, cut in `mode`: 32 hexadecimal digits."""
    text = f"{source}/{start_pts}/{end_pts}/{mode}"
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES, person=b"clipmill-clip-01").hexdigest()
