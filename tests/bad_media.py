"""Files that are wrong in every way that a source can be wrong, and what the dataset must say about each."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from curation.probe import probe
from tests.media import Join, Shot, film, make_film

EXPECTED: dict[str, tuple[str, str | None]] = {
    "good.mp4": ("ok", None),
    "also-good.mp4": ("ok", None),
    "copy-of-good.mp4": ("ok", None),  # a job makes it a duplicate
    "zero-bytes.mp4": ("failed", "zero_bytes"),
    "text.mp4": ("failed", "not_a_video"),
    "truncated-no-index.mp4": ("failed", "not_a_video"),
    "truncated.mp4": ("ok", "truncated"),
    "joined.ts": ("ok", "timestamps_restart"),
    "audio-only.mp4": ("failed", "no_video_stream"),
    "matroska.mp4": ("ok", "wrong_extension"),
    "one-frame.mp4": ("failed", "one_frame"),
    "no-frames.mp4": ("failed", "no_frames"),
    "too-short.mp4": ("ok", "no_clips"),
}
"""File name -> (status, reason), with clips of at least a second."""


def write_bad_films(folder: Path) -> Path:
    """All of EXPECTED, and `corrupt.mp4`, whose middle is noise. A few seconds of work."""
    folder.mkdir(parents=True, exist_ok=True)
    good = folder / "good.mp4"
    make_film(good, [Shot("bikes.1", 50), Shot("bunny", 50)], gop=12)
    make_film(folder / "also-good.mp4", [Shot("carphone", 40), Shot("bikes.2", 60)], [Join("dissolve", 10)])
    data = good.read_bytes()
    (folder / "copy-of-good.mp4").write_bytes(data)
    (folder / "zero-bytes.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("This is no film.\n" * 100)
    (folder / "truncated-no-index.mp4").write_bytes(_index_last(film("bikes.mp4").read_bytes())[:200_000])
    for name in ("long.mp4", "matroska.mkv"):
        make_film(folder / name, [Shot("bikes.1", 100), Shot("bunny", 100)], gop=12)
    (folder / "truncated.mp4").write_bytes(_faststart(folder / "long.mp4", folder / "faststart.mp4"))
    (folder / "long.mp4").unlink()
    with (folder / "joined.ts").open("wb") as file:
        for piece in ("bikes.3", "bunny"):
            file.write(make_film(folder / "part.ts", [Shot(piece, 60)], gop=12).path.read_bytes())
    (folder / "part.ts").unlink()
    (folder / "matroska.mkv").rename(folder / "matroska.mp4")
    _write_audio(folder / "audio-only.mp4")
    make_film(folder / "one-frame.mp4", [Shot("bunny", 1)])
    make_film(folder / "too-short.mp4", [Shot("bikes.3", 10)])
    _write_no_frames(folder / "no-frames.mp4")
    noisy = bytearray(data)
    middle, length = len(data) // 2, len(data) // 6
    noisy[middle : middle + length] = np.random.default_rng(0).bytes(length)
    (folder / "corrupt.mp4").write_bytes(bytes(noisy))
    return folder


def _index_last(data: bytes) -> bytes:
    """The film as it is when its index comes after its frames, as most cameras write it."""
    boxes, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes.append((data[at + 4 : at + 8], data[at : at + size]))
        at += size
    return b"".join(box for kind, box in sorted(boxes, key=lambda box: box[0] == b"moov"))


def _faststart(source: Path, path: Path) -> bytes:
    """The first half of an mp4 whose index comes first."""
    with av.open(str(source)) as reader, av.open(str(path), "w", options={"movflags": "faststart"}) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    data = path.read_bytes()
    path.unlink()
    return data[: len(data) // 2]


def _write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for k in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, k * 1024, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_no_frames(path: Path) -> None:
    """A video track of no length: what is there of a recording that stopped before its first fragment."""
    with av.open(str(path), "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()


def damage(path: Path, at_frame: int) -> None:
    """Put a hundred wrong bytes around the packet of a frame of a film whose file begins with its video."""
    data, info = bytearray(path.read_bytes()), probe(path)
    middle = int(info.packet_size[info.decode_rank < at_frame].sum())
    random = np.random.default_rng(0)
    for at in random.integers(middle - 3000, middle + 3000, 100):
        data[at] = random.integers(256)
    path.write_bytes(data)
