"""Cuts are found where the films that the tests join have them, and nowhere else."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from click.testing import CliRunner

from curation.cuts import detector, follow, sparse
from curation.cuts.cascade import CascadeDetector, _merged
from curation.cuts.cut import Cut
from curation.cuts.pairs import THUMB_BYTES, thumb
from curation.cuts.shots import Boundary, Limits, Run
from curation.errors import CannotDecode
from curation.frames import FilmFrames
from curation.probe import probe
from pipelines.cuts_cli import cuts as cuts_command
from pipelines.cuts_lines import _as_table
from tests.media import BIKES_CUTS, Join, Labels, Shot, film, make_film

A = Shot("bikes.3", 60)
B = Shot("bunny", 70, mirror=True)
C = Shot("carphone", 60)
TWO = (A, B)


def found(path: Path) -> list[Cut]:
    return CascadeDetector().detect(probe(path))


def spans(cuts: list[Cut]) -> list[tuple[str, int, int]]:
    return [(cut.kind, cut.start_frame, cut.end_frame) for cut in cuts]


def test_the_cuts_of_a_real_film() -> None:
    cuts = found(film("bikes.mp4"))
    assert [cut.frame for cut in cuts] == list(BIKES_CUTS)
    assert all(cut.kind == "hard" and cut.start_frame == cut.end_frame == cut.frame for cut in cuts)
    assert [cut.time_s for cut in cuts] == pytest.approx([at / 25 for at in BIKES_CUTS])


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_a_real_film_of_one_shot_has_no_cut(name: str) -> None:
    assert found(film(name)) == []


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("a.mp4", {}),
        ("b.mp4", {"scenecut": False, "bframes": 3}),
        ("c.mp4", {"gop": 12}),
        ("d.mp4", {"gop": None, "rate": 60, "bframes": 3}),
        ("e.mkv", {"open_gop": True, "gop": 48, "bframes": 3}),
        ("f.mp4", {"codec": "libx265", "rate": 12}),
        ("g.webm", {"codec": "libvpx-vp9", "size": (426, 240)}),
        ("h.mp4", {"codec": "libsvtav1", "rate": 30}),
        ("i.avi", {"codec": "mpeg4", "gop": 300}),
        ("j.mp4", {"vfr": True, "size": (160, 90)}),
    ],
)
def test_hard_cuts_are_exact_in_every_codec(tmp_path: Path, name: str, encoding: dict[str, Any]) -> None:
    labels = make_film(tmp_path / name, (A, B, C), [Join(), Join()], **encoding)
    assert spans(found(labels.path)) == [("hard", 60, 60), ("hard", 130, 130)]


@pytest.mark.parametrize("join", [Join("dissolve", 8), Join("dissolve", 24), Join("dissolve", 50)])
@pytest.mark.parametrize("encoding", [{}, {"codec": "mpeg4", "gop": 12}, {"gop": None, "bframes": 3}])
def test_a_dissolve_is_one_span_that_covers_its_mixed_frames(
    tmp_path: Path, join: Join, encoding: dict[str, Any]
) -> None:
    shots = (Shot("bikes.3", 110), Shot("bunny", 110, mirror=True))
    # At widths that are no multiple of 256, x264's bytes differ from run to run (curation/clips/encode.py says why).
    check_span(make_film(tmp_path / "a.mp4", shots, [join], size=(512, 288), **encoding))


@pytest.mark.parametrize("kind", ["fade_black", "fade_white"])
@pytest.mark.parametrize(("frames", "hold"), [(12, 0), (30, 6)])
def test_a_fade_through_a_colour_is_one_span(tmp_path: Path, kind: Any, frames: int, hold: int) -> None:
    check_span(make_film(tmp_path / "a.mp4", TWO, [Join(kind, frames, hold)], size=(640, 360)))


def check_span(labels: Labels) -> None:
    (cut,) = found(labels.path)
    (join,) = labels.joins
    assert cut.kind == "gradual"
    assert cut.frame == cut.end_frame
    assert abs(cut.start_frame - join.start_frame) <= 4
    assert abs(cut.end_frame - join.end_frame) <= 4
    covered = min(cut.end_frame, join.end_frame) - max(cut.start_frame, join.start_frame)
    assert covered >= 0.8 * (join.end_frame - join.start_frame)


def test_fades_at_the_ends_of_a_film_are_spans(tmp_path: Path) -> None:
    black = Join("fade_black", 20)
    labels = make_film(tmp_path / "a.mp4", TWO, [black, Join(), black], size=(640, 360))
    opening, middle, closing = found(labels.path)
    assert (opening.start_frame, closing.end_frame) == (0, labels.frames)
    assert abs(opening.end_frame - 20) <= 3
    assert abs(closing.start_frame - (labels.frames - 20)) <= 3
    assert spans([middle]) == [("hard", 60, 60)]


def test_a_fade_ends_where_it_ends_though_the_picture_moves_on(tmp_path: Path) -> None:
    shots = (Shot("bikes.0", 100, move="pan", seed=4, speed=2.0), B)
    labels = make_film(tmp_path / "a.mp4", shots, [Join("fade_black", 16), Join(), Join()], size=(640, 360))
    opening, *_ = found(labels.path)
    assert opening.start_frame == 0
    assert abs(opening.end_frame - 16) <= 4


def test_a_cut_right_after_a_dissolve_is_not_lost_in_it(tmp_path: Path) -> None:
    """As where a title comes up over the end of a shot; the cut changes more than the whole dissolve does."""
    shots = (Shot("bunny", 50, "static"), Shot("bunny", 18, "static", mirror=True), Shot("bikes.1", 50, "static"))
    labels = make_film(tmp_path / "a.mp4", shots, [Join("dissolve", 16), Join()], size=(320, 180), rate=25)
    dissolve, cut = found(labels.path)
    assert (dissolve.kind, dissolve.end_frame) == ("gradual", labels.joins[0].end_frame)
    assert spans([cut]) == [("hard", 52, 52)]


def test_cuts_a_frame_or_two_apart_are_one_transition() -> None:
    """No shot is so short: they are the large steps of one quick dissolve."""
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (40, THUMB_BYTES), dtype=np.uint8)
    run = Run(thumbs, np.arange(40) / 60, Limits())
    steps = [Boundary(17, 18, "hard", 3.0), Boundary(19, 20, "hard", 2.0), Boundary(30, 31, "hard", 4.0)]
    merged = _merged([(step, 1.0) for step in steps], run)
    assert [(b.kind, b.before, b.after) for b, _ in merged] == [("gradual", 17, 20), ("hard", 30, 31)]


@pytest.mark.parametrize(
    "shot",
    [
        Shot("bunny", 150, move="pan", seed=1),
        Shot("bunny", 330, move="pan", seed=2),  # over the edge of a hill: at 16x9 a wipe from ground to sky
        Shot("bikes.3", 150, move="pan", seed=2, speed=2.0),
        Shot("bunny", 150, move="zoom_in"),
        Shot("bikes.4", 150, move="shake", seed=3),
        Shot("carphone", 150, flashes=(40, 41, 90)),
        Shot("bikes.3", 150, flashes=(60, 61, 62)),
        Shot("bikes.2", 120),  # a car passes close to the camera
        Shot("bunny", 150, move="static"),
    ],
)
@pytest.mark.parametrize("scenecut", [True, False])
def test_motion_flashes_and_passers_by_are_no_cuts(tmp_path: Path, shot: Shot, scenecut: bool) -> None:
    assert found(make_film(tmp_path / "a.mp4", [shot], [], scenecut=scenecut, size=(426, 240)).path) == []


def test_passing_over_steady_gops_loses_nothing(tmp_path: Path) -> None:
    shots = (Shot("bikes.3", 90, move="static"), Shot("bunny", 150), Shot("bikes.4", 100), Shot("carphone", 100))
    labels = make_film(tmp_path / "a.mp4", shots, [Join(), Join("dissolve", 20), Join()], gop=50, size=(640, 360))
    info = probe(labels.path)
    sparse, whole = FilmFrames(info), FilmFrames(info)
    assert spans(CascadeDetector().detect(info, sparse)) == spans(CascadeDetector(steadiness=None).detect(info, whole))
    assert sparse.decoded_frames < whole.decoded_frames
    assert [cut.kind for cut in CascadeDetector().detect(info)] == ["hard", "gradual", "hard"]


@pytest.mark.parametrize("kind", ["dissolve", "fade_black"])
def test_a_gop_is_left_once_it_agrees_with_the_next_key_frame(tmp_path: Path, kind: Any) -> None:
    shots = (Shot("carphone", 140), Shot("bunny", 500, move="static"), Shot("bikes.3", 120, move="static"))
    labels = make_film(tmp_path / "a.mp4", shots, [Join(kind, 20), Join()], size=(640, 360))
    info = probe(labels.path)
    cuts = CascadeDetector().detect(info)
    assert spans(cuts) == spans(CascadeDetector(steadiness=None).detect(info))
    assert [cut.kind for cut in cuts] == ["gradual", "hard"]
    numbers: list[int] = []
    alone, lent = CascadeDetector(), FilmFrames(info)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "thumb", lambda frame: (numbers.append(frame.pts), thumb(frame))[1])
        alone.detect(info)
        seen = len(numbers)
        assert spans(CascadeDetector().detect(info, lent)) == spans(cuts)
    assert seen < 0.6 * info.frames
    shared = math.ceil(2 * info.duration_s)  # frames that motion needs are decoded with the rest
    assert 2 * seen <= len(numbers) <= 2 * seen + shared  # frames lent to others: no more is looked at
    assert lent.decoded_frames > seen  # ... but GOPs are decoded to their ends, for the others


def test_a_cut_between_two_gops_that_are_looked_at_is_not_lost(tmp_path: Path) -> None:
    """Both GOPs are followed, the first is left one frame before its end, so the cut lies between two chunks."""
    labels = make_film(tmp_path / "a.mp4", (A, B, C, A), [Join()] * 3)
    info = probe(labels.path)
    film, keys = FilmFrames(info), np.flatnonzero(info.keyframe)
    thumbs = {number: thumb(frame) for number, frame in film.keyframes()}
    assert keys.tolist() == [0, 60, 130, 190]
    looks = [sparse.Look(0, 60, 59, True), sparse.Look(60, 130, 100, True), sparse.Look(130, 190, 160, True)]
    follower = follow.Follower(info, film, sparse.Plan(looks, [], thumbs), Limits(), sparse.Steadiness(), leave=True)
    chunks = [(numbers[0], numbers[-1], is_last) for numbers, _, is_last in follower.chunks(np.zeros(250, bool))]
    assert [first for first, _, _ in chunks] == [0, 60, 130]
    assert all(is_last for _, _, is_last in chunks)
    assert [at for at, _ in follower.key_cuts] == [60, 130, 190]
    assert not any(first < at < stop for first, stop in follower.seen for at, _ in follower.key_cuts)


def test_after_a_sharp_end_nothing_more_is_looked_at(tmp_path: Path) -> None:
    """A GOP seen to its end, and a key frame that surely shows another shot: no transition goes on beyond it."""
    labels = make_film(tmp_path / "a.mp4", (A, B, C), [Join()] * 2)
    info = probe(labels.path)
    film, limits, margins = FilmFrames(info), Limits(), sparse.Steadiness()
    thumbs = {number: thumb(frame) for number, frame in film.keyframes()}
    for sharp in (False, True):
        todo = sparse.Plan([sparse.Look(0, 60, sharp=sharp)], [], thumbs)
        follower = follow.Follower(info, film, todo, limits, margins, leave=True)
        list(follower.chunks(sparse.spared_frames(info)))
        assert [at for at, _ in follower.key_cuts] == ([60] if sharp else [])
        assert (follower.seen[0][1] <= 63) == sharp


@pytest.mark.parametrize("scenecut", [True, False])
@pytest.mark.parametrize("at", [58, 59, 60, 61, 62, 63])
def test_a_cut_between_frames_left_out_is_exact(tmp_path: Path, at: int, scenecut: bool) -> None:
    """Wherever the cut falls among P- and B-frames, and whether or not the shots move."""
    shots = (Shot("bikes.3", at), Shot("bunny", 150, move="shake"), Shot("bikes.0", 60))
    labels = make_film(tmp_path / "a.mp4", shots, [Join()] * 2, scenecut=scenecut, bframes=3, gop=50)
    info = probe(labels.path)
    assert info.b_frames_optional
    scouts = CascadeDetector()
    with pytest.MonkeyPatch.context() as patch:  # every GOP is scouted: no B-frames at first, but where packets jump
        everything = [sparse.Look(0, info.frames, scout=True)]
        patch.setattr(sparse, "plan", lambda *_: sparse.Plan(everything, [], {}))
        assert spans(scouts.detect(info)) == [("hard", at, at), ("hard", at + 150, at + 150)]
        patch.setattr(sparse, "spared_frames", lambda info: np.zeros(info.frames, bool))
        assert spans(scouts.detect(info)) == [("hard", at, at), ("hard", at + 150, at + 150)]


def test_p_frames_tell_fast_motion_from_a_mixture_of_shots(tmp_path: Path) -> None:
    info = probe(make_film(tmp_path / "a.mp4", (A, B, C), [Join()] * 2, scenecut=False).path)
    ordinary = np.where(np.isin(np.arange(info.frames), info.anchors), 1000, 100)
    ordinary[info.keyframe] = 10_000

    def even(at: slice, size: int) -> bool:
        sizes = ordinary.copy()
        sizes[info.anchors[at]] = size
        return sparse.even(dataclasses.replace(info, packet_size=sizes), 0, info.frames, sparse.Steadiness())

    assert even(slice(10, 20), 2000)  # it moves faster for a while
    assert not even(slice(10, 20), 2500)  # some far heavier than the others
    assert not even(slice(1, None), 9000)  # as heavy as a key frame, all of them
    assert not even(slice(10, 12), 6000)


@pytest.mark.parametrize(
    "colours", ["hue=s=0", "hue=s=0,eq=contrast=0.5", "hue=s=0,colorchannelmixer=.9:0:0:0:0:.8:0:0:0:0:.6"]
)
@pytest.mark.parametrize("gop", ["250", "24"])
def test_films_without_colours_have_all_their_cuts(tmp_path: Path, colours: str, gop: str) -> None:
    source, path = film("bikes.mp4"), tmp_path / "grey.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(source)]
    command += ["-vf", f"{colours},format=yuv420p", "-c:v", "libx264", "-preset", "veryfast", "-g", gop, str(path)]
    subprocess.run(command, check=True)
    assert spans(found(path)) == [("hard", at, at) for at in BIKES_CUTS]


@pytest.mark.parametrize("rate", [["-bufsize", "60k"], ["-bufsize", "100k", "-x264-params", "nal-hrd=cbr"]])
def test_a_constant_rate_hides_no_cuts(tmp_path: Path, rate: list[str]) -> None:
    """Sizes of packets say nothing where filler or a small buffer keeps them alike."""
    shots = (Shot("bikes.3", 130), Shot("bunny", 18), Shot("bikes.3", 164), Shot("carphone", 18), Shot("bikes.3", 120))
    source, path = make_film(tmp_path / "a.mp4", shots, size=(320, 180)).path, tmp_path / "b.mkv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(source), "-c:v", "libx264", "-g", "120"]
    command += ["-sc_threshold", "0", "-b:v", "300k", "-minrate", "300k", "-maxrate", "300k", *rate, str(path)]
    subprocess.run(command, check=True)
    assert [cut.frame for cut in found(path)] == [130, 148, 312, 330]


@pytest.mark.parametrize("gop", [250, 40])
@pytest.mark.parametrize("piece", ["bunny", "carphone", "bikes.3"])
@pytest.mark.parametrize("other", [{"mirror": True}, {"crop": (0.25, 0.2, 0.75, 0.7)}])
def test_cuts_between_pictures_of_the_same_colours(tmp_path: Path, piece: str, other: dict[str, Any], gop: int) -> None:
    """Jump cuts, punch-ins, mirrored angles: nothing but the step tells them from motion."""
    shots = (Shot(piece, 90), Shot(piece, 70, start=90, **other))
    assert spans(found(make_film(tmp_path / "a.mp4", shots, gop=gop, size=(512, 288)).path)) == [("hard", 90, 90)]


@pytest.mark.parametrize("first", [73, 74, 75, 76])
def test_cuts_of_av1_are_exact_wherever_they_fall(tmp_path: Path, first: int) -> None:
    """Its decoder asks once what to leave out, when it is opened."""
    path = make_film(tmp_path / "a.mp4", (Shot("bunny", first), Shot("bikes.3", 75)), codec="libsvtav1").path
    assert spans(found(path)) == [("hard", first, first)]
    info = probe(path)
    assert [n for n, _ in FilmFrames(info).exact(np.arange(60, 71))] == list(range(60, 71))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_a_cut_among_the_frames_that_lead_into_a_key_frame(tmp_path: Path, codec: str) -> None:
    """Frames that are stored after a key frame and shown before it may belong to its shot."""
    shots = (Shot("bunny", 100), Shot("carphone", 75), Shot("bikes.3", 75))
    source, path = make_film(tmp_path / "a.mkv", shots, crf=10).path, tmp_path / "b.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(source), "-c:v", codec, "-g", "250"]
    if codec == "mpeg4":
        command += ["-bf", "2", "-q:v", "4"]
    else:  # a key frame two frames after each cut
        params = "open-gop=1:scenecut=0:b-adapt=0:bframes=3:log-level=error"
        command += [f"-{codec[3:]}-params", params, "-force_key_frames", "4.08,7.08"]
    subprocess.run([*command, str(path)], check=True)
    assert probe(path).leads.any()
    assert spans(found(path)) == [("hard", 100, 100), ("hard", 175, 175)]


def test_pictures_that_stand_for_seconds_are_shots(tmp_path: Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(film("bikes.mp4"))]
    command += ["-vf", "select='not(mod(n,50))',setpts=N*5/TB", "-fps_mode", "passthrough", str(tmp_path / "a.mp4")]
    subprocess.run(command, check=True)
    assert spans(found(tmp_path / "a.mp4")) == [("hard", at, at) for at in range(1, 5)]


def test_dark_films_have_all_their_transitions(tmp_path: Path) -> None:
    shots = [Shot(piece, 100, gain=0.35) for piece in ("bunny", "bikes.3", "carphone", "bikes.0")]
    joins = (Join("dissolve", 24), Join(), Join("fade_black", 24))
    labels = make_film(tmp_path / "a.mp4", shots, joins)
    cuts = found(labels.path)
    assert [cut.kind for cut in cuts] == ["gradual", "hard", "gradual"]
    for cut, join in zip(cuts, labels.joins, strict=True):
        assert abs(cut.start_frame - join.start_frame) <= 4
        assert abs(cut.end_frame - join.end_frame) <= 4


def test_hundreds_of_frames_a_second(tmp_path: Path) -> None:
    labels = make_film(
        tmp_path / "a.mp4", (Shot("bikes.3", 1700), Shot("bunny", 900)), rate=480, gop=None, size=(64, 36)
    )
    film_frames = FilmFrames(probe(labels.path))
    assert spans(CascadeDetector().detect(film_frames.info, film_frames)) == [("hard", 1700, 1700)]
    assert film_frames.decoded_frames <= 1.1 * film_frames.info.frames


def test_a_flash_on_a_key_frame_is_no_cut(tmp_path: Path) -> None:
    """A flash gets the key frame; what follows is the shot before, and then the encoder is steady again."""
    shots = (Shot("bikes.3", 90), Shot("bunny", 130, flashes=(60, 61)), Shot("carphone", 90), Shot("bikes.1", 60))
    path = make_film(tmp_path / "a.mp4", shots, [Join()] * 3, size=(426, 240)).path
    assert 150 in np.flatnonzero(probe(path).keyframe)
    assert spans(found(path)) == [("hard", 90, 90), ("hard", 220, 220), ("hard", 310, 310)]


@pytest.mark.parametrize("frames", [8, 10])
def test_a_shot_too_short_for_a_second_key_frame_is_found(tmp_path: Path, frames: int) -> None:
    """Its end is one large packet shortly after a key frame, where encoders need a while to become steady."""
    shots = (Shot("bikes.3", 100), Shot("carphone", frames), Shot("bunny", 120), Shot("bikes.1", 80))
    path = make_film(tmp_path / "a.mp4", shots, [Join()] * 3, size=(640, 360)).path
    assert 100 + frames not in np.flatnonzero(probe(path).keyframe)
    assert spans(found(path)) == [("hard", at, at) for at in (100, 100 + frames, 220 + frames)]
    info = probe(path)
    for share, settles in ((0.35, True), (0.55, False)):  # a slow start, and another shot
        sizes = np.full(info.frames, 100)
        sizes[100], sizes[100 + frames] = 10_000, round(10_000 * share)
        odd = dataclasses.replace(info, packet_size=sizes)
        assert sparse._settles(odd, 100, 100 + frames, sparse.Steadiness()) == settles


@pytest.mark.parametrize(("frames", "scenecut"), [(3, False), (5, True), (8, False)])
def test_a_shot_between_two_pieces_of_another_is_no_flash(tmp_path: Path, frames: int, scenecut: bool) -> None:
    shots = (Shot("bikes.1", 50), Shot("bunny", frames), Shot("bikes.1", 50, start=50))
    found_at = spans(found(make_film(tmp_path / "a.mp4", shots, gop=50, scenecut=scenecut).path))
    whole = [("hard", 50, 50), ("hard", 50 + frames, 50 + frames)]
    assert found_at == whole if frames > 3 else found_at in (whole, [("gradual", 50, 53)])


def test_frames_that_come_out_of_order_are_examined(tmp_path: Path) -> None:
    """H.264 with B-frames in AVI: times follow decoding order, so frames come out of the decoder in another one."""
    shots = (Shot("bikes.1", 46), Shot("bunny", 60), Shot("carphone", 44))
    path = make_film(tmp_path / "a.avi", shots, gop=20, scenecut=False, bframes=3).path
    hard = [at for kind, at, _ in spans(found(path)) if kind == "hard"]
    assert hard == pytest.approx([46, 106], abs=3)


def test_a_flash_before_a_key_frame_is_no_cut(tmp_path: Path) -> None:
    """The picture after it gets the key frame; the GOP ends with the flash, which the shot before it begins."""
    shots = (
        Shot("bikes.0", 92),
        Shot("bunny", 120, move="static", flashes=(10, 11, 12, 60, 61, 62)),
        Shot("bikes.3", 60),
    )
    path = make_film(tmp_path / "a.mp4", shots, [Join()] * 2, size=(426, 240)).path
    info = probe(path)
    assert 105 in np.flatnonzero(info.keyframe)
    assert spans(found(path)) == [("hard", 92, 92), ("hard", 212, 212)]
    thumbs = {number: thumb(frame) for number, frame in FilmFrames(info).keyframes()}
    todo = sparse.Plan([sparse.Look(92, 105, sharp=True)], [], thumbs)
    follower = follow.Follower(info, FilmFrames(info), todo, Limits(), sparse.Steadiness(), leave=True)
    list(follower.chunks(np.ones(info.frames, bool)))
    assert follower.key_cuts == []


def test_motion_needs_no_second_decode_of_what_was_examined(tmp_path: Path) -> None:
    info = probe(make_film(tmp_path / "a.mp4", TWO, [Join("dissolve", 20)], gop=None).path)
    frames = FilmFrames(info)
    CascadeDetector().detect(info, frames)
    decoded = frames.decoded_frames
    frames.small(frames.grid(2.0))
    assert frames.decoded_frames == decoded


def test_a_film_is_examined_in_chunks_without_losing_or_doubling_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    import curation.cuts.cascade as cascade

    monkeypatch.setattr(follow, "_CHUNK_FRAMES", 60)
    monkeypatch.setattr(follow, "CONTEXT_S", 1.5)
    monkeypatch.setattr(cascade, "CONTEXT_S", 1.5)
    assert [cut.frame for cut in found(film("bikes.mp4"))] == list(BIKES_CUTS)


def test_odd_films(tmp_path: Path) -> None:
    assert found(make_film(tmp_path / "one.mp4", [Shot("bikes.1", 1)], []).path) == []
    assert found(make_film(tmp_path / "two.mp4", [Shot("bikes.1", 2)], []).path) == []
    sideways = make_film(tmp_path / "turned.mp4", TWO, [Join()], rotation=90).path
    assert spans(found(sideways)) == [("hard", 60, 60)]
    late = make_film(tmp_path / "late.ts", TWO, [Join()], start_s=5.0).path
    assert spans(found(late)) == [("hard", 60, 60)]


def test_a_film_that_breaks_off_has_the_cuts_that_can_be_read(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mkv", (A, B, C), [Join(), Join()], gop=24).path
    info = probe(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    assert spans(CascadeDetector().detect(info))[:1] == [("hard", 60, 60)]
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(CannotDecode):
        CascadeDetector().detect(info)


def test_unknown_detectors_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="cascade, transnetv2"):
        detector("magic")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_command_prints_json_per_file_and_fails_only_for_bad_files(tmp_path: Path, jobs: str) -> None:
    good, bad = str(film("bikes.mp4")), str(tmp_path / "none.mp4")
    run = CliRunner().invoke(cuts_command, ["--json", bad, good, str(film("carphone_pristine.mp4")), "--jobs", jobs])
    assert run.exit_code == 1
    assert "none.mp4: no such file" in run.stderr
    line, other = run.stdout.splitlines()
    assert json.loads(other)["cuts"] == []
    shown = json.loads(line)
    assert list(shown) == ["file", "fps", "frames", "duration_s", "cuts"]
    assert (shown["file"], shown["fps"], shown["frames"], shown["duration_s"]) == (good, 25.0, 250, 10.0)
    assert [cut["frame"] for cut in shown["cuts"]] == list(BIKES_CUTS)
    keys = ["frame", "time_s", "kind", "start_frame", "end_frame", "score", "pass_fps"]
    assert all(list(cut) == keys for cut in shown["cuts"])


def test_the_command_prints_a_table_and_refuses_wrong_use() -> None:
    run = CliRunner().invoke(cuts_command, [str(film("bikes.mp4"))])
    assert run.exit_code == 0
    assert "250 frames, 25 fps, 10.00 s, 5 cuts" in run.stdout
    assert "0:05.480" in run.stdout
    assert CliRunner().invoke(cuts_command, []).exit_code == 2
    assert CliRunner().invoke(cuts_command, ["--detector", "magic", "x.mp4"]).exit_code == 2


def test_a_cut_just_before_a_full_minute_is_shown_at_it() -> None:
    info = probe(film("bikes.mp4"))
    assert "  1:00.000  " in _as_table("x.mp4", info, [Cut(1500, 59.9996, "hard", 1500, 1500, 30.0, 1.0)])
