"""Features out of a cache and into one, as a single HDF5 or npz file.

An export carries its feature space's inputs and provenance, and a proof of every array and note: it can be imported
again without loss, and damage to it is found. Features that others made (a matrix and clip ids) become a feature space
of their own, named by the user and by the digest of the file, so that heads can be trained on any encoder's vectors;
the last file imported under a name is the one the name means.

Everything is read and checked once before anything is written, and read again while it is written. What may be read
from a file that others made is for `external_reader.py` to say.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, CacheNotFoundError, NonFiniteFeatureError
from featurecache.spec import canonical_json
from featurecache.store import CacheWriter, FeatureCache, Row, Space, bfloat16, format, layout
from featurecache.store.boxes import StoredBoxes, crop_of
from featurecache.store.checksums import row_checksums
from featurecache.store.commit import writing
from featurecache.store.export_file import ExportContent, require_suffix, write_export
from featurecache.store.external import ExternalFile
from featurecache.store.external_content import (
    BOX,
    EXPORT_FORMAT,
    EXPORT_VERSION,
    IMPORTED,
    ExternalContent,
    content_of_export,
    content_of_others,
    row_keys,
)
from featurecache.store.record import STORED_DTYPES
from featurecache.store.segment import as_byte_rows
from featurecache.store.turns import turn
from featurecache.store.withdrawn import read_withdrawn, refusal

_BATCH_ROWS = 1024
_CLIP_ID_BYTES = 16 + 2 * (1 + 18)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The file.
        fingerprint: Of the feature space that it holds.
        rows: Rows of features.
        not_in_file: Fingerprints of the cache's other feature spaces that have rows.
    """

    path: str
    fingerprint: str
    rows: int
    not_in_file: tuple[str, ...]


@dataclass(frozen=True)
class ImportReport:
    """What came in.

    Attributes:
        fingerprint: Of the feature space it went to.
        tap: Ask `FeatureCache.load` for this tap,
        pooling: and this pooling.
        rows: Rows that are new.
        present: Rows that were there already.
        replaced: Fingerprints of the feature spaces that had been imported under this name before, now removed.
        withdrawn: (First 16 digits of its sha256, rows left out) of each recording that was withdrawn from the cache.
    """

    fingerprint: str
    tap: str
    pooling: str
    rows: int
    present: int
    replaced: tuple[str, ...] = ()
    withdrawn: tuple[tuple[str, int], ...] = ()


def export_features(
    root: Path | str,
    target: Path | str,
    *,
    tap: str | None = None,
    pooling: str | None = None,
    space: str | None = None,
) -> ExportReport:
    """Write one feature space to one file.

    Features pass through memory in batches. What else there is of each row is held: 154 bytes, and 8 for each frame.

    `features` (N, ...), `clip_id` (N,), `video_sha256` (N,) as text, `start_us`, `end_us` (N,), `timestamps_us`
    (N, T), `key` (N, 16) and `row_crc32c` (N,) as in a segment; `box` (N, 4) where boxes go by recordings' names; the
    attributes (in npz: arrays of one text) `format`, `version`, `fingerprint`, `inputs`, `provenance`, `proof`,
    `proof_sha256`.

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
    require_suffix(target)
    cache = FeatureCache.open(root)
    chosen = cache.describe(tap, pooling, space)
    if chosen.stored_dtype == bfloat16.NAME:
        raise CacheFormatError(
            f"an export must be of float16 or float32 features, but {chosen.tap}/{chosen.pooling} is in bfloat16. "
            "Read it with FeatureCache.load instead."
        )
    columns = _columns(cache, chosen)
    columns |= _box_column(StoredBoxes(Path(root), crop_of(chosen.inputs)), columns["video_sha256"])
    row_crc32c = columns["row_crc32c"]
    notes = {
        "format": EXPORT_FORMAT,
        "version": EXPORT_VERSION,
        "fingerprint": chosen.fingerprint,
        "inputs": canonical_json(chosen.inputs),
        "provenance": canonical_json(list(chosen.provenance)),
    }

    def batches() -> Iterator[npt.NDArray[Any]]:
        at = 0
        for _, features in cache.iterate(_BATCH_ROWS, space=chosen.fingerprint):
            row_crc32c[at : at + len(features)] = row_checksums(as_byte_rows(features))
            at += len(features)
            yield features

    dtype = np.dtype(chosen.stored_dtype)
    write_export(target, ExportContent((chosen.rows, *chosen.row_shape), dtype, batches(), columns, notes))
    others = [one.fingerprint for one in cache.spaces if one.rows and one.fingerprint != chosen.fingerprint]
    return ExportReport(str(target), chosen.fingerprint, chosen.rows, tuple(others))


def _columns(cache: FeatureCache, space: Space) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an export beside its features, filled some clips at a time; `row_crc32c` is still to be filled."""
    rows, at = space.rows, 0
    columns: dict[str, npt.NDArray[Any]] = {
        "clip_id": np.empty(rows, f"S{_CLIP_ID_BYTES}"),
        "video_sha256": np.empty(rows, "S64"),
        "start_us": np.empty(rows, np.int64),
        "end_us": np.empty(rows, np.int64),
        "timestamps_us": np.empty((rows, cache.timestamps_us([], space=space.fingerprint).shape[1]), np.int64),
        "key": np.empty((rows, 16), np.uint8),
        "row_crc32c": np.empty(rows, np.uint32),
    }
    for clips in cache.clip_parts(space=space.fingerprint):
        part, names = slice(at, at + len(clips)), [format.clip_name(*clip) for clip in clips]
        columns["clip_id"][part] = names
        for place, name in enumerate(("video_sha256", "start_us", "end_us")):
            columns[name][part] = [clip[place] for clip in clips]
        columns["timestamps_us"][part] = cache.timestamps_us(names, space=space.fingerprint)
        columns["key"][part] = row_keys(space.fingerprint, clips)
        at += len(clips)
    longest = int(np.char.str_len(columns["clip_id"]).max(initial=1))
    return columns | {"clip_id": columns["clip_id"].astype(f"S{longest}")}


