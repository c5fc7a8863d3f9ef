"""The folders around segments: the cache itself and its feature spaces, each a Zarr group with a record.

Making them is idempotent and safe when several writers start at once: records are put in place whole, by
rename, and always with the same bytes.
"""

import contextlib
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featurecache.errors import CacheFormatError, CacheNotFoundError, FingerprintMismatchError, NewerFormatError
from featurecache.spec import FeatureSpace, canonical_json
from featurecache.store import files, format

TRASH = ".trash"
"""Suffix of a hidden folder that is being removed."""

_TOLD = ("tap", "pooling", "stored_dtype")


def make_cache(root: Path) -> None:
    """Make an empty cache, or check that the folder is one.

    Raises:
        CacheFormatError: If the folder holds something else, or a newer format version.
        OSError: If it cannot be made.
    """
    files.make_folder(root, exist_ok=True)
    visible = [name for name in files.list_names(root) if not name.startswith(".")]
    if visible and not {format.RECORD, "spaces"} & set(visible):
        raise CacheFormatError(
            f"{root} must be a feature cache or an empty folder, but it holds {visible[0]!r} and no "
            f"{format.RECORD}. Choose another folder for the cache."
        )
    if _make_group(root, format.plain_group_bytes()):
        files.sync_folder(root.parent)
    else:
        read_cache_record(root)
    files.make_folder(root / "spaces", exist_ok=True)
    _make_group(root / "spaces", format.plain_group_bytes())
    files.sync_folder(root)


def make_space(root: Path, space: FeatureSpace) -> Path:
    """Make a feature space's folders in a cache, or check that they are its own.

    Returns:
        `.../spaces/<name>`.

    Raises:
        FingerprintMismatchError: If the folder describes another space, or the inputs are not plain JSON.
        CacheFormatError: If its record cannot be trusted.
        OSError: If it cannot be made.
    """
    if FeatureSpace(as_json(space.inputs)).fingerprint != space.fingerprint:
        raise FingerprintMismatchError(
            "a feature space's inputs must survive being written as JSON, but their fingerprint changes. "
            "Use text for every key, and only text, numbers, true, false, lists and mappings for values."
        )
    folder = root / "spaces" / format.space_folder_name(space)
    files.make_folder(folder, exist_ok=True)
    for name in ("segments", "staging"):
        files.make_folder(folder / name, exist_ok=True)
    _make_group(folder / "segments", format.plain_group_bytes())
    if not _make_group(folder, format.space_bytes(space)) and read_space(folder).fingerprint != space.fingerprint:
        raise FingerprintMismatchError(
            f"{folder} must be of feature space {space.fingerprint}, but is of another that begins alike. "
            "Keep this feature space in another cache."
        )
    files.sync_folder(root / "spaces")
    return folder


def read_cache_record(root: Path) -> None:
    """Check that a folder is a cache of a version this toolkit knows.

    Raises:
        FileNotFoundError: If it has no record.
        CacheFormatError: If it is something else, damaged, or newer.
        CacheReadError: If the disk refuses.
    """
    _attributes(root, "this cache")


def read_space(folder: Path) -> FeatureSpace:
    """The feature space that a folder holds, its inputs checked against its fingerprint.

    Raises:
        FileNotFoundError: If it has no record.
        FingerprintMismatchError: If inputs, fingerprint and folder name do not belong together.
        CacheFormatError: If the record is damaged or newer.
        CacheReadError: If the disk refuses.
    """
    attributes = _attributes(folder, f"feature space {folder.name}")
    inputs = attributes.get("inputs")
    if not isinstance(inputs, dict) or not all(isinstance(inputs.get(name), str) for name in _TOLD):
        raise CacheFormatError(
            f"{folder / format.RECORD} must tell {', '.join(_TOLD)} of its feature space as text, but does not. "
            "Run featurecache cache repair, then featurecache extract."
        )
    space = FeatureSpace(inputs)
    if attributes.get("fingerprint") != space.fingerprint or not folder.name.endswith(space.fingerprint[:16]):
        raise FingerprintMismatchError(
            f"the inputs in {folder / format.RECORD} must have the fingerprint they were stored with, but their "
            f"sha256 is {space.fingerprint} and {attributes.get('fingerprint')} is recorded. They were edited or "
            "damaged: run featurecache cache repair, then featurecache extract with the settings of this space."
        )
    return space


