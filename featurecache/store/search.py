"""Searching files for bytes, whatever the files are: in bounded memory, and honest about what cannot be searched."""

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from featurecache.store import files

_PIECE_BYTES = 16 << 20
_PACKED = (
    b"\x1f\x8b",  # gzip
    b"BZh",
    b"%PDF",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",  # zstd
    b"7z\xbc\xaf\x27\x1c",
    b"\x04\x22\x4d\x18",  # lz4
    b"Rar!\x1a\x07",
)
_ZIP, _ZIP_METHOD_AT = b"PK\x03\x04", 8


def file_holds(path: Path, needles: Collection[bytes]) -> bool:
    """Whether any of some byte strings stands in a file, as it is on disk.

    Args:
        path: The file; a link is not followed and holds nothing.
        needles: At least one, each far shorter than 16 MiB.

    Raises:
        FileNotFoundError: If it is not there.
        CacheReadError: If the disk refuses to give it.
    """
    overlap = max(map(len, needles)) - 1
    tail = b""
    with contextlib.closing(files.read_pieces(path, _PIECE_BYTES)) as pieces:
        for piece in pieces:
            data = tail + piece
            if any(needle in data for needle in needles):
                return True
            tail = data[-overlap:] if overlap else b""
    return False


def file_matches(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Whether a pattern that matches less than a kibibyte is found in a file, as it is on disk.

    Raises:
        FileNotFoundError: If it is not there.
        CacheReadError: If the disk refuses to give it.
    """
    tail = b""
    with contextlib.closing(files.read_pieces(path, _PIECE_BYTES)) as pieces:
        for piece in pieces:
            data = tail + piece
            if pattern.search(data):
                return True
            tail = data[-1024:]
    return False


def is_packed(path: Path) -> bool:
    """Whether a file's beginning says that its content is compressed, so that bytes in it cannot be searched for.

    Raises:
        FileNotFoundError: If it is not there.
        CacheReadError: If the disk refuses to give it.
    """
    with contextlib.closing(files.read_pieces(path, 16)) as pieces:
        start = next(pieces, b"")
    if start.startswith(_ZIP):
        return start[_ZIP_METHOD_AT : _ZIP_METHOD_AT + 2] != b"\x00\x00"
    return start.startswith(_PACKED)
