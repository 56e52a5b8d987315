"""Which key frames copied packets may begin at. A key flag alone does not say so in H.264.

There it also stands on the intra pictures of open GOPs and on the recovery points of periodic intra refresh. Frames
after these may name frames before them (only to be forgotten, in the best case), which a decoder reports as an error;
and nothing in H.264 tells it that a splice lies before them. So only IDR pictures count. In HEVC every key frame
does, because its BLA picture type is made for splices (H.265, 3.11); in VP9, AV1 and MPEG-4 a key frame stands alone.
"""

import functools

import av
import numpy as np
from av.video.stream import VideoStream

from curation import bitstream
from curation.probe import VideoInfo, open_video, packets_of

# Codecs whose packets mp4 takes, and of these the ones whose packets may follow re-encoded ones.
COPIED_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")
SPLICED_CODECS = ("h264", "hevc", "vp9")


@functools.lru_cache(maxsize=4)
def entry_frames(info: VideoInfo) -> np.ndarray:
    """Frame numbers, ascending, that copied packets may begin at; none in a codec that is not copied.

    Reads the packets of an H.264 film once.

    Raises:
        CannotDecode: the file cannot be opened any more.
    """
    if info.codec not in COPIED_CODECS:
        return np.empty(0, dtype=np.int64)
    return _idr_frames(info) if info.codec == "h264" else np.flatnonzero(info.keyframe)


def lacks_presentation_times(info: VideoInfo, stream: VideoStream) -> bool:
    """Whether times in the file follow decoding order although frames are reordered: H.264 with B-frames in AVI."""
    in_order = bool((info.decode_rank[1:] > info.decode_rank[:-1]).all())
    return (
        info.container == "avi"
        and info.codec in ("h264", "hevc")
        and in_order
        and info.frames > 1
        and bool(stream.codec_context.has_b_frames)
    )


def _idr_frames(info: VideoInfo) -> np.ndarray:
    number_of = {int(info.pts[key]): int(key) for key in np.flatnonzero(info.keyframe)}
    found: list[int] = []
    container, stream = open_video(info.path)
    with container:
        if lacks_presentation_times(info, stream):
            return np.empty(0, dtype=np.int64)
        size = bitstream.length_size("h264", stream.codec_context.extradata)
        try:
            for packet in packets_of(container, stream):
                if packet.is_keyframe and packet.size:
                    at = packet.pts if packet.pts is not None else packet.dts
                    number = number_of.get(at) if at is not None else None
                    if number is not None and bitstream.is_idr(bitstream.split(bytes(packet), size)):
                        found.append(number)
        except av.error.FFmpegError:
            pass  # a broken tail; the clips in it fail later, by name
    return np.array(sorted(found), dtype=np.int64)
