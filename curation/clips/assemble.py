"""Puts one clip together: packets copied from the film, pieces re-encoded from its frames, and its sound.

Copied and re-encoded frames carry different parameter sets. In H.264 ours have an id of their own, and the index
(avcC) holds both: every decoder switches between them as the standard says. HEVC encoders cannot choose ids, so there
the sets stand in-band before every key frame (sample entry hev1). VP9 has none. Films stored as Annex B (MPEG-TS) keep
their sets in-band too.
"""

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from curation import bitstream
from curation.clips.check import check_clip
from curation.clips.clip import Clip, ClipSpan
from curation.clips.encode import OUR_SPS_ID, Encoded, PieceEncoder, output_codec
from curation.clips.keys import COPIED_CODECS
from curation.clips.layout import Layout
from curation.clips.mux import Sample, VideoTrack, write_mp4
from curation.clips.sound import Sound
from curation.packed import relabelled
from curation.probe import VideoInfo

logger = logging.getLogger(__name__)


class ClipError(Exception):
    """A clip cannot be made. `reason` is a stable slug."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Job:
    """A clip in the making."""

    def __init__(self, info: VideoInfo, span: ClipSpan, layout: Layout, index: int, stream: VideoStream) -> None:
        self.info, self.span, self.layout, self.index, self.stream = info, span, layout, index, stream
        self.codec = info.codec if layout.copied else output_codec(info.codec)
        self.last_rank = int(info.decode_rank[span.start_frame : span.end_frame].max())
        self._packets: dict[int, av.Packet] = {}  # by frame number, in decoding order
        self.failure: ClipError | None = None  # why the clip cannot be made, known before its end
        self.odd = False  # the copied packets are not what the film's index says, or are damaged
        self._pieces: dict[int, list[Encoded]] = {start: [] for start, _ in layout.encoded}
        self._encoder: PieceEncoder | None = None
        self._next = layout.encoded[0][0] if layout.encoded else span.end_frame  # frame to encode next
        self._display_matrix: tuple[int, ...] | None = None

    @property
    def start_s(self) -> Fraction:
        return self.span.start_pts * self.info.time_base

    @property
    def end_s(self) -> Fraction:
        return self.span.end_pts * self.info.time_base

    @property
    def complete(self) -> bool:
        """Whether every frame has come."""
        return len(self._packets) == self.layout.copied and self._next == self.span.end_frame

    def copy(self, number: int, packet: av.Packet, *, after_unlisted: bool = False) -> None:
        """Take over the packet of a frame, in decoding order.

        `after_unlisted`: the packet before it is not in the film's index, so the run of packets is not whole.
        """
        self.odd |= number in self._packets or (after_unlisted and bool(self._packets)) or packet.is_corrupt
        self._packets[number] = packet

    def encode(self, number: int, frame: VideoFrame) -> None:
        """Re-encode a frame, in presentation order. After a gap nothing more is taken: the clip will fail."""
        if number != self._next or frame.is_corrupt or self.failure is not None:
            return
        try:
            self._encode(number, frame)
        except (av.error.FFmpegError, ValueError) as error:  # of the encoder: the film is not to blame
            self.failure = ClipError(
                "cannot_write",
                f"{self.info.path}: frames {self.span.start_frame} to {self.span.end_frame} "
                f"cannot be encoded ({error})",
            )

    def _encode(self, number: int, frame: VideoFrame) -> None:
        start, end = next((a, b) for a, b in self.layout.encoded if a <= number < b)
        if self._encoder is None:
            self._encoder = PieceEncoder(self.info, self.codec, splice=self.layout.copied > 0)
            self._display_matrix = self._display_matrix or _display_matrix(frame)
        frame.pts = int(self.info.pts[number])
        self._pieces[start] += self._encoder.encode(frame)
        self._next = number + 1
        if self._next == end:
            self._pieces[start] += self._encoder.flush()
            self._encoder = None
            self._next = next((a for a, _ in self.layout.encoded if a >= end), self.span.end_frame)

    def warn_silent(self, error: Exception) -> None:
        """Say that the clip's sound cannot be had, which is no reason to lose its picture."""
        first, end = self.span.start_frame, self.span.end_frame
        logger.warning("%s: the clip of frames %d to %d has no sound (%s)", self.info.path, first, end, error)

    def finish(self, sound: Sound | None, mode: str) -> Clip:
        """The clip, checked.

        Raises:
            ClipError: frames are missing, the codec cannot be copied, or the result is not what was planned.
        """
        info, span, layout = self.info, self.span, self.layout
        if mode == "keyframe" and info.codec not in COPIED_CODECS:
            raise ClipError(
                "cannot_copy_codec", f"{info.path}: {info.codec} is not copied into mp4; cut it with smart or exact"
            )
        if mode == "keyframe" and layout.copied < span.frames:
            raise ClipError(
                "not_at_keyframes",
                f"{info.path}: frames {span.start_frame} to {span.end_frame} cannot be copied whole; "
                'plan the spans with mode="keyframe", or cut them with smart or exact',
            )
        if self.failure is not None:
            raise self.failure
        if not self.complete:
            raise ClipError(
                "missing_frames",
                f"{info.path}: frames from {self._first_missing()} on could not be read "
                f"(clip of frames {span.start_frame} to {span.end_frame})",
            )
        if self.odd:
            raise ClipError(
                "cannot_copy", f"{info.path}: frames share packets with others, or hide behind an edit list"
            )
        track = self._track()
        try:
            data = write_mp4(track, sound)
        except (av.error.FFmpegError, ValueError) as error:
            if sound is None:
                raise
            self.warn_silent(error)
            sound = None
            data = write_mp4(track, None)
        # FFmpeg drops the key frame after a splice in HEVC where its count (POC) is that of one of ours that it still
        # holds. A broken link is to forget these, and so FFmpeg does, but too late if its parameter set equals ours.
        spliced = self.codec == "hevc" and layout.start < layout.copy_start < layout.end
        problem = check_clip(data, info, span, layout.copy_start - layout.start + 1 if spliced else 1)
        if problem is not None:
            raise ClipError("check_failed", f"{info.path}: frames {span.start_frame} to {span.end_frame}: {problem}")
        width, height = replace(info, width=track.template.width, height=track.template.height).display_size
        seconds = (span.end_pts - span.start_pts) * info.time_base
        copied = _pts_at(info, layout.copy_end) - _pts_at(info, layout.copy_start)
        return Clip(
            span=span,
            data=data,
            frames=span.frames,
            width=width,
            height=height,
            rate_fps=float(span.frames / seconds),
            codec=self.codec,
            has_audio=sound is not None,
            copied_s=float(copied * info.time_base),
        )

    def _first_missing(self) -> int:
        wanted = range(self.layout.copy_start, self.layout.copy_end)
        return min(next((number for number in wanted if number not in self._packets), self.span.end_frame), self._next)

    def _track(self) -> VideoTrack:
        if not self.layout.copied:
            return self._encoded_track()
        pieces = [self._pieces.get(self.layout.start, []) if self.layout.copy_start > self.layout.start else []]
        pieces.append(self._pieces.get(self.layout.copy_end, []) if self.layout.end > self.layout.copy_end else [])
        samples = [self._sample(packet, int(self.info.pts[number])) for number, packet in self._packets.items()]
        extradata, tag = self.stream.codec_context.extradata, None
        if self.codec == "mpeg4" and extradata is not None:
            extradata = relabelled(extradata)
        if self.codec in bitstream.PARAMETER_SETS:
            extradata, tag = self._spliced(pieces, samples)
        made = [[self._sample(_packet(each.data), each.pts, each.key) for each in piece] for piece in pieces]
        return self._video_track(self.stream, [*made[0], *samples, *made[1]], extradata, tag)

    def _encoded_track(self) -> VideoTrack:
        """All frames re-encoded: parameter sets stand in the index alone."""
        piece = self._pieces[self.layout.start]
        sets = bitstream.PARAMETER_SETS[self.codec]
        samples = []
        for each in piece:
            nals = bitstream.undecorated(self.codec, bitstream.split(each.data, None))
            kept = [nal for nal in nals if bitstream.nal_type(self.codec, nal) not in sets]
            samples.append(self._sample(_packet(bitstream.join(kept, None)), each.pts, each.key))
        # The first frame, opened as a film of its own, describes the stream to the muxer. It must stay open till then.
        self._described = av.open(io.BytesIO(piece[0].data), format=self.codec)
        extradata = bitstream.join(bitstream.parameter_sets(self.codec, piece[0].data), None)
        tag = "hvc1" if self.codec == "hevc" else "avc1"
        return self._video_track(self._described.streams.video[0], samples, extradata, tag)

    def _video_track(
        self, template: VideoStream, samples: Sequence[Sample], extradata: bytes | None, tag: str | None
    ) -> VideoTrack:
        return VideoTrack(
            template=template,
            samples=samples,
            time_base=self.info.time_base,
            end_pts=self.span.end_pts - self.span.start_pts,
            sample_aspect_ratio=self.info.sample_aspect_ratio,
            extradata=extradata,
            tag=tag,
            display_matrix=self._display_matrix,
        )

    def _sample(self, packet: av.Packet, pts: int, key: bool | None = None) -> Sample:
        return Sample(packet, pts - self.span.start_pts, packet.is_keyframe if key is None else key)

    def _spliced(self, pieces: list[list[Encoded]], samples: list[Sample]) -> tuple[bytes | None, str | None]:
        """Make copied samples and pieces of H.264 or HEVC agree; gives extradata and sample entry."""
        codec, extradata = self.codec, self.stream.codec_context.extradata
        size = bitstream.length_size(codec, extradata)
        film_sets = bitstream.parameter_sets(codec, extradata)
        our_sets: list[bytes] = []
        if not any(pieces):
            if codec == "hevc":
                return None, "hvc1" if size and self.stream.codec_context.codec_tag == "hvc1" else "hev1"
            return None, "avc1" if size else "avc3"
        in_band = codec == "hevc" or size is None
        for piece in pieces:
            for index, each in enumerate(piece):
                nals = bitstream.undecorated(codec, bitstream.split(each.data, None))
                sets = bitstream.parameter_sets(codec, bitstream.join(nals, None))
                our_sets += [nal for nal in sets if nal not in our_sets]
                kept = nals if in_band else [nal for nal in nals if nal not in sets]
                piece[index] = Encoded(bitstream.join(kept, size), each.pts, each.key)
        if codec == "h264":
            return self._both_sets(film_sets, our_sets, size)
        self._sets_in_band(samples, film_sets, size, after_splice=bool(pieces[0]))
        return None, "hev1"

    def _both_sets(self, film: list[bytes], ours: list[bytes], size: int | None) -> tuple[bytes, str]:
        ids = {bitstream.sps_id(nal) for nal in film if bitstream.nal_type("h264", nal) == bitstream.H264_SPS}
        ids |= {bitstream.pps_id(nal) for nal in film if bitstream.nal_type("h264", nal) == bitstream.H264_PPS}
        if OUR_SPS_ID in ids or not film:
            raise ClipError("cannot_splice", f"{self.info.path}: its parameter sets leave no room for ours")
        if any(bitstream.may_be_lossless(nal) for nal in film if bitstream.nal_type("h264", nal) == bitstream.H264_SPS):
            # FFmpeg decodes what follows ours otherwise than alone, without an error.
            raise ClipError("cannot_splice", f"{self.info.path}: lossless pictures do not follow ours")
        if size is None:
            return bitstream.join([*film, *ours], None), "avc3"
        return bitstream.avcc([*film, *ours], size), "avc1"

    def _sets_in_band(self, samples: list[Sample], film: list[bytes], size: int | None, *, after_splice: bool) -> None:
        """Put the film's parameter sets before every copied key frame that comes without them."""
        types = bitstream.PARAMETER_SETS["hevc"]
        for index, sample in enumerate(samples):
            if not sample.key:
                continue
            nals = bitstream.split(bytes(sample.packet), size)
            if index == 0 and after_splice:
                nals = bitstream.cra_as_bla(nals)
            if not all(any(bitstream.nal_type("hevc", nal) == kind for nal in nals) for kind in types):
                nals = [*film, *(nal for nal in nals if bitstream.nal_type("hevc", nal) not in types)]
            sample.packet = _packet(bitstream.join(nals, size))


def _packet(data: bytes) -> av.Packet:
    return av.Packet(data)


def _pts_at(info: VideoInfo, frame: int) -> int:
    return int(info.pts[frame]) if frame < info.frames else info.end_pts


def _display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """The 3x3 matrix that a player shows the frame with, if the film has one."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else tuple(int(each) for each in np.frombuffer(bytes(data), dtype=np.int32))
