"""What a cut is, and what a cut detector is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from curation.frames import FilmFrames
from curation.probe import VideoInfo

Kind = Literal["hard", "gradual"]
Seen = Callable[[float], None]
"""Told, now and then, how much of a film a detector has been through: from 0 to 1."""


def unseen(share: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Cut:
    """A shot boundary. Frames count from 0 in presentation order.

    A hard cut has start_frame == end_frame == frame. A gradual transition occupies the mixed frames
    [start_frame, end_frame), and frame == end_frame. A fade in at the film's very start, or out at its very end, is
    a gradual transition too (the latter has frame == end_frame == number of frames: no new shot follows).
    """

    frame: int  # first frame of the new shot
    time_s: float  # its display time from the film's first frame
    kind: Kind
    start_frame: int
    end_frame: int
    score: float  # of the detector that found it; larger is surer
    pass_fps: float  # rate of the pass that found it


class CutDetector(Protocol):
    """Finds the cuts of a film."""

    name: str

    def detect(self, info: VideoInfo, frames: FilmFrames | None = None, seen: Seen = unseen) -> list[Cut]:
        """Cuts in order of frame. `frames` lends its decode to this detector and keeps what was decoded.

        Raises:
            CannotDecode: nothing of the film can be decoded.
        """
        ...


def cut_time_s(info: VideoInfo, frame: int) -> float:
    """Display time of `frame` from the film's first frame; the film's end for one past the last."""
    return float(info.times_s[frame]) if frame < info.frames else info.duration_s
