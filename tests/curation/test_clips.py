"""Clips of every kind of film, in every mode, proven by FFmpeg's own decoder against the film's frames."""

import dataclasses
import io
import itertools
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from curation.clips import MODES, Clip, ClipFailure, Mode, cut_clips, plan
from curation.cuts.cut import Cut
from curation.probe import VideoInfo, probe
from tests.curation.clip_proof import film_frames, prove, shown, span
from tests.media import Join, Labels, Shot, film, make_film

SHOTS = [Shot("bikes.1", 40), Shot("bunny", 45, start=20), Shot("bikes.3", 35)]
JOINS = [Join("hard"), Join("dissolve", 6)]
SIZE = (130, 74)  # neither a multiple of 16 nor 4:3


def _ten_bit_vp9(path: Path) -> Labels:
    """By ffmpeg's own encoder: the one that PyAV carries knows 8 bits alone, so nothing of this film can be spliced."""
    made = make_film(path.with_suffix(".mp4"), SHOTS, JOINS, size=SIZE, gop=25, ten_bit=True)
    options = "-c:v libvpx-vp9 -pix_fmt yuv420p10le -deadline realtime -cpu-used 8 -g 25 -crf 31 -b:v 0"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(made.path), *options.split(), str(path)]
    subprocess.run(command, check=True)
    return dataclasses.replace(made, path=path)


FILMS: dict[str, Callable[[Path], Labels]] = {
    "h264.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, audio_s=4.6),
    "h264_b5.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=40, bframes=5, audio_s=9.0),
    "h264_no_b.mkv": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, bframes=0, audio_s=2.0),
    "h264_open.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=20, open_gop=True, bframes=4),
    "h264_one_key.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=None),
    "h264_10_bit.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, ten_bit=True),
    "h264_vfr.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, vfr=True, audio_s=9.0),
    "h264_rotated.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, rotation=90),
    "h264_anamorphic.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, sar=Fraction(4, 3)),
    "h264_ntsc.mp4": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, rate=Fraction(30000, 1001)),
    "h264_late.ts": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, start_s=3.2, audio_s=4.6),
    "h264_late.mkv": lambda path: make_film(path, SHOTS, JOINS, size=SIZE, gop=25, start_s=2.0, audio_s=4.6),
    "hevc.mp4": lambda path: make_film(path, SHOTS, JOINS, codec="libx265", size=SIZE, gop=25),
    "hevc_open.mp4": lambda path: make_film(
        path, SHOTS, JOINS, codec="libx265", size=SIZE, gop=20, open_gop=True, bframes=4
    ),
    "hevc_open_10_bit.mkv": lambda path: make_film(
        path, SHOTS, JOINS, codec="libx265", size=SIZE, gop=20, open_gop=True, ten_bit=True
    ),
    "hevc.ts": lambda path: make_film(path, SHOTS, JOINS, codec="libx265", size=SIZE, gop=20, open_gop=True),
    "vp9.webm": lambda path: make_film(path, SHOTS, JOINS, codec="libvpx-vp9", size=SIZE, gop=25, audio_s=4.6),
    "vp9_10_bit.webm": _ten_bit_vp9,
    "av1.mp4": lambda path: make_film(path, SHOTS, JOINS, codec="libsvtav1", size=SIZE, gop=25),
    "av1_10_bit.mp4": lambda path: make_film(path, SHOTS, JOINS, codec="libsvtav1", size=SIZE, gop=25, ten_bit=True),
    "mpeg4.mp4": lambda path: make_film(path, SHOTS, JOINS, codec="mpeg4", size=SIZE, gop=25, bframes=2),
    "mpeg4.avi": lambda path: make_film(path, SHOTS, JOINS, codec="mpeg4", size=SIZE, gop=25, bframes=2),
}
# Where at least this share of the clips' seconds must be copied in smart mode: the dissolve lies inside a GOP.
COPIED_SHARE = {"h264_open.mp4": 0.0, "h264_one_key.mp4": 0.3, "av1.mp4": 0.3, "mpeg4.mp4": 0.0, "mpeg4.avi": 0.0}
COPIED_SHARE |= {"vp9_10_bit.webm": 0.0, "av1_10_bit.mp4": 0.3}


