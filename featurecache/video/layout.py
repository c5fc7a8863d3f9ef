"""What the top level of a container says of its file: where it ends, what is cut off, what is joined behind.

Only MP4 and QuickTime boxes, Matroska's elements, AVI's lists and the header of ASF (WMV) tell;
the other containers are streams without an end.
Files that end in zeros (a recorder that lost power, a copy that was given its size beforehand) are read up to there: a
reader of packets would search the zeros for minutes.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_EBML = 0x1A45DFA3
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx"})
_BEGINNING = re.compile(
    rb"\0\0\0[\x10-\x40]ftyp|FLV\x01[\0-\x05]\0\0\0\x09|RIFF....AVI |\x1a\x45\xdf\xa3.{0,60}(?:matroska|webm)"
    rb"|\x30\x26\xb2\x75\x8e\x66\xcf\x11|DKIF\0\0\x20\0",
    re.DOTALL,
)
_SLOPPY_BYTES = 8  # that some writers promise too much
_BLOCK, _NEAR = 1 << 20, 1 << 16
_ZEROS_KEPT = 153_408  # whole packets of a transport stream, of 188, 192 or 204 bytes


@dataclass(frozen=True)
class Layout:
    """A file, by its container's top level.

    Attributes:
        size: Bytes of the file.
        end: Byte behind the container's last whole part, None where the container does not say.
        missing: Bytes that its last part promises beyond the end of the file.
        joined_at: Byte where another recording begins, None where none does.
        data_to: Byte behind the last one that is not zero, or behind `end`.
        read_to: Byte up to which the file is read: that one, and some zeros behind.
    """

    size: int
    end: int | None
    missing: int
    joined_at: int | None
    data_to: int
    read_to: int


def layout_of(path: Path) -> Layout:
    """Look at the headers of a file's top-level parts.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end, missing, joined_at = 0, 0, None
        for at, is_beginning, length in _parts(file):
            if is_beginning and at:
                joined_at = at
                break
            if length is None:
                end = 0
                break
            end, missing = min(at + length, size), at + length - size
        data_to = max(end, _behind_last_data(file, size))
        read_to = size - max(0, (size - data_to) // _ZEROS_KEPT - 1) * _ZEROS_KEPT
        return Layout(size, end or None, missing if missing > _SLOPPY_BYTES else 0, joined_at, data_to, read_to)


def lacks_index(path: Path) -> bool:
    """Whether an MP4 or QuickTime file has no whole `moov` box, without which nothing of it can be read.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(8)[4:] not in _FIRST_BOXES:
            return False
        for at, _, length in _boxes(file):
            file.seek(at + 4)
            if file.read(4) == b"moov" and length is not None and at + length <= size:
                return False
        return True


def begins_again(path: Path, at: int) -> bool:
    """Whether a container begins shortly behind a byte.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(at)
        return _BEGINNING.search(file.read(_NEAR)) is not None


def _parts(file: BinaryIO) -> Iterator[tuple[int, bool, int | None]]:
    """(first byte, whether a recording begins there, length or None where unknown) of each part."""
    head = file.read(12)
    if head[4:8] in _FIRST_BOXES:
        yield from _boxes(file)
    elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
        yield from _lists(file)
    elif int.from_bytes(head[:4], "big") == _EBML:
        yield from _elements(file)
    elif head == _ASF[:12]:
        yield from _asf(file)


def _boxes(file: BinaryIO) -> Iterator[tuple[int, bool, int | None]]:
    """ISO/IEC 14496-12, section 4.2."""
    at, seen = 0, set()
    while True:
        file.seek(at)
        head = file.read(16)
        kind, length = head[4:8], int.from_bytes(head[:4], "big")
        if len(head) < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
            return
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        yield at, kind in seen and kind in (b"ftyp", b"moov"), length if length >= 8 else None
        if length < 8:
            return
        seen.add(kind)
        at += length


def _lists(file: BinaryIO) -> Iterator[tuple[int, bool, int | None]]:
    """An AVI's lists: one, or in OpenDML one and extensions of the kind AVIX."""
    at = 0
    while True:
        file.seek(at)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or head[8:] not in (b"AVI ", b"AVIX"):
            return
        is_open = length in (0, 0xFFFFFFFF)  # a recorder writes the length when it ends
        yield at, head[8:] == b"AVI ", None if is_open else 8 + length
        if is_open:
            return
        at += 8 + length + length % 2


def _asf(file: BinaryIO) -> Iterator[tuple[int, bool, int | None]]:
    """Advanced Systems Format, section 3.2: the file's size, which a live stream leaves open."""
    file.seek(0)
    head = file.read(_NEAR)
    at = head.find(_ASF_FILE_PROPERTIES)
    size = int.from_bytes(head[at + 40 : at + 48], "little")
    is_live = int.from_bytes(head[at + 88 : at + 92], "little") & 1
    yield 0, True, None if at < 0 or is_live or not size else size


def _elements(file: BinaryIO) -> Iterator[tuple[int, bool, int | None]]:
    """RFC 8794, sections 5 and 6."""
    at = 0
    while True:
        file.seek(at)
        head = file.read(12)
        if not head or not head[0]:
            return
        id_length = 9 - head[0].bit_length()
        kind = int.from_bytes(head[:id_length], "big")
        if id_length > 4 or len(head) <= id_length or not head[id_length]:
            return
        width = 9 - head[id_length].bit_length()
        length = int.from_bytes(head[id_length : id_length + width], "big") & ((1 << 7 * width) - 1)
        is_open = length == (1 << 7 * width) - 1  # written while it was recorded
        yield at, kind == _EBML, None if is_open else id_length + width + length
        if is_open:
            return
        at += id_length + width + length


def _behind_last_data(file: BinaryIO, size: int) -> int:
    """The byte behind the last one that is not zero; holes in the file are passed over."""
    at = size
    while at > 0:
        first = max(0, at - _BLOCK)
        file.seek(first)
        data = file.read(at - first)
        held = len(data.rstrip(b"\0"))
        if held:
            return first + held
        at = first
        if first and hasattr(os, "SEEK_DATA"):
            at = _end_of_data_before(file.fileno(), first)
    return 0


def _end_of_data_before(descriptor: int, at: int) -> int:
    """Where the hole begins that byte `at` lies behind, `at` where it lies behind data."""
    low, high = 0, at  # the last byte of data lies below `high`, if any
    while low < high:
        middle = (low + high) // 2
        try:
            is_hole = os.lseek(descriptor, middle, os.SEEK_DATA) >= at
        except OSError:  # no data from there on
            is_hole = True
        low, high = (low, middle) if is_hole else (middle + 1, high)
    return low
