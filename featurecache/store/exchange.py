"""Features out of a cache and into one, as a single HDF5 or npz file.

An export carries its feature space's inputs and provenance and can be imported again without loss. Features
that others made (a matrix and clip ids) become a feature space of their own, named by the user and by the
digest of the file, so that heads can be trained on any encoder's vectors.

What may be read from a file that others made is for `foreign.py` to say.
"""

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featurecache.errors import (
    CacheFormatError,
    CacheNotFoundError,
    CacheWriteError,
    ClipTableError,
    FingerprintMismatchError,
    SettingsError,
)
from featurecache.files import sha256_of_file
from featurecache.spec import FeatureSpace, canonical_json
from featurecache.store import CacheWriter, FeatureCache, Row, bfloat16
from featurecache.store.external import ForeignFile, open_foreign
from featurecache.store.format import SHA256
from featurecache.store.index import parse_clip_ids

EXPORT_FORMAT = "featurecache-export"
_VERSION = 1
_BATCH_ROWS = 1024


@dataclass(frozen=True)
class ExportReport:
    """What was written: the file, the feature space's fingerprint, and rows of features."""

    path: str
    fingerprint: str
    rows: int


@dataclass(frozen=True)
class ImportReport:
    """What came in.

    Attributes:
        fingerprint: Of the feature space it went to.
        tap: Ask `FeatureCache.load` for this tap,
        pooling: and this pooling.
        rows: Rows that are new.
        present: Rows that were there already.
    """

    fingerprint: str
    tap: str
    pooling: str
    rows: int
    present: int


def export_features(
    root: Path | str,
    target: Path | str,
    *,
    tap: str | None = None,
    pooling: str | None = None,
    space: str | None = None,
) -> ExportReport:
    """Write one feature space to one file, in bounded memory.

    `features` (N, ...), `clip_id` (N,), `video_sha256` (N,) as text, `start_us`, `end_us` (N,), `timestamps_us`
    (N, T); the attributes (in npz: arrays of one text) `format`, `version`, `fingerprint`, `inputs`, `provenance`.

    Args:
        root: The cache.
        target: `.h5`, `.hdf5` or `.npz`; must not exist yet.
        tap: As for `FeatureCache.load`.
        pooling: As for `FeatureCache.load`.
        space: As for `FeatureCache.load`.

    Raises:
        CacheNotFoundError, MissingFeaturesError, AmbiguousSpaceError, DamagedSegmentError: As for loading.
        CacheFormatError: If the suffix is none of these.
        CacheWriteError: If the file is already there or cannot be written.
    """
    target = Path(target)
    _require_suffix(target)
    cache = FeatureCache.open(root)
    chosen = cache.describe(tap, pooling, space)
    if chosen.stored_dtype == bfloat16.NAME:
        raise CacheFormatError(
            f"an export must be of float16 or float32 features, but {chosen.tap}/{chosen.pooling} is in bfloat16. "
            "Read it with FeatureCache.load instead."
        )
    clips, clip_ids = cache.clips(space=chosen.fingerprint), cache.clip_ids(space=chosen.fingerprint)
    columns = {
        "clip_id": np.array(clip_ids, "S"),
        "video_sha256": np.array([digest for digest, _, _ in clips], "S64"),
        "start_us": np.array([start for _, start, _ in clips], np.int64),
        "end_us": np.array([end for _, _, end in clips], np.int64),
        "timestamps_us": cache.timestamps_us(clip_ids, space=chosen.fingerprint),
    }
    notes = {
        "format": EXPORT_FORMAT,
        "version": str(_VERSION),
        "fingerprint": chosen.fingerprint,
        "inputs": canonical_json(chosen.inputs),
        "provenance": canonical_json(list(chosen.provenance)),
    }
    batches = (features for _, features in cache.iterate(_BATCH_ROWS, space=chosen.fingerprint))
    shape, dtype = (chosen.rows, *chosen.row_shape), np.dtype(chosen.stored_dtype)
    with _new_file(target) as temporary:
        write = _write_npz if target.suffix == ".npz" else _write_hdf5
        write(temporary, shape, dtype, batches, columns, notes)
    return ExportReport(str(target), chosen.fingerprint, chosen.rows)


