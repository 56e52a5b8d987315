"""What `probe` says about a film is what an independent reader finds in it."""

import re
import subprocess
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from curation.decode import decode
from curation.errors import CannotDecode
from curation.probe import packets_of, probe
from tests.media import Join, Labels, Shot, film, make_film

SHOTS = (Shot("bikes.1", 30), Shot("carphone", 26, mirror=True))


def frames_by_ffmpeg(path: Path) -> int:
    """Frames that ffmpeg itself decodes."""
    run = subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-i",
            str(path),
            "-map",
            "0:v:0",
            "-fps_mode",
            "passthrough",
            "-f",
            "null",
            "-",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(re.findall(r"frame=\s*(\d+)", run.stderr)[-1])


def made(tmp_path: Path, name: str = "film.mp4", **encoding: object) -> Labels:
    return make_film(tmp_path / name, SHOTS, [Join()], **encoding)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("a.mp4", {"bframes": 3}),
        ("b.mkv", {"open_gop": True, "bframes": 3, "gop": 12}),
        ("c.webm", {"codec": "libvpx-vp9"}),
        ("d.mp4", {"codec": "libsvtav1"}),
        ("e.avi", {"codec": "mpeg4", "bframes": 2}),
        ("f.ts", {"start_s": 2.0}),
        ("g.mp4", {"vfr": True}),
        ("h.mp4", {"codec": "libx265", "ten_bit": True}),
    ],
)
def test_frame_times_are_those_that_were_encoded(tmp_path: Path, name: str, encoding: dict[str, object]) -> None:
    labels = made(tmp_path, name, **encoding)
    info = probe(labels.path)
    assert info.frames == labels.frames == frames_by_ffmpeg(labels.path)
    assert np.allclose(info.times_s, labels.pts_s, atol=0.0011)  # Matroska counts in milliseconds
    assert np.all(np.diff(info.pts) > 0)
    assert info.is_vfr == bool(encoding.get("vfr"))
    assert sorted(info.decode_rank) == list(range(info.frames))


def test_keyframes_are_found_without_decoding(tmp_path: Path) -> None:
    info = probe(made(tmp_path, gop=10, scenecut=False, bframes=2).path)
    with av.open(info.path) as container:
        decoded = [bool(frame.key_frame) for frame in container.decode(video=0)]
    assert info.keyframe.tolist() == decoded
    assert np.flatnonzero(info.keyframe).tolist() == list(range(0, info.frames, 10))


def test_a_cut_gets_a_keyframe_from_x264(tmp_path: Path) -> None:
    labels = made(tmp_path)
    assert np.flatnonzero(probe(labels.path).keyframe).tolist() == [0, labels.joins[0].start_frame]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_and_pixel_aspect_give_the_shown_size(tmp_path: Path, rotation: int) -> None:
    info = probe(made(tmp_path, rotation=rotation, sar=Fraction(4, 3)).path)
    assert info.rotation == rotation
    assert info.sample_aspect_ratio == Fraction(4, 3)
    assert info.display_size == ((427, 180) if rotation in (0, 180) else (180, 427))


def test_start_bit_depth_and_audio(tmp_path: Path) -> None:
    info = probe(made(tmp_path, audio_s=3.0, start_s=1.0, codec="libx265", ten_bit=True).path)
    assert info.codec == "hevc"
    assert info.bit_depth == 10
    assert info.start_s == pytest.approx(1.0, abs=0.05)
    assert info.audio is not None
    assert info.audio.codec == "aac"
    assert info.audio.duration_s == pytest.approx(3.0, abs=0.1)
    assert info.duration_s == pytest.approx(info.frames / 25)


@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001)])
def test_a_header_that_gives_the_clocks_rate_is_not_believed(tmp_path: Path, rate: Fraction) -> None:
    path = tmp_path / "clock.webm"
    film = made(tmp_path, "film.webm", codec="libvpx-vp9", rate=rate).path
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(film), "-c", "copy", "-r", "1000", str(path)]
    subprocess.run(command, check=True)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 1000
    assert float(probe(path).nominal_rate) == pytest.approx(float(rate), rel=0.02)


def test_a_real_film() -> None:
    info = probe(film("bikes.mp4"))
    assert (info.frames, info.display_size, info.codec, info.audio) == (250, (640, 272), "h264", None)
    assert info.duration_s == pytest.approx(10.0)
    assert np.flatnonzero(info.keyframe).tolist() == [0, 30, 76, 137, 187, 242]


def test_a_film_of_one_frame_has_a_duration(tmp_path: Path) -> None:
    info = probe(make_film(tmp_path / "one.mp4", [Shot("bikes.1", 1)], []).path)
    assert info.frames == 1
    assert info.duration_s > 0
    assert not info.is_vfr


