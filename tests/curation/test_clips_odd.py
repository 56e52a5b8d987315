"""Films whose pictures have odd sides, and pictures that an encoder refuses."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.clips import Clip, ClipFailure, cut_clips
from curation.clips.encode import PieceEncoder
from curation.probe import probe
from tests.curation.clip_proof import psnr, span
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
