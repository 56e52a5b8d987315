"""Whether the B-frames of an H.264 film can be left out: whether none but B-frames refers to them.

Encoders that keep one reference per frame (x264's `veryfast` and faster) predict a P-frame from the I- or P-frame
before it. Then all B-frames, those that other B-frames refer to included, can be skipped without a change to the I-
and P-frames, which costs three fifths of decoding every reference. With more references P-frames refer to
B-frames too, and without these they would come out wrong. The slice headers tell (ITU-T H.264, 7.3.3 and 8.2.4).
"""

from dataclasses import dataclass

from curation.bitstream import H264_IDR, H264_PPS, H264_SPS, Bits, length_size, parameter_sets, split, unescaped

_SLICE = 1  # nal_unit_type of a slice of a picture that is no IDR
_HEADER_BYTES = 96  # more than a slice header takes up to the end of its weights
_HIGH_PROFILES = (100, 110, 122, 144, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
_B, _I = 1, (2, 4)  # slice_type modulo 5; the others are predicted from list 0 alone


class BFrameReferences:
    """Follows the slice headers of one H.264 stream, packet by packet in decoding order.

    Attributes:
        optional: whether no I- or P-frame seen so far refers to a B-frame. False also where that cannot be told:
            interlaced film, long-term references, pictures of B- and other slices, damage.
        kept: the most reference frames that the decoder keeps. It puts a copy of another frame in the place of a
            reference that it did not get; a B-frame is surely right once so many were decoded before it.
    """

    def __init__(self, extradata: bytes | None) -> None:
        """`extradata`: the stream's avcC, or its parameter sets as Annex B."""
        self.optional = True
        self.kept = 0
        self._length_size: int | None = None
        self._sps: dict[int, _Sps] = {}
        self._pps: dict[int, _Pps] = {}
        self._is_b: dict[int, bool] = {}  # of the reference frames kept, by frame_num, the last one last
        try:
            self._length_size = length_size("h264", extradata)
            self._read(parameter_sets("h264", extradata))
        except LookupError:
            self.optional = False  # damaged extradata

    def see(self, packet: bytes) -> bool:
        """Take note of the next access unit; whether it is a B-frame."""
        return self.optional and self._read(split(packet, self._length_size))

    def _read(self, nals: list[bytes]) -> bool:
        """Whether the picture, if there is one, is of B-slices."""
        kinds: set[bool] = set()
        try:
            for nal in nals:
                kind = nal[0] & 0x1F
                if kind == H264_SPS:
                    number, self._sps[number] = _sps(Bits(unescaped(nal[1:])))
                elif kind == H264_PPS:
                    bits = Bits(unescaped(nal[1:]))
                    number, self._pps[number] = bits.ue(), _pps(bits, self._sps)
                elif kind in (_SLICE, H264_IDR):
                    kinds.add(_is_b(nal))
                    if nal[0] & 0x60 or False in kinds:  # B-frames that are no references change nothing
                        self._slice(Bits(unescaped(nal[1:_HEADER_BYTES])), kind == H264_IDR, nal[0] & 0x60 != 0)
            if len(kinds) > 1:
                raise ValueError("pictures of B- and other slices are left out in part")
        except (ValueError, LookupError):
            self.optional = False
        return True in kinds

    def _slice(self, bits: Bits, is_idr: bool, is_reference: bool) -> None:
        bits.ue()  # first_mb_in_slice
        slice_type = bits.ue() % 5
        pps = self._pps[bits.ue()]
        sps = pps.sps
        bits.u(2 * sps.separate_planes)
        frame_num = bits.u(sps.frame_num_bits)
        if is_idr:
            self._is_b.clear()
            bits.ue()  # idr_pic_id
        self._is_b.pop(frame_num, None)  # an earlier slice of this picture, or long ago
        _skip_order(bits, pps)
        if slice_type == _B:
            bits.u(1)  # direct_spatial_mv_pred_flag
        if slice_type not in _I:
            counts = [pps.references, pps.references_back][: 1 + (slice_type == _B)]
            if bits.u(1):
                counts = [bits.ue() + 1 for _ in counts]
            changes = [_modification(bits) for _ in counts]
            if slice_type != _B and any(
                self._is_b[number] for number in self._list(changes[0], counts[0], pps, frame_num)
            ):
                self.optional = False
            if pps.weights_p if slice_type != _B else pps.weights_b:
                _skip_weights(bits, sps, sum(counts))
        if is_reference:
            for number in self._taken_out(bits, is_idr, frame_num, 1 << sps.frame_num_bits):
                self._is_b.pop(number, None)
            self._is_b[frame_num] = slice_type == _B
            self.kept = max(self.kept, sps.most_references)
            while len(self._is_b) > max(1, sps.most_references):
                del self._is_b[next(iter(self._is_b))]

    def _list(self, changes: list[int], count: int, pps: "_Pps", frame_num: int) -> list[int]:
        """Reference list 0 of a P-slice, as frame_nums (8.2.4.2.1 and 8.2.4.3.1)."""
        modulus = 1 << pps.sps.frame_num_bits
        chosen, number = [], frame_num
        for change in changes:
            number = (number + change) % modulus
            chosen.append(number)
        latest = [each for each in reversed(self._is_b) if each not in chosen]
        return [*chosen, *latest][:count]

    @staticmethod
    def _taken_out(bits: Bits, is_idr: bool, frame_num: int, modulus: int) -> list[int]:
        """Reference frames that this picture ends the use of (dec_ref_pic_marking, 7.3.3.3)."""
        if is_idr:
            bits.u(1)  # no_output_of_prior_pics_flag
            if bits.u(1):
                raise ValueError("long-term references are not followed")
            return []
        out = []
        if bits.u(1):
            while operation := bits.ue():
                if operation != 1:
                    raise ValueError("long-term references are not followed")
                out.append((frame_num - bits.ue() - 1) % modulus)
        return out


def _is_b(nal: bytes) -> bool:
    bits = Bits(nal[1:8])
    bits.ue()  # first_mb_in_slice
    return bits.ue() % 5 == _B


@dataclass(frozen=True)
class _Sps:
    has_chroma: bool
    separate_planes: bool
    frame_num_bits: int
    order_type: int
    order_bits: int
    order_always_zero: bool
    most_references: int


@dataclass(frozen=True)
class _Pps:
    sps: _Sps
    order_present: bool
    references: int  # in list 0, where a slice does not say otherwise
    references_back: int  # in list 1
    weights_p: bool  # whether slices carry weights
    weights_b: bool
    redundant_present: bool


def _skip_order(bits: Bits, pps: _Pps) -> None:
    """Reads over a slice's picture order count."""
    if pps.sps.order_type == 0:
        bits.u(pps.sps.order_bits)
        if pps.order_present:
            bits.se()
    elif pps.sps.order_type == 1 and not pps.sps.order_always_zero:
        bits.se()
        if pps.order_present:
            bits.se()
    if pps.redundant_present:
        bits.ue()


def _sps(bits: Bits) -> tuple[int, _Sps]:
    """seq_parameter_set_id and what matters here of a sequence parameter set (7.3.2.1.1)."""
    profile = bits.u(8)
    bits.u(16)
    number = bits.ue()
    chroma, separate_planes = 1, False
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        separate_planes = chroma == 3 and bits.u(1) == 1
        bits.ue(), bits.ue(), bits.u(1)  # bit depths, lossless flag
        if bits.u(1):
            for k in range(8 if chroma != 3 else 12):
                _skip_scaling_list(bits, 16 if k < 6 else 64)
    frame_num_bits = bits.ue() + 4
    order_type = bits.ue()
    order_bits, order_always_zero = 0, False
    if order_type == 0:
        order_bits = bits.ue() + 4
    elif order_type == 1:
        order_always_zero = bits.u(1) == 1
        bits.se(), bits.se()
        for _ in range(bits.ue()):
            bits.se()
    most_references = bits.ue()
    bits.u(1), bits.ue(), bits.ue()  # gaps allowed, width, height
    if not bits.u(1):
        raise ValueError("interlaced film is not followed")
    has_chroma = chroma != 0 and not separate_planes
    return number, _Sps(
        has_chroma, separate_planes, frame_num_bits, order_type, order_bits, order_always_zero, most_references
    )


def _skip_scaling_list(bits: Bits, size: int) -> None:
    if not bits.u(1):
        return
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _pps(bits: Bits, sets: dict[int, _Sps]) -> _Pps:
    """What matters here of a picture parameter set after its id (7.3.2.2)."""
    sps = sets[bits.ue()]
    bits.u(1)  # entropy_coding_mode_flag
    order_present = bits.u(1) == 1
    if bits.ue():
        raise ValueError("slice groups are not followed")
    references, references_back = bits.ue() + 1, bits.ue() + 1
    weights_p, weights_b = bits.u(1) == 1, bits.u(2) == 1
    bits.se(), bits.se(), bits.se(), bits.u(2)  # quantisers, deblocking, constrained intra prediction
    return _Pps(sps, order_present, references, references_back, weights_p, weights_b, bits.u(1) == 1)


def _modification(bits: Bits) -> list[int]:
    """What ref_pic_list_modification (7.3.3.1) adds to the frame_num before, entry by entry."""
    changes: list[int] = []
    if bits.u(1):
        while (operation := bits.ue()) != 3:
            if operation > 1:
                raise ValueError("long-term references are not followed")
            changes.append((bits.ue() + 1) * (1 if operation else -1))
    return changes


def _skip_weights(bits: Bits, sps: _Sps, references: int) -> None:
    """Reads over pred_weight_table (7.3.3.2)."""
    bits.ue()
    if sps.has_chroma:
        bits.ue()
    for _ in range(references):
        for numbers in (2, 4)[: 1 + sps.has_chroma]:
            if bits.u(1):
                for _k in range(numbers):
                    bits.se()
