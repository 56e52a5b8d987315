"""Cuts clips out of a film in one forward pass: packets are copied, decoded, or passed over.

What happens to each packet is known beforehand, from the packet index and the layouts: its frame belongs to at most one
clip, it is copied or not, and it must be decoded if a frame to re-encode depends on it. Nothing is decoded twice, no
decoded frame is kept, and no clip outlives its being handed out: memory is one clip, whatever the film's length.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame

from curation.clips.assemble import ClipError, Job
from curation.clips.clip import MODES, Clip, ClipFailure, ClipSpan, Mode
from curation.clips.encode import keeps_pixels, output_codec
from curation.clips.keys import SPLICED_CODECS, entry_frames, lacks_presentation_times
from curation.clips.layout import Layout, exact_layout, keyframe_layout, smart_layout
from curation.clips.sound import Sound, SoundReader
from curation.decode import decode_ranges
from curation.probe import VideoInfo, open_video, packets_of

_SKIPPING_CODECS = ("h264", "hevc")  # whose decoders may be told by the packet what to leave out
_SOUND_LAG_S = 5  # sound that lies this far behind its picture in the file is given up


def cut_clips(
    info: VideoInfo, spans: Sequence[ClipSpan], *, mode: Mode = "smart", threads: int = 1
) -> Iterator[Clip | ClipFailure]:
    """Clips of `spans` in order, each as soon as it is complete. One failing leaves the others alone.

    Args:
        spans: as `plan` gives them: ascending and disjoint.
        threads: of the decoder. The clips' bytes do not depend on it.

    Raises:
        ValueError: an unknown mode, or spans that overlap or leave the film.
        CannotDecode: the file cannot be opened any more.
    """
    if mode not in MODES:
        raise ValueError(f"no clipping mode is called {mode!r}; known: {', '.join(MODES)}")
    for span, after in itertools.zip_longest(spans, spans[1:]):
        end = info.frames if after is None else after.start_frame
        if not 0 <= span.start_frame < span.end_frame <= end:
            raise ValueError(f"clip spans must be ascending, disjoint and inside the film, got {span} before {after}")
    if spans:
        yield from _Pass(info, spans, mode, threads).run()


def _layouts(info: VideoInfo, spans: Sequence[ClipSpan], mode: Mode) -> list[Layout]:
    if mode == "exact":
        return [exact_layout(span.start_frame, span.end_frame) for span in spans]
    entries = entry_frames(info)
    if mode == "keyframe":
        return [keyframe_layout(span, info, entries) for span in spans]
    can_splice = info.codec in SPLICED_CODECS and keeps_pixels(info)
    layouts = [smart_layout(span, info, entries, can_splice) for span in spans]
    if output_codec(info.codec) == info.codec:
        return layouts
    # The film's encoder (libvpx) is slower than the one of whole clips: with little to copy, copying costs more.
    return [
        each if 4 * each.copied >= each.end - each.start else exact_layout(each.start, each.end) for each in layouts
    ]


class _Pass:
    """The state of one forward pass."""

    def __init__(self, info: VideoInfo, spans: Sequence[ClipSpan], mode: Mode, threads: int) -> None:
        self.info, self.spans, self.mode, self.threads = info, spans, mode, threads
        self.layouts = _layouts(info, spans, mode)
        self.copied_by = np.full(info.frames, -1, dtype=np.int32)  # span that copies the frame's packet
        self.encoded_by = np.full(info.frames, -1, dtype=np.int32)  # span that re-encodes the frame
        for index, layout in enumerate(self.layouts):
            self.copied_by[layout.copy_start : layout.copy_end] = index
            for start, end in layout.encoded:
                self.encoded_by[start:end] = index
        if mode == "keyframe":
            self.encoded_by[:] = -1  # what could not be copied is refused, not re-encoded
        self.ranges = deque(decode_ranges(info, np.flatnonzero(self.encoded_by >= 0)))
        self.number_of = {int(at): number for number, at in enumerate(info.pts)}
        self.open: deque[Job] = deque()
        self.next_span = 0
        self._decoding = False  # the decoder is inside a range
        self._begun = False  # a listed packet was read
        self._unlisted = False  # the packet before this one shows no frame of the film
        self._untimed = False  # the file does not say when frames are shown

    def run(self) -> Iterator[Clip | ClipFailure]:
        container, stream = open_video(self.info.path)
        with container:
            self.stream = stream
            self.sound = _sound_reader(container)
            self._untimed = lacks_presentation_times(self.info, stream)
            context = stream.codec_context
            context.thread_count = self.threads
            context.thread_type = "AUTO" if self.threads != 1 else "SLICE"
            streams = [stream] if self.sound is None else [stream, self.sound.stream]
            broken: str | None = None
            self._open_jobs(0)
            try:
                for packet in packets_of(container, *streams):
                    if packet.size == 0:
                        continue
                    if packet.stream_index != stream.index:
                        assert self.sound is not None
                        self.sound.take(packet)
                        continue
                    self._take(packet)
                    yield from self._finished(packet)
                    if self.next_span == len(self.spans) and not self.open:
                        return
            except av.error.FFmpegError as error:
                broken = f"{self.info.path}: the file is damaged ({error})"
            self._drain()
            while self.open:
                yield self._finish(self.open.popleft(), broken)
                self._open_jobs(self.info.frames)

    def _open_jobs(self, frame: int) -> None:
        """Start the clips that begin at or before `frame`, and always the next one."""
        while self.next_span < len(self.spans) and (not self.open or self.spans[self.next_span].start_frame <= frame):
            index = self.next_span
            self.open.append(Job(self.info, self.spans[index], self.layouts[index], index, self.stream))
            self.next_span += 1

    def _take(self, packet: av.Packet) -> None:
        """Copy the packet, decode it, both, or neither."""
        at = packet.pts if packet.pts is not None else packet.dts
        number = self.number_of.get(at) if at is not None else None
        if number is None:
            self._take_unlisted(packet)
            return
        rank = int(self.info.decode_rank[number])
        self._open_jobs(number)
        if self.ranges and rank >= self.ranges[0][1]:
            self._drain()  # the packet that ends the range was not in the file
            while self.ranges and rank >= self.ranges[0][1]:
                self.ranges.popleft()
        if self.ranges and self.ranges[0][0] <= rank:
            if self.info.codec in _SKIPPING_CODECS:  # of frames not to encode only those that others refer to
                self.stream.codec_context.skip_frame = "DEFAULT" if self.encoded_by[number] >= 0 else "NONREF"
            self._decode(packet)
            self._decoding = True
            if rank == self.ranges[0][1] - 1:
                self._drain()
                self.ranges.popleft()
        self._begun = True
        job = self._job(int(self.copied_by[number])) if self.copied_by[number] >= 0 else None
        if job is not None:
            job.copy(number, packet, after_unlisted=self._unlisted)
        self._unlisted = False

    def _take_unlisted(self, packet: av.Packet) -> None:
        """A packet that shows no frame of the film, by its index: hidden by an edit list, or the second of a time.

        The decoder may need it for the frames that follow; a copy that left it out, or took it, would be wrong.
        """
        if self._decoding or (not self._begun and self.ranges and self.ranges[0][0] == 0):
            self._decode(packet)
            self._decoding = True
        self._unlisted = True

    def _job(self, index: int) -> Job | None:
        return next((job for job in self.open if job.index == index), None)

    def _decode(self, packet: av.Packet | None) -> None:
        try:
            frames: list[VideoFrame] = self.stream.codec_context.decode(packet)
        except av.error.FFmpegError:
            return  # a damaged packet: the frames that are then missing fail their clips
        for frame in frames:
            at = frame.pts if frame.pts is not None else frame.dts
            number = self.number_of.get(at) if at is not None else None
            if number is not None and self.encoded_by[number] >= 0:
                self._open_jobs(number)
                job = self._job(int(self.encoded_by[number]))
                if job is not None:
                    job.encode(number, frame)

    def _drain(self) -> None:
        """End of a stretch to decode: take the frames that the decoder still holds."""
        if self._decoding:
            self._decode(None)
            self.stream.codec_context.flush_buffers()
            self._decoding = False

    def _finished(self, packet: av.Packet) -> Iterator[Clip | ClipFailure]:
        """The clips at the head of the line that nothing more will be added to."""
        at = packet.dts if packet.dts is not None else packet.pts
        shown_at = packet.pts if packet.pts is not None else packet.dts  # now: a clip that is written changes it
        number = self.number_of.get(shown_at) if shown_at is not None else None
        while self.open:
            job = self.open[0]
            if not (job.complete or (number is not None and self._passed(job, number))):
                return
            end_s = job.end_s
            if (
                job.complete
                and self.sound is not None
                and not self.sound.has_read_to(end_s)
                and (at is None or at * self.info.time_base < end_s + _SOUND_LAG_S)
            ):
                return
            self.open.popleft()
            yield self._finish(job, None)
            self._open_jobs(job.span.end_frame)

    def _passed(self, job: Job, number: int) -> bool:
        """Whether the pass, at the packet of a frame, is beyond everything that the clip is made of, so that what is
        missing stays missing.
        """
        rank = int(self.info.decode_rank[number])
        if rank <= job.last_rank:
            return False
        return not (self._decoding and self.ranges and self.ranges[0][0] <= job.last_rank)

    def _finish(self, job: Job, broken: str | None) -> Clip | ClipFailure:
        try:
            if self._untimed:
                raise ClipError(
                    "no_presentation_times",
                    f"{self.info.path}: its packets do not say when their frames are shown (B-frames in AVI); "
                    "re-encode it first: ffmpeg -i FILM FILM.mp4",
                )
            if broken is not None and not job.complete and job.failure is None:
                raise ClipError("corrupt", broken)
            return job.finish(self._sound_of(job), self.mode)
        except (ClipError, av.error.FFmpegError, ValueError) as error:
            if job.layout.copied and self.mode == "smart" and broken is None and not self._untimed:
                # This stream's packets do not go together with ours, or not with a decoder that begins at a key frame
                # (periodic intra refresh). Re-encoding the whole clip works where anything does.
                return next(_Pass(self.info, [job.span], "exact", self.threads).run())
            if isinstance(error, ClipError):
                return ClipFailure(job.span, error.reason, str(error))
            frames = f"frames {job.span.start_frame} to {job.span.end_frame}"
            return ClipFailure(job.span, "cannot_write", f"{self.info.path}: {frames} cannot be written ({error})")
        finally:
            if self.sound is not None:
                upcoming = self.open[0].start_s if self.open else job.end_s
                self.sound.forget_before(min(upcoming, job.end_s))

    def _sound_of(self, job: Job) -> Sound | None:
        try:
            return None if self.sound is None else self.sound.between(job.start_s, job.end_s)
        except (av.error.FFmpegError, ValueError) as error:
            job.warn_silent(error)
            return None


def _sound_reader(container: InputContainer) -> SoundReader | None:
    """The film's first audio stream that can be decoded."""
    for stream in container.streams.audio:
        if stream.codec_context is not None and stream.codec_context.sample_rate:
            return SoundReader(stream)
    return None
