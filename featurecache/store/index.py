"""Which row of which segment holds a clip: the index of one feature space.

Columns sorted by a 64-bit hash of the parts of a clip id (first eight digest bytes, start, end); a hit is
confirmed on the parts themselves. Duplicate rows (two writers may compute the same clip) are settled here:
the smallest segment name wins, for every reader alike. A segment that another one replaces is not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, CacheReadError, DamagedSegmentError
from featurecache.store import checkpoint, files, format
from featurecache.store.clip_columns import Clips, Wanted, digest_prefixes
from featurecache.store.segment import Identity, Segment, read_segment
from featurecache.store.withdrawn import read_withdrawn

_MOST_LISTINGS = 20


@dataclass(frozen=True)
class Damage:
    """Something in the cache that is not as it was written.

    Attributes:
        path: Relative to the cache.
        segment_id: The segment; None where the damage is to something else.
        reason: What must hold, what was found, what to do.
    """

    path: str
    segment_id: str | None
    reason: str


@dataclass(frozen=True, eq=False)
class SpaceIndex:
    """The visible rows of a feature space, each once.

    Attributes:
        segments: Every segment that rows may be read from, by name.
        ignored: Segments that others replace.
        video_sha256: Shape (N, 32), uint8; this and all columns sorted by `hashes`.
        span_us: Shape (N, 2), int64.
        segment: Position in `segments`, shape (N,), int32.
        row: Row in the segment, shape (N,), int32.
        row_crc32c: Shape (N,), uint32.
    """

    segments: tuple[Segment, ...]
    ignored: frozenset[str]
    video_sha256: npt.NDArray[np.uint8]
    span_us: npt.NDArray[np.int64]
    segment: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    row_crc32c: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def clips(self) -> Clips:
        """The rows' clips."""
        return Clips(digest_prefixes(self.video_sha256), self.span_us)

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Ascending, shape (N,)."""
        return self.clips.hashes()

    def find(self, clips: Clips) -> npt.NDArray[np.int64]:
        """Positions of clips, shape (N,); -1 for one that is not here."""
        wanted = clips.hashes()
        at = np.searchsorted(self.hashes, wanted)
        found = np.full(len(wanted), -1, np.int64)
        left = np.arange(len(wanted))
        while len(left):
            left = left[at[left] < len(self)]
            left = left[self.hashes[at[left]] == wanted[left]]
            here = at[left]
            hit = (self.clips.prefixes[here] == clips.prefixes[left]) & (self.span_us[here] == clips.span_us[left]).all(
                1
            )
            found[left[hit]] = here[hit]
            left = left[~hit]
            at[left] += 1
        return found

    def holds(self, digests: npt.NDArray[np.uint8], clips: Clips) -> npt.NDArray[np.bool_]:
        """Whether each clip is here, shape (N,); arguments as `Wanted.parts` gives them."""
        at = self.find(clips)
        found = at >= 0
        found[found] = (self.video_sha256[at[found]] == digests[found]).all(1)
        return found

    def in_stored_order(self) -> npt.NDArray[np.int64]:
        """Positions in the order rows lie on disk, shape (N,)."""
        return np.argsort(self.segment.astype(np.int64) << 32 | self.row)

    def clip_names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """Clip ids of rows."""
        digits = np.ascontiguousarray(self.video_sha256[positions, :8]).tobytes().hex()
        spans = self.span_us[positions].tolist()
        return [f"{digits[16 * i : 16 * i + 16]}-{start}-{end}" for i, (start, end) in enumerate(spans)]


def read_index(
    folder: Path, fingerprint: str, excluded: Mapping[str, str], *, use_checkpoint: bool = True
) -> tuple[SpaceIndex, tuple[Damage, ...]]:
    """The index of a feature space as its folder is now.

    Args:
        folder: `.../spaces/<name>`.
        fingerprint: Of the space.
        excluded: {segment name: reason} of segments already known to be damaged.
        use_checkpoint: Whether to believe a good checkpoint.

    Returns:
        The index, and the damaged segments.

    Raises:
        CacheFormatError: If a segment is of a newer format version.
        CacheReadError: If the disk refuses, or the folder changes faster than it can be listed.
    """
    use_checkpoint = use_checkpoint and not excluded  # it has lost the rows that an excluded segment hid
    for _ in range(_MOST_LISTINGS):
        listed = [name for name in segment_names(folder) if name not in excluded]
        old = _from_checkpoint(folder, fingerprint, listed) if use_checkpoint else EMPTY
        visible = {segment.segment_id for segment in old.segments}
        new = [name for name in listed if name not in visible and name not in old.ignored]
        parts, damage, vanished = _read_segments(folder, fingerprint, new)
        if vanished:  # compacted or forgotten since the listing: what stands for it is there now
            continue
        if any(name in visible for segment, _ in parts for name in segment.replaces):
            use_checkpoint = False
            continue
        index, mixed = _joined(old, parts)
        known = [(name, reason) for name, reason in excluded.items() if files.exists(folder / "segments" / name)]
        place = f"spaces/{folder.name}/segments"
        found = (Damage(f"{place}/{name}", name, reason) for name, reason in sorted([*known, *damage, *mixed]))
        return _not_withdrawn(folder, index), tuple(found)
    raise CacheReadError(
        f"the cache must hold still for a moment to be listed, but {folder} changed {_MOST_LISTINGS} times. Try again."
    )


def write_checkpoint(folder: Path, fingerprint: str, index: SpaceIndex) -> None:
    """Store an index for the next reader.

    Raises:
        OSError: If it cannot be written; nothing depends on it.
    """
    columns = {name: getattr(index, name) for name in checkpoint.COLUMNS}
    checkpoint.write(folder / "index", fingerprint, index.segments, index.ignored, columns)
    if read_withdrawn(folder.parents[1]).rows(index.video_sha256).any():  # withdrawn since the index was read
        checkpoint.remove(files.inside(folder / "index"))


def _not_withdrawn(folder: Path, index: SpaceIndex) -> SpaceIndex:
    """An index without the rows of withdrawn recordings, of which a killed process may have left some on disk."""
    withdrawn = read_withdrawn(folder.parents[1])
    if not withdrawn:
        return index
    kept = ~withdrawn.rows(index.video_sha256)
    return index if kept.all() else replace(index, **{name: getattr(index, name)[kept] for name in checkpoint.COLUMNS})


def segments_after_checkpoint(folder: Path, fingerprint: str) -> int:
    """How many listed segments the next reader must open one by one."""
    listed = segment_names(folder)
    old = _from_checkpoint(folder, fingerprint, listed)
    return len(listed) - len(old.segments)


EMPTY = SpaceIndex(
    segments=(),
    ignored=frozenset(),
    video_sha256=np.empty((0, 32), np.uint8),
    span_us=np.empty((0, 2), np.int64),
    segment=np.empty(0, np.int32),
    row=np.empty(0, np.int32),
    row_crc32c=np.empty(0, np.uint32),
)
"""The index of a feature space without rows."""


def segment_names(folder: Path) -> list[str]:
    """Names of the segments in a feature space's folder, sorted."""
    return [name for name in files.list_names(folder / "segments") if format.SEGMENT_ID.fullmatch(name)]


