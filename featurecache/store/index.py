"""Which row of which segment holds a clip: the index of one feature space.

Columns sorted by a 64-bit hash of the parts of a clip id (first eight digest bytes, start, end); a hit is
confirmed on the parts themselves. Duplicate rows (two writers may compute the same clip) are settled here:
the smallest segment name wins, for every reader alike. A segment that another one replaces is not read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, CacheReadError, ClipTableError, DamagedSegmentError
from featurecache.store import checkpoint, files, format
from featurecache.store.segment import Identity, Segment, read_segment

_START_FACTOR, _END_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)  # any odd numbers
_CLIP_IDS = re.compile(rf"{format.CLIP_ID.pattern}(?:,{format.CLIP_ID.pattern})*")
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
class Clips:
    """Clips to look up, column by column.

    Attributes:
        prefixes: First eight bytes of each digest as a big-endian number, shape (N,), uint64.
        span_us: Start and end, shape (N, 2), int64.
    """

    prefixes: npt.NDArray[np.uint64]
    span_us: npt.NDArray[np.int64]

    def hashes(self) -> npt.NDArray[np.uint64]:
        """One number for each clip, shape (N,)."""
        spans = self.span_us.view(np.uint64)
        hashes: npt.NDArray[np.uint64] = (self.prefixes ^ (spans[:, 0] * _START_FACTOR)) + spans[:, 1] * _END_FACTOR
        return hashes


def digest_prefixes(video_sha256: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of digests (N, 32) as numbers, (N,)."""
    return np.ascontiguousarray(video_sha256[:, :8]).view(">u8").ravel().astype(np.uint64)


def parse_clip_ids(clip_ids: Sequence[str]) -> Clips:
    """Clip ids as columns.

    Args:
        clip_ids: `<16 hex digits>-<start_us>-<end_us>`.

    Raises:
        ClipTableError: If one is not of this form; it is named.
    """
    if not clip_ids:
        return Clips(np.empty(0, np.uint64), np.empty((0, 2), np.int64))
    joined = ",".join(clip_ids)
    if not _CLIP_IDS.fullmatch(joined) or joined.count(",") != len(clip_ids) - 1:
        wrong = next(name for name in clip_ids if not format.CLIP_ID.fullmatch(name))
        raise ClipTableError(
            f"a clip id must be <16 hex digits>-<start_us>-<end_us>, but {wrong!r} was asked for. "
            "Take the ids from clips.csv."
        )
    parts = joined.replace(",", "-").split("-")
    prefixes = np.frombuffer(bytes.fromhex("".join(parts[0::3])), ">u8").astype(np.uint64)
    span_us = np.empty((len(clip_ids), 2), np.int64)
    for column in (0, 1):
        span_us[:, column] = np.fromstring(" ".join(parts[column + 1 :: 3]), np.int64, sep=" ")
    return Clips(prefixes, span_us)


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

    def in_stored_order(self) -> npt.NDArray[np.int64]:
        """Positions in the order rows lie on disk, shape (N,)."""
        return np.lexsort((self.row, self.segment))

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
        old = _from_checkpoint(folder, fingerprint, listed) if use_checkpoint else _EMPTY
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
        return index, tuple(_damage(folder, name, reason) for name, reason in sorted([*known, *damage, *mixed]))
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


def segments_after_checkpoint(folder: Path, fingerprint: str) -> int:
    """How many listed segments the next reader must open one by one."""
    listed = segment_names(folder)
    old = _from_checkpoint(folder, fingerprint, listed)
    return len(listed) - len(old.segments)


_EMPTY = SpaceIndex(
    segments=(),
    ignored=frozenset(),
    video_sha256=np.empty((0, 32), np.uint8),
    span_us=np.empty((0, 2), np.int64),
    segment=np.empty(0, np.int32),
    row=np.empty(0, np.int32),
    row_crc32c=np.empty(0, np.uint32),
)


def segment_names(folder: Path) -> list[str]:
    """Names of the segments in a feature space's folder, sorted."""
    try:
        names = files.list_names(folder / "segments")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if format.SEGMENT_ID.fullmatch(name)]


def _from_checkpoint(folder: Path, fingerprint: str, listed: Sequence[str]) -> SpaceIndex:
    """The checkpointed index if it is whole and not stale, else an empty one."""
    for segments, ignored, columns in checkpoint.read(folder / "index", fingerprint):
        if {segment.segment_id for segment in segments} <= set(listed):
            return SpaceIndex(segments, ignored, **columns)
    return _EMPTY


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


def _damage(folder: Path, segment_id: str, reason: str) -> Damage:
    return Damage(f"spaces/{folder.name}/segments/{segment_id}", segment_id, reason)


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
    parts = [part for part in parts if part[0].segment_id not in unfit]
    segments = sorted([*old.segments, *(segment for segment, _ in parts)], key=lambda segment: segment.segment_id)
    place = {segment.segment_id: position for position, segment in enumerate(segments)}
    moved = np.array([place[segment.segment_id] for segment in old.segments], np.int32)
    video_sha256 = np.concatenate([old.video_sha256, *(identity.video_sha256 for _, identity in parts)])
    span_us = np.concatenate([old.span_us, *(identity.span_us for _, identity in parts)])
    segment = np.concatenate(
        [moved[old.segment], *(np.full(one.rows, place[one.segment_id], np.int32) for one, _ in parts)]
    )
    row = np.concatenate([old.row, *(np.arange(one.rows, dtype=np.int32) for one, _ in parts)])
    row_crc32c = np.concatenate([old.row_crc32c, *(identity.row_crc32c for _, identity in parts)])

    clips = Clips(digest_prefixes(video_sha256), span_us)
    hashes = clips.hashes()
    order = np.lexsort((segment.astype(np.int64) << 32 | row, hashes))
    same = np.zeros(len(order), bool)
    same[1:] = (
        (np.diff(hashes[order]) == 0)
        & (np.diff(clips.prefixes[order]) == 0)
        & (np.diff(span_us[order], axis=0) == 0).all(1)
    )
    copies = np.flatnonzero(same)
    if (video_sha256[order[copies]] != video_sha256[order[copies - 1]]).any():
        raise CacheFormatError(
            "recordings must differ in the first 16 digits of their sha256, but two in this cache share them. "
            "Keep one of the two in another cache."
        )
    kept = order[~same]
    index = SpaceIndex(
        tuple(segments),
        frozenset(ignored),
        video_sha256[kept],
        span_us[kept],
        segment[kept],
        row[kept],
        row_crc32c[kept],
    )
    return index, mixed
