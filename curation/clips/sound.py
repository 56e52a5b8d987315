"""The sound of clips: packets where the codec fits mp4 and stands alone, else AAC made from the decoded samples.

Sound never outlasts the picture and never begins before it: only packets that lie wholly inside the span are copied,
so that nothing of the neighbouring shot is heard; what is missing at either end is less than one audio frame.

Broadcasts change their sound on the way (an advertisement in stereo, the film in mono). One track of mp4 has one
format, so a clip across the change is not copied: its samples are brought to the format that it begins with.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

# Copied: every packet decodes without the ones before it (but for the overlap of one transform window). Not MP3, whose
# packets borrow bits from earlier ones; a copied clip of it begins with a decoding error.
COPIED_CODECS = ("aac", "ac3", "eac3", "opus", "flac", "alac")
_PREROLL_S = Fraction(1, 5)  # decoded and thrown away, so that a lossy decoder has settled
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


@dataclass
class Sound:
    """The sound of one clip: packets of `template`, with pts from the clip's start, or frames to encode as AAC."""

    template: AudioStream | None = None
    packets: Sequence[tuple[av.Packet, int]] = field(default_factory=list)
    frames: Sequence[AudioFrame] = field(default_factory=list)
    sample_rate: int = 0
    layout: str = ""


class SoundReader:
    """Takes the audio packets of a film as they come and gives each clip its part."""

    def __init__(self, stream: AudioStream) -> None:
        assert stream.time_base is not None
        self.stream = stream
        self.base = stream.time_base
        self.codec = stream.codec_context.codec.canonical_name
        self.copies = self.codec in COPIED_CODECS
        self._waiting: deque[av.Packet] = deque()
        self._read_to: int | None = None  # ticks: everything that starts before this has been taken

    def take(self, packet: av.Packet) -> None:
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None or packet.size == 0:
            return
        self._read_to = at
        self._waiting.append(packet)

    def has_read_to(self, at_s: Fraction) -> bool:
        """Whether everything that starts before `at_s` has been taken."""
        return self._read_to is not None and self._read_to >= at_s / self.base

    def forget_before(self, at_s: Fraction) -> None:
        """Drop what no later clip can want."""
        before = float((at_s - 2 * _PREROLL_S) / self.base)
        while self._waiting and self._end(self._waiting[0]) < before:
            self._waiting.popleft()

    def between(self, start_s: Fraction, end_s: Fraction) -> Sound | None:
        """The sound of [start, end) in the container's clock; None if there is none."""
        start, end = float(start_s / self.base), float(end_s / self.base)
        inside = [each for each in self._waiting if self._start(each) < end and self._end(each) > start]
        if not inside:
            return None
        whole = self._whole(inside, start, end)
        if not self.copies or len({self._format(each) for each in whole}) > 1:
            return self._decode(start_s, end_s)
        return self._copy(whole, start)

    # Packets are compared in ticks of the stream: a film has thousands, and fractions are slow.
    @staticmethod
    def _start(packet: av.Packet) -> int:
        at = packet.pts if packet.pts is not None else packet.dts
        assert at is not None
        return at

    def _end(self, packet: av.Packet) -> int:
        if packet.duration:
            return self._start(packet) + packet.duration
        context = self.stream.codec_context
        length_s = Fraction(context.frame_size or 1024, context.sample_rate or 48000)
        return self._start(packet) + round(length_s / self.base)

    def _format(self, packet: av.Packet) -> bytes:
        """What the packet's own header says of its format, where its codec has one; else nothing."""
        head = bytes(memoryview(packet)[:7]).ljust(7, b"\0")
        if self.codec == "aac" and head[:1] == b"\xff" and head[1] & 0xF6 == 0xF0:  # ADTS: profile, rate, channels
            return bytes([head[2] & 0xFD, head[3] & 0xC0])
        if self.codec == "ac3":  # rate, version, channels
            return bytes([head[4] & 0xC0, head[5], head[6] & 0xE0])
        if self.codec == "eac3":  # rate, channels
            return bytes([head[4] & 0xCF])
        return b""

    def _whole(self, packets: Sequence[av.Packet], start: float, end: float) -> list[av.Packet]:
        """The packets that lie wholly in [start, end)."""
        # A tick of slack: the film's clock may round a packet's end up. Less where a tick is a packet, as in AVI.
        slack = min(1.0, min(self._end(each) - self._start(each) for each in packets) / 4)
        return [
            each
            for each in packets
            if self._start(each) >= start - slack and self._end(each) <= end + slack and not each.is_discard
        ]

    def _copy(self, whole: Sequence[av.Packet], start: float) -> Sound | None:
        copies: list[tuple[av.Packet, int]] = []
        for each in whole:
            packet = av.Packet(bytes(each))  # a copy: the next clip may begin with the same packet's neighbours
            packet.time_base = self.base
            packet.duration = each.duration
            packet.is_keyframe = True
            # Not round(), which takes halves to the even number, and so two neighbours to one.
            copies.append((packet, max(0, math.floor(self._start(each) - start + 0.5))))
        return Sound(template=self.stream, packets=copies) if copies else None

    def _decode(self, start_s: Fraction, end_s: Fraction) -> Sound | None:
        """Samples of exactly [start, end), as frames of 1024."""
        context = self.stream.codec_context
        context.flush_buffers()
        heard: list[AudioFrame] = []
        start, end = float((start_s - _PREROLL_S) / self.base), float(end_s / self.base)
        wanted = [each for each in self._waiting if self._end(each) > start and self._start(each) < end]
        for packet in [*wanted, None]:
            try:
                decoded = context.decode(packet)
            except av.error.FFmpegError:
                continue  # a damaged packet is a gap; the next one says where it belongs
            heard += [frame for frame in decoded if heard or frame.pts is not None]
        if not heard:
            return None
        times = [None if frame.pts is None else frame.pts * (frame.time_base or self.base) for frame in heard]
        first_s = times[0]
        assert first_s is not None
        inside = (frame for frame, at in zip(heard, times, strict=True) if at is not None and at >= start_s)
        like = next(inside, heard[-1])
        rate = like.sample_rate if like.sample_rate in _AAC_RATES else 48000
        layout = "mono" if like.layout.nb_channels == 1 else "stereo"
        samples = _resampled(heard, times, rate, layout)
        begin = round((start_s - first_s) * rate)
        if begin < 0:
            samples = np.pad(samples, ((0, 0), (-begin, 0)))
            begin = 0
        samples = samples[:, begin : begin + int((end_s - start_s) * rate)]
        if samples.shape[1] == 0:
            return None
        frames = []
        for at in range(0, samples.shape[1], 1024):
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, at : at + 1024]), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            frames.append(frame)
        return Sound(frames=frames, sample_rate=rate, layout=layout)


def _resampled(frames: Sequence[AudioFrame], times: Sequence[Fraction | None], rate: int, layout: str) -> np.ndarray:
    """The frames' samples, (channels, N), in one format. A frame of another format than the last begins at its time."""
    channels = 1 if layout == "mono" else 2
    pieces: list[np.ndarray] = [np.empty((channels, 0), np.float32)]
    resampler: AudioResampler | None = None
    form: tuple[str, str, int] | None = None
    for frame, at in zip(frames, times, strict=True):
        if form != (frame.format.name, frame.layout.name, frame.sample_rate):
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is not None:
                pieces += [each.to_ndarray() for each in resampler.resample(None)]
            resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
            late = 0 if at is None or times[0] is None else round((at - times[0]) * rate) - _length(pieces)
            pieces.append(np.zeros((channels, max(0, late)), np.float32))
        frame.pts = None
        assert resampler is not None
        pieces += [each.to_ndarray() for each in resampler.resample(frame)]
    if resampler is not None:
        pieces += [each.to_ndarray() for each in resampler.resample(None)]
    return np.concatenate(pieces, axis=1)


def _length(pieces: Sequence[np.ndarray]) -> int:
    return sum(each.shape[1] for each in pieces)
