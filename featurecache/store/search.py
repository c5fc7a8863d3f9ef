"""Searching files for bytes, whatever the files are: in bounded memory, and honest about what cannot be searched.

A file tells nothing by its bytes where they are compressed or encrypted. That is recognised by the first bytes of
common formats, by the table of contents of archives, by the filters of HDF5 data sets, and for everything else by
entropy: a stretch of 1,024 bytes of text, numbers or features stays below 7.5 bits to the byte, a compressed or
encrypted one comes near 7.8.
"""

import contextlib
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from featurecache.errors import CacheFormatError, CacheReadError, UnsafeFileError
from featurecache.store import files
from featurecache.store.external import ExternalFile

_PIECE_BYTES = 8 << 20
_BLOCK_BYTES = 1024
_MOST_ENTROPY = 7.6  # bits to the byte; measured on such blocks: float64 at most 7.49, gzip, bzip2 and xz reach 7.7
_PACKED = (
    b"\x1f\x8b",  # gzip
    b"BZh",
    b"%PDF",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",  # zstd
    b"7z\xbc\xaf\x27\x1c",
    b"\x04\x22\x4d\x18",  # lz4
    b"Rar!\x1a\x07",
    b"\x89PNG",
    b"\xff\xd8\xff",  # JPEG
    b"GIF8",
    b"PAR1",  # Parquet
    b"Salted__",  # openssl
    b"age-encryption.org",
    b"-----BEGIN PGP",
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_COMPRESSED = "it is compressed or encrypted"


class Wanted(Protocol):
    """Something to look for in files."""

    @property
    def longest(self) -> int:
        """Most bytes that one occurrence takes, with what must stand around it."""

    def are_in(self, data: bytes) -> bool:
        """Whether any of it stands in the data."""


class Needles:
    """Byte strings to look for, thousands of them as fast as one.

    Args:
        needles: At least one; each of 8 bytes or more.
    """

    def __init__(self, needles: Collection[bytes]) -> None:
        self.longest = max(map(len, needles))
        self._by_start: dict[bytes, list[bytes]] = {}
        for needle in needles:
            self._by_start.setdefault(needle[:8], []).append(needle)
        starts = np.frombuffer(b"".join(self._by_start), "<u2").reshape(-1, 4)
        self._is_word = np.zeros((4, 1 << 16), bool)
        for place in range(4):
            self._is_word[place][starts[:, place]] = True
        self._starts = starts.copy().view("<u8").ravel()

    def are_in(self, data: bytes) -> bool:
        """Whether any of them stands in the data."""
        for shift in (0, 1):
            words = np.frombuffer(data, "<u2", max(0, len(data) - shift) // 2, min(shift, len(data)))
            at = np.flatnonzero(self._is_word[0][words[:-3]])
            for place in range(1, 4):
                at = at[self._is_word[place][words[at + place]]]
            starts = np.ascontiguousarray(words[at[:, None] + np.arange(4)]).view("<u8").ravel()
            for start in (2 * at[np.isin(starts, self._starts)] + shift).tolist():
                if any(data.startswith(needle, start) for needle in self._by_start[data[start : start + 8]]):
                    return True
        return False


@dataclass(frozen=True)
class Look:
    """What looking into a file showed.

    Attributes:
        holds: Whether it holds any of what was looked for.
        unsearchable: Why its bytes may hold more than they show; empty where they do not.
    """

    holds: bool
    unsearchable: str = ""


def look_into(path: Path, *wanted: Wanted) -> Look:
    """Look for something in a file, as it is on disk.

    Args:
        path: The file; a link is not followed and holds nothing.
        wanted: What to look for.

    Raises:
        FileNotFoundError: If it is not there.
        CacheReadError: If the disk refuses to give it.
    """
    overlap, tail, start, packed = max(one.longest for one in wanted), b"", b"", False
    with contextlib.closing(files.read_pieces(path, _PIECE_BYTES)) as pieces:
        for piece in pieces:
            data = tail + piece
            if any(one.are_in(data) for one in wanted):
                return Look(holds=True)
            packed = packed or _is_disordered(piece)
            start = start or piece[: len(_HDF5)]
            tail = data[-overlap:]
    return Look(holds=False, unsearchable=_why_unsearchable(path, start, packed=packed) if start else "")


def _why_unsearchable(path: Path, start: bytes, *, packed: bool) -> str:
    if packed or start.startswith(_PACKED):
        return _COMPRESSED
    if start == _HDF5:
        try:
            with ExternalFile(path) as file:
                return "its arrays are compressed" if file.has_packed_arrays() else ""
        except (CacheFormatError, CacheReadError, UnsafeFileError):
            return "it is an HDF5 file that cannot be read"
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                plain = all(
                    (one.compress_type, one.flag_bits & 1) == (zipfile.ZIP_STORED, 0) for one in archive.infolist()
                )
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
            plain = False
        return "" if plain else _COMPRESSED
    return ""


def _is_disordered(piece: bytes) -> bool:
    """Whether any block is as disordered as no text and no numbers are."""
    blocks = np.frombuffer(piece, np.uint8, len(piece) // _BLOCK_BYTES * _BLOCK_BYTES).reshape(-1, _BLOCK_BYTES)
    places = (np.arange(len(blocks), dtype=np.int32)[:, None] << 8) + blocks
    shares = np.bincount(places.ravel(), minlength=len(blocks) << 8).reshape(-1, 256) / _BLOCK_BYTES
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(1)
    return bool((entropy > _MOST_ENTROPY).any())
