"""Reads a finished clip back: are its frames the planned ones, at the planned times, and does it start decodable?"""

import io

import av
import numpy as np
from av.video.frame import VideoFrame

from curation.clips.clip import ClipSpan
from curation.probe import VideoInfo


def check_clip(data: bytes, info: VideoInfo, span: ClipSpan, decoded: int = 1) -> str | None:
    """What is wrong with the clip of `span`, or None. Reads every packet, decodes the first `decoded` frames only."""
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            stream = container.streams.video[0]
            clip, film = stream.time_base, info.time_base
            assert clip is not None
            frames, times = list[VideoFrame](), []
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None:
                    times.append(packet.pts)
                if len(frames) < decoded:
                    frames += stream.codec_context.decode(packet if packet.size else None)
    except (av.error.FFmpegError, IndexError) as error:
        return f"the clip cannot be read back ({error})"
    shown = np.sort(np.array(times, dtype=np.int64))
    planned = info.pts[span.start_frame : span.end_frame] - span.start_pts
    if len(shown) != len(planned):
        return f"{len(shown)} frames were written, {len(planned)} planned"
    # Compare in whole numbers: shown * clip unit == planned * film unit.
    if not np.array_equal(shown * clip.numerator * film.denominator, planned * film.numerator * clip.denominator):
        return "frame times differ from the film's"
    if [frame.pts for frame in frames[:decoded]] != shown[:decoded].tolist():
        return f"the first {decoded} frames do not all decode"
    return None