def _from_checkpoint(folder: Path, fingerprint: str, listed: Sequence[str]) -> SpaceIndex:
    """The checkpointed index if it is whole and not stale, else an empty one."""
    for segments, ignored, columns in checkpoint.read(folder / "index", fingerprint):
        if {segment.segment_id for segment in segments} <= set(listed):
            return SpaceIndex(segments, ignored, **columns)
    return EMPTY


def _read_segments(
    folder: Path, fingerprint: str, names: Sequence[str]
) -> tuple[list[tuple[Segment, Identity]], list[tuple[str, str]], bool]:
    """Good segments, damaged ones with the reason, and whether one vanished since it was listed."""
    parts, damage = [], []
    for name in names:
        try:
            parts.append(read_segment(folder / "segments" / name, fingerprint))
        except DamagedSegmentError as error:
            if not files.exists(folder / "segments" / name):
                return [], [], True
            damage.append((name, str(error)))
    return parts, damage, False


def _joined(old: SpaceIndex, parts: Sequence[tuple[Segment, Identity]]) -> tuple[SpaceIndex, list[tuple[str, str]]]:
    """An index with further segments in it, and those that do not fit in with the reason."""
    if not parts:
        return old, []
    ignored = old.ignored | {name for segment, _ in parts for name in segment.replaces}
    parts = [part for part in parts if part[0].segment_id not in ignored]
    first = min([*old.segments, *(segment for segment, _ in parts)], key=lambda segment: segment.segment_id)
    mixed = [
        (segment.segment_id, f"its rows are {segment.dtype} {segment.row_shape}, not {first.dtype} {first.row_shape}")
        for segment, _ in parts
        if (segment.dtype, segment.row_shape) != (first.dtype, first.row_shape)
    ]
    unfit = {name for name, _ in mixed}
    new = index_of([part for part in parts if part[0].segment_id not in unfit])
    return replace(merged(old, new), ignored=frozenset(ignored)), mixed


