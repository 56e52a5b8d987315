"""Packed bitstreams in AVI: every frame is there, once, in its place, and clips of it are the film's frames."""

import subprocess
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from curation.clips import MODES, Clip, Mode, cut_clips
from curation.decode import decode
from curation.probe import VideoInfo, open_video, packets_of, probe
from tests.curation.clip_proof import psnr, shown, span
from tests.media import Shot, make_film


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    folder = tmp_path_factory.mktemp("packed")
    make_film(folder / "film.mp4", [Shot("bunny", 60)], size=(160, 90))
    command = (
        f"-v error -i {folder / 'film.mp4'} -f lavfi -i sine=d=2.4 -c:v libxvid -bf 2 -q:v 3 -g 20 -c:a libmp3lame"
    )
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command.split(), str(folder / "film.avi")], check=True)
    with av.open(str(folder / "film.avi")) as container:
        chunks = [bytes(packet) for packet in container.demux(video=0)]
        assert b"DivX503b1393p" in (container.streams.video[0].codec_context.extradata or b"")
    assert max(chunk.count(b"\0\0\1\xb6") for chunk in chunks) == 2, "two frames in one chunk"
    return probe(folder / "film.avi")


def _frames(info: VideoInfo) -> list[np.ndarray]:
    """What FFmpeg's decoder makes of the packed stream itself, in the order it shows them."""
    with av.open(info.path) as container:
        return [frame.to_ndarray().reshape(-1) for frame in container.decode(video=0)]


def test_every_frame_has_a_packet_and_its_time(packed: VideoInfo) -> None:
    frames = _frames(packed)
    assert packed.frames == len(frames)
    assert set(np.diff(packed.pts)[1:].tolist()) == {1}  # libxvid's first frame stands for its delay
    found = list(decode(packed))
    assert [number for number, _ in found] == list(range(packed.frames))
    for number, frame in found:
        assert np.array_equal(frame.to_ndarray().reshape(-1), frames[number])


def test_packets_of_other_streams_come_through(packed: VideoInfo) -> None:
    container, stream = open_video(packed.path)
    with container:
        sound = container.streams.audio[0]
        taken = [bytes(each) for each in packets_of(container, stream, sound) if each.stream.index == sound.index]
    with av.open(packed.path) as container:
        assert taken == [bytes(each) for each in container.demux(audio=0)]


@pytest.mark.parametrize("mode", MODES)
def test_clips_show_the_frames_in_order(packed: VideoInfo, mode: Mode, tmp_path: Path) -> None:
    frames = _frames(packed)
    keys = np.flatnonzero(packed.keyframe).tolist()
    first = keys[1] - 3 if mode != "keyframe" else keys[1] - 1  # its last frame may be stored after the next key frame
    spans = [span(packed, 0, first), span(packed, keys[1], packed.frames, 1)]
    for clip in cut_clips(packed, spans, mode=mode):
        assert isinstance(clip, Clip), clip
        got = shown(clip, packed, tmp_path)
        start, end = clip.span.start_frame, clip.span.end_frame
        assert got.times == [(int(at) - clip.span.start_pts) * packed.time_base for at in packed.pts[start:end]]
        for mine, theirs in zip(got.frames, frames[start:end], strict=True):
            assert psnr(mine, theirs) > 37
        assert b"1393p" not in clip.data, "it is not packed any more"
