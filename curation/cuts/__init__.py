"""Shot boundaries: the cascade (default) and TransNetV2 behind one interface."""

from curation.cuts.cascade import CascadeDetector
from curation.cuts.cut import Cut, CutDetector

__all__ = ["DETECTORS", "CascadeDetector", "Cut", "CutDetector", "detector"]

DETECTORS = ("cascade", "transnetv2")


def detector(name: str) -> CutDetector:
    """The detector called `name`. Raises ValueError naming the known ones."""
    if name == "cascade":
        return CascadeDetector()
    if name == "transnetv2":
        from curation.cuts.transnetv2 import TransNetV2Detector  # imports torch

        return TransNetV2Detector()
    raise ValueError(f"no cut detector is called {name!r}; known: {', '.join(DETECTORS)}")
