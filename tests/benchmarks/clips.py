"""What clips cost and keep: each mode's yield and speed, beside one ffmpeg re-encode per clip.

    python -m tests.benchmarks.clips [--seconds 40] [--films FOLDER]
    python -m tests.benchmarks.clips --presets

One core: the decoder and the encoders run one thread each, ffmpeg too; processor seconds are the measure, as neighbours
on the machine do not change them much. The cuts are the true ones of the made films, so detection costs nothing here.
"""

import io
import subprocess
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import imageio_ffmpeg
import numpy as np
from av.video.frame import PictureType

from curation.clips import MODES, Clip, Plan, cut_clips, plan
from curation.clips.encode import X264_OPTIONS, X264_PARAMS
from curation.cuts.cut import Cut
from curation.probe import VideoInfo, probe
from tests.benchmarks.pipeline import Cost, measured
from tests.media import Join, Labels, Shot, make_film

_PIECES = ("bunny", "bikes.1", "carphone", "bikes.2", "bunny", "bikes.4", "bikes.3")
# Films by what is special about them; the first is the one that the target speaks of.
FILMS: dict[str, dict[str, Any]] = {
    "h264, key frames on the cuts": {},
    "h264, dissolves": {"joins": "dissolve"},
    "h264, no key frames on cuts": {"scenecut": False},
    "h264, one key frame": {"gop": None},
    "h264, open GOPs": {"open_gop": True, "bframes": 3},
    "hevc, open GOPs": {"codec": "libx265", "open_gop": True, "joins": "dissolve"},
    "vp9, dissolves": {"codec": "libvpx-vp9", "joins": "dissolve"},
}


def _film(path: Path, seconds: int, options: dict[str, Any]) -> tuple[VideoInfo, list[Cut]]:
    options = dict(options)
    kind = options.pop("joins", "hard")
    lengths = [75 + 25 * (k * 3 % 5) for k in range(100)]  # shots of 3 to 7 s
    count = int(np.searchsorted(np.cumsum(lengths), seconds * 25)) + 1
    shots = [
        Shot(
            _PIECES[k % len(_PIECES)], lengths[k], start=5 * k, mirror=k % 2 == 1, move="pan" if k % 3 == 2 else "as_is"
        )
        for k in range(count)
    ]
    joins = [Join(kind, 0 if kind == "hard" else 12)] * (count - 1)
    labels: Labels = make_film(path, shots, joins, size=(1280, 720), audio_s=float(seconds), **options)
    return probe(path), [
        Cut(j.end_frame, 0.0, "hard" if j.start_frame == j.end_frame else "gradual", j.start_frame, j.end_frame, 1, 1)
        for j in labels.joins
    ]


def _peer(info: VideoInfo, planned: Plan, folder: Path) -> None:
    """The usual way: one ffmpeg per clip that seeks and re-encodes, with the settings of `exact`."""
    for span in planned.spans:
        start = float((span.start_pts - int(info.pts[0])) * info.time_base)
        length = float((span.end_pts - span.start_pts) * info.time_base)
        settings = " ".join(f"-{key} {value}" for key, value in X264_OPTIONS.items())
        command = (
            f"-nostdin -v error -y -threads 1 -ss {start:.6f} -i {info.path} -t {length:.6f} -c:v libx264 {settings} "
            f"-x264-params {X264_PARAMS} -threads 1 -c:a copy {folder}/peer.mp4"
        )
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command.split()], check=True)


def _row(label: str, info: VideoInfo, planned: Plan, cost: Cost, peer: Cost, copied_s: float, size: int) -> str:
    losses = (planned.lost_transition_s, planned.lost_short_s, planned.lost_keyframe_s)
    usable_s = planned.seconds_in - planned.lost_transition_s - planned.lost_short_s
    kept_s = float(planned.kept_pts * info.time_base)
    shares = " ".join(f"{each:>7.2f}" for each in (kept_s, *losses))
    usable = 100 * kept_s / usable_s if usable_s else 0.0
    speed = f"{info.duration_s / cost.cpu_s:>7.1f}x {peer.cpu_s / cost.cpu_s:>7.1f}x" if kept_s else f"{'':>17}"
    return f"  {label:<14} {shares} {usable:>6.1f}% {copied_s:>7.2f} {cost.cpu_s:>7.2f} {speed} {size / 1e6:>7.2f}"


