"""Clearing what nobody needs: what dead writers left behind, replaced segments, feature spaces named for removal.

A replaced segment goes only when what replaces it was read back whole, every checksum: until then it is what
readers fall back to. Rows of a withdrawn recording that a killed process left are taken out here too.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import CacheReadError, DamagedSegmentError, MissingFeaturesError
from featurecache.store import files, format, layout
from featurecache.store.boxes import FOLDER as BOXES
from featurecache.store.claims import maker_is_gone
from featurecache.store.commit import writing
from featurecache.store.index import SpaceIndex, read_index, segment_names
from featurecache.store.rewrite import purge_withdrawn
from featurecache.store.segment import check_deeply
from featurecache.store.turns import turn
from featurecache.store.withdrawn import FOLDER, read_withdrawn

_DAY_S = 24 * 3600.0
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Garbage:
    """Something that nobody needs.

    Attributes:
        path: Relative to the cache.
        reason: Why nobody needs it, or why it stays all the same.
        size_bytes: What it takes.
        stays: Whether it is not removed: what replaces it is damaged.
    """

    path: str
    reason: str
    size_bytes: int
    stays: bool = False


def gc(
    root: Path | str,
    *,
    apply: bool = False,
    spaces: Sequence[str] = (),
    quarantine: bool = False,
    grace_s: float = _HOUR_S,
) -> tuple[Garbage, ...]:
    """Find, and only with `apply` remove, what nobody needs.

    Left behind by writers that died: at once where the process is known to be gone from this machine, else
    when it has not changed for a day. Segments that another one stands for: when that has been there for the
    grace period, so that readers who listed before can finish.

    Args:
        root: The cache.
        apply: Remove it; otherwise only tell.
        spaces: Fingerprints, or their first 8 or more digits, of feature spaces to remove whole.
        quarantine: Whether to remove what `repair` has quarantined.
        grace_s: How long replaced segments stay.

    Returns:
        What can go, or went.

    Raises:
        CacheNotFoundError: If there is no cache.
        NewerFormatError: If it is of a newer format version.
        MissingFeaturesError: If a named feature space is not there, or several begin so.
        CacheReadError: If the disk refuses to give something.
        CacheWriteError: If something cannot be removed.
    """
    root = Path(root)
    layout.require_cache(root)
    if not apply:
        return tuple(_garbage(root, spaces, quarantine, grace_s))
    with turn(root, "gc"):
        for folder, space in layout.good_spaces(root):
            for name in segment_names(folder):
                purge_withdrawn(root, folder, space.fingerprint, name)
        garbage = tuple(_garbage(root, spaces, quarantine, grace_s))
        with writing(root):
            for one in garbage:
                if not one.stays:
                    layout.discard(root / one.path)
    return garbage


def _garbage(root: Path, spaces: Sequence[str], quarantine: bool, grace_s: float) -> Iterator[Garbage]:
    named = _named_spaces(root, spaces)
    now_s = _present(root)
    found = [(path, why, False) for path, why in [*named, *_abandoned(root, now_s)]]
    for folder, space in layout.good_spaces(root):
        if folder in (path for path, _ in named):
            continue
        index, _ = read_index(folder, space.fingerprint, {})
        found += _replaced(folder, space.fingerprint, index, now_s, grace_s)
        if quarantine:
            found += [(path, "quarantined by repair", False) for path in files.inside(folder / "quarantine")]
    for path, why, stays in found:
        yield Garbage(path.relative_to(root).as_posix(), why, _size(path), stays)


def _present(root: Path) -> float:
    """The present by the file system's clock; by this machine's where nothing may be written there."""
    try:
        return files.server_time(root, f".{format.new_segment_id()}.tmp")
    except OSError:
        return time.time()


def _named_spaces(root: Path, wanted: Sequence[str]) -> list[tuple[Path, str]]:
    found = []
    spaces = list(layout.good_spaces(root))
    for digits in wanted:
        matching = [folder for folder, space in spaces if len(digits) >= 8 and space.fingerprint.startswith(digits)]
        if len(matching) != 1:
            held = ", ".join(space.fingerprint[:16] for _, space in spaces)
            raise MissingFeaturesError(
                f"one feature space must be named by 8 or more digits of its fingerprint, but {digits!r} names "
                f"{len(matching)} of {held or 'none'}. Take the fingerprint from featurecache cache info."
            )
        found.append((matching[0], "feature space named for removal"))
    return found


def _abandoned(root: Path, now_s: float) -> Iterator[tuple[Path, str]]:
    """Unfinished segments, temporary files and half-removed folders whose process is gone."""
    folders = layout.space_folders(root)
    places = [root, root / "spaces", root / FOLDER, root / BOXES, *folders]
    places += [folder / name for folder in folders for name in ("segments", "index")]
    hidden = [path for place in places for path in files.inside(place) if path.suffix in (".tmp", layout.TRASH)]
    withdrawn = read_withdrawn(root).marks
    for note in files.inside(root / BOXES):
        if note.name.partition("-")[0] in withdrawn:  # of another cache, copied here
            yield note, "its recording was withdrawn"
    unfinished = [path for folder in folders for name in ("staging", "claims") for path in files.inside(folder / name)]
    for path in [*hidden, *unfinished]:
        if path.suffix == layout.TRASH:  # whoever began to remove it: what is going may go
            yield path, "half removed"
            continue
        is_gone = maker_is_gone(path.name)
        if is_gone:
            yield path, "its process is gone"
        elif is_gone is None and now_s - _changed_s(path, now_s) > _DAY_S:
            yield path, "unchanged for more than 24 hours"


def _changed_s(path: Path, now_s: float) -> float:
    """When something was last changed; just now where its owner has finished or removed it meanwhile."""
    try:
        return files.file_status(path).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return now_s


def _replaced(
    folder: Path, fingerprint: str, index: SpaceIndex, now_s: float, grace_s: float
) -> Iterator[tuple[Path, str, bool]]:
    """(segment, why, whether it stays) of segments that others replace."""
    here = set(segment_names(folder))
    for segment in index.segments:
        replaced = sorted(set(segment.replaces) & here)
        replacing = folder / "segments" / segment.segment_id
        if not replaced or now_s - _changed_s(replacing, now_s) < grace_s:
            continue
        why, stays = f"replaced by {segment.segment_id}", False
        try:
            check_deeply(replacing, fingerprint)
        except (DamagedSegmentError, CacheReadError) as error:
            why, stays = f"stays, because what replaces it cannot be relied on: {error}", True
        for name in replaced:
            yield folder / "segments" / name, why, stays


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; none of what is gone, and nothing that a link leads to."""
    size = 0
    for one in files.walk(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            size += files.file_status(one).st_size
    return size
