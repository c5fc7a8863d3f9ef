"""Writing segments anew: compaction, and withdrawal of a recording (consent can be taken back).

Both write new segments that `replace` old ones, so that a kill at any instant leaves every row visible once.
A new segment keeps the time in its oldest origin's name: the copy of a row that won goes on winning.
Compaction leaves the old segments for `gc`; withdrawal removes them, and every trace of the recording, at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import ClipTableError, DamagedSegmentError
from featurecache.spec import canonical_json
from featurecache.store import files, format, layout
from featurecache.store.index import SpaceIndex, read_index, segment_names, write_checkpoint
from featurecache.store.segment import Rows, Segment, encode_segment, read_segment, take_rows
from featurecache.store.writer import commit_segment, writing


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
class ForgetReport:
    """What `forget` removed.

    Attributes:
        rows: Rows of the recording, in all feature spaces, copies counted.
        rewritten: Segments written anew without them.
        removed: Segments removed whole: nothing else was in them, or they were damaged or replaced.
        leftovers: Other files and folders removed: unfinished segments, what repair set aside, indexes.
    """

    rows: int
    rewritten: int
    removed: int
    leftovers: int


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
    for folder, space in layout.good_spaces(root):
        index, _ = read_index(folder, space.fingerprint, {})
        for group in _groups(index.segments, target_rows, target_bytes):
            taken = [part for place in group if (part := _served_rows(folder, space.fingerprint, index, place))]
            if not taken:
                continue
            olds = [index.segments[place] for place in group]
            _write_anew(root, folder, space.fingerprint, taken, olds)
            merged += len(olds)
            written += 1
            rows += sum(len(part.features) for part in taken)
        if merged:
            index, _ = read_index(folder, space.fingerprint, {})
            with writing(root):
                write_checkpoint(folder, space.fingerprint, index)
    return CompactReport(merged, written, rows)


def forget(root: Path | str, video_sha256: str) -> ForgetReport:
    """Remove every row of a recording, in every feature space, from the disk.

    Running it again after a kill finishes the work. A writer that is extracting this recording meanwhile can
    write new rows: end it first. Blocks of removed files may survive on the medium itself until overwritten.

    Args:
        root: The cache.
        video_sha256: sha256 of the recording's content; at least its first 16 digits, as in a clip id.

    Raises:
        CacheNotFoundError: If there is no cache.
        ClipTableError: If the digest is malformed.
        CacheReadError: If the disk refuses to give something.
        CacheWriteError: If something cannot be written or removed.
    """
    if not 16 <= len(video_sha256) <= 64 or set(video_sha256) - set("0123456789abcdef") or len(video_sha256) % 2:
        raise ClipTableError(
            f"a recording must be named by 16 to 64 hex digits of its sha256, but {video_sha256!r} was given. "
            "Take the first 16 digits of one of its clip ids."
        )
    root, digest = Path(root), bytes.fromhex(video_sha256)
    layout.require_cache(root)
    rows = rewritten = removed = leftovers = 0
    for folder, space in layout.good_spaces(root):
        index, _ = read_index(folder, space.fingerprint, {}, use_checkpoint=False)
        with writing(root):
            for path in files.inside(folder / "index"):
                files.remove_file(path)
                leftovers += 1
            unfinished = [path for path in files.inside(folder / "staging") if _holds(path, digest)]
            trash = [path for path in files.inside(folder) if path.suffix == layout.TRASH]
            for path in [*unfinished, *trash, *files.inside(folder / "quarantine")]:
                layout.discard(path)
                leftovers += 1
        for name in segment_names(folder):
            segment_folder = folder / "segments" / name
            try:
                segment, identity = read_segment(segment_folder, space.fingerprint)
                is_gone = (identity.video_sha256[:, : len(digest)] == np.frombuffer(digest, np.uint8)).all(1)
                kept = np.flatnonzero(~is_gone)
                gone = segment.rows - len(kept)
                if not gone:
                    continue
                if len(kept) and name not in index.ignored:
                    parts = [take_rows(segment_folder, space.fingerprint, kept)]
                    _write_anew(root, folder, space.fingerprint, parts, [segment])
                    rewritten += 1
                else:
                    removed += 1
                rows += gone
            except DamagedSegmentError:  # whose rows these are cannot be told, and they must be extracted again anyway
                removed += 1
            with writing(root):
                layout.discard(segment_folder)
        index, _ = read_index(folder, space.fingerprint, {}, use_checkpoint=False)
        with writing(root):
            write_checkpoint(folder, space.fingerprint, index)
    return ForgetReport(rows, rewritten, removed, leftovers)


def _holds(path: Path, data: bytes) -> bool:
    """Whether any file in a folder has these bytes."""
    if path.is_dir():
        return any(_holds(inside, data) for inside in files.inside(path))
    return data in files.read_file(path)


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


def _write_anew(root: Path, folder: Path, fingerprint: str, parts: Sequence[Rows], olds: Sequence[Segment]) -> None:
    """Commit rows as one segment that stands for old ones, and for all that these stood for."""
    rows = Rows(
        features=np.concatenate([part.features for part in parts]),
        video_sha256=np.concatenate([part.video_sha256 for part in parts]),
        span_us=np.concatenate([part.span_us for part in parts]),
        timestamps_us=np.concatenate([part.timestamps_us for part in parts]),
    )
    replaces = sorted({name for old in olds for name in (old.segment_id, *old.replaces)})
    segment_id = format.new_segment_id(min(int(old.segment_id[:20]) for old in olds))
    contents = encode_segment(fingerprint, rows, olds[0].provenance, replaces)
    with writing(root):
        commit_segment(folder, segment_id, contents)