def yields_and_speed(folder: Path, seconds: int) -> None:
    for number, (name, options) in enumerate(FILMS.items()):
        suffix = ".webm" if options.get("codec") == "libvpx-vp9" else ".mp4"
        info, cuts = _film(folder / f"{number}{suffix}", seconds, options)
        spans = plan(info, cuts)
        peer = measured(lambda info=info, spans=spans: _peer(info, spans, folder))
        print(f"{name}: {info.duration_s:.1f} s of 720p, {len(cuts)} cuts, {int(info.keyframe.sum())} key frames")
        print(
            "  mode           kept s  trans.   short key fr. usable  copied   CPU s  x film  x ffmpeg      MB\n"
            f"  ffmpeg, seek + re-encode {'':<38} {peer.cpu_s:>7.2f} {info.duration_s / peer.cpu_s:>7.1f}x {1:>7.1f}x"
        )
        for mode in MODES:
            planned = plan(info, cuts, mode=mode)
            copied, size = 0.0, 0

            def run(planned: Plan = planned, mode: Any = mode, info: VideoInfo = info) -> None:
                nonlocal copied, size
                for clip in cut_clips(info, planned.spans, mode=mode):
                    assert isinstance(clip, Clip), clip
                    copied, size = copied + clip.copied_s, size + len(clip.data)

            print(_row(mode, info, planned, measured(run), peer, copied, size))


def presets(folder: Path) -> None:
    """Speed, size and fidelity of x264's presets, and of what we made of one, on one 720p shot."""
    make_film(folder / "shot.mp4", [Shot("bunny", 75)], [], size=(1280, 720))
    with av.open(str(folder / "shot.mp4")) as container:
        frames = list(container.decode(video=0))
    plain = [(name, {"preset": name}, "mbtree=0") for name in ("ultrafast", "superfast", "veryfast")]
    print("preset       crf   fps of one core      MB   PSNR least   mean")
    for name, options, params in [*plain, ("ours", X264_OPTIONS, X264_PARAMS)]:
        for crf in (16, 17, 18, 20):
            context: Any = av.CodecContext.create("libx264", "w")
            context.width, context.height, context.pix_fmt = 1280, 720, "yuv420p"
            context.time_base, context.framerate, context.thread_count = Fraction(1, 25), 25, 1
            context.options = {**options, "crf": str(crf), "x264-params": params}
            began = time.process_time()
            packets = []
            for number, frame in enumerate(frames):
                frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, 25), PictureType.NONE
                packets += context.encode(frame)
            packets += context.encode(None)
            cpu_s = time.process_time() - began
            stream = io.BytesIO(b"".join(bytes(packet) for packet in packets))
            with av.open(stream, format="h264") as coded:
                fidelity = [
                    _psnr(a.to_ndarray(), b.to_ndarray()) for a, b in zip(frames, coded.decode(video=0), strict=True)
                ]
            print(
                f"{name:<12} {crf:>3} {len(frames) / cpu_s:>13.1f} {len(stream.getvalue()) / 1e6:>11.2f} "
                f"{min(fidelity):>12.1f} {np.mean(fidelity):>6.1f}"
            )


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * float(np.log10(255**2 / np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


@click.command()
@click.option("--seconds", default=40, show_default=True, help="Length of each film.")
@click.option("--films", type=click.Path(file_okay=False, path_type=Path), help="Where to keep the films.")
@click.option("--presets", "only_presets", is_flag=True, help="Compare x264's presets instead.")
def main(seconds: int, films: Path | None, only_presets: bool) -> None:
    """Print the tables."""
    work: Callable[[Path], None] = presets if only_presets else lambda folder: yields_and_speed(folder, seconds)
    if films is not None:
        films.mkdir(parents=True, exist_ok=True)
        work(films)
        return
    with tempfile.TemporaryDirectory() as folder:
        work(Path(folder))


if __name__ == "__main__":
    main()
