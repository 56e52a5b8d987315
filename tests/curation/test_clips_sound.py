"""Sound that changes its format on the way, and sound that fails: the picture is never lost to it."""

import io
import subprocess
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest

from curation.clips import Clip, assemble, cut_clips
from curation.clips.sound import SoundReader
from curation.probe import VideoInfo, probe
from tests.curation.clip_proof import span
from tests.media import Shot, make_film


def _broadcast(folder: Path, codec: str) -> VideoInfo:
    """Four seconds of film with a tone: 48 kHz stereo, and from half-way on mono, of another rate where codecs may."""
    picture, path = folder / "picture.mp4", folder / "film.ts"
    make_film(picture, [Shot("bunny", 100)], size=(130, 74))
    parts = b""
    for start, channels, rate in ((0, 2, 48000), (2, 1, 48000 if codec == "mp2" else 44100)):
        part = folder / "part.ts"
        source = f"-ss {start} -t 2 -i {picture} -f lavfi -i sine=r={rate}:d=2"
        target = f"-c:v libx264 -bf 0 -c:a {codec} -ac {channels} -output_ts_offset {start} {part}"
        command = f"-v error -y {source} {target}"
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *command.split()], check=True)
        parts += part.read_bytes()
    path.write_bytes(parts)
    return probe(path)


def _heard(clip: Clip) -> tuple[str, np.ndarray, set[tuple[int, int]]]:
    """(codec, samples of the first channel, every rate and number of channels) of a clip's sound."""
    with av.open(io.BytesIO(clip.data)) as container:
        frames = list(container.decode(audio=0))
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        formats = {(frame.sample_rate, frame.layout.nb_channels) for frame in frames}
        return container.streams.audio[0].codec_context.name, samples, formats


@pytest.mark.parametrize("codec", ["mp2", "aac", "ac3"])
def test_sound_that_changes_its_format_is_heard_in_one_in_every_clip(tmp_path: Path, codec: str) -> None:
    info = _broadcast(tmp_path, codec)
    assert info.frames == 100
    before, across, after = cut_clips(info, [span(info, 0, 35), span(info, 35, 65, 1), span(info, 65, 100, 2)])
    copied = "aac" if codec == "mp2" else codec
    second = 48000 if codec == "mp2" else 44100
    for clip, name, form in [(before, copied, (48000, 2)), (across, "aac", (48000, 2)), (after, copied, (second, 1))]:
        assert isinstance(clip, Clip), clip
        assert clip.has_audio
        made, samples, formats = _heard(clip)
        assert (made, formats) == (name, {form})
        whole = samples[: len(samples) // 2400 * 2400].reshape(-1, 2400)
        assert len(samples) / form[0] > clip.frames / 25 - 0.15
        assert np.sqrt((whole[2:-2] ** 2).mean(axis=1)).min() > 0.02, "there is a gap in the tone"


def _film(folder: Path) -> VideoInfo:
    make_film(folder / "film.mp4", [Shot("bunny", 40)], size=(130, 74), audio_s=1.6)
    return probe(folder / "film.mp4")


def test_sound_that_cannot_be_had_costs_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = _film(tmp_path)

    def fails(*_: Any) -> None:
        raise ValueError("no such sound")

    monkeypatch.setattr(SoundReader, "between", fails)
    (clip,) = cut_clips(info, [span(info, 5, 35)])
    assert isinstance(clip, Clip), clip
    assert (clip.frames, clip.has_audio) == (30, False)
    assert "film.mp4: the clip of frames 5 to 35 has no sound (no such sound)" in caplog.text


def test_sound_that_cannot_be_written_costs_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    info = _film(tmp_path)
    write = assemble.write_mp4

    def refusing(video: Any, sound: Any) -> bytes:
        data = write(video, sound)
        if sound is not None:
            raise av.error.ArgumentError(22, "Invalid argument", "<none>")
        return data

    monkeypatch.setattr(assemble, "write_mp4", refusing)
    (clip,) = cut_clips(info, [span(info, 5, 35)])
    assert isinstance(clip, Clip), clip
    with av.open(io.BytesIO(clip.data)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert len(list(container.decode(video=0))) == 30
    assert not clip.has_audio
    assert "has no sound" in caplog.text