@pytest.mark.parametrize(
    ("reason", "content"),
    [("zero_bytes", b""), ("not_a_video", b"shopping list: eggs, milk\n" * 40), ("not_a_video", bytes(5000))],
)
def test_what_is_no_film_is_refused_with_its_reason(tmp_path: Path, reason: str, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(CannotDecode, match=r"film\.mp4") as failure:
        probe(path)
    assert failure.value.reason == reason


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.mp4", "missing"), (tmp_path, "not_a_file")):
        with pytest.raises(CannotDecode) as failure:
            probe(path)
        assert failure.value.reason == reason


def test_an_encrypted_film_is_refused(tmp_path: Path) -> None:
    film = made(tmp_path).path
    key = ["-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "0" * 31 + "1", "-encryption_kid", "0" * 32]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(film), "-c", "copy", *key]
    subprocess.run([*command, str(tmp_path / "locked.mp4")], check=True)
    with pytest.raises(CannotDecode) as failure:
        probe(tmp_path / "locked.mp4")
    assert failure.value.reason == "encrypted"


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "h264"), ("libx265", "hevc")])
def test_a_raw_stream_is_told_from_an_empty_film(tmp_path: Path, codec: str, suffix: str) -> None:
    film = made(tmp_path, codec=codec).path
    raw = tmp_path / f"film.{suffix}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(film), "-c", "copy"]
    subprocess.run([*command, str(raw)], check=True)
    with pytest.raises(CannotDecode, match=f"a raw {suffix} stream") as failure:
        probe(raw)
    assert failure.value.reason == "no_timestamps"


def test_a_film_most_of_whose_frames_have_no_time_is_refused(tmp_path: Path) -> None:
    """H.264 in a program stream has one for each of its packs; frames that begin inside one have none."""
    shots = (Shot("bikes.1", 46), Shot("bunny", 60), Shot("carphone", 44))
    film, path = make_film(tmp_path / "film.ts", shots, gop=25).path, tmp_path / "film.vob"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(film), "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    with pytest.raises(CannotDecode, match="of its 150 frames do not say when they are shown") as failure:
        probe(path)
    assert failure.value.reason == "no_timestamps"


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tone.mp4"
    tone = ["-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *tone, str(path)], check=True)
    with pytest.raises(CannotDecode) as failure:
        probe(path)
    assert failure.value.reason == "no_video_stream"


def test_a_film_cut_short_is_refused_or_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = made(tmp_path, "whole.mp4").path.read_bytes()
    (tmp_path / "short.mp4").write_bytes(whole[: len(whole) // 2])  # the index at the end is gone
    with pytest.raises(CannotDecode) as failure:
        probe(tmp_path / "short.mp4")
    assert failure.value.reason == "not_a_video"
    labels = made(tmp_path, "whole.mkv")
    (tmp_path / "short.mkv").write_bytes(labels.path.read_bytes()[: labels.path.stat().st_size // 2])
    assert 0 < probe(tmp_path / "short.mkv").frames < labels.frames


def test_a_film_ends_where_its_timestamps_start_again(tmp_path: Path) -> None:
    """Recordings that were joined byte by byte: the same times twice, of which no frame may be taken for another."""
    parts = [
        make_film(tmp_path / f"{piece}.ts", (Shot(piece, frames),)).path.read_bytes()
        for piece, frames in (("bunny", 120), ("carphone", 90))
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(parts[0] + parts[1])
    info = probe(path)
    assert info.frames == 120
    assert "start again after 4.8 s" in info.note
    assert "ffmpeg" in info.note
    assert [number for number, _ in decode(info)] == list(range(120))
    assert probe(tmp_path / "bunny.ts").note == ""


def test_one_damaged_timestamp_is_no_restart() -> None:
    stream = SimpleNamespace(index=0, time_base=Fraction(1, 1000))
    times = [0, 40, 80, 9_000_000, 120, 160, 200]
    packets = [SimpleNamespace(dts=at, stream_index=0) for at in times]
    container: Any = SimpleNamespace(demux=lambda *streams: iter(packets))
    assert [packet.dts for packet in packets_of(container, stream)] == times  # type: ignore[arg-type]


def playlists(film: Path) -> dict[str, str]:
    """Files that name this film."""
    name = film.name
    return {
        "hls.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{name}\n#EXT-X-ENDLIST\n",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{name}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {name}\n",
        "dash.mpd": (
            '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1000" codecs="avc1">'
            f"<BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>"
        ),
    }


def test_a_file_that_names_other_files_is_not_followed(tmp_path: Path) -> None:
    film = made(tmp_path, "film.ts").path
    followed = 0
    for name, text in playlists(film).items():
        path = tmp_path / name
        path.write_text(text)
        with suppress(av.error.FFmpegError), av.open(str(path)) as container:
            followed += len(container.streams.video)  # libav does follow it
        with pytest.raises(CannotDecode, match="name these instead") as failure:
            probe(path)
        assert failure.value.reason == "playlist"
    assert followed >= 2


def test_a_pattern_of_names_is_not_followed(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "%d.png"):
        (tmp_path / name).write_bytes(cv2.imencode(".png", np.zeros((16, 16), np.uint8))[1].tobytes())
    with pytest.raises(CannotDecode) as failure:
        probe(tmp_path / "%d.png")
    assert failure.value.reason == "not_a_video"


def test_a_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "a:b.mp4")
    monkeypatch.chdir(tmp_path)
    assert probe("a:b.mp4").frames == 56
