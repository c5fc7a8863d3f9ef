"""What a file to import holds: feature space, clips and times, every one checked; the features are still to be read."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, ClipTableError, FingerprintMismatchError, SettingsError
from featurecache.files import sha256_of_file
from featurecache.spec import FeatureSpace
from featurecache.store import format
from featurecache.store.boxes import crop_of, is_box_of
from featurecache.store.clip_columns import parse_clip_ids
from featurecache.store.external import ExternalArray, ExternalFile
from featurecache.store.proof import ArrayDigest, Proof, damaged
from featurecache.store.record import STORED_DTYPES

EXPORT_FORMAT = "featurecache-export"
EXPORT_VERSION = "2"
"""Version 1 had no proof."""
IMPORTED = "imported"
"""The tap of features that others made."""

_LONGEST_US = 10**18
_PART_ROWS = 1 << 16
_COLUMNS = {  # of an export, beside its features: dtype and how many numbers to a row, None for any
    "clip_id": ("|S", 0),
    "video_sha256": ("|S64", 0),
    "start_us": ("<i8", 0),
    "end_us": ("<i8", 0),
    "timestamps_us": ("<i8", None),
    "key": ("|u1", 16),
    "row_crc32c": ("<u4", 0),
}
BOX = "box"
"""The column that is there where a box is noted of any recording: x, y, width, height; NaN where none is."""
_BOX_FORM = ("<f8", 4)


@dataclass(frozen=True, eq=False)
class ExternalContent:
    """What a file holds.

    Attributes:
        space: The feature space.
        provenance: What computed the rows.
        video_sha256: 64 hex digits each, shape (N,), S64.
        span_us: Shape (N, 2).
        timestamps_us: Shape (N, T).
        features: Shape (N, ...), not read yet.
        proof: Of an export.
        row_crc32c: Of an export, shape (N,).
        boxes: {sha256 of a recording: the box that is noted of it, or None}, of an export whose boxes differ.
    """

    space: FeatureSpace
    provenance: Mapping[str, Any]
    video_sha256: npt.NDArray[np.bytes_]
    span_us: npt.NDArray[np.int64]
    timestamps_us: npt.NDArray[np.int64]
    features: ExternalArray
    proof: Proof | None = None
    row_crc32c: npt.NDArray[np.uint32] | None = None
    boxes: Mapping[str, Sequence[float] | None] = field(default_factory=dict)

    def clips(self, first: int, stop: int) -> list[tuple[str, int, int]]:
        """Some of its clips: (digest, start, end)."""
        digests = self.video_sha256[first:stop].astype(str).tolist()
        spans = self.span_us[first:stop].tolist()
        return [(digest, start, end) for digest, (start, end) in zip(digests, spans, strict=True)]

    def batches(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """(first row, features) from the first row to the last."""
        first = 0
        for batch in self.features.batches():
            yield first, batch
            first += len(batch)

    def require(self, sha256: str, checksums: npt.NDArray[np.uint32]) -> None:
        """Compare the features that were read with what an export says of them.

        Args:
            sha256: Of all features.
            checksums: crc32c of each row, shape (N,).

        Raises:
            CacheFormatError: If they are others.
        """
        if self.proof is None or self.row_crc32c is None:
            return
        features = self.features
        if not np.array_equal(checksums, self.row_crc32c):
            row = int((checksums != self.row_crc32c).argmax())
            raise damaged(features.file, f"the feature of {format.clip_name(*self.clips(row, row + 1)[0])} is another")
        self.proof.require("features", ArrayDigest(str(features.dtype and features.dtype.str), features.shape, sha256))


def content_of_export(file: ExternalFile) -> ExternalContent:
    """The content of an export.

    Raises:
        CacheFormatError: If anything but the features, which are still to be read, is not as it was written.
        FingerprintMismatchError: If the inputs do not have the fingerprint it states.
    """
    if file.note("version") != EXPORT_VERSION:
        raise CacheFormatError(
            f"an export must be of version {EXPORT_VERSION}, which proves itself, but {file.path.name} has "
            f"{file.note('version')[:20]!r}. Export it again from its cache, with this featurecache."
        )
    proof = Proof(file)
    for note in ("format", "version"):
        proof.note(note)
    space, provenance = _space_of_export(file, proof)
    columns = {column: proof.array(column) for column in _COLUMNS}
    rows = len(columns["clip_id"])
    for column, form in _COLUMNS.items():
        _require_form(file, column, columns[column], form, rows)
    content = ExternalContent(
        space,
        {"imported_from_export": provenance},
        columns["video_sha256"],
        np.stack([columns["start_us"], columns["end_us"]], 1),
        columns["timestamps_us"],
        file.array("features"),
        proof,
        columns["row_crc32c"],
        _boxes_of_export(file, proof, crop_of(space.inputs), columns["video_sha256"].astype(str).tolist()),
    )
    _require_clips(file, content)
    for first in range(0, rows, _PART_ROWS):
        part = slice(first, first + _PART_ROWS)
        clips = content.clips(first, first + _PART_ROWS)
        names = [format.clip_name(*clip).encode() for clip in clips]
        keys = row_keys(space.fingerprint, clips)
        if columns["clip_id"][part].tolist() != names or not np.array_equal(columns["key"][part], keys):
            raise damaged(file, "its clip ids or keys are not those of its clips")
    _require_features(file, content)
    if content.features.dtype != STORED_DTYPES[space.stored_dtype]:
        raise damaged(file, f"its features are {content.features.dtype} and not {space.stored_dtype}")
    return content


def content_of_others(file: ExternalFile, name: str, recordings: Mapping[str, str]) -> ExternalContent:
    """The content of a file made by others.

    Args:
        file: With `features` and `clip_id`, perhaps `timestamps_us`.
        name: What to call its features.
        recordings: {first 16 digits of a recording's sha256: all 64}.

    Raises:
        SettingsError: If the name cannot be asked for.
        CacheFormatError: If the arrays do not fit each other.
        ClipTableError: If a clip id is malformed, repeated, or of no known recording.
    """
    _require_name(name)
    ids = file.array("clip_id")
    if ids.dtype is not None or len(ids.shape) != 1:
        raise CacheFormatError(f"clip_id must be a list of clip ids, but {file.path.name} has {ids}. Check the file.")
    names = [one.decode("utf-8", "replace") for one in ids.read().tolist()]
    spans = parse_clip_ids(names).span_us
    unknown = next((one for one in names if one[:16] not in recordings), None)
    if unknown is not None:
        raise ClipTableError(
            f"every clip must be of a recording of this project, but {unknown!r} is not. "
            "Take the clip ids from clips.csv."
        )
    features = file.array("features")
    if features.dtype is None or features.dtype.kind != "f" or features.dtype.itemsize > 8:
        raise CacheFormatError(
            f"features must be floating point numbers of 16 to 64 bits, but {file.path.name} has {features}. "
            "Check the file."
        )
    inputs = {
        "tap": IMPORTED,
        "pooling": name,
        "stored_dtype": "float16" if features.dtype == np.float16 else "float32",
        "file_sha256": sha256_of_file(file.path),
    }
    digests = np.array([recordings[one[:16]] for one in names], "S64")
    times = _timestamps_of_others(file, len(names))
    content = ExternalContent(
        FeatureSpace(inputs), {"imported_from": "features made by others"}, digests, spans, times, features
    )
    _require_clips(file, content)
    _require_features(file, content)
    return content


def row_keys(fingerprint: str, clips: Sequence[tuple[str, int, int]]) -> npt.NDArray[np.uint8]:
    """The keys of rows, shape (N, 16)."""
    keys = b"".join(format.row_key(fingerprint, *clip) for clip in clips)
    return np.frombuffer(keys, np.uint8).reshape(-1, 16)


def _space_of_export(file: ExternalFile, proof: Proof) -> tuple[FeatureSpace, Any]:
    """Feature space and provenance of an export."""
    try:
        inputs, provenance = json.loads(proof.note("inputs")), json.loads(proof.note("provenance"))
        space = FeatureSpace(inputs)
        fingerprint = space.fingerprint
        if not isinstance(inputs, dict) or not all(isinstance(inputs[one], str) for one in ("tap", "pooling")):
            raise TypeError("tap and pooling must be text")
        _ = STORED_DTYPES[space.stored_dtype]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CacheFormatError(
            f"{file.path.name} must tell its feature space, but its inputs cannot be read ({error!r}). Export it again."
        ) from None
    if fingerprint != proof.note("fingerprint"):
        raise FingerprintMismatchError(
            f"the inputs in {file.path.name} must have the fingerprint it states, but have {fingerprint[:16]} "
            f"and not {proof.note('fingerprint')[:16]}. The file was edited: export it again."
        )
    return space, provenance


def _require_form(
    file: ExternalFile, column: str, found: npt.NDArray[Any], form: tuple[str, int | None], rows: int
) -> None:
    """A column of an export must be of this dtype, with so many numbers to a row."""
    dtype, width = form
    fits = found.ndim == 1 if width == 0 else found.ndim == 2 and found.shape[1] == (width or found.shape[1])
    if not found.dtype.str.startswith(dtype) or not fits or len(found) != rows:
        raise damaged(file, f"its {column} are {found.dtype} of shape {found.shape}")


def _boxes_of_export(
    file: ExternalFile, proof: Proof, crop: Any, video_sha256: Sequence[str]
) -> dict[str, list[float] | None]:
    """What is noted of each recording's box; nothing where one box is for all frames, or none."""
    if not isinstance(crop, Mapping) or not proof.has_array(BOX):
        return dict.fromkeys(video_sha256) if isinstance(crop, Mapping) else {}
    column = proof.array(BOX)
    _require_form(file, BOX, column, _BOX_FORM, len(video_sha256))
    boxes: dict[str, list[float] | None] = {}
    for digest, row in zip(video_sha256, column.tolist(), strict=True):
        box = None if math.isnan(row[0]) else row
        if boxes.setdefault(digest, box) != box or not (box is None or is_box_of(crop, box)):
            raise damaged(file, f"its boxes are not one of its crop's for each recording, but {row} for one")
    return boxes


def _require_clips(file: ExternalFile, content: ExternalContent) -> None:
    """Each row must be of a clip that can be, and each clip there once."""
    rows, spans = len(content.video_sha256), content.span_us
    for first in range(0, rows, _PART_ROWS):
        for row, (digest, start_us, end_us) in enumerate(content.clips(first, first + _PART_ROWS), first):
            if not format.SHA256.fullmatch(digest) or not 0 <= start_us < end_us < _LONGEST_US:
                raise CacheFormatError(
                    f"each row of {file.path.name} must have a recording's sha256 and a stretch of it, but row {row} "
                    f"has {digest!r} and {start_us} to {end_us} us. Export it again."
                )
    if rows:
        together = np.concatenate([content.video_sha256.view("u1").reshape(rows, -1), spans.view("u1")], 1)
        distinct = len(np.unique(np.ascontiguousarray(together).view(f"V{together.shape[1]}")))
        if distinct != rows:
            raise ClipTableError(f"each clip must be there once, but {rows - distinct} repeat. Fix the file.")


def _require_features(file: ExternalFile, content: ExternalContent) -> None:
    """The features must be one array of numbers for each clip."""
    features, rows = content.features, len(content.video_sha256)
    if (rows and not 2 <= len(features.shape) <= 4) or features.shape[0] != rows:
        raise CacheFormatError(
            f"features must be of shape ({rows}, D), ({rows}, T, D) or ({rows}, T, S, D), one row for each clip id, "
            f"but {file.path.name} has {features}. Check the file."
        )
    if 0 in features.shape[1:]:
        raise CacheFormatError(
            f"features must have at least one number for each clip, but are of shape {features.shape}. Check the file."
        )


def _timestamps_of_others(file: ExternalFile, rows: int) -> npt.NDArray[np.int64]:
    """Decoded frame timestamps where the file tells them, (N, T); else (N, 0)."""
    if not file.has("timestamps_us"):
        return np.empty((rows, 0), np.int64)
    array = file.array("timestamps_us")
    if array.dtype is None or array.dtype.kind != "i" or len(array.shape) != 2 or array.shape[0] != rows:
        raise CacheFormatError(
            f"timestamps_us must be whole microseconds of shape ({rows}, T), but {file.path.name} has {array}. "
            "Check the file, or leave them out."
        )
    return array.read().astype(np.int64)


def _require_name(name: str) -> None:
    """`tune --features` looks up `imported/<name>` among inputs joined by "+", and its run's folder is called so."""
    if not name or not name.isprintable() or name.startswith("-") or set(name) & set("/+ "):
        raise SettingsError(
            "a name for features must have at least one character, not begin with '-', and hold no '/', '+', space or "
            f"control character, but it is {name!r}. Choose another, such as dinov2."
        )
