"""What making films must not do to the tests that run after it."""

import os
from pathlib import Path

from tests.media import Shot, make_film


def test_an_encoder_leaves_the_priority_of_its_caller(tmp_path: Path) -> None:
    """SVT-AV1 asks for real time; a Chromium that inherited it kept two cores from everything else for an hour."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    make_film(tmp_path / "a.mp4", [Shot("bunny", 4)], codec="libsvtav1", size=(64, 64))
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