def _box_column(boxes: StoredBoxes, video_sha256: npt.NDArray[np.bytes_]) -> dict[str, npt.NDArray[Any]]:
    """The box that is noted of each row's recording, NaN where none is; no column where none is of any."""
    recordings, of_row = np.unique(video_sha256, return_inverse=True)
    noted = {number: boxes.noted(one) for number, one in enumerate(recordings.astype(str).tolist())}
    column = np.array([noted[number] or [np.nan] * 4 for number in of_row.tolist()])
    return {BOX: column} if any(noted.values()) else {}


def import_features(
    root: Path | str, source: Path | str, *, name: str | None = None, recordings: Mapping[str, str] | None = None
) -> ImportReport:
    """Read one file into a cache: an export, or features made by others.

    A file made by others has `features` (N, D) of floating point numbers and `clip_id` (N,). Features imported before
    under the same name are removed when the new ones are saved. Rows of recordings that were withdrawn from the cache
    are left out. While rows are written no compaction, gc, repair, withdrawal or other import works on the cache.

    Args:
        root: The cache; made where there is none.
        source: `.h5`, `.hdf5` or `.npz`.
        name: What to call features made by others; they are then asked for with tap "imported" and this name as
            the pooling. None for an export, which has its own.
        recordings: For features made by others: {first 16 digits of a recording's sha256: all 64}.

    Raises:
        CacheNotFoundError: If there is no such file.
        CacheFormatError: If the file is not of such a form, or damaged. Or if an export is given a name.
        SettingsError: If the name cannot be asked for.
        UnsafeFileError: If it uses what could do harm, or cannot be read in bounded time and memory.
        ClipTableError: If a clip id is malformed, repeated, or of no known recording.
        FingerprintMismatchError: If an export's inputs do not have the fingerprint it states.
        NonFiniteFeatureError: If a feature holds NaN or infinity.
        WithdrawnRecordingError: If all its recordings were withdrawn, or one is just then.
        CacheBusyError: If another operation works on the cache for too long.
        CacheReadError: If the disk refuses to give the file.
        CacheWriteError: If the cache cannot be written.
        Whichever it is, no row and no feature space of the file remains.
    """
    source = Path(source)
    require_suffix(source)
    try:
        with ExternalFile(source) as file:
            if file.note("format") == EXPORT_FORMAT:
                if name is not None:
                    raise CacheFormatError(
                        f"only features made by others take a name, but {source.name} is an export of featurecache, "
                        f"which has its own, and was to be called {name!r}. Leave out --name."
                    )
                content = content_of_export(file)
            elif name is None:
                raise CacheFormatError(
                    f"{source.name} must be an export of featurecache, or features with a name, but it is no export "
                    "and has no name. Pass a name for these features."
                )
            else:
                content = content_of_others(file, name, recordings or {})
            return _import_rows(Path(root), content)
    except FileNotFoundError as error:
        if isinstance(error, CacheNotFoundError) or source.exists():
            raise
        raise CacheNotFoundError(f"there must be a file {source}, but there is none. Check the path.") from None


