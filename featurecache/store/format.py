"""The on-disk format, versions 1 and 2: names, and the bytes of Zarr v3 groups and arrays.

The bytes are made here rather than by the zarr package because a segment must exist whole in memory
before its first byte is written, must be the same bytes under every version of that package, and is made
several times faster so; the tests hold every array equal, byte for byte, to what zarr itself writes, and
read every segment with plain zarr. `FORMAT.md` tells the same to someone who has only zarr.

This file knows nothing of files and folders on disk, nor of what a segment holds (`segment.py`).
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import NewerFormatError
from featurecache.spec import FeatureSpace, canonical_json
from featurecache.store import bfloat16
from featurecache.store.checksums import crc32c

FORMAT = "featurecache"
VERSION = 2
"""The newest version that is read. What needs no newer one is written as version 1, so that older readers keep it."""
RECORD = "zarr.json"
"""Name of every Zarr v3 metadata file."""

SEGMENT_ID = re.compile(
    r"(?P<ns>[0-9]{20})-(?P<machine>[A-Za-z0-9]{1,24}\.[0-9a-f]{8})-(?P<pid>[0-9]{1,10})-(?P<random>[0-9a-f]{16})"
)
SHA256 = re.compile(r"[0-9a-f]{64}")
CLIP_ID = re.compile(r"[0-9a-f]{16}-[0-9]{1,18}-[0-9]{1,18}")

_INNER_ROWS = 64  # a random row read with plain zarr fetches this many
_INNER_BYTES = 4 << 20
_ZARR_TYPES = {"|u1": "uint8", "<u2": "uint16", "<u4": "uint32", "<i8": "int64", "<f2": "float16", "<f4": "float32"}


def version_for(stored_dtype: object) -> int:
    """The version that features of this dtype need: 2 for bfloat16, which version 1 does not know."""
    return 2 if stored_dtype == bfloat16.NAME else 1


# --- names ----------------------------------------------------------------------------------------


def new_segment_id(origin_ns: int | None = None) -> str:
    """A name that no other writer anywhere makes: UTC nanoseconds, machine, process, 64 random bits.

    Args:
        origin_ns: The time to sort by; the present when None. A rewritten segment keeps its origin's
            time, so that the row which won among duplicates goes on winning.
    """
    origin_ns = time.time_ns() if origin_ns is None else origin_ns
    return f"{origin_ns:020d}-{this_machine()}-{os.getpid()}-{os.urandom(8).hex()}"


@lru_cache(maxsize=1)
def this_machine() -> str:
    """Host name and a digest of boot and process namespace: where a process number means one process.

    The digest is zeros where the system does not tell; such a name identifies no machine.
    """
    host = re.sub(r"[^A-Za-z0-9]", "", os.uname().nodename)[:24] or "host"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return f"{host}.00000000"
    return f"{host}.{hashlib.sha256(f'{boot} {namespace}'.encode()).hexdigest()[:8]}"


def names_this_machine(machine: str) -> bool:
    """Whether the machine part of a segment id surely means this machine, this boot, this process namespace."""
    return machine == this_machine() and not machine.endswith(".00000000")


def space_folder_name(space: FeatureSpace) -> str:
    """Folder of a feature space: readable tap and pooling, then 16 hex digits of the fingerprint."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{space.tap}-{space.pooling}".lower()).strip("-")[:40] or "features"
    return f"{slug}-{space.fingerprint[:16]}"


def clip_name(video_sha256: str, start_us: int, end_us: int) -> str:
    """The clip's id as people and `clips.csv` write it: `<16 hex digits>-<start_us>-<end_us>`."""
    return f"{video_sha256[:16]}-{start_us}-{end_us}"


def row_key(fingerprint: str, video_sha256: str, start_us: int, end_us: int) -> bytes:
    """What a row is, in 16 bytes: feature space, content, start and end."""
    return hashlib.sha256(canonical_json([fingerprint, video_sha256, start_us, end_us]).encode()).digest()[:16]


# --- groups ---------------------------------------------------------------------------------------


def group_bytes(attributes: Mapping[str, Any]) -> bytes:
    """Metadata of a Zarr v3 group whose attributes stand under `featurecache`."""
    return canonical_json({"attributes": {FORMAT: dict(attributes)}, "node_type": "group", "zarr_format": 3}).encode()


def group_attributes(data: bytes) -> dict[str, Any]:
    """The `featurecache` attributes of a group that `group_bytes` wrote, of any version.

    Raises:
        ValueError: If the bytes are not exactly such a group.
    """
    document = json.loads(data)
    attributes = document["attributes"][FORMAT] if isinstance(document, dict) and "attributes" in document else None
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise ValueError("it does not describe a feature cache")
    version = attributes.get("version")
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"its format version is {version!r}")
    if data != group_bytes(attributes):
        raise ValueError("its bytes are not in the form they were written in")
    return attributes


