"""Proof of clips by FFmpeg's own binary: what it shows of a clip, beside what the film shows at the same times."""

import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

from curation.clips import Clip, ClipFailure, ClipSpan
from curation.probe import VideoInfo


def span(info: VideoInfo, start: int, end: int, shot: int = 0) -> ClipSpan:
    """The span of frames [start, end)."""
    edges = [*info.pts.tolist(), info.end_pts]
    return ClipSpan(edges[start], edges[end], start, end, shot)


def film_frames(path: str | Path) -> dict[int, np.ndarray]:
    """Every frame of a film by pts, as stored (not rotated): all planes in one flat array."""
    with av.open(str(path)) as container:
        return {
            frame.pts if frame.pts is not None else frame.dts: frame.to_ndarray().reshape(-1)
            for frame in container.decode(video=0)
        }


@dataclass(frozen=True)
class Shown:
    """What FFmpeg made of a clip."""

    frames: np.ndarray  # (N, samples)
    times: list[Fraction]  # seconds


def shown(clip: Clip, info: VideoInfo, folder: Path) -> Shown:
    """Decode with the ffmpeg binary, stopping at any error; anything on stderr is a failure."""
    path, stamps = folder / "clip.mp4", folder / "stamps.txt"
    path.write_bytes(clip.data)
    every_frame = "-map 0:v:0 -fps_mode passthrough"
    command = (
        f"-nostdin -v error -xerror -noautorotate -i {path.name} {every_frame} -f rawvideo - "
        f"{every_frame} -enc_time_base demux -f framehash -y {stamps.name}"
    )
    run = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *command.split()], capture_output=True, check=False, cwd=folder
    )
    assert run.returncode == 0, f"ffmpeg stopped at an error: {run.stderr.decode()}"
    assert not run.stderr, f"ffmpeg complained: {run.stderr.decode()}"
    lines = stamps.read_text().splitlines()
    base = next(Fraction(line.split()[-1]) for line in lines if line.startswith("#tb"))
    times = [int(line.split(",")[2]) * base for line in lines if not line.startswith("#")]
    kind = np.uint8 if info.bit_depth == 8 else np.uint16
    return Shown(np.frombuffer(run.stdout, dtype=kind).reshape(len(times), -1), times)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB between two frames of the same depth; infinite when equal."""
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    peak = 255 if a.dtype == np.uint8 else 1023
    return float("inf") if error == 0 else 10 * float(np.log10(peak**2 / error))


def prove(
    clip: Clip | ClipFailure, info: VideoInfo, film: dict[int, np.ndarray], folder: Path, least_db: float = 37.0
) -> int:
    """Asserts that a clip shows exactly the frames of its span at their times; gives the number of equal frames.

    Copied frames are equal to the film's; the others are as near as `least_db`. That no other frame of the film is
    nearer than the right one is what makes them this frame, and not a neighbour.
    """
    assert isinstance(clip, Clip), clip
    wanted = info.pts[clip.span.start_frame : clip.span.end_frame].tolist()
    got = shown(clip, info, folder)
    assert got.times == [(at - clip.span.start_pts) * info.time_base for at in wanted]
    assert clip.frames == len(wanted)
    equal = 0
    for number, at in enumerate(wanted):
        distance = psnr(got.frames[number], film[at])
        assert distance >= least_db, f"frame {number} of {clip.span} is {distance:.1f} dB from the film's"
        equal += distance == float("inf")
    edges = np.append(info.pts, info.end_pts)
    seconds = np.diff(edges)[clip.span.start_frame : clip.span.end_frame] * float(info.time_base)
    assert equal >= round(clip.copied_s / float(seconds.max())), "copied frames differ from the film's"
    return equal
