"""The detectors that the benchmark compares, each as a function from a film to spans."""

from collections.abc import Callable
from pathlib import Path

from scenedetect import AdaptiveDetector, ContentDetector, SceneManager, open_video

from curation.cuts import detector
from curation.cuts.cut import Cut, CutDetector
from curation.probe import probe
from tests.benchmarks.cut_scoring import Span

Finder = Callable[[Path], list[Span]]


def spans(cuts: list[Cut]) -> list[Span]:
    return [Span(cut.kind, cut.start_frame, cut.end_frame) for cut in cuts]


def ours(name: str) -> Finder:
    """One of this project's detectors, probe included; a network is loaded before the clock starts."""
    finder: CutDetector = detector(name)
    return lambda path: spans(finder.detect(probe(path)))


def pyscenedetect(kind: type) -> Finder:
    """A detector of PySceneDetect with its defaults, on OpenCV's decoder, as its command line runs it."""

    def find(path: Path) -> list[Span]:
        # OpenCV's build decodes no AV1; PySceneDetect's other backend does.
        video = open_video(str(path), backend="pyav" if probe(path).codec == "av1" else "opencv")
        manager = SceneManager()
        manager.add_detector(kind())
        manager.detect_scenes(video, show_progress=False)
        return [Span("hard", at, at) for at in (int(c.frame_num) for c in manager.get_cut_list(show_warning=False))]

    return find


PEERS: dict[str, Callable[[], Finder]] = {
    "cascade": lambda: ours("cascade"),
    "transnetv2": lambda: ours("transnetv2"),
    "adaptive": lambda: pyscenedetect(AdaptiveDetector),
    "content": lambda: pyscenedetect(ContentDetector),
}