def import_features(
    root: Path | str, source: Path | str, *, name: str | None = None, recordings: Mapping[str, str] | None = None
) -> ImportReport:
    """Read one file into a cache: an export, or features made by others.

    A file made by others has `features` (N, D) of floating point numbers and `clip_id` (N,).

    Args:
        root: The cache; made where there is none.
        source: `.h5`, `.hdf5` or `.npz`.
        name: What to call features made by others; they are then asked for with tap "imported" and this name as
            the pooling. None for an export, which has its own.
        recordings: For features made by others: {first 16 digits of a recording's sha256: all 64}.

    Raises:
        CacheFormatError: If the file is not of such a form, or damaged; nothing is then written. Or if an export
            is given a name.
        SettingsError: If the name cannot be asked for.
        UnsafeFileError: If it uses what could do harm.
        ClipTableError: If a clip id is malformed, repeated, or of no known recording.
        FingerprintMismatchError: If an export's inputs do not have the fingerprint it states.
        NonFiniteFeatureError: If a feature holds NaN or infinity.
        CacheWriteError: If the cache cannot be written.
    """
    source = Path(source)
    _require_suffix(source)
    try:
        with open_foreign(source) as file:
            if file.note("format") == EXPORT_FORMAT:
                if name is not None:
                    raise CacheFormatError(
                        f"only features made by others take a name, but {source.name} is an export of featurecache, "
                        f"which has its own, and was to be called {name!r}. Leave out --name."
                    )
                space, clips, provenance = _of_export(file, source)
            elif name is None:
                raise CacheFormatError(
                    f"{source.name} must be an export of featurecache, or features with a name, but it is no export "
                    "and has no name. Pass a name for these features."
                )
            else:
                space, clips, provenance = _of_others(file, source, name, recordings or {})
            return _import_rows(Path(root), file, space, clips, provenance)
    except FileNotFoundError:
        raise CacheNotFoundError(f"there must be a file {source}, but there is none. Check the path.") from None


# --- out ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A private temporary file that becomes the target when all went well."""
    if target.exists():
        raise CacheWriteError(
            f"an export must go to a new file, but {target} exists. Remove it or choose another name."
        )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise CacheWriteError(
            f"the export {target} must be writable, but {error}. Free space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_hdf5(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    batches: Iterator[npt.NDArray[Any]],
    columns: Mapping[str, npt.NDArray[Any]],
    notes: Mapping[str, str],
) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update(notes)
        for column, array in columns.items():
            file.create_dataset(column, data=array)
        features = file.create_dataset(
            "features", shape, dtype, fletcher32=bool(shape[0]), chunks=True if shape[0] else None
        )
        at = 0
        for batch in batches:
            features[at : at + len(batch)] = batch
            at += len(batch)


