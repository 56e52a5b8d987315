"""The videos of an evaluation: files, folders of them, and WebDataset shards; the first frames of each."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from PIL import Image

from model.data.decode import Frames, turned
from model.data.shards import find_shards, open_shard, read_member
from model.evaluation.errors import EvaluationError

_PNG, _FIRST_PNG = re.compile(r"\d{4,}\.png"), re.compile(r"0{4,}\.png")
SUFFIXES = (".mp4", ".gif", ".webm", ".mkv", ".mov", ".avi", ".m4v")


@dataclass(frozen=True)
class Video:
    """One video: its name within the set (a path, or a key of a shard), and where its bytes are, or its PNGs."""

    name: str
    where: str
    open: Callable[[], BinaryIO]


def find_videos(places: Sequence[str]) -> list[Video]:
    """The videos at paths: files, folders (searched through), folders of .tar shards, .tar shards, in order of name.
    A folder of numbered PNGs, as `clipmill sample -o FOLDER` writes them, is a video.

    Hidden files and folders are none of them: a kill leaves unfinished videos there (`model.video_io`).

    Raises:
        EvaluationError: nothing there.
        DataError: a shard that cannot be read.
    """
    found: list[Video] = []
    for place in places:
        path = Path(place)
        if path.is_dir() and not any(path.glob("*.tar")):
            names = sorted(each.relative_to(path) for each in path.rglob("*"))
            for name in names:
                if any(part.startswith(".") for part in name.parts):
                    continue
                if name.suffix.lower() in SUFFIXES and (path / name).is_file():
                    found.append(_file(path / name, str(name.with_suffix(""))))
                elif _FIRST_PNG.fullmatch(name.name):
                    found.append(_file((path / name).parent, str(name.parent) if name.parent.name else path.name))
        elif path.is_file() and path.suffix.lower() != ".tar":
            found.append(_file(path, path.stem))
        elif not path.exists() and "://" not in place and not any(c in place for c in "*?["):
            raise EvaluationError(f"{place}: no such file or folder")
        else:
            for url in find_shards([place]):
                found += _of_shard(url)
    if not found:
        raise EvaluationError(f"{', '.join(places)}: no videos there ({', '.join(SUFFIXES)}, or .tar shards)")
    return found


def by_name(videos: Sequence[Video]) -> dict[str, Video]:
    """The videos by their names. Raises EvaluationError for two of the same, like `a.mp4` and `a.gif`."""
    found: dict[str, Video] = {}
    for video in videos:
        if video.name in found:
            raise EvaluationError(
                f"{found[video.name].where} and {video.where}: have the same name; remove one of them"
            )
        found[video.name] = video
    return found


def _file(path: Path, name: str) -> Video:
    return Video(name, str(path), lambda: path.open("rb"))


def _of_shard(url: str) -> Iterator[Video]:
    for row in open_shard(url).table.to_pylist():
        if row["media"] in ("mp4", "webm", "mkv", "mov", "avi", "gif"):
            member = f"{row['key']}.{row['media']}"
            asked = (url, member, row["media_offset"], row["media_size"], row["media_crc32"])
            yield Video(row["key"], f"{url}: {member}", partial(_member, *asked))


def _member(url: str, name: str, offset: int, size: int, crc32: int | None) -> BinaryIO:
    return io.BytesIO(read_member(url, name, offset, size, crc32))


def first_frames(video: Video, frames: int | None, fps: float | None = None) -> Frames:
    """The first frames of a video as they are shown, and their rate.

    Args:
        frames: how many; None: all.
        fps: take those nearest in time to this rate; default: every frame there is.

    Raises:
        EvaluationError: it cannot be decoded, is too short, or its frames change size.
        DataError, OSError: it cannot be read.
    """
    of_folder = Path(video.where).is_dir()
    taken, rate = _pngs(Path(video.where), frames, fps) if of_folder else _film(video, frames, fps)
    if len(taken) < (frames or 1):
        at = f" at {fps:g} fps" if fps else ""
        raise EvaluationError(f"{video.where}: has {len(taken)} frames{at}, and {frames or 1} are needed")
    if len({each.shape for each in taken}) > 1:
        raise EvaluationError(f"{video.where}: its frames change size")
    return Frames(np.stack(taken), rate, 0.0)


def _film(video: Video, frames: int | None, fps: float | None) -> tuple[list[np.ndarray], float]:
    """The first frames of a film, and their rate."""
    taken: list[np.ndarray] = []
    times: list[float] = []
    try:
        with video.open() as file, av.open(file, mode="r") as container:
            if not container.streams.video:
                raise EvaluationError(f"{video.where}: holds no video stream")
            aspect = float(container.streams.video[0].sample_aspect_ratio or 1)
            for frame in _at_rate(container.decode(video=0), fps):
                taken.append(_shown(frame, aspect))
                times.append(frame.time or 0.0)
                if len(taken) == frames:
                    break
    except av.FFmpegError as error:
        raise EvaluationError(f"{video.where}: cannot be decoded ({error.strerror})") from error
    lasted = times[-1] - times[0] if times else 0.0
    return taken, fps or ((len(times) - 1) / lasted if lasted > 0 else 0.0)


def _pngs(folder: Path, frames: int | None, fps: float | None) -> tuple[list[np.ndarray], float]:
    """The first pictures of a folder, whose rate nobody knows (0)."""
    if fps is not None:
        raise EvaluationError(f"{folder}: PNGs have no times, so none can be taken at a rate; leave --fps out")
    paths = sorted(each for each in folder.iterdir() if _PNG.fullmatch(each.name))[:frames]
    try:
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths], 0.0
    except OSError as error:
        raise EvaluationError(f"{folder}: a picture cannot be read ({error})") from error


def _at_rate(frames: Iterator[av.VideoFrame], fps: float | None) -> Iterator[av.VideoFrame]:
    """Those nearest to the times k / fps after the first. The last frame is shown until its end, if that is known."""
    if fps is None:
        yield from frames
        return
    last: av.VideoFrame | None = None
    start, wanted = 0.0, 0
    for frame in frames:
        if last is None:
            start = frame.time or 0.0
        else:
            middle = ((last.time or 0.0) + (frame.time or 0.0)) / 2 - start
            while wanted / fps <= middle:
                yield last
                wanted += 1
        last = frame
    if last is not None:
        end = (last.time or 0.0) - start + float((last.duration or 0) * (last.time_base or 0)) / 2
        while wanted / fps <= end:
            yield last
            wanted += 1


def _shown(frame: av.VideoFrame, aspect: float) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")
    if aspect != 1:
        width = round(frame.width * aspect)
        picture = np.asarray(Image.fromarray(picture).resize((width, frame.height), Image.Resampling.BILINEAR))
    return turned(picture, frame)
