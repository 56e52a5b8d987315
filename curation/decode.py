"""Which packets must be decoded to see a set of frames, and the pass that decodes them and nothing else.

A film is read once, forwards. Packets of GOPs with nothing wanted are never sent to the decoder, and inside a GOP
decoding stops after the last wanted frame. Measured on 720p H.264 (one core): demuxing 1200 times real time, key
frames alone 240, skipping non-reference frames 19, everything 10; an exact seek per sample is 4 times slower than
decoding everything, so there is none.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from curation.errors import CannotDecode
from curation.probe import VideoInfo, open_video, packets_of

Skip = Literal["nothing", "nonref", "bidir", "nonkey"]
SKIPS: tuple[Skip, ...] = ("nothing", "nonref", "bidir", "nonkey")  # each leaves out more than the one before
_SKIP_FRAME: tuple[Literal["DEFAULT", "NONREF", "BIDIR", "NONKEY"], ...] = ("DEFAULT", "NONREF", "BIDIR", "NONKEY")
_SKIPS_ALIKE = ("libdav1d",)  # decoders that ask once, when they are opened, what to leave out
# Demuxing past this many packets costs more than a seek to the next key frame (mp4 and Matroska; other containers
# seek by guessing, so there the packets are read through).
_SEEK_OVER_PACKETS = 48
_INDEXED_CONTAINERS = ("mov", "matroska")


def decode_ranges(info: VideoInfo, wanted: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of decoding order that yield the frames `wanted` (frame numbers), each starting at a key frame.

    A frame shown before its GOP's key frame (a leading picture of an open GOP) also needs the GOP before.
    """
    wanted = np.unique(np.asarray(wanted, dtype=np.int64))
    if len(wanted) == 0:
        return []
    keys = np.flatnonzero(info.keyframe)
    key_ranks = np.sort(info.decode_rank[keys])
    if len(key_ranks) == 0 or key_ranks[0] != 0:
        key_ranks = np.concatenate([[0], key_ranks])  # no key flag at the start: decoding starts there all the same
    by_rank = np.argsort(info.decode_rank)
    ranks = info.decode_rank[wanted]
    gops = np.searchsorted(key_ranks, ranks, side="right") - 1
    leading = info.pts[wanted] < info.pts[by_rank[key_ranks[gops]]]
    starts = key_ranks[np.maximum(gops - leading, 0)]
    stops = ranks + 1
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(zip(starts.tolist(), stops.tolist(), strict=True)):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        elif merged and start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


def decode(
    info: VideoInfo,
    wanted: np.ndarray | None = None,
    *,
    skip: Skip | np.ndarray = "nothing",
    loop_filter: bool = True,
    threads: int = 1,
    resume_at: Callable[[], int] | None = None,
) -> Iterator[tuple[int, VideoFrame]]:
    """Decode in one forward pass; yields (frame number, frame) in presentation order.

    Yields every frame that the needed packets give, wanted or not, so that a caller may keep the neighbours; a
    wanted frame is missing only if it is damaged, or if `skip` leaves it out.

    Args:
        wanted: frame numbers to reach; all when None.
        skip: frames that the decoder leaves out ("nonref": those that no other frame refers to; "bidir": all B-frames,
            which the film's other frames must not refer to). Or an array with what applies to each frame of the film,
            as positions in SKIPS. Of AV1 the least of what is asked for is left out, all over the film.
        loop_filter: False leaves out deblocking: faster, and good enough for small pictures.
        threads: decoder threads; 0 lets the decoder choose.
        resume_at: asked before every packet for a key frame's number; what is decoded before that one is not wanted
            any more. Lets a caller who has seen enough of a GOP leave the rest.

    Raises:
        CannotDecode: the file cannot be opened. Damaged packets are passed over.
    """
    numbers = np.arange(info.frames) if wanted is None else np.asarray(wanted, dtype=np.int64)
    ranges = decode_ranges(info, numbers)
    if not ranges:
        return
    container, stream = open_video(info.path)
    with container:
        context = stream.codec_context
        if context is None:
            raise CannotDecode("unknown_codec", f"{info.path}: no decoder for its video stream")
        context.thread_count = threads
        context.thread_type = "AUTO" if threads != 1 else "SLICE"
        levels = np.full(info.frames, SKIPS.index(skip)) if isinstance(skip, str) else skip
        if context.codec.name in _SKIPS_ALIKE:
            by_rank = np.argsort(info.decode_rank)
            levels = np.full(info.frames, min(levels[by_rank[start:stop]].min() for start, stop in ranges))
        if not loop_filter:
            context.options = {**context.options, "skip_loop_filter": "all"}
        yield from _feed(info, container, stream, ranges, levels, resume_at)


def _feed(
    info: VideoInfo,
    container: InputContainer,
    stream: VideoStream,
    ranges: list[tuple[int, int]],
    levels: np.ndarray,
    resume_at: Callable[[], int] | None,
) -> Iterator[tuple[int, VideoFrame]]:
    number_of = {int(at): number for number, at in enumerate(info.pts)}
    by_rank = np.argsort(info.decode_rank)
    context = stream.codec_context
    can_seek = info.container.split(",")[0] in _INDEXED_CONTAINERS
    given = -1  # the last frame that was given out

    def numbered(frames: list[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        nonlocal given
        for frame in frames:
            at = frame.pts if frame.pts is not None else frame.dts
            number = number_of.get(at) if at is not None else None
            if number is not None and number != given:  # else the second of two frames with one time
                given = number
                yield number, frame

    def sent(packet: av.Packet | None) -> list[VideoFrame]:
        try:
            return context.decode(packet)
        except av.error.FFmpegError:
            return []  # a damaged packet; the decoder resumes at the next usable one

    at_rank = -1  # of the last packet read
    packets = packets_of(container, stream)
    for start, stop in ranges:
        if can_seek and start - at_rank > _SEEK_OVER_PACKETS:
            try:
                container.seek(int(info.pts[by_rank[start]]), stream=stream, backward=True)
                packets = packets_of(container, stream)
            except av.error.FFmpegError:
                pass  # read on instead
        active = left = False
        try:
            for packet in packets:
                if packet.size == 0:
                    break
                at = packet.pts if packet.pts is not None else packet.dts
                number = number_of.get(at) if at is not None else None
                if number is None:
                    # Before the first frame there is what an edit list hides, its key frame for instance.
                    if active or start == 0 > at_rank:
                        yield from numbered(sent(packet))
                    continue
                at_rank = int(info.decode_rank[number])
                if not active and at_rank == start:
                    active = True
                if active and resume_at is not None and at_rank < _rank(info, resume_at()):
                    if not left:
                        context.flush_buffers()
                    left = True
                elif active:
                    left = False
                    context.skip_frame = _SKIP_FRAME[levels[number]]
                    yield from numbered(sent(packet))
                if at_rank >= stop - 1:
                    break
        except av.error.FFmpegError:
            pass  # the container breaks off here: what was read before it stands
        yield from numbered(sent(None))
        context.flush_buffers()


def _rank(info: VideoInfo, number: int) -> int:
    return int(info.decode_rank[number]) if number < info.frames else info.frames