Made = Callable[[str], tuple[VideoInfo, list[Cut]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("films")
    done: dict[str, tuple[VideoInfo, list[Cut]]] = {}

    def get(name: str) -> tuple[VideoInfo, list[Cut]]:
        if name not in done:
            labels = FILMS[name](folder / name)
            info = probe(labels.path)
            assert info.frames == labels.frames
            done[name] = info, [_as_cut(info, join.start_frame, join.end_frame) for join in labels.joins]
        return done[name]

    return get


def _as_cut(info: VideoInfo, start: int, end: int) -> Cut:
    return Cut(end, float(info.times_s[end]), "hard" if start == end else "gradual", start, end, 1.0, 1.0)


@pytest.mark.parametrize("name", FILMS)
def test_every_clip_shows_exactly_its_frames(made: Made, name: str, tmp_path: Path) -> None:
    info, cuts = made(name)
    frames = film_frames(info.path)
    sound_end_s = -1.0 if info.audio is None else _sound_end_s(info)
    for mode in MODES:
        planned = plan(info, cuts, mode=mode, min_s=0.3, max_s=60)
        clips = list(cut_clips(info, planned.spans, mode=mode))
        assert [each.span for each in clips] == planned.spans
        for clip in clips:
            prove(clip, info, frames, tmp_path)
            assert isinstance(clip, Clip)
            _assert_container(clip, info)
            _assert_sound(clip, info, sound_end_s)
        seconds = sum(float((each.end_pts - each.start_pts) * info.time_base) for each in planned.spans)
        copied = sum(each.copied_s for each in clips if isinstance(each, Clip))
        if mode == "exact":
            assert copied == 0
        elif mode == "keyframe":
            assert copied == pytest.approx(seconds)
        else:
            assert copied >= COPIED_SHARE.get(name, 0.6) * seconds
            assert planned.lost_keyframe_s == 0


def _sound_end_s(info: VideoInfo) -> float:
    """End of the film's sound, in the container's clock."""
    with av.open(info.path) as container:
        stream = container.streams.audio[0]
        ends = [packet.pts + packet.duration for packet in container.demux(stream) if packet.size and packet.pts]
        return float(max(ends) * stream.time_base)


def _assert_container(clip: Clip, info: VideoInfo) -> None:
    with av.open(io.BytesIO(clip.data)) as container:
        video = container.streams.video[0]
        assert video.start_time == 0
        assert video.duration * video.time_base == (clip.span.end_pts - clip.span.start_pts) * info.time_base
        assert (video.sample_aspect_ratio or 1) == info.sample_aspect_ratio
        assert round(-next(container.decode(video)).rotation) % 360 == info.rotation
    assert (clip.width, clip.height) == info.display_size
    assert clip.data[4:8] == b"ftyp"
    assert clip.data.index(b"moov") < clip.data.index(b"mdat")


def _assert_sound(clip: Clip, info: VideoInfo, sound_end_s: float) -> None:
    start_s = float(clip.span.start_pts * info.time_base)
    length_s = float((clip.span.end_pts - clip.span.start_pts) * info.time_base)
    frame_s = 1024 / 48000
    heard_s = min(length_s, sound_end_s - start_s)  # the film may fall silent before the clip ends
    with av.open(io.BytesIO(clip.data)) as container:
        assert clip.has_audio == bool(container.streams.audio)
        if heard_s > 2 * frame_s:
            assert clip.has_audio
        if clip.has_audio:
            stream = container.streams.audio[0]
            begin_s = float(stream.start_time * stream.time_base)
            end_s = begin_s + float(stream.duration * stream.time_base)
            assert 0 <= begin_s < frame_s + 0.001
            assert heard_s - frame_s - 0.001 < end_s < length_s + frame_s


@pytest.mark.parametrize("name", ["h264_b5.mp4", "h264_open.mp4", "hevc_open.mp4", "vp9.webm"])
def test_a_cut_may_lie_at_any_offset_in_a_gop(made: Made, name: str, tmp_path: Path) -> None:
    """Two clips meet at every frame of a GOP and of its neighbours, in one pass each."""
    info, _ = made(name)
    frames = film_frames(info.path)
    keys = np.flatnonzero(info.keyframe)
    for at in range(int(keys[1]) - 3, int(keys[2]) + 3, 1 if name != "vp9.webm" else 5):
        pieces = [span(info, 5, at, 0), span(info, at, int(keys[2]) + 8, 1)]
        for clip in cut_clips(info, pieces):
            prove(clip, info, frames, tmp_path)


def test_clips_partition_a_film_at_random(made: Made, tmp_path: Path) -> None:
    """Spans of one frame, spans that touch, gaps, several in one GOP."""
    info, _ = made("h264_b5.mp4")
    frames = film_frames(info.path)
    rng = np.random.default_rng(0)
    for _ in range(3):
        edges = np.sort(rng.choice(info.frames + 1, 9, replace=False)).tolist()
        spans = [span(info, a, b, k) for k, (a, b) in enumerate(itertools.pairwise(edges)) if k % 4 != 3]
        clips = list(cut_clips(info, spans))
        assert [each.span for each in clips] == spans
        for clip in clips:
            prove(clip, info, frames, tmp_path)


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_real_films_keep_all_footage_outside_cuts(name: str, tmp_path: Path) -> None:
    info = probe(film(name))
    cuts = [_as_cut(info, at, at) for at in (30, 76, 137, 187, 242)] if name == "bikes.mp4" else []
    planned = plan(info, cuts, min_s=0.2)
    assert planned.kept_pts == info.end_pts - int(info.pts[0])
    clips = list(cut_clips(info, planned.spans))
    assert sum(each.copied_s for each in clips if isinstance(each, Clip)) == pytest.approx(info.duration_s)
    frames = film_frames(info.path)
    for clip in clips:
        assert prove(clip, info, frames, tmp_path) == clip.span.frames, "every frame is copied here"


@pytest.mark.parametrize("mode", MODES)
def test_the_same_film_gives_the_same_bytes(made: Made, mode: Mode) -> None:
    info, cuts = made("h264.mp4")
    spans = plan(info, cuts, mode=mode, min_s=0.3).spans
    first = [each.data for each in cut_clips(info, spans, mode=mode) if isinstance(each, Clip)]
    again = [each.data for each in cut_clips(info, spans, mode=mode, threads=2) if isinstance(each, Clip)]
    assert first == again
    assert len(first) == len(spans)


def test_a_film_whose_first_key_frame_an_edit_list_hides_is_clipped_whole(made: Made, tmp_path: Path) -> None:
    """As phones trim: the packets before the first shown frame are in the file, to decode from, and never shown."""
    whole, _ = made("h264_b5.mp4")
    trimmed = tmp_path / "trimmed.mp4"
    command = f"-nostdin -v error -ss 0.7 -i {whole.path} -t 3 -c copy {trimmed}"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command.split()], check=True)
    info = probe(trimmed)
    assert not info.keyframe[0]
    planned = plan(info, [], min_s=0.3, max_s=1.3)
    assert planned.kept_pts == info.end_pts - int(info.pts[0])
    frames = film_frames(trimmed)
    for clip in cut_clips(info, planned.spans):
        prove(clip, info, frames, tmp_path)


