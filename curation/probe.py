"""What a film is, read from its headers and packets without decoding a frame.

Everything downstream speaks in presentation timestamps (pts) of the video stream; a frame's number is its rank
in presentation order, counted from 0. `probe` demuxes the whole file once (about 1000 times real time).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from curation.errors import CannotDecode
from curation.packed import unpacked
from curation.references import BFrameReferences

_RESTART_S = 0.5  # timestamps that go back further have started again
_FORMATS = (
    "mov mp4 matroska webm avi flv live_flv asf mpeg mpegts mpegvideo ogg mxf gxf nut dv wtv rm swf nsv nuv pva lxf "
    "mtv dhav ty r3d cine vivo kux moflex bink smk flic roq gif apng yuv4mpegpipe ivf obu av1 h261 h263 h264 hevc vvc "
    "evc m4v vc1 vc1test dirac dnxhd cavsvideo avs2 avs3 mjpeg mpjpeg apv "
    "mp3 wav w64 flac aac ac3 eac3 dts truehd aiff au amr caf ape"
).replace(" ", ",")
"""Kinds of files that are opened, by libav's names: those that hold all that they show. A playlist (hls, concat, dash)
names other files, which no input policy has seen."""
_PLAYLISTS = (b"#EXTM3U", b"ffconcat version", b"<MPD", b"<CompositionPlaylist")  # near a playlist's beginning
_UNTIMED_SHARE = 0.1  # of frames without a time, which are left out: more are not passed over in silence
_ENTRIES = 3  # key frames tried for the film's rotation: the first may be damaged


@dataclass(frozen=True)
class AudioInfo:
    """The first audio stream."""

    codec: str
    sample_rate: int  # Hz
    channels: int
    start_s: float
    duration_s: float


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """One film's first video stream. Arrays have one entry per frame, in presentation order."""

    path: str
    container: str
    codec: str
    profile: str
    pixel_format: str
    bit_depth: int
    width: int  # stored pixels, before rotation and aspect correction
    height: int
    rotation: int  # degrees clockwise that show the film upright, after `flipped`: 0, 90, 180 or 270
    sample_aspect_ratio: Fraction
    color_range: str  # "tv", "pc" or "unspecified"
    color_space: str
    time_base: Fraction  # seconds per pts unit
    nominal_rate: Fraction  # frames per second
    pts: np.ndarray  # int64, strictly increasing
    packet_size: np.ndarray  # int64, bytes of the packet that carries the frame
    keyframe: np.ndarray  # bool: the packet is flagged as a random-access point
    decode_rank: np.ndarray  # int64: position of the frame's packet in decoding (file) order, from 0
    end_pts: int  # pts at which the last frame's display ends
    audio: AudioInfo | None
    flipped: bool = False  # shown as in a mirror: its rows change places, top for bottom, before the rotation
    b_frames_optional: bool = False  # surely no other frame refers to B-frames (references.py)
    references_kept: int = 16  # reference frames that the decoder keeps, at most; known where b_frames_optional
    restarts: bool = False  # its timestamps start again, as in joined recordings; what follows is not read

    @property
    def frames(self) -> int:
        return len(self.pts)

    @cached_property
    def times_s(self) -> np.ndarray:
        """Display time of each frame in seconds from the first frame (float64)."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    @property
    def duration_s(self) -> float:
        return float((self.end_pts - int(self.pts[0])) * self.time_base)

    @cached_property
    def anchors(self) -> np.ndarray:
        """Numbers, increasing, of the frames before which no frame is decoded that is shown later: I- and P-frames."""
        order = np.argsort(self.decode_rank)
        return np.sort(order[order == np.maximum.accumulate(order)])

    @cached_property
    def leads(self) -> np.ndarray:
        """Bool per frame: after it frames are decoded that are shown before it (the key frame of an open GOP)."""
        latest = np.maximum.accumulate(self.decode_rank)
        return np.append(False, latest[:-1]) > self.decode_rank

    @property
    def note(self) -> str:
        """What a person should know about how far the film is read, and what to do; nothing as a rule."""
        if not self.restarts:
            return ""
        after = f"its timestamps start again after {self.duration_s:.1f} s; what follows is not read"
        return f"{after} (ffmpeg -i FILE -c copy NEW.mkv joins the parts)"

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) in square pixels, upright."""
        width, height = round(self.width * self.sample_aspect_ratio), self.height
        return (height, width) if self.rotation in (90, 270) else (width, height)

    @property
    def start_s(self) -> float:
        """The first frame's time in the container's clock, in seconds."""
        return float(int(self.pts[0]) * self.time_base)

    @cached_property
    def is_vfr(self) -> bool:
        """Whether frame durations differ by more than the rounding of the time base."""
        if self.frames < 3:
            return False
        steps = np.diff(self.pts)
        return bool(steps.max() - steps.min() > max(1.0, 0.02 * float(np.median(steps))))


