"""Re-encoding of a run of frames so that the result can stand beside copied packets of the same film.

Settings were chosen for fidelity first, then speed (`python -m tests.benchmarks.clips --presets`): x264 ultrafast with
B-frames and small blocks is 1.5 to 1.8 times as fast as superfast, for 15 to 80 % more bytes at the same PSNR (the
plain ultrafast: three times the bytes), and edges are few. x265's ultrafast is 1.8 times as fast as its superfast, at
0.3 to 1 dB less for the same bytes. One thread per encoder, so that the bytes do not depend on the machine.

H.264 and HEVC share one colour sample between two columns, and mostly two rows, so their pictures have even sides. A
film of another codec may have odd ones: then its last column or row is left out, and no other pixel is touched.
"""

import functools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from curation.probe import VideoInfo

# H.264 parameter sets of re-encoded frames carry this id, so that both sets of a smart clip can be active in turn
# without one replacing the other. Encoders in use count from 0.
OUR_SPS_ID = 31

# Small blocks where nothing moved in time to predict from, and B-frames: what ultrafast lacks most for its bytes.
# mbtree=0: with AVX-512, x264's macroblock tree reads memory that nobody wrote when the width is no multiple of 256,
# and the bytes differ from run to run (found with MALLOC_PERTURB_).
X264_OPTIONS = {"preset": "ultrafast", "crf": "18", "bf": "3"}
X264_PARAMS = "mbtree=0:b-adapt=0:partitions=i4x4,i8x8:8x8dct=1"

# By bit depth and chroma sampling (VP9 bitstream specification, section 7.2).
_VP9_PROFILES = {"yuv420p": 0, "yuv422p": 1, "yuv444p": 1, "yuv420p10le": 2, "yuv422p10le": 3, "yuv444p10le": 3}
_X264_PROFILES = {"Constrained Baseline": "baseline", "Baseline": "baseline", "Main": "main"}


@dataclass(frozen=True)
class Encoded:
    """One encoded frame in decoding order."""

    data: bytes  # Annex B for H.264 and HEVC
    pts: int
    key: bool


def output_codec(codec: str) -> str:
    """The codec that whole clips are re-encoded to: the film's own where clips play everywhere, else H.264."""
    return codec if codec in ("h264", "hevc") else "h264"


_LIBRARIES = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9"}


def keeps_pixels(info: VideoInfo) -> bool:
    """Whether the film's codec can be re-encoded in the film's own pixel format, as a splice needs."""
    return info.codec in _LIBRARIES and info.pixel_format in _pixel_formats(_LIBRARIES[info.codec])


@functools.cache
def _pixel_formats(library: str) -> tuple[str, ...]:
    return tuple(each.name for each in av.Codec(library, "w").video_formats or ())