def test_a_transport_stream_whose_clock_wraps_is_copied(tmp_path: Path) -> None:
    """Its clock has 33 bits, a day and two hours; what lies before the wrap has negative times."""
    path, wrap_s = tmp_path / "wrap.ts", 2**33 / 90000
    made = make_film(tmp_path / "film.ts", SHOTS, JOINS, size=SIZE, gop=20, scenecut=False).path
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(made), "-c", "copy"]
    subprocess.run([*command, "-output_ts_offset", f"{wrap_s - 4:.6f}", str(path)], check=True)
    info = probe(path)
    assert info.pts[0] < 0 < info.end_pts
    spans = [span(info, 0, 40), span(info, 40, 80), span(info, 80, info.frames)]
    for clip in cut_clips(info, spans, mode="keyframe"):
        assert prove(clip, info, film_frames(path), tmp_path) == clip.span.end_frame - clip.span.start_frame


def test_times_that_follow_decoding_order_are_refused_by_name(tmp_path: Path) -> None:
    """AVI has no presentation times: with B-frames, nothing in the file says which frame is where."""
    path = tmp_path / "film.avi"
    make_film(path, [Shot("bunny", 40)], [], size=SIZE, gop=20, bframes=3)
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 0, 40)])
    assert isinstance(clip, ClipFailure)
    assert clip.reason == "no_presentation_times"