def require_known_version(attributes: Mapping[str, Any], where: str) -> None:
    """Refuse what a newer version of this toolkit wrote.

    Args:
        attributes: What `group_attributes` returned.
        where: What to call the group in the message.

    Raises:
        NewerFormatError: If the format version is newer than this toolkit's.
    """
    if attributes["version"] > VERSION:
        raise NewerFormatError(
            f"the cache's format version must be {VERSION} or older, but {where} has version {attributes['version']}. "
            "It was written by a newer featurecache: upgrade this one to read it."
        )


def plain_group_bytes() -> bytes:
    """Metadata of the groups that only hold others."""
    return group_bytes({"format": FORMAT, "version": 1})


def space_bytes(space: FeatureSpace) -> bytes:
    """Metadata of a feature space's group: its fingerprint and every input of it, in plain text."""
    return group_bytes(
        {
            "format": FORMAT,
            "version": version_for(space.inputs.get("stored_dtype")),
            "fingerprint": space.fingerprint,
            "inputs": dict(space.inputs),
        }
    )


# --- arrays ---------------------------------------------------------------------------------------


def inner_rows(rows: int, row_bytes: int) -> int:
    """Rows of an inner chunk: at most 64 and 4 MiB, even enough that padding costs under a row each."""
    most = max(1, min(_INNER_ROWS, _INNER_BYTES // row_bytes))
    return math.ceil(rows / math.ceil(rows / most))


def chunk_name(dimensions: int) -> str:
    """Name of the only chunk of an array, beside its metadata: one folder less to make and sync."""
    return ".".join(["c", *["0"] * dimensions])


def encode_small(array: npt.NDArray[Any], dimension_names: tuple[str, ...]) -> dict[str, bytes]:
    """An array as one chunk followed by its crc32c: {file name: bytes}. An empty array has no chunk."""
    chunk_shape = [max(length, 1) for length in array.shape]
    codecs: list[dict[str, Any]] = [_bytes_codec(array.dtype), {"name": "crc32c"}]
    files = {RECORD: _array_bytes(array.shape, array.dtype, chunk_shape, codecs, 0, dimension_names)}
    if array.size:
        files[chunk_name(array.ndim)] = _with_checksum(array.tobytes())
    return files


def encode_shard(features: npt.NDArray[Any], dimension_names: tuple[str, ...]) -> dict[str, bytes]:
    """An array as one shard: inner chunks in order without gaps, each with its crc32c, the index at the end.

    Args:
        features: Rows, shape (N, ...), float16, float32, or bfloat16 as uint16; N at least 1.
        dimension_names: One for each dimension.

    Returns:
        {file name: bytes} of the metadata and the shard.
    """
    rows, row_shape = features.shape[0], list(features.shape[1:])
    inner = inner_rows(rows, features[0].nbytes)
    chunks = math.ceil(rows / inner)
    filling = bfloat16.NAN if features.dtype == bfloat16.STORED else np.nan
    parts, index, offset = [], np.empty((chunks, 2), "<u8"), 0
    for chunk in range(chunks):
        block = features[chunk * inner : (chunk + 1) * inner]
        if len(block) < inner:  # Zarr stores whole chunks: the last is filled up with the fill value
            block = np.concatenate([block, np.full((inner - len(block), *row_shape), filling, features.dtype)])
        encoded = _with_checksum(block.tobytes())
        index[chunk] = offset, len(encoded)
        parts.append(encoded)
        offset += len(encoded)
    parts.append(_with_checksum(index.tobytes()))
    inner_codecs = [_bytes_codec(features.dtype), {"name": "crc32c"}]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [inner, *row_shape],
            "codecs": inner_codecs,
            "index_codecs": [_bytes_codec(index.dtype), {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    shard_shape = [chunks * inner, *row_shape]
    fill_value = bfloat16.NAN if features.dtype == bfloat16.STORED else "NaN"
    metadata = _array_bytes(features.shape, features.dtype, shard_shape, [sharding], fill_value, dimension_names)
    return {RECORD: metadata, chunk_name(features.ndim): b"".join(parts)}


def shard_size(rows: int, row_bytes: int, inner: int) -> int:
    """Bytes of a shard that `encode_shard` makes."""
    chunks = math.ceil(rows / inner)
    return chunks * (inner * row_bytes + 4) + chunks * 16 + 4


def shard_offset(row: npt.NDArray[np.int64], row_bytes: int, inner: int) -> npt.NDArray[np.int64]:
    """Where rows begin in such a shard."""
    return row * row_bytes + row // inner * 4


def _with_checksum(data: bytes) -> bytes:
    return data + crc32c(data).to_bytes(4, "little")


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    return {"name": "bytes"} if dtype.itemsize == 1 else {"name": "bytes", "configuration": {"endian": "little"}}


def _array_bytes(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunk_shape: list[int],
    codecs: list[dict[str, Any]],
    fill_value: int | str,
    dimension_names: tuple[str, ...],
) -> bytes:
    """Metadata of a Zarr v3 array."""
    return canonical_json(
        {
            "attributes": {},
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "codecs": codecs,
            "data_type": _ZARR_TYPES[dtype.str],
            "dimension_names": list(dimension_names),
            "fill_value": fill_value,
            "node_type": "array",
            "shape": list(shape),
            "zarr_format": 3,
        }
    ).encode()
