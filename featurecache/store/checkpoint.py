"""The checkpoint: a disposable copy of an index in one file, so that opening costs one listing.

`index/<sha256 of the file>.npz`: the name proves the contents, so a torn or flipped file is not even
parsed. Whether it is stale is for the index to judge. Deleting the folder `index` is always safe.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheReadError
from featurecache.spec import canonical_json
from featurecache.store import files, format
from featurecache.store.segment import Segment

COLUMNS = ("video_sha256", "span_us", "segment", "row", "row_crc32c")
_VERSION = 1
_NAME = re.compile(r"[0-9a-f]{64}\.npz")


def write(
    folder: Path,
    fingerprint: str,
    segments: tuple[Segment, ...],
    ignored: frozenset[str],
    columns: Mapping[str, npt.NDArray[Any]],
) -> None:
    """Write a checkpoint and remove the earlier ones.

    Args:
        folder: `.../spaces/<name>/index`.
        fingerprint: Of the feature space.
        segments: As in the index.
        ignored: As in the index.
        columns: The index's arrays by the names in COLUMNS.

    Raises:
        OSError: If it cannot be written.
    """
    provenances = sorted({canonical_json(segment.provenance) for segment in segments})
    place = {text: position for position, text in enumerate(provenances)}
    table = {
        "version": _VERSION,
        "fingerprint": fingerprint,
        "provenances": [json.loads(text) for text in provenances],
        "segments": [
            asdict(segment) | {"provenance": place[canonical_json(segment.provenance)]} for segment in segments
        ],
        "ignored": sorted(ignored),
    }
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"table": np.frombuffer(canonical_json(table).encode(), np.uint8), **columns}
    np.savez(buffer, **arrays)
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.npz"
    files.make_folder(folder, exist_ok=True)
    others = [other for other in files.inside(folder) if other.name != name]
    files.replace_file(folder / name, buffer.getvalue(), f".{format.new_segment_id()}.tmp")
    remove(others)


def remove(paths: Iterable[Path]) -> None:
    """Remove checkpoints and what else lies beside them, but for what another process is just writing.

    Raises:
        OSError: If something cannot be removed.
    """
    for path in paths:
        if files.is_folder(path):
            files.remove_tree(path)
        elif path.suffix != ".tmp":
            files.remove_file(path)


def read(
    folder: Path, fingerprint: str
) -> Iterator[tuple[tuple[Segment, ...], frozenset[str], dict[str, npt.NDArray[Any]]]]:
    """Every whole checkpoint of this format and feature space: segments, ignored names, columns."""
    try:
        names = files.list_names(folder)
    except CacheReadError:
        return
    for name in names:
        if not _NAME.fullmatch(name):
            continue
        try:
            data = files.read_file(folder / name)
        except (FileNotFoundError, NotADirectoryError, CacheReadError):
            continue
        if not _is_whole(name, data):
            continue
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            table = json.loads(stored["table"].tobytes())
            if (table["version"], table["fingerprint"]) != (_VERSION, fingerprint):
                continue
            columns = {column: stored[column] for column in COLUMNS}
        segments = tuple(
            Segment(
                **one
                | {
                    "provenance": table["provenances"][one["provenance"]],
                    "row_shape": tuple(one["row_shape"]),
                    "replaces": tuple(one["replaces"]),
                }
            )
            for one in table["segments"]
        )
        yield segments, frozenset(table["ignored"]), columns


def damaged(folder: Path) -> list[str]:
    """Names of checkpoints whose content is not what their name proves.

    Raises:
        CacheReadError: If the disk refuses to give one.
    """
    wrong = []
    for path in files.inside(folder):
        try:
            if not _NAME.fullmatch(path.name):
                if path.suffix != ".tmp":
                    wrong.append(path.name)
            elif not _is_whole(path.name, files.read_file(path)):
                wrong.append(path.name)
        except FileNotFoundError:
            continue  # a newer one took its place
    return wrong


def _is_whole(name: str, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == name.removesuffix(".npz")