def _import_rows(root: Path, content: ExternalContent) -> ImportReport:
    """Check every feature, write the rows that the cache lacks, and remove what the name meant before."""
    checksums = _checked_features(content)
    _withdrawn_recordings(root, content)  # where nothing may come in, nothing is made
    with writing(root):
        layout.make_cache(root)
    # A compaction would carry rows on that are to be undone; of two imports under one name each would remove the other.
    with turn(root, "import"):
        return _write_rows(root, content, checksums)


def _write_rows(root: Path, content: ExternalContent, checksums: npt.NDArray[np.uint32]) -> ImportReport:
    space, present = content.space, 0
    withdrawn = _withdrawn_recordings(root, content)
    _note_boxes(root, content, withdrawn)
    cache = FeatureCache.open(root)
    with CacheWriter(root, space, content.provenance) as writer:
        try:
            for first, batch in content.batches():
                if (row_checksums(as_byte_rows(batch)) != checksums[first : first + len(batch)]).any():
                    raise CacheFormatError("the file must stay as it is while it is read, but it changed. Try again.")
                clips = content.clips(first, first + len(batch))
                welcome = [clip for clip in clips if clip[0][:16] not in withdrawn]
                lacking = set(cache.missing(welcome, space.fingerprint))
                present += len(welcome) - len(lacking)
                for clip, feature, timestamps_us in zip(
                    clips, batch, content.timestamps_us[first : first + len(batch)], strict=True
                ):
                    if clip in lacking:
                        writer.add(Row(*clip, feature, timestamps_us))
            writer.commit()
        except BaseException:
            writer.withdraw()
            raise
    replaced = _remove_earlier(root, content) if space.tap == IMPORTED else ()
    left_out = tuple(withdrawn.items())
    return ImportReport(space.fingerprint, space.tap, space.pooling, writer.rows_saved, present, replaced, left_out)


def _note_boxes(root: Path, content: ExternalContent, withdrawn: Mapping[str, int]) -> None:
    """Note the boxes of the recordings that come in, unless the cache has features of one that are of another."""
    stored = StoredBoxes(root, crop_of(content.space.inputs))
    welcome = {digest: box for digest, box in content.boxes.items() if digest[:16] not in withdrawn}
    for digest, box in welcome.items():
        stored.require_same(digest, box)
    with writing(root):
        for digest, box in welcome.items():
            if box is not None:
                stored.note(digest, box)


def _withdrawn_recordings(root: Path, content: ExternalContent) -> dict[str, int]:
    """{first 16 digits of its sha256: rows} of each recording in the file that was withdrawn from the cache.

    Raises:
        WithdrawnRecordingError: If no other is in the file.
    """
    marks = read_withdrawn(root)
    recordings, rows = np.unique(content.video_sha256.astype("S16"), return_counts=True)
    counts = dict(zip(recordings.astype(str).tolist(), rows.tolist(), strict=True))
    withdrawn = {recording: count for recording, count in counts.items() if marks.covers(recording)}
    if counts and len(withdrawn) == len(counts):
        raise refusal(next(iter(withdrawn)))
    return withdrawn


def _checked_features(content: ExternalContent) -> npt.NDArray[np.uint32]:
    """Read all features once; crc32c of each row as the file has it, shape (N,)."""
    checksums = np.empty(len(content.span_us), np.uint32)
    digest, stored = hashlib.sha256(), STORED_DTYPES[content.space.stored_dtype]
    for first, batch in content.batches():
        digest.update(batch.data)
        checksums[first : first + len(batch)] = row_checksums(as_byte_rows(batch))
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(batch.astype(stored)).reshape(len(batch), -1).all(1)
        if not is_finite.all():
            [clip] = content.clips(first + int(is_finite.argmin()), first + int(is_finite.argmin()) + 1)
            raise NonFiniteFeatureError(
                f"a feature must be finite in {content.space.stored_dtype}, but that of clip {format.clip_name(*clip)} "
                "holds NaN, infinity or a larger number. Leave the clip out of the file."
            )
    content.require(digest.hexdigest(), checksums)
    return checksums


def _remove_earlier(root: Path, content: ExternalContent) -> tuple[str, ...]:
    """Remove other features imported under this name; their fingerprints."""
    earlier = [
        (folder, space.fingerprint)
        for folder, space in layout.good_spaces(root)
        if (space.tap, space.pooling) == (IMPORTED, content.space.pooling)
        and space.fingerprint != content.space.fingerprint
    ]
    with writing(root):
        for folder, _ in earlier:
            layout.discard(folder)
    return tuple(fingerprint for _, fingerprint in earlier)