def _write_npz(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    batches: Iterator[npt.NDArray[Any]],
    columns: Mapping[str, npt.NDArray[Any]],
    notes: Mapping[str, str],
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for column, array in [*columns.items(), *((note, np.array(text)) for note, text in notes.items())]:
            with archive.open(f"{column}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(member, header)
            for batch in batches:
                member.write(batch.tobytes())


# --- in -------------------------------------------------------------------------------------------


_Clips = list[tuple[str, int, int]]


def _of_export(file: ForeignFile, source: Path) -> tuple[FeatureSpace, _Clips, dict[str, Any]]:
    """Feature space, clips and provenance of an export."""
    if file.note("version") != str(_VERSION):
        raise CacheFormatError(
            f"an export must be of version {_VERSION}, but {source.name} has {file.note('version')!r}. "
            "Upgrade featurecache."
        )
    try:
        space, provenance = FeatureSpace(json.loads(file.note("inputs"))), json.loads(file.note("provenance"))
        fingerprint, _, _ = space.fingerprint, space.tap, space.pooling
    except (ValueError, TypeError, KeyError) as error:
        raise CacheFormatError(
            f"{source.name} must tell its feature space, but its inputs cannot be read ({error!r}). Export it again."
        ) from None
    if fingerprint != file.note("fingerprint"):
        raise FingerprintMismatchError(
            f"the inputs in {source.name} must have the fingerprint it states, but have {fingerprint[:16]} "
            f"and not {file.note('fingerprint')[:16]}. The file was edited: export it again."
        )
    columns = [file.array(column)[:].tolist() for column in ("video_sha256", "start_us", "end_us")]
    clips = list(zip(*columns, strict=True))
    bad = next((row for row, (digest, start, end) in enumerate(clips) if not _is_clip(digest, start, end)), None)
    if bad is not None:
        raise CacheFormatError(
            f"each row of {source.name} must have a recording's sha256 and a stretch of it, but row {bad} has "
            f"{clips[bad][0]!r} and {clips[bad][1]} to {clips[bad][2]} us. Export it again."
        )
    return space, clips, {"imported_from_export": provenance}


def _is_clip(digest: object, start_us: object, end_us: object) -> bool:
    return (
        isinstance(digest, str)
        and SHA256.fullmatch(digest) is not None
        and isinstance(start_us, int)
        and isinstance(end_us, int)
        and 0 <= start_us < end_us
    )


def _of_others(
    file: ForeignFile, source: Path, name: str, recordings: Mapping[str, str]
) -> tuple[FeatureSpace, _Clips, dict[str, Any]]:
    """Feature space, clips and provenance of features made by others."""
    _require_name(name)
    names = [str(one) for one in file.array("clip_id")[:].tolist()]
    spans = parse_clip_ids(names).span_us.tolist()
    unknown = next((one for one in names if one[:16] not in recordings), None)
    if unknown is not None:
        raise ClipTableError(
            f"every clip must be of a recording of this project, but {unknown!r} is not. "
            "Take the clip ids from clips.csv."
        )
    features = file.array("features")
    if len(features.shape) < 2 or features.dtype.kind != "f" or features.shape[0] != len(names):
        raise CacheFormatError(
            f"features must be floating point numbers of shape ({len(names)}, D), one row for each clip id, but are "
            f"{features.dtype} of shape {features.shape}. Check the file."
        )
    inputs = {
        "tap": "imported",
        "pooling": name,
        "stored_dtype": "float16" if features.dtype == np.float16 else "float32",
        "file_sha256": sha256_of_file(source),
    }
    clips = [(recordings[one[:16]], start, end) for one, (start, end) in zip(names, spans, strict=True)]
    return FeatureSpace(inputs), clips, {"imported_from": "features made by others"}


def _import_rows(
    root: Path, file: ForeignFile, space: FeatureSpace, clips: _Clips, provenance: Mapping[str, Any]
) -> ImportReport:
    """Write the rows that the cache lacks, a batch at a time."""
    if len(set(clips)) != len(clips):
        raise ClipTableError(f"each clip must be there once, but {len(clips) - len(set(clips))} repeat. Fix the file.")
    lacking = set(clips)
    with contextlib.suppress(CacheNotFoundError):
        lacking = set(FeatureCache.open(root).missing(clips, space.fingerprint))
    features = file.array("features")
    timestamps_us = _timestamps(file, len(clips))
    if features.shape[0] != len(clips):
        raise CacheFormatError(
            f"features must have a row for each of {len(clips)} clips, but have {features.shape[0]}. Check the file."
        )
    if 0 in features.shape[1:]:
        raise CacheFormatError(
            f"features must have at least one number for each clip, but are of shape {features.shape}. Check the file."
        )
    for first in range(0, len(clips), _BATCH_ROWS):
        features[first : first + _BATCH_ROWS]  # read once before anything is written: the file may be damaged
    with CacheWriter(root, space, provenance) as writer:
        for first in range(0, len(clips), _BATCH_ROWS):
            batch = features[first : first + _BATCH_ROWS]
            for offset, clip in enumerate(clips[first : first + _BATCH_ROWS]):
                if clip in lacking:
                    writer.add(Row(*clip, batch[offset], timestamps_us[first + offset]))
    return ImportReport(space.fingerprint, space.tap, space.pooling, len(lacking), len(clips) - len(lacking))


def _timestamps(file: ForeignFile, rows: int) -> npt.NDArray[np.int64]:
    """Decoded frame timestamps where the file tells them, (N, T); else (N, 0)."""
    if not rows or not file.has("timestamps_us"):
        return np.empty((rows, 0), np.int64)
    return np.asarray(file.array("timestamps_us")[:], np.int64).reshape(rows, -1)


def _require_name(name: str) -> None:
    """`tune --features` looks up `imported/<name>` among inputs joined by "+", and its run's folder is called so."""
    if not name or not name.isprintable() or name.startswith("-") or set(name) & set("/+ "):
        raise SettingsError(
            "a name for features must have at least one character, not begin with '-', and hold no '/', '+', space or "
            f"control character, but it is {name!r}. Choose another, such as dinov2."
        )


def _require_suffix(path: Path) -> None:
    if path.suffix not in (".h5", ".hdf5", ".npz"):
        raise CacheFormatError(f"the file must end in .h5, .hdf5 or .npz, but is {path.name}. Choose one of these.")
