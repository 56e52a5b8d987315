"""Shot boundaries: the cascade (default) and TransNetV2 behind one interface."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curation.cuts.cut import CutDetector

__all__ = ["DETECTORS", "detector"]

DETECTORS = ("cascade", "transnetv2")


def detector(name: str) -> "CutDetector":
    """The detector called `name`. Raises ValueError naming the known ones."""
    # Imported when asked for: the names alone are wanted by commands that should start at once.
    if name == "cascade":
        from curation.cuts.cascade import CascadeDetector

        return CascadeDetector()
    if name == "transnetv2":
        from curation.cuts.transnetv2 import TransNetV2Detector  # imports torch

        return TransNetV2Detector()
    raise ValueError(f"no cut detector is called {name!r}; known: {', '.join(DETECTORS)}")
