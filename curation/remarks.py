"""What a person should know about a film that can be read, though something about it is odd."""

from contextlib import suppress
from pathlib import Path

import av
from av.video.stream import VideoStream

from curation.errors import CannotDecode
from curation.probe import VideoInfo, open_video, packets_of

_SUFFIXES = {
    "mp4": "f4v ismv m4v qt",
    "flv": "f4v",
    "avi": "divx xvid",
    "asf": "wmv",
    "matroska": "mk3d mkv",
    "mpeg": "m2p mod mpg ps vob",
    "mpegts": "m2t m2ts mod mpeg mpg mts tod tp trp ts",
    "mpegvideo": "m1v m2v mpeg mpg mpv",
    "ogg": "ogm ogv ogx",
    "rm": "rmvb",
    "yuv4mpegpipe": "y4m",
}
"""Further suffixes of the kinds of files that libav knows, by its names for these, which are suffixes too."""


def remark(info: VideoInfo) -> tuple[str | None, str | None]:
    """What is unusual about a film that can be read, as (reason, message). Raises CannotDecode when it is no film."""
    if info.frames == 1:
        raise CannotDecode("one_frame", f"{info.path}: holds a single frame")
    if info.duration_s <= 0:
        raise CannotDecode("zero_duration", f"{info.path}: lasts 0 s")
    if info.note:
        return "timestamps_restart", info.note
    container, stream = open_video(info.path)
    with container:
        stated_s, end_s = 0.0, info.duration_s
        if stream.duration and stream.time_base:
            stated_s = float(stream.duration * stream.time_base)
        elif container.duration:  # of all streams together
            stated_s = container.duration / av.time_base
            if _falls_short(end_s, stated_s):
                end_s = _end_s(container, stream)
    if _falls_short(end_s, stated_s):
        return "truncated", f"the header states {stated_s:.1f} s, the file ends after {info.duration_s:.1f} s"
    suffix = Path(info.path).suffix.lower().lstrip(".")
    kinds = info.container.split(",")
    if suffix and not any(suffix == kind or suffix in _SUFFIXES.get(kind, "").split() for kind in kinds):
        return "wrong_extension", f"named .{suffix}, but its container is {info.container}"
    return None, None


def _falls_short(end_s: float, stated_s: float) -> bool:
    return stated_s - end_s > max(1.0, 0.02 * stated_s)


def _end_s(container: av.container.InputContainer, film: VideoStream) -> float:
    """When the last packet of any stream ends: sound and subtitles may outlast the picture.

    By the film's own clock, which may begin late: Matroska's stated duration counts from nought, FLV's from the start.
    """
    end_s = 0.0
    others = [stream for stream in container.streams if stream is not film]
    with suppress(av.error.FFmpegError):  # the file breaks off
        for packet in packets_of(container, film, *others):
            if packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end_s
