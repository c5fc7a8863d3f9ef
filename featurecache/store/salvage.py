"""Rows of a damaged segment that prove themselves, and the names of those that do not.

A row's key is a digest of its feature space, recording, start and end: it proves whose row it is without the rest of
the segment, and finds a single flipped bit in what says so. The row's crc32c proves the feature. So damage costs
the rows it lies in, whatever file it is in; only damaged timestamps, which have no checksum of each row, cost all.
Nothing here is needed to read a sound segment, and nothing here writes.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import DamagedSegmentError
from featurecache.store import files, format
from featurecache.store.checksums import crc32c, row_checksums
from featurecache.store.record import STORED_DTYPES, read_record
from featurecache.store.segment import Rows, as_byte_rows, read_segment

IsGone = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]
"""Which rows go, from the digests of their recordings: (N, 32) -> (N,)."""

_UNKNOWN_ORIGIN = {"provenance": "lost with the damaged record of the segment that these rows were saved from"}
_MOST_NUMBERS = 1 << 40
_NEEDLE_BYTES, _DISTINCT_BYTES = 64, 8
_STORED_NAMES = {"float16": "float16", "float32": "float32", "uint16": "bfloat16"}


@dataclass(frozen=True, eq=False)
class Salvage:
    """What is left of a segment.

    Attributes:
        video_sha256: Digest of each row's recording, shape (N, 32), uint8; right where `known`.
        span_us: Start and end of each row's clip, shape (N, 2), int64; right where `known`.
        known: Whether it is proven which row this is, shape (N,).
        intact: Whether the row is known and everything else of it right too, shape (N,).
        provenance: Who computed the rows.
        replaces: Segments that this one replaces, as far as its record can be trusted.
        rows: The intact rows, in order; None where there is none.
    """

    video_sha256: npt.NDArray[np.uint8]
    span_us: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]
    intact: npt.NDArray[np.bool_]
    provenance: Mapping[str, Any]
    replaces: tuple[str, ...]
    rows: Rows | None

    def clip_names(self, which: npt.NDArray[np.bool_]) -> list[str]:
        """Clip ids of some known rows."""
        chosen = np.flatnonzero(which & self.known)
        return [
            format.clip_name(self.video_sha256[row].tobytes().hex(), *self.span_us[row].tolist())
            for row in chosen.tolist()
        ]


def salvage_holding(folder: Path, fingerprint: str, is_gone: IsGone) -> Salvage | None:
    """What is left of a segment if it holds rows that go, or is damaged; None where it is sound and holds none.

    Errors as for `salvage`.
    """
    with contextlib.suppress(DamagedSegmentError):
        _, identity = read_segment(folder, fingerprint)
        if not is_gone(identity.video_sha256).any():
            return None
    return salvage(folder, fingerprint)


def salvage(folder: Path, fingerprint: str | None) -> Salvage:
    """Look for the rows of a segment that are right, row by row.

    Args:
        folder: A segment's folder, or one that looks like it.
        fingerprint: Of the feature space; None where it cannot be told: then no row is proven by its key.

    Raises:
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give it.
    """
    try:
        record = read_record(folder, fingerprint) if fingerprint else {}
    except DamagedSegmentError:
        record = {}
    digests, digests_whole = _small(folder, "video_sha256", 32, np.dtype("|u1"))
    spans, spans_whole = _small(folder, "span_us", 2, np.dtype("<i8"))
    keys, _ = _small(folder, "key", 16, np.dtype("|u1"))
    count = max(len(digests), len(spans), len(keys), record.get("rows", 0))
    digests, spans = (_filled(array, count) for array in (digests, spans))
    known = np.zeros(count, bool)
    if digests_whole and spans_whole:
        known[:] = True
    elif fingerprint:
        for row in range(min(count, len(keys))):
            proven = _proven(fingerprint, digests[row].tobytes(), spans[row].tobytes(), keys[row].tobytes())
            if proven is not None:
                known[row] = True
                digests[row] = np.frombuffer(proven[:32], np.uint8)
                spans[row] = np.frombuffer(proven[32:], "<i8")
    features, right = _features(folder, record, count)
    timestamps_us = _timestamps(folder, record, count)
    intact = known & right & (timestamps_us is not None)
    rows = None
    if intact.any() and features is not None and timestamps_us is not None:
        rows = Rows(features[intact], digests[intact], spans[intact], timestamps_us[intact])
    return Salvage(
        digests,
        spans,
        known,
        intact,
        provenance=record.get("provenance", _UNKNOWN_ORIGIN),
        replaces=tuple(record.get("replaces", ())),
        rows=rows,
    )


def _filled(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """A copy with zeros where rows are cut off."""
    filled = np.zeros((rows, array.shape[1]), array.dtype)
    filled[: len(array)] = array
    return filled


def _proven(fingerprint: str, digest: bytes, span: bytes, key: bytes) -> bytes | None:
    """Digest and span of a row as its key proves them, also where one bit of them is flipped; None without proof."""
    identity = bytearray(digest + span)

    def fits() -> bool:
        start, end = np.frombuffer(identity[32:], "<i8").tolist()
        return format.row_key(fingerprint, identity[:32].hex(), start, end) == key

    if fits():
        return bytes(identity)
    for bit in range(8 * len(identity)):
        identity[bit // 8] ^= 1 << bit % 8
        if fits():
            return bytes(identity)
        identity[bit // 8] ^= 1 << bit % 8
    return None


def _small(folder: Path, array: str, columns: int | None, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], bool]:
    """A small array as far as it is there, shape (rows, columns) or (rows,), and whether its checksum is right."""
    dimensions = 1 if columns is None else 2
    data = _bytes_of(folder / array / format.chunk_name(dimensions))
    whole = len(data) >= 4 and crc32c(data[:-4]) == int.from_bytes(data[-4:], "little")
    width = dtype.itemsize * (columns or 1)
    rows = max(0, len(data) - 4) // width
    values = np.frombuffer(data, dtype, count=rows * (columns or 1))
    return values.reshape((rows,) if columns is None else (rows, columns)), whole


def _features(
    folder: Path, record: Mapping[str, Any], count: int
) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.bool_]]:
    """The features as stored, shape (count, ...), and which match a checksum of theirs; None where no shape is told."""
    right = np.zeros(count, bool)
    for shape, dtype, inner in _geometries(folder, record):
        row_bytes = math.prod(shape) * dtype.itemsize
        if count == 0 or row_bytes == 0 or inner < 1:
            continue
        data = np.frombuffer(_bytes_of(folder / "features" / format.chunk_name(1 + len(shape))), np.uint8)
        at = format.shard_offset(np.arange(count), row_bytes, inner)
        held = int((at + row_bytes <= len(data)).sum())
        rows = np.zeros((count, row_bytes), np.uint8)
        for row in range(held):
            rows[row] = data[at[row] : at[row] + row_bytes]
        checksums, whole = _small(folder, "row_crc32c", None, np.dtype("<u4"))
        compared = min(held, len(checksums))
        right[:compared] = row_checksums(rows[:compared]) == checksums[:compared]
        if not whole:  # the checksums themselves are damaged: a whole inner chunk proves its rows too
            for first in range(0, held, inner):
                chunk = data[at[first] : at[first] + inner * row_bytes + 4].tobytes()
                if len(chunk) > 4 and crc32c(chunk[:-4]) == int.from_bytes(chunk[-4:], "little"):
                    right[first : min(first + inner, held)] = True
        if right.any():
            return rows.view(dtype).reshape(count, *shape), right
    return None, right


def _geometries(folder: Path, record: Mapping[str, Any]) -> Iterator[tuple[tuple[int, ...], np.dtype[Any], int]]:
    """(row shape, stored dtype, rows of an inner chunk) as the record and as the array's own metadata tell them."""
    if record:
        shape, dtype = tuple(record["row_shape"]), STORED_DTYPES[record["dtype"]]
        yield shape, dtype, format.inner_rows(record["rows"], math.prod(shape) * dtype.itemsize)
    try:
        metadata = json.loads(_bytes_of(folder / "features" / format.RECORD))
        inner = int(metadata["codecs"][0]["configuration"]["chunk_shape"][0])
        dtype = STORED_DTYPES[_STORED_NAMES[metadata["data_type"]]]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return
    shape = _shape_of(folder / "features")[1:]
    if 1 <= len(shape) <= 3 and 0 < math.prod(shape) < _MOST_NUMBERS:
        yield shape, dtype, inner