@pytest.mark.parametrize("mode", ["smart", "exact"])
@pytest.mark.parametrize("sound", ["ac3", "aac"])
def test_avi_sound_whose_packets_share_ticks_is_copied(tmp_path: Path, mode: Mode, sound: str) -> None:
    film_path, path = tmp_path / "a.mkv", tmp_path / "a.avi"
    make_film(film_path, [Shot("bunny", 130), Shot("bikes.3", 120)], [Join()], size=SIZE, audio_s=10.0)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(film_path), "-c:v", "mpeg4", "-q:v", "4"]
    subprocess.run([*command, "-bf", "0", "-g", "60", "-c:a", sound, str(path)], check=True)
    info = probe(path)
    for clip in cut_clips(info, [span(info, a, a + 33) for a in range(0, 231, 33)], mode=mode):
        assert isinstance(clip, Clip), clip
        with av.open(io.BytesIO(clip.data)) as container:
            heard = sum(packet.duration or 0 for packet in container.demux(audio=0))
            base = container.streams.audio[0].time_base
        assert base is not None
        assert float(heard * base) > 33 / 25 - 0.1


def test_a_frame_that_lasts_longer_than_mp4_counts_fails_by_name(tmp_path: Path) -> None:
    """Recordings that were joined byte by byte, the second made half a day after the first."""
    parts = [tmp_path / "first.ts", tmp_path / "second.ts"]
    make_film(parts[0], [Shot("bunny", 30)], size=SIZE)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(parts[0]), "-c", "copy"]
    subprocess.run([*command, "-output_ts_offset", "43200", str(parts[1])], check=True)
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    info = probe(path)
    lost, kept = cut_clips(info, [span(info, 29, 30), span(info, 30, 60)])
    assert isinstance(lost, ClipFailure)
    assert isinstance(kept, Clip), kept
    assert lost.reason == "cannot_write"
    assert "joined.ts: frames 29 to 30 cannot be written" in lost.message


def test_keyframe_mode_refuses_what_it_cannot_copy(made: Made) -> None:
    info, _ = made("h264.mp4")
    key = int(np.flatnonzero(info.keyframe)[1])
    first, second = cut_clips(info, [span(info, 3, key), span(info, key, info.frames)], mode="keyframe")
    assert isinstance(first, ClipFailure)
    assert first.reason == "not_at_keyframes"
    assert isinstance(second, Clip), "one failing leaves the others alone"


def test_a_film_cut_short_loses_its_last_clips_by_name(made: Made, tmp_path: Path) -> None:
    whole, _ = made("h264_late.ts")
    data = Path(whole.path).read_bytes()
    broken = tmp_path / "film.ts"
    broken.write_bytes(data)
    info = probe(broken)
    broken.write_bytes(data[: len(data) // 2])  # after it was probed
    clips = list(cut_clips(info, [span(info, 0, 20), span(info, 20, 100, 1), span(info, 100, info.frames, 2)]))
    assert isinstance(clips[0], Clip)
    assert [each.reason for each in clips[1:] if isinstance(each, ClipFailure)] == ["missing_frames"] * 2


def test_a_download_that_broke_off_is_clipped_up_to_its_last_whole_packet(made: Made, tmp_path: Path) -> None:
    """Index first, as on the web, so that the file opens; it ends in the middle of a packet."""
    whole, _ = made("h264_b5.mp4")
    path = tmp_path / "film.mp4"
    command = f"-nostdin -v error -i {whole.path} -c copy -movflags faststart {path}"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command.split()], check=True)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        cut_at = packets[70].pos + packets[70].size // 2
    path.write_bytes(path.read_bytes()[:cut_at])
    info = probe(path)
    assert info.frames == 70
    for mode in MODES:
        (clip,) = cut_clips(info, plan(info, [], mode=mode, min_s=0.3).spans, mode=mode)
        assert isinstance(clip, Clip), clip
        shown(clip, info, tmp_path)


