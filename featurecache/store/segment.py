"""A segment: an immutable batch of rows, as bytes to be written and as a folder to be read.

Its own `zarr.json` is its record: it names every other file with size and sha256, and ends in a digest of
itself, so that nothing in a segment can change unnoticed. `read_segment` checks the record, every size and
the contents of everything that says which rows these are; the features themselves are checked row by row
whenever they are read, and everything together by `check_deeply`.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.store import files, format
from featurecache.store.checksums import row_checksums, wrong_rows
from featurecache.store.record import (
    MOST,
    ROW_DIMENSIONS,
    SMALL_DTYPES,
    STORED_DTYPES,
    damaged,
    read_record,
    record_digest,
)

_DTYPE_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one feature space, column by column.

    Attributes:
        features: Shape (N, ...), float16, float32, or bfloat16 as uint16; finite.
        video_sha256: Digest of each recording's content, shape (N, 32), uint8.
        span_us: Start and end of each clip, shape (N, 2), int64.
        timestamps_us: Presentation time of each decoded frame, shape (N, T), int64.
    """

    features: npt.NDArray[Any]
    video_sha256: npt.NDArray[np.uint8]
    span_us: npt.NDArray[np.int64]
    timestamps_us: npt.NDArray[np.int64]

    def at(self, which: npt.NDArray[np.bool_]) -> "Rows":
        """Some of the rows, by a mask of shape (N,)."""
        return Rows(self.features[which], self.video_sha256[which], self.span_us[which], self.timestamps_us[which])


@dataclass(frozen=True)
class Segment:
    """What is known of a committed segment without its rows.

    Attributes:
        segment_id: Its name.
        rows: How many.
        row_shape: Shape of one feature: (D,), or more for unpooled features.
        dtype: "float16", "float32" or "bfloat16".
        inner: Rows of an inner chunk.
        timestamps: Frames of a clip, T.
        size_bytes: All its files.
        provenance: Who computed it with what; changes no value.
        replaces: Segments that this one stands for, all generations.
    """

    segment_id: str
    rows: int
    row_shape: tuple[int, ...]
    dtype: str
    inner: int
    timestamps: int
    size_bytes: int
    provenance: Mapping[str, Any]
    replaces: tuple[str, ...]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one feature."""
        return math.prod(self.row_shape) * STORED_DTYPES[self.dtype].itemsize

    @cached_property
    def shard_path(self) -> str:
        """The features' file, relative to the segment."""
        return f"features/{format.chunk_name(1 + len(self.row_shape))}"

    @cached_property
    def shard_bytes(self) -> int:
        """Size of the features' file."""
        return format.shard_size(self.rows, self.row_bytes, self.inner)


@dataclass(frozen=True, eq=False)
class Identity:
    """Which rows a segment holds.

    Attributes:
        video_sha256: Shape (N, 32), uint8.
        span_us: Shape (N, 2), int64.
        row_crc32c: Checksum of each feature's bytes, shape (N,), uint32.
    """

    video_sha256: npt.NDArray[np.uint8]
    span_us: npt.NDArray[np.int64]
    row_crc32c: npt.NDArray[np.uint32]


def encode_segment(
    fingerprint: str, rows: Rows, provenance: Mapping[str, Any], replaces: Sequence[str] = ()
) -> dict[str, bytes]:
    """A whole segment as {relative path: bytes}, the record last.

    Args:
        fingerprint: The feature space, 64 hex digits.
        rows: At least one row.
        provenance: JSON-ready; kept in the record.
        replaces: Segments whose rows these are.

    Returns:
        Every file of the segment; the folders are the parents of the paths.
    """
    keys = [
        format.row_key(fingerprint, digest.tobytes().hex(), int(start), int(end))
        for digest, (start, end) in zip(rows.video_sha256, rows.span_us, strict=True)
    ]
    small = {
        "video_sha256": (rows.video_sha256, ("row", "digest_byte")),
        "key": (np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16), ("row", "byte")),
        "span_us": (rows.span_us.astype("<i8"), ("row", "start_end")),
        "row_crc32c": (row_checksums(as_byte_rows(rows.features)).astype("<u4"), ("row",)),
        "timestamps_us": (rows.timestamps_us.astype("<i8"), ("row", "sampled_frame")),
    }
    row_shape = rows.features.shape[1:]
    dtype = _DTYPE_NAMES[rows.features.dtype]
    # Whose rows these are is written before the rows: no staged feature is ever without its recording's digest.
    arrays = {name: format.encode_small(array, dimensions) for name, (array, dimensions) in small.items()}
    arrays["features"] = format.encode_shard(rows.features, ("row", *ROW_DIMENSIONS[len(row_shape)]))
    contents = {f"{name}/{file}": data for name, one in arrays.items() for file, data in one.items()}
    record = {
        "format": format.FORMAT,
        "version": format.version_for(dtype),
        "fingerprint": fingerprint,
        "rows": len(rows.features),
        "row_shape": list(row_shape),
        "dtype": dtype,
        "timestamps": rows.timestamps_us.shape[1],
        "provenance": dict(provenance),
        "replaces": list(replaces),
        "files": {path: [len(data), hashlib.sha256(data).hexdigest()] for path, data in contents.items()},
    }
    record["self_sha256"] = record_digest(record)
    return contents | {format.RECORD: format.group_bytes(record)}


