"""Looking after a cache: verify finds damage, repair sets it aside, gc clears what nobody needs.

Nothing here changes a committed segment. What is moved or removed is only ever what cannot be read, what
another segment stands for, or what a dead writer left behind. Withdrawal and compaction are in `rewrite.py`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import (
    CacheFormatError,
    DamagedSegmentError,
    FingerprintMismatchError,
    MissingFeaturesError,
    NewerFormatError,
)
from featurecache.store import files, format, layout
from featurecache.store.index import Damage, SpaceIndex, read_index, segment_names, write_checkpoint
from featurecache.store.segment import check_deeply, read_segment
from featurecache.store.writer import writing

_DAY_S = 24 * 3600.0
_HOUR_S = 3600.0


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` looked at and found.

    Attributes:
        deep: Whether every byte was read, or records, sizes and row identities only.
        spaces: Feature spaces whose record is right.
        segments: Segments looked at.
        rows: Rows that are served, each once.
        duplicates: Rows in good segments that another copy hides.
        replaced: Segments that another one stands for, still on disk.
        damage: Everything that is not as it was written.
    """

    deep: bool
    spaces: int
    segments: int
    rows: int
    duplicates: int
    replaced: int
    damage: tuple[Damage, ...]


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did.

    Attributes:
        set_aside: Damage that was moved to `quarantine/`.
        rewritten: Records that were put back, relative to the cache.
        lost: (fingerprint, clip id) of rows that no good segment holds; extract these again.
        unknown: Segments set aside whose clips cannot be told; extraction finds them by itself.
    """

    set_aside: tuple[Damage, ...]
    rewritten: tuple[str, ...]
    lost: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Garbage:
    """Something that can go.

    Attributes:
        path: Relative to the cache.
        reason: Why nobody needs it.
        size_bytes: What it takes.
    """

    path: str
    reason: str
    size_bytes: int


def verify(root: Path | str, *, deep: bool = False) -> VerifyReport:
    """Check a cache.

    Args:
        root: The cache.
        deep: Read every byte: all sha256, every row's key and checksum.

    Returns:
        What was found; damage raises nothing.

    Raises:
        CacheNotFoundError: If there is no cache.
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give something.
    """
    root = Path(root)
    layout.require_cache(root)
    damage = [*_damaged_groups(root)]
    spaces = segments = rows = duplicates = replaced = 0
    for folder, space in layout.good_spaces(root):
        found = _damaged_segments(folder, space.fingerprint, deep=deep)
        index, _ = read_index(folder, space.fingerprint, {one.segment_id or "": one.reason for one in found})
        damage += found
        spaces += 1
        segments += len(segment_names(folder))
        rows += len(index)
        duplicates += sum(segment.rows for segment in index.segments) - len(index)
        replaced += len(index.ignored & set(segment_names(folder)))
    return VerifyReport(deep, spaces, segments, rows, duplicates, replaced, tuple(damage))


def repair(root: Path | str) -> RepairReport:
    """Set damaged segments aside so that the next extraction computes their clips again.

    Every byte is read. Damaged segments and feature space records are moved to `quarantine/`, never edited;
    records that only say "this is a cache" are written again.

    Raises:
        CacheNotFoundError: If there is no cache.
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give something.
        CacheWriteError: If the cache cannot be written.
    """
    root = Path(root)
    layout.require_cache(root)
    rewritten = []
    set_aside: list[Damage] = []
    lost: list[tuple[str, str]] = []
    unknown: list[str] = []
    for one in list(_damaged_groups(root)):
        record = root / one.path
        if record.parent.parent == root / "spaces":
            with writing(root):
                _set_aside(record.parent, record, f"{format.new_segment_id()}.json")
            set_aside.append(one)
        else:
            with writing(root):
                files.replace_file(record, format.plain_group_bytes(), f".{format.new_segment_id()}.tmp")
            rewritten.append(one.path)
    for folder, space in layout.good_spaces(root):
        damage = _damaged_segments(folder, space.fingerprint, deep=True)
        told: dict[str, None] = {}
        for one in damage:
            names = _clips_of(root / one.path, space.fingerprint)
            if names is None:
                unknown.append(one.segment_id or one.path)
            told |= dict.fromkeys(names or ())
            with writing(root):
                _set_aside(folder, root / one.path, (root / one.path).name)
        set_aside += damage
        index, _ = read_index(folder, space.fingerprint, {}, use_checkpoint=False)
        with writing(root):
            write_checkpoint(folder, space.fingerprint, index)
        served = set(index.clip_names(index.in_stored_order()))
        lost += [(space.fingerprint, name) for name in told if name not in served]
    return RepairReport(tuple(set_aside), tuple(rewritten), tuple(lost), tuple(unknown))


def gc(
    root: Path | str,
    *,
    apply: bool = False,
    spaces: Sequence[str] = (),
    quarantine: bool = False,
    grace_s: float = _HOUR_S,
    abandoned_s: float = _DAY_S,
) -> tuple[Garbage, ...]:
    """Find, and only with `apply` remove, what nobody needs.

    Left behind by writers that died: at once where the process is known to be gone from this machine, else
    when it has not changed for a day. Segments that another one stands for: when that has been there for the
    grace period, so that readers who listed before can finish.

    Args:
        root: The cache.
        apply: Remove it; otherwise only tell.
        spaces: Fingerprints, or their first 8 or more digits, of feature spaces to remove whole.
        quarantine: Whether to remove what `repair` has set aside.
        grace_s: How long replaced segments stay.
        abandoned_s: How long something unfinished of an unknown process stays.

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
    doomed = [*_named_spaces(root, spaces), *_abandoned(root, abandoned_s)]
    for folder, space in layout.good_spaces(root):
        if folder in (path for path, _ in doomed):
            continue
        index, _ = read_index(folder, space.fingerprint, {})
        doomed += _replaced(folder, index, grace_s)
        if quarantine:
            doomed += [(path, "set aside by repair") for path in files.inside(folder / "quarantine")]
    garbage = tuple(Garbage(path.relative_to(root).as_posix(), why, _size(path)) for path, why in doomed)
    if apply:
        with writing(root):
            for path, _ in doomed:
                layout.discard(path)
    return garbage


