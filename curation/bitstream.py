"""H.264 and HEVC bitstreams as lists of NAL units: framing, parameter sets, key-frame kinds.

References are to ITU-T H.264 and H.265 (NAL unit types: table 7-1 of each) and ISO/IEC 14496-15 (avcC, hvcC).
"""

from collections.abc import Iterable, Iterator

H264_IDR, H264_SEI, H264_SPS, H264_PPS, H264_AUD = 5, 6, 7, 8, 9
HEVC_BLA_N_LP, HEVC_CRA, HEVC_VPS, HEVC_SPS, HEVC_PPS, HEVC_AUD, HEVC_SEI_PREFIX, HEVC_SEI_SUFFIX = (
    18,
    21,
    32,
    33,
    34,
    35,
    39,
    40,
)
PARAMETER_SETS = {"h264": (H264_SPS, H264_PPS), "hevc": (HEVC_VPS, HEVC_SPS, HEVC_PPS)}
_SEI = {"h264": (H264_SEI,), "hevc": (HEVC_SEI_PREFIX, HEVC_SEI_SUFFIX)}
_AUD = {"h264": H264_AUD, "hevc": HEVC_AUD}
_HDR10 = (137, 144)  # payload types of supplemental information: mastering display, content light level
_START_CODE = b"\x00\x00\x00\x01"
_H264_HIGH_444_PREDICTIVE = 244  # profile_idc


def nal_type(codec: str, nal: bytes) -> int:
    return nal[0] & 0x1F if codec == "h264" else nal[0] >> 1 & 0x3F


def length_size(codec: str, extradata: bytes | None) -> int | None:
    """Bytes of the length field before each NAL unit, from avcC or hvcC; None for Annex B (start codes)."""
    if not extradata or extradata[0] != 1:
        return None
    return extradata[4 if codec == "h264" else 21] % 4 + 1


def split(data: bytes, size: int | None) -> list[bytes]:
    """NAL units of an access unit; `size` as `length_size` gives it."""
    return list(_split_lengths(data, size) if size else _split_start_codes(data))


def _split_lengths(data: bytes, size: int) -> Iterator[bytes]:
    at = 0
    while at + size <= len(data):
        length = int.from_bytes(data[at : at + size], "big")
        at += size
        if length:
            yield data[at : at + length]
        at += length


def _split_start_codes(data: bytes) -> Iterator[bytes]:
    at = data.find(b"\x00\x00\x01")
    while at >= 0:
        begin = at + 3
        at = data.find(b"\x00\x00\x01", begin)
        nal = data[begin : at if at >= 0 else len(data)].rstrip(b"\x00")
        if nal:
            yield nal


def join(nals: Iterable[bytes], size: int | None) -> bytes:
    """An access unit from NAL units, with lengths of `size` bytes or with start codes."""
    if size:
        return b"".join(len(nal).to_bytes(size, "big") + nal for nal in nals)
    return b"".join(_START_CODE + nal for nal in nals)


def parameter_sets(codec: str, extradata: bytes | None) -> list[bytes]:
    """The parameter sets of avcC, hvcC or Annex B extradata."""
    if not extradata:
        return []
    if extradata[0] != 1:
        return [nal for nal in split(extradata, None) if nal_type(codec, nal) in PARAMETER_SETS[codec]]
    if codec == "h264":
        sets, at = _sized(extradata, 6, extradata[5] & 0x1F)
        return sets + _sized(extradata, at + 1, extradata[at])[0]
    sets, at = [], 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[at + 1 : at + 3], "big")
        found, at = _sized(extradata, at + 3, count)
        sets += found
    return [nal for nal in sets if nal_type(codec, nal) in PARAMETER_SETS[codec]]


def _sized(data: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    """`count` NAL units with 16-bit lengths from offset `at`, and the offset after them."""
    nals = []
    for _ in range(count):
        length = int.from_bytes(data[at : at + 2], "big")
        nals.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    return nals, at


def avcc(sets: list[bytes], size: int) -> bytes:
    """An AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1) that holds all of `sets`; the first SPS leads.

    The profile is the first SPS's and the level the highest, as the record must hold for every SPS in it.
    """
    sps = [nal for nal in sets if nal_type("h264", nal) == H264_SPS]
    pps = [nal for nal in sets if nal_type("h264", nal) == H264_PPS]
    compatible = sps[0][2]
    for nal in sps:
        compatible &= nal[2]
    out = bytes([1, sps[0][1], compatible, max(nal[3] for nal in sps), 0xFC | (size - 1), 0xE0 | len(sps)])
    out += b"".join(len(nal).to_bytes(2, "big") + nal for nal in sps) + bytes([len(pps)])
    out += b"".join(len(nal).to_bytes(2, "big") + nal for nal in pps)
    if sps[0][1] in (100, 110, 122, 144):
        bits = Bits(unescaped(sps[0][4:]))
        bits.ue()  # seq_parameter_set_id
        chroma = bits.ue()
        if chroma == 3:
            bits.u(1)
        luma_bits, chroma_bits = bits.ue(), bits.ue()
        out += bytes([0xFC | chroma, 0xF8 | luma_bits, 0xF8 | chroma_bits, 0])
    return out


def sps_id(nal: bytes) -> int:
    """seq_parameter_set_id of an H.264 SPS."""
    return Bits(unescaped(nal[4:12])).ue()


def may_be_lossless(sps: bytes) -> bool:
    """Whether an H.264 SPS lets pictures be coded without loss (qpprime_y_zero_transform_bypass_flag)."""
    if sps[1] != _H264_HIGH_444_PREDICTIVE:
        return False
    bits = Bits(unescaped(sps[4:]))
    bits.ue()  # seq_parameter_set_id
    if bits.ue() == 3:
        bits.u(1)
    bits.ue(), bits.ue()  # bit depths
    return bits.u(1) == 1


def pps_id(nal: bytes) -> int:
    """pic_parameter_set_id of an H.264 PPS."""
    return Bits(unescaped(nal[1:9])).ue()


def undecorated(codec: str, nals: Iterable[bytes]) -> list[bytes]:
    """NAL units without what says nothing about the picture, such as the encoder's name, or repeats the container.

    Of supplemental information that of HDR10 stays; encoders give each message its own unit.
    """
    header = 1 if codec == "h264" else 2
    kept = (nal for nal in nals if nal_type(codec, nal) != _AUD[codec])
    return [nal for nal in kept if nal_type(codec, nal) not in _SEI[codec] or nal[header] in _HDR10]


def is_idr(nals: Iterable[bytes]) -> bool:
    """Whether an H.264 access unit is an instantaneous decoder refresh: no later frame looks behind it."""
    return any(nal_type("h264", nal) == H264_IDR for nal in nals)


def cra_as_bla(nals: Iterable[bytes]) -> list[bytes]:
    """An HEVC access unit whose clean random access picture is marked as following a splice (H.265, 3.11 and 8.1.3).

    The two share their syntax; a broken-link picture resets the decoder's state, which a CRA does only at the start.
    Its leading pictures must have been left out (BLA_N_LP).
    """
    return [
        bytes([nal[0] & 0x81 | HEVC_BLA_N_LP << 1]) + nal[1:] if nal_type("hevc", nal) == HEVC_CRA else nal
        for nal in nals
    ]


def unescaped(payload: bytes) -> bytes:
    return payload.replace(b"\x00\x00\x03", b"\x00\x00")


class Bits:
    """Reads bits and Exp-Golomb codes (H.264, 9.1). Raises ValueError where there are no more."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def u(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the bits end early")
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        return self.u(2 * zeros + 1) - 1

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)