def as_byte_rows(features: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Rows as bytes, shape (N, row bytes), without a copy, also where there is no row; the rows must be contiguous."""
    return features.reshape(len(features), math.prod(features.shape[1:])).view(np.uint8)


def read_segment(folder: Path, fingerprint: str, *, sizes: bool = True) -> tuple[Segment, Identity]:
    """A committed segment: its record, the size of every file, and which rows it holds, all checked.

    Args:
        folder: `.../segments/<segment id>`.
        fingerprint: Of the feature space it stands in.
        sizes: False to learn which rows a damaged segment held.

    Raises:
        DamagedSegmentError: If anything looked at is not as it was written.
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give it.
    """
    record = read_record(folder, fingerprint)
    expected: dict[str, list[Any]] = record["files"]
    for path, (size, _) in expected.items() if sizes else ():
        try:
            found = files.file_status(f"{folder}/{path}").st_size
        except (FileNotFoundError, NotADirectoryError):
            raise damaged(folder.name, f"{path} is not there") from None
        if found != size:
            raise damaged(folder.name, f"{path} has {found} bytes instead of {size}")
    inner = _inner_rows(folder, expected)
    segment = Segment(
        segment_id=folder.name,
        rows=record["rows"],
        row_shape=tuple(record["row_shape"]),
        dtype=record["dtype"],
        inner=inner,
        timestamps=record["timestamps"],
        size_bytes=sum(size for size, _ in expected.values()) + len(format.group_bytes(record)),
        provenance=record["provenance"],
        replaces=tuple(record["replaces"]),
    )
    if expected[segment.shard_path][0] != segment.shard_bytes:
        raise damaged(folder.name, f"{segment.shard_path} cannot hold {segment.rows} rows")
    _checked_small(folder, "key", segment.rows, 16, expected)
    identity = Identity(
        video_sha256=_checked_small(folder, "video_sha256", segment.rows, 32, expected),
        span_us=_checked_small(folder, "span_us", segment.rows, 2, expected),
        row_crc32c=_checked_small(folder, "row_crc32c", segment.rows, None, expected),
    )
    return segment, identity


def read_timestamps(folder: Path, fingerprint: str) -> npt.NDArray[np.int64]:
    """Decoded frame timestamps of every row of a segment, checked, shape (N, T).

    Raises:
        DamagedSegmentError: If they are not as they were written.
        CacheReadError: If the disk refuses to give them.
    """
    record = read_record(folder, fingerprint)
    if record["timestamps"] == 0:
        return np.empty((record["rows"], 0), np.int64)
    return _checked_small(folder, "timestamps_us", record["rows"], record["timestamps"], record["files"])


def check_deeply(folder: Path, fingerprint: str) -> None:
    """Check every byte of a segment: each file's sha256, each row's key and checksum, and no file too many.

    Raises:
        DamagedSegmentError: If anything is not as it was written.
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give it.
    """
    segment, identity = read_segment(folder, fingerprint)
    record = read_record(folder, fingerprint)
    for path in record["files"]:
        _checked_bytes(folder, path, record["files"])
    try:
        unexpected = _files_inside(folder) - set(record["files"]) - {format.RECORD}
    except FileNotFoundError:
        raise damaged(folder.name, "it went away while it was read") from None
    if unexpected:
        raise damaged(folder.name, f"it holds a file that is not its own ({min(unexpected)})")
    keys = _checked_small(folder, "key", segment.rows, 16, record["files"])
    for key, digest, (start, end) in zip(keys, identity.video_sha256, identity.span_us, strict=True):
        if key.tobytes() != format.row_key(fingerprint, digest.tobytes().hex(), int(start), int(end)):
            raise damaged(folder.name, f"the key of {format.clip_name(digest.tobytes().hex(), start, end)} is wrong")
    take_rows(folder, fingerprint, np.arange(segment.rows))


def take_rows(folder: Path, fingerprint: str, rows: npt.NDArray[np.int64]) -> Rows:
    """Some rows of a segment, every one checked.

    Args:
        folder: `.../segments/<segment id>`.
        fingerprint: Of the feature space it stands in.
        rows: Which, ascending, at least one, shape (n,).

    Raises:
        DamagedSegmentError: If anything read is not as it was written.
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give it.
    """
    segment, identity = read_segment(folder, fingerprint)
    features = np.empty((len(rows), *segment.row_shape), STORED_DTYPES[segment.dtype])
    read_rows(folder.parent, segment, rows, as_byte_rows(features), np.arange(len(rows)))
    wrong = wrong_rows(as_byte_rows(features), identity.row_crc32c[rows])
    if len(wrong):
        digest, (start_us, end_us) = identity.video_sha256[rows[wrong[0]]], identity.span_us[rows[wrong[0]]]
        name = format.clip_name(digest.tobytes().hex(), start_us, end_us)
        raise damaged(folder.name, f"the feature of clip {name} does not match its checksum")
    timestamps_us = read_timestamps(folder, fingerprint)[rows]
    return Rows(features, identity.video_sha256[rows], identity.span_us[rows], timestamps_us)


def read_rows(
    segments_folder: Path | str,
    segment: Segment,
    rows: npt.NDArray[np.int64],
    result: npt.NDArray[np.uint8],
    places: npt.NDArray[np.int64],
) -> None:
    """Read rows straight into a result; the caller checks them against their checksums.

    Args:
        segments_folder: The folder that holds the segment's.
        segment: Where to read.
        rows: Rows of the segment, ascending, shape (n,).
        result: Bytes to fill, shape (N, row bytes), contiguous.
        places: Where in the result each row goes, shape (n,).

    Raises:
        DamagedSegmentError: If the features' file is not there or not whole.
        CacheReadError: If the disk refuses to give it.
    """
    row_bytes = segment.row_bytes
    offsets = format.shard_offset(rows, row_bytes, segment.inner)
    breaks = ((offsets[1:] - offsets[:-1] != row_bytes).nonzero()[0] + 1).tolist()
    flat = memoryview(result.reshape(-1).data)
    pieces = []
    for start, stop in zip([0, *breaks], [*breaks, len(rows)], strict=True):
        targets = places[start:stop].tolist()
        if targets[-1] - targets[0] == stop - start - 1 and targets == list(range(targets[0], targets[-1] + 1)):
            views = [flat[targets[0] * row_bytes : (targets[-1] + 1) * row_bytes]]
        else:
            views = [flat[place * row_bytes : (place + 1) * row_bytes] for place in targets]
        pieces.append((int(offsets[start]), views))
    try:
        path = f"{segments_folder}/{segment.segment_id}/{segment.shard_path}"
        files.read_scattered(path, segment.shard_bytes, pieces)
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(segment.segment_id, f"{segment.shard_path} is not there") from None
    except EOFError as error:
        raise damaged(segment.segment_id, f"{segment.shard_path}: {error}") from None


def _checked_bytes(folder: Path, path: str, expected: Mapping[str, list[Any]]) -> bytes:
    """A file of the segment whose sha256 is the record's."""
    try:
        data = files.read_file(f"{folder}/{path}")
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(folder.name, f"{path} is not there") from None
    if hashlib.sha256(data).hexdigest() != expected[path][1]:
        raise damaged(folder.name, f"{path} does not match its sha256")
    return data


def _inner_rows(folder: Path, expected: Mapping[str, list[Any]]) -> int:
    """Rows of an inner chunk of the features."""
    data = _checked_bytes(folder, f"features/{format.RECORD}", expected)
    try:
        metadata = json.loads(data)
        inner = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        inner = None
    if type(inner) is not int or not 0 < inner < MOST:
        raise damaged(folder.name, "the metadata of its features does not tell their inner chunks")
    return inner


def _checked_small(
    folder: Path, array: str, rows: int, columns: int | None, expected: Mapping[str, list[Any]]
) -> npt.NDArray[Any]:
    """A small array whose bytes match the record; shape (rows, columns), or (rows,) without columns."""
    shape = (rows,) if columns is None else (rows, columns)
    data = _checked_bytes(folder, f"{array}/{format.chunk_name(len(shape))}", expected)
    dtype = SMALL_DTYPES[array]
    if len(data) != math.prod(shape) * dtype.itemsize + 4:
        raise damaged(folder.name, f"{array} cannot hold {rows} rows")
    return np.frombuffer(data, dtype, count=math.prod(shape)).reshape(shape)


def _files_inside(folder: Path) -> set[str]:
    """Relative paths of all files in a segment."""
    found = set()
    for name in files.names_in(folder):
        try:
            found |= {f"{name}/{inner}" for inner in files.names_in(folder / name)}
        except NotADirectoryError:
            found.add(name)
    return found