def _damaged_groups(root: Path) -> Iterator[Damage]:
    """Records of the cache and its feature spaces that are not right; paths are those of the records."""
    plain = [root, root / "spaces", *(folder / "segments" for folder in layout.space_folders(root))]
    for folder in plain:
        record = folder / format.RECORD
        try:
            if files.read_file(record) == format.plain_group_bytes():
                continue
            layout.read_cache_record(folder)  # a newer version must raise, not be repaired
            reason = "holds more than it should"
        except (FileNotFoundError, NotADirectoryError):
            reason = "is not there"
        except NewerFormatError:
            raise
        except CacheFormatError:
            reason = "is damaged"
        path = record.relative_to(root).as_posix()
        yield Damage(path, None, f"{path} must be as it was written, but {reason}. Run featurecache cache repair.")
    for folder in layout.space_folders(root):
        path = (folder / format.RECORD).relative_to(root).as_posix()
        try:
            layout.read_space(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue  # nothing to set aside; the next extraction writes it
        except NewerFormatError:
            raise
        except (CacheFormatError, FingerprintMismatchError) as error:
            yield Damage(path, None, str(error))


def _damaged_segments(folder: Path, fingerprint: str, *, deep: bool) -> list[Damage]:
    damage = []
    for name in segment_names(folder):
        try:
            if deep:
                check_deeply(folder / "segments" / name, fingerprint)
            else:
                read_segment(folder / "segments" / name, fingerprint)
        except DamagedSegmentError as error:
            if files.exists(folder / "segments" / name):  # else compacted or forgotten meanwhile
                damage.append(Damage(f"spaces/{folder.name}/segments/{name}", name, str(error)))
    return damage


def _clips_of(folder: Path, fingerprint: str) -> list[str] | None:
    """Clip ids in a damaged segment; None if what says so is damaged too."""
    try:
        _, identity = read_segment(folder, fingerprint, sizes=False)
    except DamagedSegmentError:
        return None
    digests = [digest.tobytes().hex() for digest in identity.video_sha256]
    return [
        format.clip_name(digest, start, end)
        for digest, (start, end) in zip(digests, identity.span_us.tolist(), strict=True)
    ]


def _set_aside(space_folder: Path, path: Path, name: str) -> None:
    """Move something damaged out of every reader's way, durably."""
    quarantine = space_folder / "quarantine"
    files.make_folder(quarantine, exist_ok=True)
    files.move(path, quarantine / name)
    for folder in (quarantine, path.parent):
        files.sync_folder(folder)


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


def _abandoned(root: Path, abandoned_s: float) -> Iterator[tuple[Path, str]]:
    """Unfinished segments, temporary files and half-removed folders whose process is gone."""
    folders = layout.space_folders(root)
    places = [root, root / "spaces", *folders, *(folder / "segments" for folder in folders)]
    hidden = [path for place in places for path in files.inside(place) if path.suffix in (".tmp", layout.TRASH)]
    unfinished = [path for folder in folders for name in ("staging", "claims") for path in files.inside(folder / name)]
    for path in [*hidden, *unfinished]:
        owner = format.SEGMENT_ID.fullmatch(path.name.removeprefix(".").removesuffix(".tmp").removesuffix(layout.TRASH))
        here = owner is not None and format.names_this_machine(owner["machine"])
        if here and owner is not None:
            if not files.process_lives(int(owner["pid"])):
                yield path, "its process is gone"
        elif time.time() - files.file_status(path).st_mtime > abandoned_s:
            yield path, f"unchanged for more than {abandoned_s / 3600:.0f} hours"


def _replaced(folder: Path, index: SpaceIndex, grace_s: float) -> Iterator[tuple[Path, str]]:
    here = set(segment_names(folder))
    for segment in index.segments:
        age_s = time.time() - files.file_status(folder / "segments" / segment.segment_id).st_mtime
        for name in sorted(set(segment.replaces) & here):
            if age_s >= grace_s:
                yield folder / "segments" / name, f"replaced by {segment.segment_id}"


def _size(path: Path) -> int:
    return files.file_status(path).st_size + sum(_size(inside) for inside in files.inside(path))
