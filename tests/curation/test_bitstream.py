"""Parameter sets and key frames, against what real encoders and muxers write."""

from pathlib import Path

import av
import pytest

from curation import bitstream
from curation.clips import cut_clips
from curation.clips.clip import Clip
from curation.clips.keys import entry_frames
from curation.probe import probe
from tests.curation.clip_proof import span
from tests.media import Shot, film, make_film

SIZE = (130, 74)


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_avcc_is_rebuilt_from_its_sets(name: str) -> None:
    with av.open(str(film(name))) as container:
        extradata = container.streams.video[0].codec_context.extradata
    assert extradata is not None
    size = bitstream.length_size("h264", extradata)
    assert size == 4
    sets = bitstream.parameter_sets("h264", extradata)
    assert bitstream.avcc(sets, size)[:8] == extradata[:8]
    assert bitstream.parameter_sets("h264", bitstream.avcc(sets, size)) == sets
    assert [bitstream.sps_id(sets[0]), bitstream.pps_id(sets[1])] == [0, 0]


def test_access_units_survive_both_framings() -> None:
    nals = [b"\x67\x01", b"\x68\x00\x00\x03\x01", b"\x65" + bytes(range(1, 200))]
    for size in (4, 2, None):
        assert bitstream.split(bitstream.join(nals, size), size) == nals


def test_only_idr_pictures_of_h264_are_entered(tmp_path: Path) -> None:
    make_film(tmp_path / "open.mp4", [Shot("bunny", 60)], [], size=SIZE, gop=20, open_gop=True, scenecut=False)
    make_film(tmp_path / "closed.mp4", [Shot("bunny", 60)], [], size=SIZE, gop=20, scenecut=False)
    opened, closed = probe(tmp_path / "open.mp4"), probe(tmp_path / "closed.mp4")
    assert opened.keyframe.sum() == closed.keyframe.sum() == 3, "the key flag does not tell them apart"
    assert entry_frames(opened).tolist() == [0]
    assert entry_frames(closed).tolist() == [0, 20, 40]


def test_a_splice_in_hevc_is_marked_and_carries_its_sets(tmp_path: Path) -> None:
    make_film(
        tmp_path / "film.mp4",
        [Shot("bunny", 60)],
        [],
        size=SIZE,
        codec="libx265",
        gop=20,
        open_gop=True,
        bframes=3,
        scenecut=False,
    )
    info = probe(tmp_path / "film.mp4")
    (clip,) = cut_clips(info, [span(info, 5, 60)])
    assert isinstance(clip, Clip)
    (tmp_path / "clip.mp4").write_bytes(clip.data)
    kinds = []
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec_tag == "hev1"
        for packet in container.demux(stream):
            if packet.size and packet.is_keyframe:
                nals = bitstream.split(bytes(packet), 4)
                kinds.append([bitstream.nal_type("hevc", nal) for nal in nals])
    sets = [bitstream.HEVC_VPS, bitstream.HEVC_SPS, bitstream.HEVC_PPS]
    assert all(kind[:3] == sets for kind in kinds), "every key frame can be entered without the index"
    pictures = [kind[-1] for kind in kinds]
    assert pictures[1:] == [bitstream.HEVC_BLA_N_LP, bitstream.HEVC_CRA], "the first copied key frame follows a splice"
