"""Looking after a cache: verify finds damage, repair sets it aside.

Nothing here changes a committed segment, and what is quarantined is only ever what cannot be read. `verify` writes
nothing and takes no turn: what others replace or remove while it reads is no damage.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import (
    CacheFormatError,
    DamagedSegmentError,
    FingerprintMismatchError,
    NewerFormatError,
    SettingsError,
)
from featurecache.store import checkpoint, files, format, layout
from featurecache.store.clip_columns import parse_clip_ids
from featurecache.store.commit import writing
from featurecache.store.index import Damage, read_index, segment_names, write_checkpoint
from featurecache.store.segment import check_deeply, read_segment
from featurecache.store.turns import turn
from featurecache.store.withdrawn import Withdrawn, read_withdrawn


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` looked at and found.

    Attributes:
        deep: Whether every byte was read, or records, sizes and row identities only.
        part: (i, n) where every byte of the i-th of n portions of the segments was read.
        spaces: Feature spaces whose record is right.
        segments: Segments looked at.
        rows: Rows that are served, each once.
        duplicates: Rows in good segments that another copy hides.
        replaced: Segments that another one stands for, still on disk.
        withdrawn: Rows of withdrawn recordings that a killed process left on disk; `gc` and `forget` remove them.
        damage: Everything that is not as it was written.
        missing: (fingerprint as in the plan, number) of the plan's clips that are not served, where a plan was given.
    """

    deep: bool
    part: tuple[int, int]
    spaces: int
    segments: int
    rows: int
    duplicates: int
    replaced: int
    withdrawn: int
    damage: tuple[Damage, ...]
    missing: tuple[tuple[str, int], ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged or missing, and nothing is there that should be gone."""
        return not (self.damage or self.withdrawn or any(missing for _, missing in self.missing))


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did.

    Attributes:
        set_aside: Damage that was moved to `quarantine/`.
        rewritten: Records that were put back, relative to the cache.
        lost: (fingerprint, clip id) of rows that no good segment holds; extract these again.
        unknown: Quarantined segments whose clips cannot be told; extraction finds them by itself.
    """

    set_aside: tuple[Damage, ...]
    rewritten: tuple[str, ...]
    lost: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]


def verify(
    root: Path | str,
    *,
    deep: bool = False,
    part: tuple[int, int] = (1, 1),
    plan: Mapping[str, Sequence[str]] | None = None,
) -> VerifyReport:
    """Check a cache.

    Args:
        root: The cache.
        deep: Read every byte: all sha256, every row's key and checksum.
        part: (i, n): read every byte of the i-th of n portions only. A segment is always in the same portion, so that
            portions can be read on different days; all else is checked as without `deep`.
        plan: {fingerprint: ids of the clips that should be there}.

    Returns:
        What was found; damage raises nothing.

    Raises:
        CacheNotFoundError: If there is no cache.
        NewerFormatError: If it is of a newer format version.
        SettingsError: If there is no such portion.
        CacheReadError: If the disk refuses to give something.
    """
    if not 1 <= part[0] <= part[1]:
        raise SettingsError(f"a portion must be I of N with I from 1 to N, but is {part[0]} of {part[1]}. Try 1/30.")
    root = Path(root)
    layout.require_cache(root)
    damage = [*_damaged_groups(root)]
    missing = {name: len(set(clips)) for name, clips in (plan or {}).items()}
    withdrawn_marks = read_withdrawn(root)
    spaces = segments = rows = duplicates = replaced = withdrawn = 0
    for folder, space in layout.good_spaces(root):
        found = _damaged_segments(folder, space.fingerprint, deep=deep, part=part)
        index, _ = read_index(folder, space.fingerprint, {one.segment_id or "": one.reason for one in found})
        damage += found
        damage += _damaged_checkpoints(folder)
        spaces += 1
        segments += len(segment_names(folder))
        rows += len(index)
        withdrawn += _withdrawn_rows(folder, space.fingerprint, withdrawn_marks)
        duplicates += sum(segment.rows for segment in index.segments) - len(index)
        replaced += len(index.ignored & set(segment_names(folder)))
        if space.fingerprint in missing:
            wanted = list(dict.fromkeys((plan or {})[space.fingerprint]))
            missing[space.fingerprint] = int((index.find(parse_clip_ids(wanted)) < 0).sum())
    return VerifyReport(
        deep,
        part,
        spaces,
        segments,
        rows,
        duplicates,
        replaced,
        withdrawn,
        tuple(damage),
        tuple(missing.items()),
    )


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
    with turn(root, "repair"):
        return _repair(root)


def _repair(root: Path) -> RepairReport:
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
        rewritten += [one.path for one in _damaged_checkpoints(folder)]
        index, _ = read_index(folder, space.fingerprint, {}, use_checkpoint=False)
        with writing(root):
            write_checkpoint(folder, space.fingerprint, index)
        served = set(index.clip_names(index.in_stored_order()))
        lost += [(space.fingerprint, name) for name in told if name not in served]
    return RepairReport(tuple(set_aside), tuple(rewritten), tuple(lost), tuple(unknown))


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
            if not _holds_segments(folder):  # being made, by a writer that may have been killed: the next one resumes
                continue
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
            continue  # nothing to quarantine; the next extraction writes it
        except NewerFormatError:
            raise
        except (CacheFormatError, FingerprintMismatchError) as error:
            yield Damage(path, None, str(error))


def _holds_segments(folder: Path) -> bool:
    """Whether any segment lies in a folder of a cache, a feature space, or its segments."""
    if any(format.SEGMENT_ID.fullmatch(path.name) for path in files.inside(folder)):
        return True
    below = {"segments": [], "spaces": files.inside(folder)}.get(folder.name, files.inside(folder / "spaces"))
    return any(segment_names(space) for space in below)


def _damaged_segments(folder: Path, fingerprint: str, *, deep: bool, part: tuple[int, int] = (1, 1)) -> list[Damage]:
    damage = []
    number, count = part
    for name in segment_names(folder):
        try:
            if deep and int(name[-16:], 16) % count == number - 1:
                check_deeply(folder / "segments" / name, fingerprint)
            else:
                read_segment(folder / "segments" / name, fingerprint)
        except DamagedSegmentError as error:
            if files.exists(folder / "segments" / name):  # else compacted or forgotten meanwhile
                damage.append(Damage(f"spaces/{folder.name}/segments/{name}", name, str(error)))
    return damage


def _damaged_checkpoints(folder: Path) -> list[Damage]:
    """Copies of the index that readers pass over because their name does not prove their content."""
    return [
        Damage(
            f"spaces/{folder.name}/index/{name}",
            None,
            f"the copy of the index spaces/{folder.name}/index/{name} must have the sha256 that it is named by, but "
            "has another. Readers do without it, more slowly: run featurecache cache repair.",
        )
        for name in checkpoint.damaged(folder / "index")
    ]


def _withdrawn_rows(folder: Path, fingerprint: str, marks: Withdrawn) -> int:
    """Rows of withdrawn recordings in good segments; none is served."""
    rows = 0
    for name in segment_names(folder) if marks else ():
        with contextlib.suppress(DamagedSegmentError):
            _, identity = read_segment(folder / "segments" / name, fingerprint)
            rows += int(marks.rows(identity.video_sha256).sum())
    return rows


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
