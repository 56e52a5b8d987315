"""`clipmill sample` as people run it, its files read by another program."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from model import sample_cli, sample_run, video_io
from model.sample_cli import sample
from model.tasks import Interpolation, VideoModel
from model.tasks.camera_lora import add_lora, save_lora

QUICK = ["--steps", "2", "--seed", "5", "--size", "48x32"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(sample, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    for task, frames in (("text-to-video", 4), ("image-to-video", 4), ("interpolation", 5), ("orbit", 4)):
        made = succeed("init", task, folder / task, "--tiny", "--frames", frames)
        assert "RANDOM WEIGHTS" in made.output
    y, x = np.mgrid[:40, :60]
    Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(np.stack([y * 6, x * 4, (x - y) % 60 * 4], -1).astype(np.uint8)).save(folder / "b.png")
    return folder


def ffmpeg_frames(path: Path, width: int, height: int) -> np.ndarray:
    """Decoded by another program than the one that wrote it."""
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def test_image_to_video_in_all_three_formats(work, tmp_path):
    common = ["image-to-video", "--model", work / "image-to-video", "--image", work / "a.png", *QUICK]
    for name in ("v.mp4", "v.gif", "frames"):
        result = succeed(*common, "-o", tmp_path / name)
        assert "4 frames of 48 x 32" in result.output
        assert "RANDOM WEIGHTS" in result.output
    frames = np.stack([np.array(Image.open(p)) for p in sorted((tmp_path / "frames").iterdir())])
    assert frames.shape == (4, 32, 48, 3)
    mp4 = ffmpeg_frames(tmp_path / "v.mp4", 48, 32)
    assert mp4.shape == frames.shape
    # H.264 halves the resolution of colour, so luma is what must agree.
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs(mp4 @ luma - frames @ luma).mean() < 12
    with Image.open(tmp_path / "v.gif") as gif:
        assert gif.n_frames == 4
        assert gif.info["duration"] in (140, 143)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # nothing half-written is left


def test_a_size_that_cannot_fit_is_refused_before_anything_is_sampled(work, tmp_path, monkeypatch):
    base = ["image-to-video", "--model", work / "image-to-video", "--image", work / "a.png", *QUICK]
    monkeypatch.setattr(sample_run, "available_memory", lambda *_: 4 * 3 * 32 * 48 * 4 - 1)
    result = run(*base, "-o", tmp_path / "v.mp4")
    assert result.exit_code == 2
    assert "4 frames of 48 x 32 cannot fit: at least" in result.output
    assert "smaller --size" in result.output
    assert not list(tmp_path.iterdir())


def test_the_seed_reproduces_the_file_bit_for_bit(work, tmp_path):
    common = ["image-to-video", "--model", work / "image-to-video", "--image", work / "a.png", "--steps", 2]
    files = []
    for i, seed in enumerate((7, 7, 8)):
        succeed(*common, "--size", "48x32", "--seed", seed, "-o", tmp_path / f"{i}.mp4")
        files.append((tmp_path / f"{i}.mp4").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_text_to_video_with_preview_and_contact_sheet(work, tmp_path):
    result = succeed(
        *["text-to-video", "--model", work / "text-to-video", "--prompt", "a dog", "--temporal-prompt", "zooming in"],
        *[
            *QUICK,
            "--preview",
            "--contact-sheet",
            "--decode-chunk",
            1,
            "--two-pass",
            "--offload",
            "-o",
            tmp_path / "v.mp4",
        ],
    )
    assert "v.preview.png: the video after 1, 2 steps" in result.output
    with Image.open(tmp_path / "v.preview.png") as preview, Image.open(tmp_path / "v.sheet.png") as sheet:
        assert preview.size == (4 * 50 + 2, 2 * 34 + 2)  # 2 steps x 4 frames
        assert sheet.size == (4 * 50 + 2, 34 + 2)
        last_row = np.array(preview)[36:70]
        assert np.abs(last_row.astype(int) - np.array(sheet)[2:36]).max() <= 2  # the last step's estimate is the video


def test_orbit_and_interpolation(work, tmp_path):
    succeed(
        "orbit", "--model", work / "orbit", "--image", work / "a.png", "--elevation", 20, *QUICK, "-o", tmp_path / "o"
    )
    assert len(list((tmp_path / "o").iterdir())) == 4
    images = ["--image", work / "a.png", "--image", work / "b.png"]
    succeed("interpolation", "--model", work / "interpolation", *images, *QUICK, "-o", tmp_path / "between")
    between = sorted((tmp_path / "between").iterdir())
    assert len(between) == 5
    expected = video_io.to_bytes(video_io.read_image(work / "b.png", (48, 32)))[0]
    assert np.array_equal(np.array(Image.open(between[4])), expected)
    # A clip at four times its rate: 3 frames at 10 fps become 9 at 40.
    clip = torch.cat([video_io.read_image(work / name, (48, 32)) for name in ("a.png", "b.png", "a.png")])
    video_io.write_video(clip, tmp_path / "clip.mp4", fps=10)
    result = succeed(
        *["interpolation", "--model", work / "interpolation", "--video", tmp_path / "clip.mp4"],
        *[*QUICK, "-o", tmp_path / "smooth.mp4"],
    )
    assert "9 frames of 48 x 32 at 40 fps" in result.output
    assert len(ffmpeg_frames(tmp_path / "smooth.mp4", 48, 32)) == 9


def test_a_film_is_interpolated_pair_by_pair(work, tmp_path, monkeypatch):
    """Its length is bounded by the disk alone, which is looked at first; the preview shows the pair at work."""
    clip = torch.stack([video_io.read_image(work / name, (48, 32))[0] for name in ("a.png", "b.png") * 3])
    film = video_io.write_video(clip, tmp_path / "film.mp4", fps=10)
    command = ["interpolation", "--model", work / "interpolation", "--video", film, *QUICK]
    read: list[int] = []
    frames, sampled = video_io.film_frames, Interpolation.__call__

    def counted(*arguments, **more):
        for i, frame in enumerate(frames(*arguments, **more)):
            read.append(i)
            yield frame

    def one_more(*arguments, **more):
        calls.append(len(read))
        return sampled(*arguments, **more)

    calls: list[int] = []
    monkeypatch.setattr(sample_cli, "film_frames", counted)
    monkeypatch.setattr(Interpolation, "__call__", one_more)
    result = succeed(*command, "--preview", "-o", tmp_path / "smooth.mp4")
    assert calls == [2, 3, 4, 5, 6]  # a pair is sampled as soon as its two frames are read
    assert "21 frames of 48 x 32" in result.output
    assert "the video after 1, 2 steps" in result.output
    with Image.open(tmp_path / "smooth.preview.png") as preview:
        assert preview.size == (4 * 50 + 2, 2 * 34 + 2)
    usage = shutil.disk_usage(tmp_path)
    free = 21 * 48 * 32 * 3 - 1
    monkeypatch.setattr(video_io.shutil, "disk_usage", lambda _: usage._replace(free=free))
    result = run(*command, "-o", tmp_path / "frames")
    assert "0.1 MB needed" in result.output
    assert len(calls) == 5
    succeed(*command, "--max-frames", 5, "-o", tmp_path / "frames")


def test_what_is_read_is_never_replaced(work, tmp_path):
    film = video_io.write_video(torch.zeros(2, 3, 32, 48), tmp_path / "film.mp4", fps=10)
    before = film.read_bytes()
    (tmp_path / "link.mp4").symlink_to(film)
    for name in ("film.mp4", "link.mp4"):
        result = run("interpolation", "--model", work / "interpolation", "--video", film, *QUICK, "-o", tmp_path / name)
        assert result.exit_code == 2
        assert "would be replaced by the result" in result.output
    assert film.read_bytes() == before


def test_camera_lora_and_motion_score(work, tmp_path):
    model = VideoModel.load(work / "image-to-video")
    for p in add_lora(model.unet, name="zooming", rank=4):
        torch.nn.init.normal_(p, std=0.3)
    save_lora(model.unet, tmp_path / "zooming", name="zooming")
    common = ["image-to-video", "--model", work / "image-to-video", "--image", work / "a.png", *QUICK]
    succeed(*common, "-o", tmp_path / "plain")
    succeed(*common, "--lora", f"{tmp_path / 'zooming'}:0.8", "-o", tmp_path / "zoomed")
    succeed(*common, "--lora", f"{tmp_path / 'zooming'}:0", "-o", tmp_path / "zero")
    succeed(*common, "--motion-score", 4.0, "-o", tmp_path / "fast")
    frames = {p: (tmp_path / p / "0003.png").read_bytes() for p in ("plain", "zoomed", "zero", "fast")}
    assert frames["plain"] == frames["zero"]
    assert frames["plain"] != frames["zoomed"]
    assert frames["plain"] != frames["fast"]


def _described(model: Path, **changes: object) -> str:
    return json.dumps(json.loads((model / "clipmill.json").read_text()) | changes)


def _with_file(work: Path, copy: Path, name: str, text: str) -> list[object]:
    """The command line that uses a copy of the model with one file replaced."""
    shutil.copytree(work / "image-to-video", copy)
    (copy / name).write_text(text)
    return ["image-to-video", "--model", copy, "--image", work / "a.png"]


def test_mistakes_are_one_clear_line(work, tmp_path):
    model, picture = work / "image-to-video", work / "a.png"
    base = ["image-to-video", "--model", model, "--image", picture, "--steps", 2]

    def fails(message: str, *arguments: object) -> None:
        result = run(*arguments)
        assert result.exit_code != 0
        assert message in result.output, result.output
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)

    fails("multiples of 8 for this model; the nearest is 48 x 32", *base, "--size", "50x33", "-o", tmp_path / "v.mp4")
    fails("width x height", *base, "--size", "big", "-o", tmp_path / "v.mp4")
    fails("do not know how to write .avi", *base, "-o", tmp_path / "v.avi")
    fails("does not exist", *base[:3], "--image", tmp_path / "none.png", "-o", tmp_path / "v.mp4")
    fails("not an image", *base[:3], "--image", model / "clipmill.json", "-o", tmp_path / "v.mp4")
    fails("does not exist", "image-to-video", "--model", tmp_path / "none", "--image", picture)
    fails("unet/ and vae/ are needed", "image-to-video", "--model", tmp_path, "--image", picture)
    fails(
        "is for image to video, not for orbit", "orbit", "--model", model, "--image", picture, "-o", tmp_path / "v.mp4"
    )
    fails("give --video CLIP", "interpolation", "--model", work / "interpolation", "--image", picture)
    fails("format 1 is needed", *_with_file(work, tmp_path / "m1", "clipmill.json", '{"format": 2}'))
    fails("steps 'many'", *_with_file(work, tmp_path / "m2", "clipmill.json", _described(model, steps="many")))
    fails("frames -3", *_with_file(work, tmp_path / "m3", "clipmill.json", _described(model, frames=-3)))
    fails("expected an object", *_with_file(work, tmp_path / "m4", "unet/config.json", "[]"))
    fails("a JSON object is needed", *_with_file(work, tmp_path / "m5", "vae/config.json", "[]"))
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    fails("exists and is not empty", "init", "orbit", model, "--tiny")
    assert not list(tmp_path.iterdir())
    copy = tmp_path / "unknown-motion"
    shutil.copytree(model, copy)
    data = json.loads((copy / "clipmill.json").read_text())
    (copy / "clipmill.json").write_text(json.dumps(data | {"motion": None}))
    fails(
        "does not say how its motion buckets were computed",
        *["image-to-video", "--model", copy, "--image", picture, "--motion-score", 1, "-o", tmp_path / "v.mp4"],
    )


def test_options_that_are_no_use_are_refused_before_the_model_is_loaded(work, monkeypatch):
    monkeypatch.setattr(VideoModel, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    base = ["image-to-video", "--model", work / "image-to-video", "--image", work / "a.png"]
    for message, *options in (
        ("nan is no finite number", "--guidance", "nan"),
        ("inf is no finite number", "--augmentation", "inf"),
        ("not in the range", "--fps", 1e9),
        ("not in the range", "--seed", 2**70),
        ("'banana' cannot be used here", "--device", "banana"),
        ("do not know how to write .png", "-o", "v.png"),
        ("the scale nan is no finite number", "--lora", "zooming:nan"),
        ("width x height", "--size", "0x32"),
    ):
        result = run(*base, *options)
        assert result.exit_code != 0
        assert message in result.output, result.output


def test_only_earlier_results_are_replaced(work, tmp_path):
    common = ["image-to-video", "--model", work / "image-to-video", "--image", work / "a.png", *QUICK]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("precious")
    result = run(*common, "-o", tmp_path / "photos")
    assert result.exit_code == 1
    assert "holds other files (holiday.jpg), which would be lost" in result.output
    assert (tmp_path / "photos" / "holiday.jpg").read_text() == "precious"
    assert "is a folder" in run(*common, "-o", (tmp_path / "photos").rename(tmp_path / "v.mp4")).output
    assert "give the folder for the PNGs a name" in run(*common, "-o", ".").output
    (tmp_path / "note").write_text("precious")
    assert "is a file" in run(*common, "-o", tmp_path / "note").output
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0017.png").write_text("of an earlier, longer run")
    succeed(*common, "-o", tmp_path / "frames")
    assert len(list((tmp_path / "frames").iterdir())) == 4


def test_another_frame_count_warns(work, tmp_path):
    common = ["image-to-video", "--model", work / "image-to-video", "--image", work / "a.png", *QUICK]
    result = succeed(*common, "--frames", 6, "-o", tmp_path / "v")
    assert "warning: 6 frames asked for, but this model was trained for 4" in result.output


def test_no_space_is_found_out_before_sampling(work, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(video_io.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    result = run(
        "image-to-video", "--model", work / "image-to-video", "--image", work / "a.png", "-o", tmp_path / "v.mp4"
    )
    assert result.exit_code == 1
    assert "0.0 MB free, about" in result.output


def test_no_space_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_io, "_write_gif", full)
    with pytest.raises(video_io.VideoFileError, match="no space left"):
        video_io.write_video(torch.zeros(2, 3, 8, 8), tmp_path / "v.gif", fps=7)
    assert not list(tmp_path.iterdir())


def test_bytes_survive_the_round_trip():
    array = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    assert np.array_equal(video_io.to_bytes(video_io.from_bytes(array)), array)
    with pytest.raises(ValueError, match="even sizes"):
        video_io.write_video(torch.zeros(2, 3, 7, 8), "v.mp4", fps=7)


def test_many_are_those_of_single_runs_and_those_that_are_there_are_kept(work, tmp_path, monkeypatch):
    (tmp_path / "p.csv").write_text('name,prompt,seed\none,a dog,\nTwo words,"a cat, asleep",40\nthree,a dog,\n')
    model, out = work / "text-to-video", tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "2 videos sampled, 0 were there"), ("1", "1 videos sampled, 0 were there")):
        monkeypatch.setenv("RANK", rank)
        assert said in succeed("many", tmp_path / "p.csv", "--model", model, *QUICK, "-o", out).output
    monkeypatch.undo()
    assert sorted(path.name for path in out.iterdir()) == ["Two words.mp4", "one.mp4", "three.mp4"]
    for name, prompt, seed in (("one", "a dog", 5), ("Two words", "a cat, asleep", 40), ("three", "a dog", 7)):
        alone = [
            "text-to-video",
            "--model",
            model,
            "--prompt",
            prompt,
            *QUICK,
            "--seed",
            seed,
            "-o",
            tmp_path / "x.mp4",
        ]
        succeed(*alone)
        assert (out / f"{name}.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes(), name
    before = (out / "one.mp4").stat().st_mtime_ns
    (out / "three.mp4").unlink()
    assert (
        "1 videos sampled, 2 were there"
        in succeed("many", tmp_path / "p.csv", "--model", model, *QUICK, "-o", out).output
    )
    assert (out / "one.mp4").stat().st_mtime_ns == before


def test_many_from_images_that_lie_beside_the_list(work, tmp_path):
    (tmp_path / "i.csv").write_text("name,image\none,pictures/a.png\n")
    (tmp_path / "pictures").mkdir()
    shutil.copy(work / "a.png", tmp_path / "pictures/a.png")
    model = work / "image-to-video"
    succeed("many", tmp_path / "i.csv", "--model", model, *QUICK, "-o", tmp_path / "out")
    succeed("image-to-video", "--model", model, "--image", work / "a.png", *QUICK, "-o", tmp_path / "x.mp4")
    assert (tmp_path / "out/one.mp4").read_bytes() == (tmp_path / "x.mp4").read_bytes()


def test_an_image_that_cannot_be_read_costs_its_own_row(work, tmp_path):
    (tmp_path / "i.csv").write_text("name,image\nbroken,broken.png\nwhole,a.png\n")
    (tmp_path / "broken.png").write_text("no picture")
    shutil.copy(work / "a.png", tmp_path / "a.png")
    arguments = ["many", tmp_path / "i.csv", "--model", work / "image-to-video", *QUICK, "-o", tmp_path / "out"]
    for done in (0, 1):
        found = run(*arguments)
        assert found.exit_code == 1
        assert f"left out: {tmp_path / 'broken.png'}" in found.output
        assert f"{1 - done} videos sampled, {done} were there already\nError: 1 images cannot be read" in found.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.mp4"]


@pytest.mark.parametrize(
    ("model", "text", "said"),
    [
        ("text-to-video", "name,image\na,b\n", "line 1: no column prompt; this model wants name,prompt"),
        ("text-to-video", "name,prompt\n", "holds no rows"),
        ("text-to-video", "name,prompt\na,b\na,c\n", "line 3: the name a is there already"),
        ("text-to-video", "name,prompt\n../a,b\n", "line 2: '../a' can be no file name"),
        ("text-to-video", "name,prompt\na\n", "line 2: no prompt"),
        ("text-to-video", "name,prompt\na,a cat, asleep\n", "line 2: more columns than in line 1"),
        ("text-to-video", f"name,prompt\n{'漢' * 100},a\n", "is too long for a file"),
        ("text-to-video", "name,prompt,seed\na,b,-1\n", "line 2: the seed '-1' is no whole number"),
        ("text-to-video", 'name,prompt\na,"b\n', "p.csv: not a CSV (unexpected end of data)"),
        ("image-to-video", "name,image\na,nothing.png\n", "nothing.png: no such file"),
        ("orbit", "name,image\na,b\n", "orbit models are not sampled from a list"),
    ],
)
def test_a_wrong_list_is_one_line_before_a_model_is_loaded(work, tmp_path, monkeypatch, model, text, said):
    monkeypatch.setattr(VideoModel, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "p.csv").write_text(text)
    found = run("many", tmp_path / "p.csv", "--model", work / model, "-o", tmp_path / "out")
    assert found.exit_code == 2, found.output
    assert said in " ".join(found.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rank", "world_size"), [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_a_process_that_is_none_of_the_others_is_one_line(work, tmp_path, monkeypatch, rank, world_size):
    monkeypatch.setattr(VideoModel, "load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    (tmp_path / "p.csv").write_text("name,prompt\na,b\n")
    found = run("many", tmp_path / "p.csv", "--model", work / "text-to-video", "-o", tmp_path / "out")
    assert found.exit_code == 2
    assert f"RANK={rank} WORLD_SIZE={world_size}: RANK goes from 0 to WORLD_SIZE - 1" in found.output
