"""Where somebody watches, long work shows how far it is, and what it prints stays whole."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from curation.cuts import DETECTORS, detector
from curation.probe import probe
from tests.media import film


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_tells_how_far_it_is(name: str) -> None:
    shares: list[float] = []
    detector(name).detect(probe(film("bikes.mp4")), seen=shares.append)
    assert shares == sorted(shares)
    assert shares[0] >= 0
    assert 0.9 < shares[-1] <= 1


def _on_a_terminal(*arguments: str) -> tuple[str, str]:
    """Standard output, a pipe, and standard error, a terminal, of a command of ours."""
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("clipmill")), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        assert process.stdout is not None
        printed = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return printed, shown.decode()


@pytest.mark.parametrize("number", [1, 2])
def test_cuts_show_a_bar_beside_what_is_printed(number: int) -> None:
    printed, shown = _on_a_terminal("cuts", "--json", *[str(film("bikes.mp4"))] * number)
    assert len([json.loads(line) for line in printed.splitlines()]) == number
    assert f"0/{number} films" in shown
    assert "%" in shown


def test_clips_show_a_bar_beside_what_is_printed(tmp_path: Path) -> None:
    printed, shown = _on_a_terminal("clip", str(film("bikes.mp4")), "-o", str(tmp_path))
    assert "lost: too short" in printed
    assert "films" not in printed
    assert "1/1 films" in shown
    assert "100%" in shown
