"""`clipmill clip`: the clips are there, the yield closes, and what fails says so."""

import re
from pathlib import Path

from click.testing import CliRunner

from curation.probe import probe
from pipelines.cli import main
from tests.media import film


def test_it_writes_clips_and_prints_a_yield_that_closes(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["clip", str(film("bikes.mp4")), "-o", str(tmp_path / "out"), "--min", "1 s"])
    assert result.exit_code == 0, result.output
    written = sorted((tmp_path / "out").iterdir())
    assert [each.name for each in written] == [f"bikes_{number:04d}.mp4" for number in range(len(written))]
    rows = {
        label: [float(value) for value in re.findall(r"([\d.]+) +[\d.]+%", rest)]
        for label, rest in re.findall(r"^  (seconds in|kept|lost: [a-z ]+?) {2,}(.*)$", result.output, re.MULTILINE)
    }
    assert rows["seconds in"] == [10.0, 10.0, 10.0]
    parts = [values for label, values in rows.items() if label != "seconds in"]
    assert len(parts) == 5
    for column in zip(*parts, strict=True):
        assert abs(sum(column) - 10.0) < 0.03
    assert abs(sum(probe(each).duration_s for each in written) - rows["kept"][0]) < 0.02


def test_a_bad_file_is_an_error_and_the_others_are_clipped(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["clip", str(tmp_path / "none.mp4"), str(film("carphone_pristine.mp4")), "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert "none.mp4: no such file [missing]" in result.output
    assert (tmp_path / "out" / "carphone_pristine_0000.mp4").exists()


def test_impossible_lengths_are_refused_before_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["clip", "x.mp4", "-o", str(tmp_path / "out"), "--min", "5s", "--max", "4 s"])
    assert result.exit_code == 2
    assert "--min 5 s" in result.output
    result = CliRunner().invoke(main, ["clip", "x.mp4", "-o", str(tmp_path / "out"), "--min", "5"])
    assert result.exit_code == 2
    assert "write it like '2 s'" in result.output
    assert not (tmp_path / "out").exists()


def test_films_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "bikes.mp4"
    other.write_bytes(film("bikes.mp4").read_bytes())
    out = tmp_path / "out"
    run = CliRunner().invoke(main, ["clip", str(film("bikes.mp4")), str(other), "-o", str(out), "--min", "1 s"])
    assert run.exit_code == 0, run.output
    names = {path.name.rsplit("_", 1)[0] for path in out.iterdir()}
    assert names == {"bikes", "bikes-2"}


def test_a_folder_that_cannot_be_made_is_refused_before_work() -> None:
    run = CliRunner().invoke(main, ["clip", str(film("bikes.mp4")), "-o", "/proc/clips"])
    assert run.exit_code == 2
    assert "--output /proc/clips" in run.output