def _shape_of(array: Path) -> tuple[int, ...]:
    """The shape that an array's own metadata tells; empty where it tells none."""
    try:
        return tuple(int(length) for length in json.loads(_bytes_of(array / format.RECORD))["shape"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _timestamps(folder: Path, record: Mapping[str, Any], count: int) -> npt.NDArray[np.int64] | None:
    """Frame timestamps, shape (count, T); None where they cannot be trusted."""
    data = _bytes_of(folder / "timestamps_us" / format.chunk_name(2))
    if not data and (record.get("timestamps") == 0 or _shape_of(folder / "timestamps_us")[1:] == (0,)):
        return np.empty((count, 0), np.int64)
    if count == 0 or len(data) < 4 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    frames = (len(data) - 4) // 8 // count
    if frames * 8 * count != len(data) - 4:
        return None
    return np.frombuffer(data, "<i8", count=frames * count).reshape(count, frames).astype(np.int64)


def _bytes_of(path: Path) -> bytes:
    try:
        return files.read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def holds_rows(folder: Path) -> bool:
    """Whether a folder holds bytes of features as a segment does."""
    return any(
        path.name != format.RECORD and files.file_status(path).st_size for path in files.inside(folder / "features")
    )


def feature_needles(found: Salvage, rows: npt.NDArray[np.bool_], folder: Path) -> set[bytes]:
    """Bytes by which copies of rows are recognised wherever they lie: their keys and the beginnings of features."""
    keys, _ = _small(folder, "key", 16, np.dtype("|u1"))
    needles = {keys[row].tobytes() for row in np.flatnonzero(rows).tolist() if row < len(keys)}
    if found.rows is not None:
        for data in as_byte_rows(found.rows.features[rows[found.intact]]):
            start = data.tobytes().lstrip(b"\0")[:_NEEDLE_BYTES]  # zeros would be found everywhere
            if len(set(start)) >= _DISTINCT_BYTES:
                needles.add(start)
    return needles
