"""Films whose pictures have odd sides, HDR10 or interlaced ones, and pictures that an encoder refuses."""

import io
import re
import subprocess
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest

from curation.clips import Clip, ClipFailure, Mode, cut_clips
from curation.clips.encode import PieceEncoder
from curation.probe import probe
from tests.curation.clip_proof import film_frames, prove, psnr, span
from tests.media import Shot, make_film


def _planes(film: Any) -> list[list[np.ndarray]]:
    """The three planes of every frame of a yuv420p film."""
    with av.open(film) as container:
        return [
            [
                np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].copy()
                for plane in frame.planes
            ]
            for frame in container.decode(video=0)
        ]


@pytest.mark.parametrize("size", [(131, 75), (130, 75), (131, 74)])
def test_the_odd_column_and_row_is_left_out_and_nothing_else_changes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "film.webm"
    make_film(path, [Shot("bikes.1", 20)], codec="libvpx-vp9", size=size)
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 0, 20)], mode="exact")
    assert isinstance(clip, Clip), clip
    width, height = size[0] // 2 * 2, size[1] // 2 * 2
    assert (clip.codec, clip.width, clip.height) == ("h264", width, height)
    film, made = _planes(str(path)), _planes(io.BytesIO(clip.data))
    assert len(film) == len(made) == 20
    for theirs, ours in zip(film, made, strict=True):
        assert ours[0].shape == (height, width)
        for whole, kept in zip(theirs, ours, strict=True):
            assert psnr(whole[: kept.shape[0], : kept.shape[1]], kept) > 37


def test_a_copied_clip_keeps_its_odd_sides(tmp_path: Path) -> None:
    path = tmp_path / "film.webm"
    make_film(path, [Shot("bikes.1", 20)], codec="libvpx-vp9", size=(131, 75), gop=10)
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 2, 20)])
    assert isinstance(clip, Clip), clip
    assert (clip.codec, clip.width, clip.height) == ("vp9", 131, 75)
    assert clip.copied_s > 0
    assert [planes[0].shape for planes in _planes(io.BytesIO(clip.data))] == [(75, 131)] * 18


def _encoded(path: Path, filters: str, *options: str, size: str = "320x180") -> None:
    """A film of 60 frames with a key frame every 20, by ffmpeg, which has encoders and filters that PyAV lacks."""
    source = f"testsrc2=s={size}:r=50:d=3,{filters}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source]
    subprocess.run([*command, "-frames:v", "60", "-g", "20", *options, str(path)], check=True)


def _stored(clip: Clip, folder: Path) -> Path:
    path = folder / "clip.mp4"
    path.write_bytes(clip.data)
    return path


def _hdr10_film(folder: Path) -> Path:
    path = folder / "hevc.mkv"
    params = "log-level=none:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    params += ":max-cll=1000,400"
    _encoded(path, "format=yuv420p10le", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", params)
    return path


def _hdr10(path: Path) -> list[tuple[bytes, bytes]]:
    with av.open(str(path)) as container:
        sides = [frame.side_data for frame in container.decode(video=0)]
    return [(bytes(each["MASTERING_DISPLAY_METADATA"]), bytes(each["CONTENT_LIGHT_LEVEL"])) for each in sides]


@pytest.mark.parametrize("mode", ["smart", "exact"])
def test_every_frame_of_a_clip_carries_the_films_hdr10(tmp_path: Path, mode: Mode) -> None:
    path = _hdr10_film(tmp_path)
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 5, 55)], mode=mode)
    assert isinstance(clip, Clip), clip
    assert (clip.copied_s > 0) == (mode == "smart")
    of_film = _hdr10(path)
    assert len(set(of_film)) == 1
    assert _hdr10(_stored(clip, tmp_path)) == of_film[5:55]


