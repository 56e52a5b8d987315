"""What a clip is: the span of film asked for, and what came of it."""

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["smart", "keyframe", "exact"]
MODES: tuple[Mode, ...] = ("smart", "keyframe", "exact")


@dataclass(frozen=True)
class ClipSpan:
    """A stretch of one shot, `[start, end)` in pts of the video stream and in frame numbers (presentation order)."""

    start_pts: int
    end_pts: int
    start_frame: int
    end_frame: int
    shot: int  # shot of the film, counted from 0

    @property
    def frames(self) -> int:
        return self.end_frame - self.start_frame


@dataclass(frozen=True)
class Clip:
    """A finished clip."""

    span: ClipSpan
    data: bytes = field(repr=False)  # mp4, index first
    frames: int
    width: int  # shown: upright, square pixels
    height: int
    rate_fps: float  # frames / duration
    codec: str  # of the video, by FFmpeg's name
    has_audio: bool
    copied_s: float  # footage taken over without re-encoding


@dataclass(frozen=True)
class ClipFailure:
    """A span that could not be made into a clip. `reason` is a stable slug, the message is for a person."""

    span: ClipSpan
    reason: str
    message: str
