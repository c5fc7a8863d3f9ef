"""Withdrawal of a recording: consent can be taken back, and then nothing of it may remain in the cache.

A mark is made first (`withdrawn.py`): from then on no reader serves the recording, and no writer, compaction or import
keeps it. Then everything below the cache is looked through. Segments lose its rows (`rewrite.purge`), also where the
feature space's own record is damaged: a segment's record names the space too. Everything else (unfinished segments,
what repair quarantined, half-removed folders, copies that some other program left) is searched for the recording's
digest, its rows' keys and the beginnings of its features, and goes whole where one is found. What cannot be
searched is told. Run again after a kill, it finishes the work.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.errors import (
    CacheFormatError,
    CacheReadError,
    ClipTableError,
    DamagedSegmentError,
    FingerprintMismatchError,
    NewerFormatError,
)
from featurecache.store import files, format, layout
from featurecache.store.boxes import remove_notes
from featurecache.store.claims import maker_is_gone
from featurecache.store.commit import writing
from featurecache.store.index import read_index, segment_names, write_checkpoint
from featurecache.store.record import read_record
from featurecache.store.rewrite import Purged, purge
from featurecache.store.salvage import Salvage, feature_needles, holds_rows, salvage, salvage_holding
from featurecache.store.search import Needles, look_into
from featurecache.store.turns import turn
from featurecache.store.withdrawn import FOLDER, mark_withdrawn

_MOST_ROUNDS = 10
_DIGESTS = 2  # needles that are no rows: the digest in bytes and in text
_ARRAYS = frozenset({"features", "key", "video_sha256", "span_us", "row_crc32c", "timestamps_us"})


@dataclass(frozen=True)
class ForgetReport:
    """What `forget` removed, and what it could not look into.

    Attributes:
        mark: Name of the file in `withdrawn/` that keeps the recording from coming back.
        rows: Rows of the recording, in all feature spaces, copies counted.
        rewritten: Segments written anew without them.
        removed: Segments removed whole: no other row was in them, or none that could be saved.
        leftovers: Other files and folders removed: unfinished segments, what repair quarantined, copies, indexes.
        lost: (fingerprint, clip id) of other recordings' rows that were damaged and are gone; extract these again.
            The folder's name stands where the fingerprint cannot be told.
        unknown: Damaged rows, gone too, of which not even the clip could be told.
        unsearched: (path relative to the cache, why) of what may hold something of the recording still.
    """

    mark: str
    rows: int
    rewritten: int
    removed: int
    leftovers: int
    lost: tuple[tuple[str, str], ...]
    unknown: int
    unsearched: tuple[tuple[str, str], ...]


def forget(root: Path | str, video_sha256: str) -> ForgetReport:
    """Remove every row of a recording, in every feature space, from the disk, and keep it from coming back.

    Running it again after a kill finishes the work. Writers that are extracting the recording meanwhile drop its
    rows. Blocks of removed files may survive on the medium itself until overwritten.

    Args:
        root: The cache.
        video_sha256: sha256 of the recording's content; at least its first 16 digits, as in a clip id.

    Raises:
        CacheNotFoundError: If there is no cache.
        ClipTableError: If the digest is malformed.
        NewerFormatError: If something in it is of a newer format version; nothing is touched.
        CacheBusyError: If another operation works on the cache for too long.
        CacheReadError: If the disk refuses to give something.
        CacheWriteError: If something cannot be written or removed.
    """
    if not 16 <= len(video_sha256) <= 64 or set(video_sha256) - set("0123456789abcdef") or len(video_sha256) % 2:
        raise ClipTableError(
            f"a recording must be named by 16 to 64 hex digits of its sha256, but {video_sha256!r} was given. "
            "Take the first 16 digits of one of its clip ids."
        )
    root = Path(root)
    layout.require_cache(root)
    with turn(root, "forget"):
        found = recording_needles(root, video_sha256)  # also raises what forbids touching anything
        work = _Withdrawal(root, video_sha256, Needles(found), knows_rows=len(found) > _DIGESTS)
        with writing(root):
            mark = mark_withdrawn(root, video_sha256)
            remove_notes(root, mark)
        for _ in range(_MOST_ROUNDS):
            if not work.sweep():
                break
        work.tell_links()
        for folder, fingerprint in _spaces(root):
            if fingerprint is not None:
                index, _ = read_index(folder, fingerprint, {}, use_checkpoint=False)
                served = set(index.clip_names(index.in_stored_order())) if work.lost else set()
                work.lost = [(space, clip) for space, clip in work.lost if space != fingerprint or clip not in served]
                with writing(root):
                    write_checkpoint(folder, fingerprint, index)
    return ForgetReport(
        mark,
        work.rows,
        work.rewritten,
        work.removed,
        work.leftovers,
        tuple(dict.fromkeys(work.lost)),
        work.unknown,
        tuple(sorted(work.unsearched.items())),
    )


def recording_needles(root: Path, video_sha256: str) -> set[bytes]:
    """Bytes by which a recording is recognised in any file: its digest, and keys and features of its rows in a cache.

    Args:
        root: The cache; without one, the digest alone is known.
        video_sha256: As for `forget`.

    Raises:
        NewerFormatError: If something in it is of a newer format version.
        CacheReadError: If the disk refuses to give something.
    """
    needles = {bytes.fromhex(video_sha256), video_sha256[:16].encode()}
    known = [(folder, fingerprint) for folder, fingerprint in _spaces(root) if fingerprint is not None]
    for folder, fingerprint in known:
        for name in segment_names(folder):
            found = salvage_holding(folder / "segments" / name, fingerprint, partial(_are_of, video_sha256))
            if found is not None:
                gone = found.known & _are_of(video_sha256, found.video_sha256)
                needles |= feature_needles(found, gone, folder / "segments" / name)
    return needles


def _are_of(video_sha256: str, digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which rows are of a recording, from their digests, (N, 32) -> (N,)."""
    wanted = np.frombuffer(bytes.fromhex(video_sha256), np.uint8)
    found: npt.NDArray[np.bool_] = (digests[:, : len(wanted)] == wanted).all(1)
    return found


