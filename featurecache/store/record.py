"""A segment's record: what it must hold, and that it is as it was written.

It names every other file of the segment with size and sha256 and ends in a digest of itself. A digest proves that
nothing changed by accident; the form is checked as strictly, for a record that somebody made.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import DamagedSegmentError
from featurecache.spec import canonical_json
from featurecache.store import bfloat16, files, format

SMALL_DTYPES: dict[str, np.dtype[Any]] = {
    "key": np.dtype("|u1"),
    "video_sha256": np.dtype("|u1"),
    "span_us": np.dtype("<i8"),
    "row_crc32c": np.dtype("<u4"),
    "timestamps_us": np.dtype("<i8"),
}
MOST = 1 << 48  # no count in a record comes near it, and products of a few stay numbers
ROW_DIMENSIONS = {1: ("feature",), 2: ("frame", "feature"), 3: ("frame", "token", "feature")}
STORED_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    bfloat16.NAME: bfloat16.STORED,
}
"""The stored dtypes by name, as numpy holds them: bfloat16, which numpy does not have, by its bits."""


def damaged(segment_id: str, reason: str) -> DamagedSegmentError:
    """The error for a segment that is not as it was written."""
    return DamagedSegmentError(
        f"segment {segment_id} must be as it was written, but {reason}. "
        "Set it aside with featurecache cache repair, then run featurecache extract again."
    )


def read_record(folder: Path, fingerprint: str | None) -> dict[str, Any]:
    """A segment's record, checked against its own digest, its form, and the feature space it stands in.

    Args:
        folder: `.../segments/<segment id>`.
        fingerprint: Of the feature space; None to take the record's own.

    Raises:
        DamagedSegmentError: If it is absent, changed, of a wrong form, or belongs elsewhere.
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give it.
    """
    try:
        record = format.group_attributes(files.read_file(folder / format.RECORD))
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(folder.name, "it has no record (zarr.json)") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(folder.name, f"its record cannot be trusted ({error})") from None
    if record.get("self_sha256") != record_digest(record):
        raise damaged(folder.name, "its record does not match its own digest")
    format.require_known_version(record, f"segment {folder.name}")
    wrong = _wrong_entry(record)
    if wrong is not None:
        raise damaged(folder.name, f"its record's {wrong} is not of the form that FORMAT.md describes")
    if record["fingerprint"] != (fingerprint or record["fingerprint"]):
        raise damaged(folder.name, f"it is of feature space {record['fingerprint'][:16]}, not {str(fingerprint)[:16]}")
    return record


def _wrong_entry(record: Mapping[str, Any]) -> str | None:
    """The first entry of a segment's record that a writer cannot have made; None where all are right."""

    def is_count(value: object, least: int) -> bool:
        return type(value) is int and least <= value < MOST

    def is_list(value: object, holds: Callable[[Any], bool]) -> bool:
        return isinstance(value, list) and all(map(holds, value))

    def is_digest(value: object) -> bool:
        return isinstance(value, str) and format.SHA256.fullmatch(value) is not None

    shape, contents = record.get("row_shape"), record.get("files")
    right = {
        "fingerprint": is_digest(record.get("fingerprint")),
        "rows": is_count(record.get("rows"), 1),
        "row_shape": is_list(shape, lambda one: is_count(one, 1)) and len(shape or ()) in ROW_DIMENSIONS,
        "dtype": isinstance(record.get("dtype"), str) and record["dtype"] in STORED_DTYPES,
        "timestamps": is_count(record.get("timestamps"), 0),
        "provenance": isinstance(record.get("provenance"), dict),
        "replaces": is_list(
            record.get("replaces"), lambda one: isinstance(one, str) and bool(format.SEGMENT_ID.fullmatch(one))
        ),
        "files": isinstance(contents, dict)
        and all(
            is_list(entry, lambda _: True) and len(entry) == 2 and is_count(entry[0], 0) and is_digest(entry[1])
            for entry in contents.values()
        ),
    }
    wrong = next((name for name, is_right in right.items() if not is_right), None)
    if wrong is None and isinstance(contents, dict):
        expected = _expected_sizes(record)
        if set(contents) != set(expected) or any(
            size is not None and contents[path][0] != size for path, size in expected.items()
        ):
            return "files"
    return wrong


def _expected_sizes(record: Mapping[str, Any]) -> dict[str, int | None]:
    """The files of a segment with their sizes as rows and shapes demand them.

    None for metadata, and for the features, whose size depends on their inner chunks too.
    """
    rows = record["rows"]
    columns = {"video_sha256": 32, "key": 16, "span_us": 2, "timestamps_us": record["timestamps"]}
    sizes: dict[str, int | None] = {f"{name}/{format.RECORD}": None for name in ("features", *SMALL_DTYPES)}
    sizes |= {
        f"{name}/{format.chunk_name(2)}": rows * count * SMALL_DTYPES[name].itemsize + 4
        for name, count in columns.items()
        if count
    }
    sizes[f"row_crc32c/{format.chunk_name(1)}"] = rows * SMALL_DTYPES["row_crc32c"].itemsize + 4
    return sizes | {f"features/{format.chunk_name(1 + len(record['row_shape']))}": None}


def record_digest(record: Mapping[str, Any]) -> str:
    """sha256 of the record as canonical JSON, without the digest itself."""
    return hashlib.sha256(
        canonical_json({name: value for name, value in record.items() if name != "self_sha256"}).encode()
    ).hexdigest()
