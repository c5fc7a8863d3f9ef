"""Writing segments anew: compaction, and taking the rows of a withdrawn recording out of a segment.

Both write new segments that `replace` old ones, so that a kill at any instant leaves every row visible once.
A new segment keeps the time in its oldest origin's name: the copy of a row that won goes on winning. It is read
back, every byte, before anything it replaces may go: compaction leaves that to `gc`, purging does it at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CacheWriteError, DamagedSegmentError
from featurecache.spec import canonical_json
from featurecache.store import files, format, layout
from featurecache.store.commit import commit_segment, writing
from featurecache.store.index import SpaceIndex, read_index, segment_names, write_checkpoint
from featurecache.store.record import read_record
from featurecache.store.salvage import IsGone, salvage_holding
from featurecache.store.segment import Rows, Segment, check_deeply, encode_segment, take_rows
from featurecache.store.turns import turn
from featurecache.store.withdrawn import read_withdrawn


@dataclass(frozen=True)
class CompactReport:
    """What `compact` did.

    Attributes:
        merged: Segments that new ones now stand for; `gc` removes them after the grace period.
        written: New segments.
        rows: Rows in them.
    """

    merged: int
    written: int
    rows: int


@dataclass(frozen=True)
class Purged:
    """What taking rows out of one segment did.

    Attributes:
        rows: Rows taken out.
        rewritten: Whether the other rows stand in a new segment.
        removed: Whether the segment is gone without one.
        lost: Clip ids of other rows that were damaged, and are gone with it; another segment may hold copies.
        unknown: Damaged rows of which not even the clip can be told.
    """

    rows: int = 0
    rewritten: bool = False
    removed: bool = False
    lost: tuple[str, ...] = ()
    unknown: int = 0


def compact(root: Path | str, *, target_rows: int = 16384, target_bytes: int = 128 << 20) -> CompactReport:
    """Merge small segments, so that a cache opens and reads faster.

    Only segments of one provenance are merged with each other. Rows hidden by another copy are dropped.

    Args:
        root: The cache.
        target_rows: Most rows of a new segment.
        target_bytes: Most bytes of a new segment's features, and of memory for them; segments of half the size
            and more are left as they are.

    Raises:
        CacheNotFoundError: If there is no cache.
        DamagedSegmentError: If a segment to merge is damaged; run `repair` first.
        CacheReadError: If the disk refuses to give something.
        CacheWriteError: If a new segment cannot be written; nothing is lost.
    """
    root = Path(root)
    layout.require_cache(root)
    merged = written = rows = 0
    with turn(root, "compact"):
        for folder, space in layout.good_spaces(root):
            index, _ = read_index(folder, space.fingerprint, {})
            merged_before = merged
            for group in _groups(index.segments, target_rows, target_bytes):
                taken = [part for place in group if (part := _served_rows(folder, space.fingerprint, index, place))]
                if not taken:
                    continue
                olds = [index.segments[place] for place in group]
                replaced = {old.segment_id: old.replaces for old in olds}
                name = _write_anew(root, folder, space.fingerprint, _joined(taken), olds[0].provenance, replaced)
                purge_withdrawn(root, folder, space.fingerprint, name)
                merged += len(olds)
                written += 1
                rows += sum(len(part.features) for part in taken)
            if merged > merged_before:
                index, _ = read_index(folder, space.fingerprint, {})
                with writing(root):
                    write_checkpoint(folder, space.fingerprint, index)
    return CompactReport(merged, written, rows)


def purge(root: Path, folder: Path, fingerprint: str, name: str, is_gone: IsGone) -> Purged:
    """Take the rows of a recording out of a segment: write the others anew, read them back, remove the segment.

    Of a damaged segment every row that proves itself is kept. Where all rows stand in another segment that
    replaces this one and is right to the last byte, nothing is written.

    Args:
        root: The cache.
        folder: `.../spaces/<name>`.
        fingerprint: Of the feature space.
        name: The segment; one that is gone meanwhile holds nothing.
        is_gone: Which rows go, from the digests of their recordings, (N, 32) -> (N,).

    Raises:
        NewerFormatError: If it is of a newer format version.
        CacheReadError: If the disk refuses to give something.
        CacheWriteError: If something cannot be written or removed, or does not read back as written.
    """
    segment_folder = folder / "segments" / name
    found = salvage_holding(segment_folder, fingerprint, is_gone)
    if found is None:
        return Purged()
    gone = found.known & is_gone(found.video_sha256)
    tells_all = len(found.known) > 0 and bool(found.known.all())
    if not files.exists(segment_folder) or (tells_all and not gone.any()):
        return Purged()
    lost, rewritten = found.known & ~gone & ~found.intact, False
    if found.rows is not None and not gone[found.intact].all() and not _stands_elsewhere(folder, fingerprint, name):
        rows = found.rows.at(~gone[found.intact])
        # Where a row is lost, what this segment replaced may still hold it and must be seen again.
        earlier = found.replaces if found.intact.all() else ()
        _write_anew(root, folder, fingerprint, rows, found.provenance, {name: earlier})
        rewritten = True
    with writing(root):
        layout.discard(segment_folder)
    return Purged(int(gone.sum()), rewritten, not rewritten, tuple(found.clip_names(lost)), int((~found.known).sum()))


def purge_withdrawn(root: Path, folder: Path, fingerprint: str, name: str) -> None:
    """Take the rows of withdrawn recordings out of a segment that was just committed; errors as for `purge`."""
    if withdrawn := read_withdrawn(root):
        purge(root, folder, fingerprint, name, withdrawn.rows)


def _stands_elsewhere(folder: Path, fingerprint: str, name: str) -> bool:
    """Whether another segment replaces this one and is right to the last byte."""
    for other in segment_names(folder):
        try:
            if other != name and name in read_record(folder / "segments" / other, fingerprint)["replaces"]:
                check_deeply(folder / "segments" / other, fingerprint)
                return True
        except DamagedSegmentError:
            continue
    return False


def _groups(segments: Sequence[Segment], target_rows: int, target_bytes: int) -> list[list[int]]:
    """Positions of segments to merge, two or more in a group, in the order of their names."""
    by_provenance: dict[str, list[list[int]]] = {}
    sizes = [(segment.rows, segment.rows * segment.row_bytes) for segment in segments]
    for place, (rows, size) in enumerate(sizes):
        if rows * 2 >= target_rows or size * 2 >= target_bytes:
            continue
        groups = by_provenance.setdefault(
            canonical_json([segments[place].provenance, segments[place].timestamps]), [[]]
        )
        total_rows = rows + sum(sizes[other][0] for other in groups[-1])
        total_bytes = size + sum(sizes[other][1] for other in groups[-1])
        if total_rows > target_rows or total_bytes > target_bytes:
            groups.append([])
        groups[-1].append(place)
    return [group for groups in by_provenance.values() for group in groups if len(group) > 1]


def _served_rows(folder: Path, fingerprint: str, index: SpaceIndex, place: int) -> Rows | None:
    """The rows of a segment that are not hidden by another copy; None if all are."""
    rows = np.sort(index.row[index.segment == place]).astype(np.int64)
    name = index.segments[place].segment_id
    return take_rows(folder / "segments" / name, fingerprint, rows) if len(rows) else None


def _write_anew(
    root: Path,
    folder: Path,
    fingerprint: str,
    rows: Rows,
    provenance: Mapping[str, Any],
    olds: Mapping[str, Sequence[str]],
) -> str:
    """Commit rows as one segment that replaces old ones, and all that these replaced; read it back, every byte.

    Args:
        root: The cache.
        folder: `.../spaces/<name>`.
        fingerprint: Of the feature space.
        rows: At least one.
        provenance: Who computed them.
        olds: {segment: the segments that it replaced}.

    Returns:
        The new segment's name.

    Raises:
        CacheWriteError: If it cannot be written, or does not read back as written: it is removed again.
    """
    replaces = sorted({name for old, earlier in olds.items() for name in (old, *earlier)})
    segment_id = format.new_segment_id(min(int(old[:20]) for old in olds))
    with writing(root):
        commit_segment(folder, segment_id, encode_segment(fingerprint, rows, provenance, replaces))
    try:
        check_deeply(folder / "segments" / segment_id, fingerprint)
    except DamagedSegmentError as error:
        if files.exists(folder / "segments" / segment_id):
            with writing(root):
                layout.discard(folder / "segments" / segment_id)
        raise CacheWriteError(
            f"a segment must read back as it was written, but {error} Nothing was removed: check the disk."
        ) from error
    return segment_id


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(
        features=np.concatenate([part.features for part in parts]),
        video_sha256=np.concatenate([part.video_sha256 for part in parts]),
        span_us=np.concatenate([part.span_us for part in parts]),
        timestamps_us=np.concatenate([part.timestamps_us for part in parts]),
    )
