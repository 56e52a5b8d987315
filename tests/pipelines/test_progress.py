"""What a person reads: the line while a job runs, the tables at its end, and how to go on after an interruption."""

import io
import re
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from rich.console import Console

import pipelines.curate
from curation.schema import SOURCES
from curation.source import failed_row
from pipelines.cli import main
from pipelines.curate import JobFailed
from pipelines.live import Progress
from pipelines.progress import Display, duration, line, summary
from tests.media import film


def test_the_line_says_videos_clips_speed_errors_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(sources=10, sources_done=4, bytes=1000, bytes_done=250, clips=57, video_s=3600.0, failed=1)
    progress.stage, progress.began = "curating", 100.0
    monkeypatch.setattr("time.monotonic", lambda: 280.0)
    assert line(progress) == (
        "curating, 4/10 videos, 57 clips, 20.0 video-hours per hour, 1 failed, 3:00 so far, about 9:00 left"
    )
    progress.bytes_done = 0
    assert "left" not in line(progress)
    unknown = Progress(sources=10, sources_done=4, earlier=2, stage="curating", began=100.0)
    assert unknown.left_s == 540.0, "without sizes, in proportion to the number"
    assert duration(3 * 3600 + 62) == "3:01:02"


def test_without_a_terminal_lines_are_few_and_whole() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=40)) as show:
        for clips in range(100):
            show(Progress(sources=3, clips=clips, stage="curating"))
        show(Progress(sources=3, clips=100, stage="compacting"))
    lines = out.getvalue().splitlines()
    assert [text.split(",")[0] for text in lines] == ["curating", "compacting"]
    assert "100 clips" in lines[1]


def test_a_terminal_keeps_its_cursor_also_when_the_process_is_killed() -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True)):
        while_running = out.getvalue()
    assert while_running.rfind("\x1b[?25h") > while_running.rfind("\x1b[?25l")


def test_the_tables_close() -> None:
    ok = {"source_uri": "a", "status": "ok", "duration_s": 60.0, "clips": 5, "kept_s": 40.0, "lost_short_s": 12.0}
    ok |= {"lost_transition_s": 8.0, "lost_keyframe_s": 0.0, "lost_error_s": 0.0, "cuts_s": 2.0, "probe_s": 0.5}
    rows = [ok, failed_row("b", "corrupt", "noise", duration_s=40.0), failed_row("c", "missing", "gone")]
    out = io.StringIO()
    console = Console(file=out, width=100)
    for table in summary(pa.Table.from_pylist(rows, schema=SOURCES), ("default", 3, 25.0)):
        console.print(table)
    text = out.getvalue()
    shares = dict(re.findall(r"^ ?(in|in \d+ clips|lost: [a-z ]+?)  +([\d.]+)", text, re.MULTILINE))
    assert shares["in"] == "100.0"
    assert sum(float(value) for name, value in shares.items() if name != "in") == pytest.approx(100.0)
    assert re.search(r"kept by decision default: 3 clips +25.0 +25.0 %", text)
    assert re.search(r"failed +1 +corrupt", text)
    assert re.search(r"cuts +2.0 +50", text)
    assert "captions" not in text  # that stage was off


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (JobFailed("disk full"), 1)])
def test_an_interrupted_job_says_how_to_go_on(
    error: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipelines.curate, "curate", interrupted)
    arguments = ["curate", str(film("bikes.mp4")), "-o", str(tmp_path / "my out")]
    monkeypatch.setattr("sys.argv", ["/somewhere/clipmill", *arguments])
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert f"Continue with: clipmill curate {film('bikes.mp4')} -o '{tmp_path}/my out'" in result.output
