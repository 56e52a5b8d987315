"""Packed bitstreams: DivX's and Xvid's way to put MPEG-4 with B-frames into AVI, where a chunk shows one frame.

    chunk     0   1     2   3   4     5   6         N: an empty frame, which stands in for the P before
    stored    I   P B   B   N   P B   B   N
    shown     I   B     B   P   B     B   P

Two frames in one chunk are two packets here, and the empty ones none. Each frame is shown in the chunk that it belongs
to: B-frames one packet earlier than they are stored, the frame that they refer to in place of the last of them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import av
from av.bitstream import BitStreamFilterContext
from av.stream import Stream
from av.video.stream import VideoStream

# What the encoder writes into its user data, and decoders go by.
_PACKED, _AS_UNPACKED = re.compile(rb"(DivX\d+(?:b|Build)\d+)p"), b"\\1\0"
_VOP = b"\x00\x00\x01\xb6"
_INTRA, _BIDIRECTIONAL = 0, 2
_EMPTY_BYTES = 7  # a frame that repeats the one before is no longer than this, any other is


def unpacked(packets: Iterable[av.Packet], streams: Sequence[Stream]) -> Iterator[av.Packet]:
    """The packets, with those of the packed stream among `streams`, if there is one, one a frame and in time."""
    stream = next((each for each in streams if isinstance(each, VideoStream) and _is_packed(each)), None)
    return iter(packets) if stream is None else _unpacked(packets, stream)


def relabelled(data: bytes) -> bytes:
    """A stream's header, or a packet, that no more says that the stream is packed."""
    return _PACKED.sub(_AS_UNPACKED, data)


def _is_packed(stream: VideoStream) -> bool:
    context = stream.codec_context
    if context is None or context.codec.canonical_name != "mpeg4" or stream.container.format.name != "avi":
        return False
    return _PACKED.search(context.extradata or b"") is not None


def _unpacked(packets: Iterable[av.Packet], stream: VideoStream) -> Iterator[av.Packet]:
    split = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
    group: list[av.Packet] = []  # a frame that others refer to, and the B-frames stored after it
    try:
        for packet in packets:
            if packet.stream.index != stream.index:  # of an empty packet, stream_index is 0 whatever its stream
                yield packet
                continue
            ends = packet.size == 0  # asked first: the filter empties packets
            for each in split.filter(None if ends else packet):
                data = bytes(each)
                if _PACKED.search(data):
                    each.update(relabelled(data))
                kind = _kind(each)
                if kind != _BIDIRECTIONAL:
                    yield from _timed(group)
                    group = []
                if kind is not None:
                    each.stream = stream
                    each.is_keyframe = kind == _INTRA  # the filter takes it from the chunk
                    group.append(each)
            if ends:
                yield from _timed(group)
                group = []
                yield packet
    except av.error.FFmpegError:
        yield from _timed(group)
        raise


def _kind(packet: av.Packet) -> int | None:
    """The type of the packet's frame; None where there is none, or an empty one."""
    data = bytes(packet)
    at = data.find(_VOP)
    return None if at < 0 or len(data) <= _EMPTY_BYTES else data[at + 4] >> 6


def _timed(group: list[av.Packet]) -> list[av.Packet]:
    """The same packets, with the times at which they are shown."""
    times = [packet.dts for packet in group]
    for packet, at in zip(group, times[-1:] + times[:-1], strict=True):
        packet.pts = at
    return group
