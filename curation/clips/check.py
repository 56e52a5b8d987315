"""Reads a finished clip back: are its frames the planned ones, at the planned times, and does it start decodable?"""

import io

import av
import numpy as np

from curation.clips.clip import ClipSpan
from curation.probe import VideoInfo


def check_clip(data: bytes, info: VideoInfo, span: ClipSpan) -> str | None:
    """What is wrong with the clip of `span`, or None. Reads every packet, decodes the first frame only."""
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            stream = container.streams.video[0]
            clip, film = stream.time_base, info.time_base
            assert clip is not None
            first, times = None, []
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None:
                    times.append(packet.pts)
                if first is None:
                    first = next(iter(stream.codec_context.decode(packet if packet.size else None)), None)
    except (av.error.FFmpegError, IndexError) as error:
        return f"the clip cannot be read back ({error})"
    shown = np.sort(np.array(times, dtype=np.int64))
    planned = info.pts[span.start_frame : span.end_frame] - span.start_pts
    if len(shown) != len(planned):
        return f"{len(shown)} frames were written, {len(planned)} planned"
    # Compare in whole numbers: shown * clip unit == planned * film unit.
    if not np.array_equal(shown * clip.numerator * film.denominator, planned * film.numerator * clip.denominator):
        return "frame times differ from the film's"
    if first is None or first.pts != 0:
        return "the first frame does not decode"
    return None