def open_video(path: str | Path) -> tuple[av.container.InputContainer, VideoStream]:
    """Open a local film and its first video stream that is not a cover picture.

    Raises:
        CannotDecode: missing, unreadable, empty, a playlist, not a film, or without a video stream.
    """
    file = Path(path)
    try:
        if file.stat().st_size == 0:
            raise CannotDecode("zero_bytes", f"{path}: the file is empty")
        with file.open("rb") as opened:
            head = opened.read(1024)
        container = av.open(
            os.path.abspath(path),  # else libav takes what is before a colon for a protocol
            options={"format_whitelist": _FORMATS},
            metadata_errors="ignore",
        )
    except FileNotFoundError as error:
        raise CannotDecode("missing", f"{path}: no such file") from error
    except PermissionError as error:
        raise CannotDecode("unreadable", f"{path}: permission denied") from error
    except IsADirectoryError as error:
        raise CannotDecode("not_a_file", f"{path}: is a folder") from error
    except (av.error.FFmpegError, OSError) as error:
        if any(mark in head for mark in _PLAYLISTS):
            raise CannotDecode("playlist", f"{path}: a list of other files; name these instead") from error
        raise CannotDecode("not_a_video", f"{path}: not readable as a film ({error})") from error
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return container, stream
    container.close()
    raise CannotDecode("no_video_stream", f"{path}: has no video stream")


class Restarted(av.error.InvalidDataError):
    """The timestamps of a film start again, as in recordings that were joined byte by byte."""


def packets_of(container: av.container.InputContainer, *streams: Stream) -> Iterator[av.Packet]:
    """The packets of these streams, and at the end an empty one for each. The film's own stream comes first.

    A transport stream may gain streams halfway, by design or by damage. PyAV (18.1, its issue 692) does not expect it
    and at the very end, after the empty packets, raises an IndexError; which means nothing for the streams asked for.

    Raises:
        Restarted: the same times come again.
        av.error.FFmpegError: the file breaks off.
    """
    film, tick = streams[0], streams[0].time_base or Fraction(1)
    back = round(_RESTART_S / tick)
    latest: list[int] = []  # the last two times: one alone may be damaged
    with suppress(IndexError):
        for packet in unpacked(container.demux(*streams), streams):
            if packet.dts is not None and packet.stream_index == film.index:
                if len(latest) == 2 and packet.dts < min(latest) - back:
                    raise Restarted(errno.EINVAL, "timestamps start again")
                latest = [*latest[-1:], packet.dts]
            yield packet


def probe(path: str | Path) -> VideoInfo:
    """Read a film's header and packet index.

    Raises:
        CannotDecode: see `open_video`; also when it is encrypted, no packet carries a usable timestamp, or the size is
            zero.
    """
    container, stream = open_video(path)
    with container:
        if stream.codec_context is None:
            raise CannotDecode("unknown_codec", f"{path}: no decoder for its video stream")
        context = stream.codec_context
        if not context.width or not context.height:
            raise CannotDecode("no_dimensions", f"{path}: the video stream has no frame size")
        is_h264 = context.codec.canonical_name == "h264"
        references = BFrameReferences(context.extradata) if is_h264 else None
        pts, sizes, keys, durations, is_b, entries, restarts, untimed = _packets(container, stream, references)
        if any(packet.has_sidedata("encryption_info") for packet in entries):
            raise CannotDecode("encrypted", f"{path}: its frames are encrypted, and no key is known")
        if len(pts) == 0 and entries:
            raise CannotDecode(
                "no_timestamps",
                f"{path}: a raw {container.format.name} stream, which does not say when its frames are shown; "
                "put it into a container, for instance with: mkvmerge -o film.mkv FILE",
            )
        if untimed > _UNTIMED_SHARE * (len(pts) + untimed):
            raise CannotDecode(
                "no_timestamps",
                f"{path}: {untimed} of its {len(pts) + untimed} frames do not say when they are shown; "
                "re-encode it first: ffmpeg -i FILM FILM.mp4",
            )
        if len(pts) == 0:
            raise CannotDecode("no_frames", f"{path}: the video stream holds no frames")
        assert stream.time_base is not None
        order = np.argsort(pts, kind="stable")
        order = order[np.concatenate([[True], np.diff(pts[order]) > 0])]
        rank = np.argsort(np.argsort(order))
        pts, sizes, keys, durations, is_b = pts[order], sizes[order], keys[order], durations[order], is_b[order]
        nominal = _nominal_rate(stream, pts)
        last = int(durations[-1]) or (
            int(np.median(np.diff(pts))) if len(pts) > 1 else round(1 / nominal / stream.time_base)
        )
        pixel_format = context.format
        rotation, flipped = _orientation(context, entries)
        info = VideoInfo(
            path=str(path),
            container=container.format.name,
            codec=context.codec.canonical_name,
            profile=str(context.profile or ""),
            pixel_format=pixel_format.name if pixel_format else "",
            bit_depth=pixel_format.components[0].bits if pixel_format else 8,
            width=context.width,
            height=context.height,
            rotation=rotation,
            flipped=flipped,
            sample_aspect_ratio=stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1),
            color_range={1: "tv", 2: "pc"}.get(int(context.color_range or 0), "unspecified"),
            color_space=str(int(context.colorspace or 2)),
            time_base=stream.time_base,
            nominal_rate=nominal,
            pts=pts,
            packet_size=sizes,
            keyframe=keys,
            decode_rank=rank,
            end_pts=int(pts[-1]) + max(1, last),
            audio=_audio(container),
            restarts=restarts,
        )
        if references is None or not references.optional or is_b[info.anchors].any():
            return info  # or its timestamps do not tell where B-frames belong, as in AVI
        return replace(info, b_frames_optional=True, references_kept=references.kept)