def test_hdr10_of_a_film_in_another_codec_goes_into_h264(tmp_path: Path) -> None:
    path = tmp_path / "vp9.mkv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(_hdr10_film(tmp_path)), "-c:v", "libvpx-vp9"]
    subprocess.run([*command, "-deadline", "realtime", "-cpu-used", "8", str(path)], check=True)
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 5, 55)], mode="exact")
    assert isinstance(clip, Clip), clip
    assert clip.codec == "h264"

    def said(film: Path) -> set[str]:
        return set(re.findall(r"(?:Mastering display|Content light level) metadata: .*", _showinfo(film)))

    assert said(_stored(clip, tmp_path)) == said(path)
    assert len(said(path)) == 2


def _showinfo(path: Path) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-vf", "showinfo", "-f", "null", "-"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def _fields(path: Path) -> str:
    """A letter a frame: T where the top field comes first, B where the bottom one does, P of progressive frames."""
    return "".join(re.findall(r" i:([TBP]) ", _showinfo(path)))


@pytest.mark.parametrize("mode", ["smart", "exact"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize(
    ("order", "filters"),
    [("T", "tinterlace=4,setfield=tff"), ("B", "tinterlace=5,setfield=bff"), ("P", "setfield=prog")],
)
def test_a_clip_has_the_films_order_of_fields(tmp_path: Path, codec: str, order: str, filters: str, mode: Mode) -> None:
    path = tmp_path / "film.mkv"
    fields = [] if order == "P" else ["-flags", "+ildct"]
    _encoded(path, f"format=yuv420p,{filters}", "-c:v", codec, "-q:v", "3", *fields)
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 5, 55)], mode=mode)
    assert isinstance(clip, Clip), clip
    assert (clip.copied_s > 0) == (mode == "smart" and codec == "libx264")
    assert _fields(path) == order * 60
    assert _fields(_stored(clip, tmp_path)) == order * 50


def test_an_interlaced_picture_whose_fields_have_uneven_rows_is_progressive(tmp_path: Path) -> None:
    """H.264 shares a row of colours between two rows of a field, so four of the picture belong together."""
    path = tmp_path / "film.mkv"
    filters = "format=yuv420p,tinterlace=4,setfield=tff"
    _encoded(path, filters, "-c:v", "mpeg2video", "-q:v", "3", "-flags", "+ildct", size="320x182")
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 5, 55)])
    assert isinstance(clip, Clip), clip
    assert (clip.width, clip.height) == (320, 182)
    assert _fields(_stored(clip, tmp_path)) == "P" * 50


def test_what_the_encoder_refuses_is_no_damage_and_fails_that_clip_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mp4"
    make_film(path, [Shot("bunny", 30)], size=(130, 74))
    info = probe(path)
    encode = PieceEncoder.encode

    def refusing(self: PieceEncoder, frame: Any) -> Any:
        if frame.pts < info.pts[10]:
            raise av.error.ExternalError(542398533, "Generic error in an external library")
        return encode(self, frame)

    monkeypatch.setattr(PieceEncoder, "encode", refusing)
    refused, fine = cut_clips(info, [span(info, 0, 10), span(info, 10, 30, 1)], mode="exact")
    assert isinstance(refused, ClipFailure)
    assert refused.reason == "cannot_write"
    assert "frames 0 to 10 cannot be encoded" in refused.message
    assert isinstance(fine, Clip), fine


@pytest.mark.parametrize(("start", "copied_s"), [(5, 0.0), (20, 0.8)])
def test_lossless_h264_is_copied_or_encoded_whole(tmp_path: Path, start: int, copied_s: float) -> None:
    """Behind lossy pictures FFmpeg decodes lossless ones into others, and reports no error."""
    path = tmp_path / "film.mp4"
    _encoded(path, "format=yuv420p", "-c:v", "libx264", "-preset", "veryfast", "-qp", "0", "-sc_threshold", "0")
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, start, 60)])
    assert isinstance(clip, Clip), clip
    assert clip.copied_s == pytest.approx(copied_s)
    prove(clip, info, film_frames(path), tmp_path)