class PieceEncoder:
    """Encodes consecutive frames of one film; the first is a key frame that needs nothing before it.

    Args:
        codec: "h264", "hevc" or "vp9".
        splice: the piece stands beside copied packets, so it keeps to the profile and reordering of the film.
    """

    def __init__(self, info: VideoInfo, codec: str, *, splice: bool) -> None:
        self.info = info
        self.codec = codec
        self.splice = splice
        self._context: VideoCodecContext | None = None
        self._sides = (1, 1)  # what the picture's width and height must be multiples of
        self._crop = _Crop()

    def encode(self, frame: VideoFrame) -> list[Encoded]:
        """Packets that come out on a frame going in. The frame's pts are units of the film's time base."""
        if self._context is None:
            self._context = self._open(frame)
        context = self._context
        frame = self._crop(frame, self._size(frame))
        if (frame.width, frame.height, frame.format.name) != (context.width, context.height, context.pix_fmt):
            frame = _converted(frame, context)
        frame.pict_type = PictureType.NONE  # else the encoder repeats the film's frame types
        frame.time_base = self.info.time_base
        return self._taken(context.encode(frame))

    def flush(self) -> list[Encoded]:
        """The remaining packets; the encoder is done."""
        if self._context is None:
            return []
        rest = self._taken(self._context.encode(None))
        self._context = None
        return rest

    def _taken(self, packets: list[av.Packet]) -> list[Encoded]:
        out = []
        for packet in packets:
            assert packet.pts is not None
            out.append(Encoded(bytes(packet), packet.pts, packet.is_keyframe))
        return out

    def _open(self, frame: VideoFrame) -> VideoCodecContext:
        library = _LIBRARIES[self.codec]
        context: Any = av.CodecContext.create(library, "w")
        formats = _pixel_formats(library)
        pixels = frame.format.name
        if pixels not in formats:
            deep = any(component.bits > 8 for component in frame.format.components)
            pixels = "yuv420p10le" if deep and "yuv420p10le" in formats else "yuv420p"
        if self.codec in ("h264", "hevc"):
            encoded = VideoFormat(pixels)
            self._sides = 2 // encoded.chroma_width(2), 2 // encoded.chroma_height(2)
        context.width, context.height = self._size(frame)
        context.pix_fmt = pixels
        context.time_base = self.info.time_base
        context.framerate = self.info.nominal_rate
        context.sample_aspect_ratio = self.info.sample_aspect_ratio
        context.color_primaries = frame.color_primaries
        context.color_trc = frame.color_trc
        if frame.format.is_rgb:
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        else:
            context.colorspace, context.color_range = frame.colorspace, frame.color_range
        context.thread_count = 1
        context.options = self._settings(frame)
        # Fields of 4:2:0 pictures need an even number of rows each. Which field comes first, each frame says itself.
        if self.codec == "h264" and frame.interlaced_frame and context.height % 4 == 0:
            context.flags |= Flags.interlaced_dct
        context.open()
        return context

    def _size(self, frame: VideoFrame) -> tuple[int, int]:
        """(width, height) of the frame as the encoder takes it."""
        columns, rows = self._sides
        return frame.width // columns * columns, frame.height // rows * rows

    def _settings(self, frame: VideoFrame) -> dict[str, str]:
        display, light = _hdr10(frame)
        if self.codec == "h264":
            params = f"{X264_PARAMS}:open-gop=0:scenecut=0:threads=1:lookahead-threads=1"
            params += f":mastering-display={display}" * bool(display) + f":cll={light}" * bool(light)
            if self.splice:
                params += f":sps-id={OUR_SPS_ID}"
            options = {**X264_OPTIONS, "x264-params": params}
            if self.splice and self.info.profile in _X264_PROFILES:
                options["profile"] = _X264_PROFILES[self.info.profile]
            if self.splice and _never_reorders(self.info):
                options["bf"] = "0"
            return options
        if self.codec == "hevc":
            params = "open-gop=0:repeat-headers=1:info=0:pools=none:frame-threads=1:log-level=none"
            params += f":master-display={display}" * bool(display) + f":max-cll={light}" * bool(light)
            if self.splice and _never_reorders(self.info):
                params += ":bframes=0"
            return {"preset": "ultrafast", "crf": "15", "x265-params": params}
        if self.codec == "vp9":
            # No hidden frames: each packet shows one frame, so pieces can be joined at any packet.
            return {
                "deadline": "realtime",
                "cpu-used": "8",
                "crf": "15",
                "b": "0",
                "auto-alt-ref": "0",
                "lag-in-frames": "0",
                "profile": str(_VP9_PROFILES.get(self.info.pixel_format, 0)),
            }
        raise ValueError(f"no encoder for {self.codec}")


class _Crop:
    """Leaves out the last columns and rows of frames."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._made_for: tuple[Any, ...] = ()

    def __call__(self, frame: VideoFrame, size: tuple[int, int]) -> VideoFrame:
        if size == (frame.width, frame.height):
            return frame
        if self._made_for != (frame.width, frame.height, frame.format.name, size):
            self._made_for = (frame.width, frame.height, frame.format.name, size)
            self._graph = _crop_graph(frame, size)
        assert self._graph is not None
        self._graph.push(frame)
        cropped = self._graph.pull()
        assert isinstance(cropped, VideoFrame)
        cropped.pts = frame.pts
        return cropped


def _crop_graph(frame: VideoFrame, size: tuple[int, int]) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    crop = graph.add("crop", f"{size[0]}:{size[1]}:0:0:exact=1")
    source.link_to(crop)
    crop.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def _converted(frame: VideoFrame, context: VideoCodecContext) -> VideoFrame:
    """The frame in the encoder's size and pixel format, with its time."""
    to_video = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
    changed = frame.reformat(
        context.width, context.height, context.pix_fmt, **(to_video if frame.format.is_rgb else {})
    )
    changed.pts = frame.pts
    return changed


def _hdr10(frame: VideoFrame) -> tuple[str, str]:
    """HDR10's mastering display and content light level, as x264 and x265 write them; nothing where the film has none.

    The frame carries AVMasteringDisplayMetadata: x and y of red, green, blue and white, then darkest and brightest
    luminance, and whether it holds the ones and the others; and AVContentLightMetadata, two whole numbers.
    """
    mastering: Any = frame.side_data.get("MASTERING_DISPLAY_METADATA")
    level: Any = frame.side_data.get("CONTENT_LIGHT_LEVEL")
    display = light = ""
    if mastering is not None:
        *fractions, has_primaries, has_luminance = np.frombuffer(bytes(mastering), np.int32, 22).tolist()
        if has_primaries and has_luminance:
            values = [Fraction(*each) for each in zip(fractions[::2], fractions[1::2], strict=True)]
            rx, ry, gx, gy, bx, by, wx, wy = (round(50000 * each) for each in values[:8])
            darkest, brightest = (round(10000 * each) for each in values[8:])
            display = f"G({gx},{gy})B({bx},{by})R({rx},{ry})WP({wx},{wy})L({brightest},{darkest})"
    if level is not None:
        light = ",".join(str(each) for each in np.frombuffer(bytes(level), np.uint32, 2).tolist())
    return display, light


def _never_reorders(info: VideoInfo) -> bool:
    return bool((info.decode_rank[1:] > info.decode_rank[:-1]).all())