def _packets(
    container: av.container.InputContainer, stream: VideoStream, references: BFrameReferences | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[av.Packet], bool, int]:
    """Timestamps, sizes, key flags, durations and whether they hold B-frames, of the stream's packets, in file order;
    its first key frames; whether it ends where its timestamps start again; and how many packets have no timestamp.
    """
    rows: list[tuple[int, int, bool, int, bool]] = []
    entries: list[av.Packet] = []
    restarts = False
    untimed = 0
    whole = 0  # rows up to the last undamaged packet: a file that was cut off ends in part of one
    try:
        for packet in packets_of(container, stream):
            if packet.size == 0 or packet.is_discard:
                continue
            is_b = False
            if references is not None and references.optional:
                is_b = references.see(bytes(packet))
                references.optional &= not packet.has_sidedata("new_extradata")  # other parameter sets, unseen
            if packet.is_keyframe and len(entries) < _ENTRIES:
                entries.append(packet)
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None:
                rows.append((at, packet.size, packet.is_keyframe, packet.duration or 0, is_b))
                whole = whole if packet.is_corrupt else len(rows)
            else:
                untimed += 1
    except Restarted:
        restarts = True
    except av.error.FFmpegError:
        pass  # a broken tail: what was read before it stands; decoding reports where it stops
    pts, sizes, keys, durations, b_frames = zip(*rows[:whole], strict=True) if whole else ((), (), (), (), ())
    as_int = lambda values: np.array(values, dtype=np.int64)  # noqa: E731
    as_bool = lambda values: np.array(values, dtype=bool)  # noqa: E731
    return as_int(pts), as_int(sizes), as_bool(keys), as_int(durations), as_bool(b_frames), entries, restarts, untimed


def _nominal_rate(stream: VideoStream, pts: np.ndarray) -> Fraction:
    """Frames per second by the header, unless its frames follow each other otherwise: it may name the clock's rate."""
    said = [Fraction(each) for each in (stream.average_rate, stream.guessed_rate) if each]
    if len(pts) < 3:
        return said[0] if said else Fraction(25)
    assert stream.time_base is not None
    usual = int(np.median(np.diff(pts))) * stream.time_base
    mean = Fraction(int(pts[-1] - pts[0]), len(pts) - 1) * stream.time_base
    fitting = [rate for rate in said if any(Fraction(1, 2) <= rate * step <= 2 for step in (usual, mean))]
    return fitting[0] if fitting else 1 / usual


def _audio(container: av.container.InputContainer) -> AudioInfo | None:
    for stream in container.streams.audio:
        if stream.codec_context is None:
            continue
        base = stream.time_base or Fraction(1)
        return AudioInfo(
            codec=stream.codec_context.name,
            sample_rate=stream.codec_context.sample_rate or 0,
            channels=stream.codec_context.channels or 0,
            start_s=float((stream.start_time or 0) * base),
            duration_s=float((stream.duration or 0) * base),
        )
    return None


def _orientation(context: VideoCodecContext, entries: list[av.Packet]) -> tuple[int, bool]:
    """(rotation, flipped) from the first key frame's display matrix (PyAV exposes it on frames only)."""
    for packet in entries:
        with suppress(av.error.FFmpegError, ValueError):
            for frame in [*context.decode(packet), *context.decode(None)]:
                return round(-frame.rotation / 90) * 90 % 360, _is_mirrored(frame)
        context.flush_buffers()
    return 0, False


def _is_mirrored(frame: VideoFrame) -> bool:
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b, _, c, d = (float(each) for each in np.frombuffer(bytes(matrix), dtype=np.int32)[:5])
    return a * d < b * c
