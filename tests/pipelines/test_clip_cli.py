"""`clipmill clip`: the clips are there, the yield closes, and what fails says so."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from curation.probe import probe
from pipelines.cli import main
from tests.bad_media import damage
from tests.media import Shot, film, make_film


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


def _clip(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["clip", *(str(each) for each in arguments)])


def test_running_it_again_replaces_its_own_clips(tmp_path: Path) -> None:
    path = tmp_path / "t.mp4"
    shutil.copy(film("carphone_pristine.mp4"), path)
    assert _clip(path, "-o", tmp_path).exit_code == 0
    (clip,) = tmp_path.glob("t_*.mp4")
    first = clip.read_bytes()
    clip.write_bytes(b"broken" + first[-16:])
    run = _clip(path, "-o", tmp_path)
    assert run.exit_code == 0, run.output
    assert clip.read_bytes() == first
    run = _clip(path, clip, "-o", tmp_path)
    assert run.exit_code == 2, "the clip is one of the films now"
    assert clip.read_bytes() == first


def test_a_clip_whose_pictures_are_damaged_is_not_written(tmp_path: Path) -> None:
    """The decoder hides what bit errors do to H.264, and the copied clip would play all the same."""
    path = make_film(tmp_path / "a.mp4", (Shot("bikes.1", 60), Shot("bikes.3", 60), Shot("bunny", 60)), crf=16).path
    assert _clip(path, "-o", tmp_path / "whole").exit_code == 0
    assert len(list((tmp_path / "whole").iterdir())) == 3
    damage(path, at_frame=90)
    run = _clip(path, "-o", tmp_path / "out")
    assert run.exit_code == 1, run.output
    assert re.search(rf"error: {path}: damaged at [\d.]+ s \[damaged_frames\]", run.output)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["a_0000.mp4", "a_0002.mp4"]
    assert re.search(r"lost: could not be written +2\.40 ", run.output)


@pytest.mark.parametrize("given", [True, False])
def test_no_film_is_replaced(tmp_path: Path, given: bool) -> None:
    path, other = tmp_path / "t.mp4", tmp_path / "t_0000.mp4"
    shutil.copy(film("carphone_pristine.mp4"), path)
    shutil.copy(film("bikes.mp4"), other)
    run = _clip(path, *([other] if given else []), "-o", tmp_path)
    assert run.exit_code == 2
    assert f"a clip could replace {'the film ' if given else ''}{other}" in run.output
    assert other.read_bytes() == film("bikes.mp4").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_name_too_long_for_its_clips_is_shortened(tmp_path: Path) -> None:
    one, other = tmp_path / ("x" * 250 + "a.mp4"), tmp_path / ("x" * 250 + "b.mp4")
    for path in (one, other):
        shutil.copy(film("carphone_pristine.mp4"), path)
    run = _clip(one, other, "-o", tmp_path / "out")
    assert run.exit_code == 0, run.output
    written = sorted(each.name for each in (tmp_path / "out").iterdir())
    assert written == ["x" * 235 + "-2_0000.mp4", "x" * 235 + "_0000.mp4"]


def test_a_clip_that_cannot_be_written_is_one_line_and_the_other_films_are_clipped(tmp_path: Path) -> None:
    path, other, out = film("carphone_pristine.mp4"), tmp_path / "other.mp4", tmp_path / "out"
    shutil.copy(path, other)
    (out / "carphone_pristine_0000.part").mkdir(parents=True)  # in the way: nobody may write here
    run = _clip(path, other, "-o", out)
    assert run.exit_code == 1
    assert isinstance(run.exception, SystemExit)
    (line,) = (each for each in run.output.splitlines() if each.startswith("error: "))
    assert line.startswith(f"error: {path}: cannot write {out / 'carphone_pristine_0000.mp4'}: ")
    assert (out / "other_0000.mp4").exists()