def _spaces(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Every feature space's folder with its fingerprint; None where nothing in it tells."""
    for folder in layout.space_folders(root):
        if files.is_folder(folder):
            yield folder, _fingerprint_of(folder)


@dataclass
class _Withdrawal:
    """One recording's withdrawal from one cache, and what was done so far."""

    root: Path
    video_sha256: str
    needles: Needles
    knows_rows: bool
    rows: int = 0
    rewritten: int = 0
    removed: int = 0
    leftovers: int = 0
    unknown: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list)
    unsearched: dict[str, str] = field(default_factory=dict)
    linked: dict[tuple[int, int], tuple[int, set[Path]]] = field(default_factory=dict)

    def is_gone(self, digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        return _are_of(self.video_sha256, digests)

    def sweep(self) -> bool:
        """Go through the whole cache once; whether anything was removed.

        Copies go before the rows they are recognised by.
        """
        before = (self.rows, self.removed, self.leftovers)
        self.unsearched.clear()
        for path in files.inside(self.root):
            if path.name not in (format.RECORD, "spaces", FOLDER):
                self._leftover(path, None)
        for path in files.inside(self.root / "spaces"):
            if path.name.startswith(".") or not files.is_folder(path):
                self._leftover(path, None)
        for folder, fingerprint in _spaces(self.root):
            for path in files.inside(folder):
                if path.name == "index":
                    self._remove_each(files.inside(path))
                elif path.name in ("staging", "quarantine", "claims"):
                    for inside in files.inside(path):
                        self._leftover(inside, fingerprint, staged=path.name == "staging")
                elif path.name == "segments":
                    self._beside_segments(folder, fingerprint)
                elif path.name != format.RECORD:
                    self._leftover(path, fingerprint)
        for folder, fingerprint in _spaces(self.root):
            if fingerprint is not None:
                for name in segment_names(folder):
                    self._note_links(folder / "segments" / name)
                    self._count(fingerprint, purge(self.root, folder, fingerprint, name, self.is_gone))
        return (self.rows, self.removed, self.leftovers) != before

    def _beside_segments(self, folder: Path, fingerprint: str | None) -> None:
        """What lies in `segments/` and is no segment of a known feature space, and files too many in those that are."""
        names = set(segment_names(folder))
        for path in files.inside(folder / "segments"):
            if path.name not in names:
                self._leftover(path, fingerprint)
            elif fingerprint is None:
                self._leftover(path, None, served=True)
            else:
                for file in _unexpected_files(path):
                    self._leftover(file, fingerprint)

    def _count(self, fingerprint: str, done: Purged) -> None:
        self.rows += done.rows
        self.rewritten += done.rewritten
        self.removed += done.removed
        self.unknown += done.unknown
        self.lost += [(fingerprint, clip) for clip in done.lost]

    def _leftover(self, path: Path, fingerprint: str | None, *, staged: bool = False, served: bool = False) -> None:
        """Look into something that is no segment in its place; remove it where it holds the recording.

        Args:
            path: A file or folder.
            fingerprint: Of the feature space it lies in, where that can be told.
            staged: Whether it is an unfinished segment: then a dead writer's goes in any case.
            served: Whether it is a segment whose feature space cannot be told: then other clips in it are told.
        """
        if path.suffix == layout.TRASH or (staged and maker_is_gone(path.name)):
            self._remove_each([path])
            return
        try:
            if not files.is_folder(path):
                self._file(path)
                return
            inside = files.inside(path)
            if not {one.name for one in inside} & _ARRAYS:
                for one in inside:
                    self._leftover(one, fingerprint)
                return
            found = salvage(path, fingerprint)
            holds = bool((found.known & self.is_gone(found.video_sha256)).any())
            if holds or any(look_into(one, self.needles).holds for one in files.walk(path)):
                if served:
                    self._tell_lost(path, found)
                self._remove_each([path])
            elif holds_rows(path) and not (len(found.known) and found.known.all()):
                self._cannot_search(path, "whose rows these are is damaged or not there")
        except (FileNotFoundError, NotADirectoryError):
            return  # its writer has finished or removed it
        except NewerFormatError:
            self._cannot_search(path, "it is of a newer format version")
        except CacheReadError as error:
            self._cannot_search(path, str(error))

    def _file(self, path: Path) -> None:
        look = look_into(path, self.needles)
        if look.holds:
            self._remove_each([path])
        elif not files.is_regular(path):
            self._cannot_search(path, "it is a link or no file of bytes")
        elif look.unsearchable:
            self._cannot_search(path, look.unsearchable)
        elif path.parent.name == "features" and not self.knows_rows and files.file_status(path).st_size:
            self._cannot_search(path, "it looks like features, and nothing beside it says whose")

    def _tell_lost(self, path: Path, found: Salvage) -> None:
        space = path.parents[1]
        if any(known is not None and known[:16] in space.name for _, known in _spaces(self.root)):
            return  # a copy of a feature space whose rows are served
        others = found.known & ~self.is_gone(found.video_sha256)
        self.lost += [(space.name, clip) for clip in found.clip_names(others)]
        self.unknown += int((~found.known).sum())

    def _remove_each(self, paths: list[Path]) -> None:
        for path in paths:
            self._note_links(path)
            with writing(self.root):
                if path.parent == self.root and path.suffix != layout.TRASH:
                    files.remove_tree(path) if files.is_folder(path) else files.remove_file(path)
                else:
                    layout.discard(path)
            self.leftovers += 1

    def _note_links(self, path: Path) -> None:
        """Remember files that have several names: where one is removed, another keeps the content."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for one in files.walk(path):
                status = files.file_status(one)
                if status.st_nlink > 1:
                    self.linked.setdefault((status.st_dev, status.st_ino), (status.st_nlink, set()))[1].add(one)

    def tell_links(self) -> None:
        """Name the removed files that have names outside the cache still."""
        for links, paths in self.linked.values():
            removed = [path for path in sorted(paths) if not files.exists(path)]
            if removed and len(removed) < links:
                self._cannot_search(
                    removed[0], f"it is removed, but has {links - len(removed)} other names (hard links)"
                )

    def _cannot_search(self, path: Path, why: str) -> None:
        self.unsearched[path.relative_to(self.root).as_posix()] = why


def _fingerprint_of(folder: Path) -> str | None:
    """A feature space's fingerprint, from its record or, where that is damaged, from one of its segments'."""
    try:
        return layout.read_space(folder).fingerprint
    except NewerFormatError:
        raise
    except (FileNotFoundError, NotADirectoryError, CacheFormatError, FingerprintMismatchError):
        pass
    for name in segment_names(folder):
        try:
            fingerprint: str = read_record(folder / "segments" / name, None)["fingerprint"]
        except DamagedSegmentError:
            continue
        if folder.name.endswith(fingerprint[:16]):
            return fingerprint
    return None


def _unexpected_files(segment: Path) -> list[Path]:
    """What lies in a segment's folder and is none of its files."""
    found = []
    for path in files.inside(segment):
        if path.name in _ARRAYS:
            known = {format.RECORD, *(format.chunk_name(dimensions) for dimensions in range(1, 5))}
            found += [inside for inside in files.inside(path) if inside.name not in known]
        elif path.name != format.RECORD:
            found.append(path)
    return found
