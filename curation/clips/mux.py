"""Writes one clip as mp4 bytes: samples in, file out, the same bytes every time.

FFmpeg's muxer writes the boxes. Decoding times are made here, from the presentation times alone, because copied and
re-encoded packets come with clocks of their own: with D the largest reordering delay, the i-th packet is decoded D
before the i-th frame is shown. The index is then moved to the front, so that a browser can begin at once.
"""

import heapq
import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from curation.clips.sound import Sound


@dataclass
class Sample:
    """One video packet of a clip, in decoding order."""

    packet: av.Packet
    pts: int  # in the film's time base, from the clip's first frame
    key: bool


@dataclass(frozen=True)
class VideoTrack:
    """The video of a clip."""

    template: VideoStream  # codec, size, colour, aspect and rotation
    samples: Sequence[Sample]
    time_base: Fraction
    end_pts: int  # length of the clip
    sample_aspect_ratio: Fraction
    extradata: bytes | None = None  # replaces the template's
    tag: str | None = None  # sample entry, where FFmpeg's choice would be wrong
    display_matrix: tuple[int, ...] | None = None  # replaces the template's


def write_mp4(video: VideoTrack, sound: Sound | None) -> bytes:
    """A complete mp4. Deterministic: no times, no versions, no names."""
    buffer = io.BytesIO()
    scale = video.time_base.denominator
    options = {"fflags": "+bitexact", "movie_timescale": str(max(1000, scale)), "video_track_timescale": str(scale)}
    with av.open(buffer, "w", format="mp4", options=options) as out:
        stream = _video_stream(out, video)
        tracks: list[Iterator[tuple[float, av.Packet]]] = [_timed(video, stream)]
        if sound is not None:
            tracks.append(_sound(out, sound))
        out.start_encoding()
        for _, packet in heapq.merge(*tracks, key=lambda timed: timed[0]):
            out.mux_one(packet)
    return index_first(buffer.getvalue())


def _video_stream(out: OutputContainer, video: VideoTrack) -> VideoStream:
    stream = out.add_stream_from_template(video.template, opaque=True)
    assert isinstance(stream, VideoStream)
    stream.time_base = Fraction(1, video.time_base.denominator)
    context = stream.codec_context
    context.sample_aspect_ratio = video.sample_aspect_ratio
    if video.extradata is not None:
        context.extradata = video.extradata
    if video.tag is not None:
        context.codec_tag = video.tag
    if video.display_matrix is not None:
        stream.set_display_matrix(video.display_matrix)
    return stream


def decoding_times(pts: np.ndarray) -> np.ndarray:
    """Decoding times for packets with these presentation times: increasing, and never after them."""
    shown = np.sort(pts)
    return shown - max(0, int((shown - pts).max()))


def _timed(video: VideoTrack, stream: VideoStream) -> Iterator[tuple[float, av.Packet]]:
    """(seconds, packet) in decoding order. A unit of the track is 1/denominator, so pts are scaled by the numerator."""
    base = video.time_base
    pts = np.array([sample.pts for sample in video.samples], dtype=np.int64) * base.numerator
    dts = decoding_times(pts)
    edges = np.append(np.sort(pts), video.end_pts * base.numerator)
    shown_for = edges[np.searchsorted(edges, pts) + 1] - pts
    shown_for[-1] = edges[-1] - edges[-2]  # of the packet written last, the muxer takes the step in decoding time
    unit = Fraction(1, base.denominator)
    for sample, at, decoded, duration in zip(
        video.samples, pts.tolist(), dts.tolist(), shown_for.tolist(), strict=True
    ):
        packet = sample.packet
        packet.stream = stream
        packet.time_base = unit
        packet.pts, packet.dts, packet.duration = at, decoded, duration
        packet.is_keyframe = sample.key
        yield decoded / base.denominator, packet


def _sound(out: OutputContainer, sound: Sound) -> Iterator[tuple[float, av.Packet]]:
    """(seconds, packet) of the sound, copied or encoded here."""
    if sound.template is not None:
        stream = out.add_stream_from_template(sound.template, opaque=True)
        return _copied(sound, stream)
    stream = out.add_stream("aac", rate=sound.sample_rate, layout=sound.layout)
    assert isinstance(stream, AudioStream)
    stream.bit_rate = 64_000 * max(1, stream.layout.nb_channels)
    stream.time_base = Fraction(1, sound.sample_rate)
    return _encoded(sound, stream)


def _copied(sound: Sound, stream: AudioStream) -> Iterator[tuple[float, av.Packet]]:
    for packet, at in sound.packets:
        assert packet.time_base is not None
        packet.stream = stream
        packet.pts = packet.dts = at
        yield at * float(packet.time_base), packet


def _encoded(sound: Sound, stream: AudioStream) -> Iterator[tuple[float, av.Packet]]:
    for frame in [*sound.frames, None]:
        for packet in stream.encode(frame):
            yield float((packet.dts or 0) * packet.time_base), packet


def index_first(data: bytes) -> bytes:
    """The same mp4 with `moov` before `mdat`, so that playing needs no jump to the end."""
    boxes = [(kind, at, size) for kind, at, size in _boxes(data, 0, len(data)) if kind != b"free"]
    order = sorted(boxes, key=lambda box: (b"ftyp", b"moov", b"mdat").index(box[0]))
    moved_to = sum(size for kind, _, size in order if kind != b"mdat")
    media = next(at for kind, at, _ in boxes if kind == b"mdat")
    out = []
    for kind, at, size in order:
        part = bytearray(data[at : at + size])
        if kind == b"moov":
            _shift_chunks(part, 8, len(part), moved_to - media)
        out.append(bytes(part))
    return b"".join(out)


def _boxes(data: bytes | bytearray, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, offset, size) of the boxes in data[at:end]."""
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            size = struct.unpack_from(">Q", data, at + 8)[0]
        elif size == 0:
            size = end - at
        yield kind, at, size
        at += size


def _shift_chunks(moov: bytearray, at: int, end: int, by: int) -> None:
    """Add `by` to every chunk offset."""
    for kind, start, size in list(_boxes(moov, at, end)):
        if kind in (b"trak", b"mdia", b"minf", b"stbl"):
            _shift_chunks(moov, start + 8, start + size, by)
        elif kind in (b"stco", b"co64"):
            count = struct.unpack_from(">I", moov, start + 12)[0]
            form = f">{count}{'I' if kind == b'stco' else 'Q'}"
            offsets = struct.unpack_from(form, moov, start + 16)
            struct.pack_into(form, moov, start + 16, *(offset + by for offset in offsets))
