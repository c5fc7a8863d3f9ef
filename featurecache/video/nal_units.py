"""Which packets of an H.264 or HEVC stream hold a picture that no other refers to, and where the coding begins anew.

Such a packet may be kept from the decoder without changing any other picture. What a packet is, is read from the
headers of its NAL units alone (ITU-T H.264 section 7.3.1, H.265 section 7.3.1.2): `nal_ref_idc` 0 in H.264,
TRAIL_N in HEVC. It is told only where it follows for certain: never for a packet that holds anything but slices
and SEI messages; in H.264 never in a stream with fields, where two packets may make one picture; in HEVC never in a
stream with temporal sub-layers, whose higher ones may refer to such pictures, nor for leading pictures.
An IDR picture begins anew: neither it nor any picture after it in decoding order refers to one before it. (Other key
pictures don't: in an open group of pictures, those decoded later may still refer across.)
H.264's frame numbers count the reference pictures: where they don't fit, a header may be damaged (`is_consistent`).
HEVC needs no such check, as its decoder reports a missing reference.

Other codecs carry state from every picture to the next (VP9's probabilities) or are too rare: no packet of theirs
is told disposable.
"""

from collections.abc import Iterator

_H264_SLICE, _H264_IDR_SLICE = 1, 5
_H264_KINDS = {
    6: "sei_or_aud",
    7: "sequence",
    8: "parameters",
    9: "sei_or_aud",
    12: "sei_or_aud",
}  # SEI, SPS, PPS, delimiter, filler
_HEVC_TRAIL_N, _HEVC_IDR, _HEVC_LAST_SLICE = 0, (19, 20), 31
_HEVC_KINDS = {
    32: "parameters",
    33: "sequence",
    34: "parameters",
    35: "sei_or_aud",
    38: "sei_or_aud",
    39: "sei_or_aud",
    40: "sei_or_aud",
}
_SLICES = {"disposable", "reference", "idr"}
_START_CODE = b"\0\0\1"
_LONGEST_READ = 1024  # bytes of a unit: enough for parameter sets
_LONGEST_SLICE_START = 24
_H264_HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


class PacketReader:
    """Reads the packets of one stream in order, and remembers what its parameter sets say.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: The codec's header in the container, if any.

    Attributes:
        disposable_exist: Whether packets of this stream can be told disposable.
        is_idr: Whether the packet asked about last holds an IDR picture.
        is_plain: Whether it holds nothing besides that a later packet could need: slices, SEI messages, and no other
            parameter sets than those that were told last.
        is_consistent: False from the first packet on whose frame number is not the one expected.
    """

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        header = extradata or b""
        self.codec = codec
        self.length_size = 0  # bytes of a unit's length; 0: units begin with start codes
        self.parameters_seen = False
        self.frame_number_bits = 0
        self.last_reference: int | None = None
        self.is_consistent = True
        self.is_idr = self.is_plain = False
        self.parameters: list[bytes] = []
        self.disposable_exist = codec in ("h264", "hevc")
        if header[:1] == b"\1":
            at = 4 if codec == "h264" else 21
            self.length_size = (header[at] & 3) + 1 if len(header) > at else 0
            units = _listed_units(header, codec)
        else:
            units = list(_units_by_start_code(header))
        for unit in units:
            self._remember(unit)

    @property
    def only_frames(self) -> bool:
        """Whether the container's header says of an H.264 stream that each of its packets holds a whole frame."""
        return self.codec == "h264" and self.parameters_seen and self.disposable_exist

    def is_disposable(self, packet: bytes) -> bool:
        """Whether no other picture can refer to the packet's; to be asked of every packet, in decoding order."""
        self.is_idr = self.is_plain = False
        if not self.disposable_exist:
            return False
        units = _units_by_start_code(packet) if not self.length_size else _units_by_length(packet, self.length_size)
        kinds, parameters = set(), []
        for unit in units:
            kind = self._kind(unit)
            kinds.add(kind)
            if kind == "sequence":
                self._remember(unit)
            if kind in ("sequence", "parameters"):
                parameters.append(unit)
            if self.codec == "h264" and kind != "sei_or_aud":
                self._count(unit)
        repeats = not parameters or (parameters == self.parameters and max(map(len, parameters)) < _LONGEST_READ)
        self.parameters = parameters or self.parameters
        is_certain = self.parameters_seen and self.disposable_exist and self.is_consistent
        self.is_plain = is_certain and repeats and "other" not in kinds
        self.is_idr = is_certain and kinds & _SLICES == {"idr"}
        return is_certain and kinds - {"sei_or_aud"} == {"disposable"}

    def _count(self, unit: bytes) -> None:
        """Compare an H.264 slice's frame number with that of the last reference picture (section 7.4.3)."""
        number = unit[0] & 31 if unit else 0
        if number not in (_H264_SLICE, _H264_IDR_SLICE) or not self.parameters_seen:
            return
        bits = _Bits(unit[1:_LONGEST_SLICE_START])
        try:
            is_first_slice = bits.exp_golomb() == 0
            bits.exp_golomb()  # kind of slice
            bits.exp_golomb()  # picture parameter set
            frame_number = bits.read(self.frame_number_bits)
        except IndexError:
            self.is_consistent = False
            return
        if not is_first_slice:
            return
        if number == _H264_IDR_SLICE:
            self.last_reference = 0
            expected = 0
        elif self.last_reference is None:
            expected = frame_number
        else:
            expected = (self.last_reference + 1) % (1 << self.frame_number_bits)
        if frame_number != expected:
            self.is_consistent = False
        if unit[0] & 0x60:
            self.last_reference = frame_number

    def _kind(self, unit: bytes) -> str:
        """What a unit is.

        A slice of a `disposable`, `reference` or `idr` picture; a `sequence` parameter set or other
        `parameters`; an SEI message or access unit delimiter, `sei_or_aud`; or `other`, what is not known.
        """
        if self.codec == "h264":
            if not unit or unit[0] & 0x80:
                return "other"
            number, is_reference = unit[0] & 31, bool(unit[0] & 0x60)
            if number == _H264_SLICE:
                return "reference" if is_reference else "disposable"
            if number == _H264_IDR_SLICE and is_reference:
                return "idr"
            return _H264_KINDS.get(number, "other")
        if len(unit) < 2 or unit[0] & 0x81 or unit[1] >> 3 or unit[1] & 7 != 1:  # layer 0, temporal sub-layer 0
            return "other"
        number = unit[0] >> 1
        if number <= _HEVC_LAST_SLICE:
            return "disposable" if number == _HEVC_TRAIL_N else "idr" if number in _HEVC_IDR else "reference"
        return _HEVC_KINDS.get(number, "other")

    def _remember(self, unit: bytes) -> None:
        if self._kind(unit) != "sequence":
            return
        try:
            if self.codec == "hevc":
                fits = unit[2] >> 1 & 7 == 0
            else:
                bits = _frame_number_bits(unit)
                fits = bits is not None and (not self.parameters_seen or bits == self.frame_number_bits)
                self.frame_number_bits = bits or 0
        except IndexError:
            fits = False
        self.parameters_seen = True
        self.disposable_exist = self.disposable_exist and fits