def space_folders(root: Path) -> list[Path]:
    """Folders of all feature spaces, by name."""
    return [
        path for path in files.inside(root / "spaces") if path.name != format.RECORD and not path.name.startswith(".")
    ]


def no_cache(root: Path) -> CacheNotFoundError | CacheFormatError:
    """The error for a folder that has no record of a cache."""
    if files.exists(root / "spaces"):
        return CacheFormatError(
            f"{root} must have its {format.RECORD}, but that is not there. "
            "If it is a copy under way, finish it; otherwise run featurecache cache repair."
        )
    return CacheNotFoundError(f"there must be a feature cache at {root}, but there is none. Run featurecache extract.")


def require_cache(root: Path) -> None:
    """Check that a folder is a cache, even one whose record is damaged, and of no newer version.

    Raises:
        CacheNotFoundError: If there is none.
        NewerFormatError: If it is of a newer format version.
    """
    if not files.exists(root / format.RECORD) and not files.exists(root / "spaces"):
        raise no_cache(root)
    try:
        read_cache_record(root)
    except NewerFormatError:
        raise
    except (FileNotFoundError, CacheFormatError):
        return


def good_spaces(root: Path) -> Iterator[tuple[Path, FeatureSpace]]:
    """Folder and feature space where the record is right.

    Raises:
        NewerFormatError: If one is of a newer format version.
        CacheReadError: If the disk refuses.
    """
    for folder in space_folders(root):
        try:
            yield folder, read_space(folder)
        except NewerFormatError:
            raise
        except (FileNotFoundError, NotADirectoryError, CacheFormatError, FingerprintMismatchError):
            continue


def discard(path: Path) -> None:
    """Remove a file, or a folder in such a way that no reader ever sees half of it; what is already gone is fine.

    Raises:
        OSError: If it cannot be removed.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISDIR(files.file_status(path).st_mode):
            files.remove_file(path)
        elif path.suffix == TRASH:
            files.remove_tree(path)
        else:
            trash = path.parent.parent / f".{format.new_segment_id()}{TRASH}"
            files.move(path, trash)
            files.sync_folder(path.parent)
            files.remove_tree(trash)


def remove_empty_space(root: Path, space: FeatureSpace) -> None:
    """Remove a feature space that nobody uses, folder by folder, so that whoever begins to use it meanwhile keeps it.

    One that holds a segment, or something that a writer has started, stays or is made whole again.

    Raises:
        OSError: If it cannot be removed.
    """
    folder = root / "spaces" / format.space_folder_name(space)
    inner = ("claims", "staging", "segments")
    files.remove_file(folder / "segments" / format.RECORD)
    if all(files.remove_empty_folder(folder / name) for name in inner):
        files.remove_tree(folder / "index")
        files.remove_file(folder / format.RECORD)
        if files.remove_empty_folder(folder):
            files.sync_folder(folder.parent)
            return
    make_space(root, space)


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as it will be when read back from JSON.

    Raises:
        TypeError: If it holds what JSON cannot.
        ValueError: If it holds NaN or infinity.
    """
    plain: dict[str, Any] = json.loads(canonical_json(value))
    return plain


def _attributes(folder: Path, what: str) -> dict[str, Any]:
    try:
        attributes = format.group_attributes(files.read_file(folder / format.RECORD))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheFormatError(
            f"{folder / format.RECORD} must be the record of a feature cache, but {error}. "
            "If this is a cache whose record was damaged, run featurecache cache repair."
        ) from None
    format.require_known_version(attributes, what)
    return attributes


def _make_group(folder: Path, record: bytes) -> bool:
    """Whether the record was written; False where there is one already."""
    if files.exists(folder / format.RECORD):
        return False
    files.replace_file(folder / format.RECORD, record, f".{format.new_segment_id()}.tmp")
    return True