def test_damage_in_the_middle_fails_that_clip_only(made: Made, tmp_path: Path) -> None:
    whole, _ = made("h264_late.mkv")
    info = probe(whole.path)
    rank = int(info.decode_rank[60])
    with av.open(whole.path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        place = packets[rank].pos
    data = bytearray(Path(whole.path).read_bytes())
    data[place + 20 : place + 60] = b"\xff" * 40
    broken = tmp_path / "film.mkv"
    broken.write_bytes(data)
    clips = list(
        cut_clips(probe(broken), [span(info, 0, 40), span(info, 41, 80, 1), span(info, 90, 110, 2)], mode="exact")
    )
    assert [type(each) for each in clips] == [Clip, ClipFailure, Clip]


def test_sound_that_mp4_cannot_carry_is_re_encoded_in_step(tmp_path: Path) -> None:
    """A click in uncompressed sound stays within one audio frame of its place."""
    path = tmp_path / "film.mkv"
    labels = make_film(tmp_path / "silent.mp4", [Shot("bunny", 75)], size=SIZE, gop=25)
    click_s = 1.7
    with av.open(str(labels.path)) as source, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("pcm_s16le", rate=44100, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        samples = np.zeros((1, 3 * 44100), dtype=np.int16)
        samples[:, round(click_s * 44100) : round(click_s * 44100) + 40] = 20000
        for at in range(0, samples.shape[1], 1000):
            frame = av.AudioFrame.from_ndarray(samples[:, at : at + 1000], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, at, Fraction(1, 44100)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    info = probe(path)
    (clip,) = cut_clips(info, [span(info, 30, 70)])
    assert isinstance(clip, Clip)
    with av.open(io.BytesIO(clip.data)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        heard, begin = [], None
        for frame in container.decode(stream):
            begin = frame.time if begin is None else begin
            heard.append(frame.to_ndarray()[0])
    wave = np.abs(np.concatenate(heard))
    assert begin is not None
    assert begin + int(np.argmax(wave)) / 44100 == pytest.approx(click_s - 30 / 25, abs=0.005)
    assert len(wave) / 44100 <= 40 / 25 + 1024 / 44100


def test_spans_out_of_order_are_refused(made: Made) -> None:
    info, _ = made("h264.mp4")
    with pytest.raises(ValueError, match="ascending"):
        list(cut_clips(info, [span(info, 20, 40), span(info, 30, 50)]))


def test_no_frame_is_dropped_after_a_splice_in_hevc(tmp_path: Path) -> None:
    """Frames are counted modulo 256: key frame 270 has the count of one that we re-encode before it.

    The film is encoded as our pieces are: at a new parameter set FFmpeg forgets the frames before.
    """
    path = tmp_path / "film.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=s=128x72:r=25:d=11", "-pix_fmt", "gray"]
    encoder = ["-c:v", "libx265", "-preset", "ultrafast", "-g", "30", "-x265-params", "log-level=none"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *encoder, str(path)], check=True)
    info = probe(path)
    assert info.keyframe[270]
    for start in range(248, 254):
        (clip,) = cut_clips(info, [span(info, start, 275)])
        assert isinstance(clip, Clip), clip
        with av.open(io.BytesIO(clip.data)) as container:
            assert sum(1 for _ in container.decode(video=0)) == clip.frames