def _units_by_length(packet: bytes, length_size: int) -> Iterator[bytes]:
    """The first bytes of each unit; an empty one where the packet ends inside a unit."""
    at = 0
    while at < len(packet):
        length = int.from_bytes(packet[at : at + length_size], "big")
        at += length_size
        if length == 0 or at + length > len(packet):
            yield b""
            return
        yield packet[at : at + min(length, _LONGEST_READ)]
        at += length


def _units_by_start_code(packet: bytes) -> Iterator[bytes]:
    at = packet.find(_START_CODE)
    while at >= 0:
        following = packet.find(_START_CODE, at + 3)
        end = following if following >= 0 else len(packet)
        yield packet[at + 3 : min(end, at + 3 + _LONGEST_READ)]
        at = following


def _listed_units(header: bytes, codec: str) -> list[bytes]:
    """Parameter sets in an `avcC` or `hvcC` box (ISO/IEC 14496-15)."""
    units = []
    if codec == "h264":
        groups, at = [header[5] & 31 if len(header) > 5 else 0], 6
    else:
        groups, at = [0] * (header[22] if len(header) > 22 else 0), 23
    for count in groups:
        if codec == "hevc":
            count = int.from_bytes(header[at + 1 : at + 3], "big")
            at += 3
        for _ in range(count):
            length = int.from_bytes(header[at : at + 2], "big")
            units.append(header[at + 2 : at + 2 + length])
            at += 2 + length
    return units


class _Bits:
    """Reads a unit's bits, without the bytes that only keep start codes away; IndexError where it ends."""

    def __init__(self, unit: bytes) -> None:
        self.data = unit.replace(b"\0\0\3", b"\0\0")
        self.at = 0

    def read(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | (self.data[self.at >> 3] >> (7 - (self.at & 7)) & 1)
            self.at += 1
        return value

    def exp_golomb(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed_exp_golomb(self) -> int:
        code = self.exp_golomb()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def _frame_number_bits(sps: bytes) -> int | None:
    """Bits of `frame_num` by an H.264 sequence parameter set (section 7.3.2.1.1).

    None where pictures may be fields, or colour planes coded apart, or frame numbers left out.
    """
    bits = _Bits(sps[1:])
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.exp_golomb()
    if profile in _H264_HIGH_PROFILES:
        chroma_format = bits.exp_golomb()
        if chroma_format == 3 and bits.read(1):
            return None
        bits.exp_golomb()
        bits.exp_golomb()
        bits.read(1)
        if bits.read(1):
            for number in range(8 if chroma_format != 3 else 12):
                if bits.read(1):
                    _pass_scaling_list(bits, 16 if number < 6 else 64)
    frame_number_bits = bits.exp_golomb() + 4
    order_type = bits.exp_golomb()
    if order_type == 0:
        bits.exp_golomb()
    elif order_type == 1:
        bits.read(1)
        bits.exp_golomb()
        bits.exp_golomb()
        for _ in range(bits.exp_golomb()):
            bits.exp_golomb()
    bits.exp_golomb()  # reference frames
    may_be_left_out = bits.read(1)
    bits.exp_golomb()  # width
    bits.exp_golomb()  # height
    only_frames = bits.read(1)
    return frame_number_bits if only_frames and not may_be_left_out and frame_number_bits <= 16 else None


def _pass_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed_exp_golomb()) & 255
        last = following or last