def index_of(parts: Sequence[tuple[Segment, Identity]]) -> SpaceIndex:
    """The index of some segments whose rows are of one shape.

    Raises:
        CacheFormatError: If two recordings cannot be told apart by the first digits of their digests.
    """
    if not parts:
        return EMPTY
    parts = sorted(parts, key=lambda part: part[0].segment_id)
    sizes = [segment.rows for segment, _ in parts]
    video_sha256 = np.concatenate([identity.video_sha256 for _, identity in parts])
    span_us = np.concatenate([identity.span_us for _, identity in parts])
    clips = Clips(digest_prefixes(video_sha256), span_us)
    hashes = clips.hashes()
    order = np.argsort(hashes, kind="stable")  # of copies, the one in the smallest segment stands first
    same = np.zeros(len(order), bool)
    same[1:] = (
        (np.diff(hashes[order]) == 0)
        & (np.diff(clips.prefixes[order]) == 0)
        & (np.diff(span_us[order], axis=0) == 0).all(1)
    )
    copies = np.flatnonzero(same)
    _require_same_digests(video_sha256[order[copies]], video_sha256[order[copies - 1]])
    kept = order[~same]
    return SpaceIndex(
        tuple(segment for segment, _ in parts),
        frozenset(name for segment, _ in parts for name in segment.replaces),
        video_sha256[kept],
        span_us[kept],
        np.repeat(np.arange(len(parts), dtype=np.int32), sizes)[kept],
        np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])[kept],
        np.concatenate([identity.row_crc32c for _, identity in parts])[kept],
    )


def merged(old: SpaceIndex, new: SpaceIndex) -> SpaceIndex:
    """Both indexes as one, in time linear in the larger and without sorting it again.

    Raises:
        CacheFormatError: If two recordings cannot be told apart by the first digits of their digests.
    """
    if not len(old) or not len(new):
        return replace(new if len(new) else old, ignored=old.ignored | new.ignored)
    segments = sorted([*old.segments, *new.segments], key=lambda segment: segment.segment_id)
    place = {segment.segment_id: position for position, segment in enumerate(segments)}
    old_segment, new_segment = (
        np.array([place[segment.segment_id] for segment in one.segments], np.int32)[one.segment] for one in (old, new)
    )
    at = old.find(new.clips)
    copies = np.flatnonzero(at >= 0)
    _require_same_digests(new.video_sha256[copies], old.video_sha256[at[copies]])
    winners = copies[new_segment[copies] < old_segment[at[copies]]]
    row, row_crc32c = old.row.copy(), old.row_crc32c.copy()
    old_segment[at[winners]], row[at[winners]] = new_segment[winners], new.row[winners]
    row_crc32c[at[winners]] = new.row_crc32c[winners]
    added = np.flatnonzero(at < 0)
    where = np.searchsorted(old.hashes, new.hashes[added], side="right")
    return SpaceIndex(
        tuple(segments),
        old.ignored | new.ignored,
        np.insert(old.video_sha256, where, new.video_sha256[added], axis=0),
        np.insert(old.span_us, where, new.span_us[added], axis=0),
        np.insert(old_segment, where, new_segment[added]),
        np.insert(row, where, new.row[added]),
        np.insert(row_crc32c, where, new.row_crc32c[added]),
    )


def lacking(indexes: Sequence[SpaceIndex], wanted: Wanted) -> npt.NDArray[np.bool_]:
    """Which clips none of the indexes holds, shape (N,)."""
    held = np.zeros(len(wanted.span_us), bool)
    for part, digests, clips in wanted.parts():
        for index in indexes:
            held[part] |= index.holds(digests, clips)
    return ~held


def _require_same_digests(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> None:
    """Clips of equal id must be of equal recordings."""
    if (ours != theirs).any():
        raise CacheFormatError(
            "recordings must differ in the first 16 digits of their sha256, but two in this cache share them. "
            "Keep one of the two in another cache."
        )
