"""What feature spaces hold by now: one view for each process and cache, which reads only segments that are new.

A `FeatureCache` is a snapshot; asking for a new one before every recording reads every segment again. Here each
feature space keeps a few indexes, each many times larger than the next, so that the cost of a new row grows with the
logarithm of the rows. A folder is listed again when its time of modification or its number of links changed. Most file
systems count a folder's folders by its links; where this one does not, the folder is listed once a second anyway, since
times may be coarse. What this process commits itself is told here: a run that listed its own segments would slow down
as they become many. A segment that is seen late costs effort, never a value.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, CacheReadError, DamagedSegmentError
from featurecache.spec import FeatureSpace
from featurecache.store import files, format, layout
from featurecache.store.clip_columns import Wanted, parse_clip_ids
from featurecache.store.index import EMPTY, SpaceIndex, index_of, lacking, merged, read_index
from featurecache.store.segment import read_segment

_RELIST_S = 1.0
_LINKS_OF_AN_EMPTY_FOLDER = 2
_Mark = tuple[int, int]
"""What changes with a folder: its time of modification in ns, and its number of links."""

_ABSENT: _Mark = (-1, 0)
_GROWTH = 16  # an index is looked up in many times for each time it is merged: few large ones


class LiveCache:
    """The clips of a cache as they are whenever one asks; safe for several threads.

    Args:
        root: The cache; need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._spaces: dict[str, _LiveSpace] = {}
        self._lock = threading.Lock()

    def lacks(self, wanted: Wanted, space: FeatureSpace) -> npt.NDArray[np.bool_]:
        """Which clips a feature space lacks by now, shape (N,).

        Raises:
            FingerprintMismatchError: If the space's inputs are not those it was stored with.
            CacheFormatError: If its record cannot be trusted, or it is of a newer format version.
            CacheReadError: If the disk refuses to give something.
        """
        with self._lock:
            return lacking(self._indexes(space.fingerprint, format.space_folder_name(space)), wanted)

    def holds(self, clip_ids: Sequence[str], fingerprint: str) -> npt.NDArray[np.bool_]:
        """Which clips a feature space has by now, by their ids, shape (N,); errors as of `lacks`."""
        clips = parse_clip_ids(clip_ids)
        folders = (folder.name for folder in layout.space_folders(self.root))
        name = next((name for name in folders if name.endswith(f"-{fingerprint[:16]}")), None)
        found = np.zeros(len(clip_ids), bool)
        if name is not None:
            with self._lock:
                for index in self._indexes(fingerprint, name):
                    found |= index.find(clips) >= 0
        return found

    def _indexes(self, fingerprint: str, folder: str) -> list[SpaceIndex]:
        if fingerprint not in self._spaces:
            self._spaces[fingerprint] = _LiveSpace(self.root, self.root / "spaces" / folder, fingerprint)
        live = self._spaces[fingerprint]
        live.refresh()
        return live.indexes

    @contextlib.contextmanager
    def committing(self, fingerprint: str, segment_id: str) -> Iterator[None]:
        """Around the commit of a segment: it is taken in without listing, where nothing else changed meanwhile."""
        live = self._spaces.get(fingerprint)
        if live is None:
            yield
            return
        before = live.mark()
        yield
        with self._lock:
            live.take_in(segment_id, before)


_latest: LiveCache | None = None


def live_cache(root: Path) -> LiveCache:
    """This process's view of a cache; the one that was asked for last is kept."""
    global _latest
    if _latest is None or _latest.root != root:
        _latest = LiveCache(root)
    return _latest


def committing(root: Path, fingerprint: str, segment_id: str) -> contextlib.AbstractContextManager[None]:
    """As `LiveCache.committing` of the view that this process keeps; nothing where it keeps none of this cache."""
    follows = _latest is not None and _latest.root == root
    return _latest.committing(fingerprint, segment_id) if _latest and follows else contextlib.nullcontext()


class _LiveSpace:
    """A feature space that is followed; `indexes` hold it together, the largest first."""

    def __init__(self, root: Path, folder: Path, fingerprint: str) -> None:
        self._root, self._folder, self._fingerprint = root, folder, fingerprint
        self.indexes: list[SpaceIndex] = []
        self._known: set[str] = set()
        self._unread: list[str] = []
        self._mark: _Mark = _ABSENT
        self._counts_folders = False
        self._listed_s = float("-inf")

    def mark(self) -> _Mark:
        """That of the segments' folder as it is now; of one that cannot be asked, listing tells why."""
        try:
            status = files.file_status(self._folder / "segments")
        except (FileNotFoundError, NotADirectoryError, CacheReadError):
            return _ABSENT
        return status.st_mtime_ns, status.st_nlink

    def take_in(self, name: str, before: _Mark) -> None:
        """Remember a segment of this process's own, where it is all that changed since a mark that was up to date."""
        after = self.mark()
        if before == self._mark and name not in self._known and after[1] == before[1] + self._counts_folders:
            self._known.add(name)
            self._unread.append(name)
            self._mark = after

    def refresh(self) -> None:
        """Take in what is new, or all again where something known is gone."""
        now_s, mark = time.monotonic(), self.mark()
        is_due = not self._counts_folders and now_s - self._listed_s >= _RELIST_S
        if mark != self._mark or is_due or not self.indexes:
            self._list()
            self._counts_folders = mark[1] == _LINKS_OF_AN_EMPTY_FOLDER + len(self._known - {format.RECORD})
            self._mark, self._listed_s = mark, now_s
        while self._unread:
            self._add(self._read(self._unread[-1]))
            self._unread.pop()

    def _list(self) -> None:
        try:
            listed = files.names_in(self._folder / "segments")
        except (FileNotFoundError, NotADirectoryError):
            listed = set()
        new = listed - self._known
        if self.indexes and len(listed) - len(new) == len(self._known):  # nothing known is gone
            self._unread += filter(format.SEGMENT_ID.fullmatch, new)
        else:
            self.indexes, self._unread = self._read_all(), []
        self._known = listed

    def _read_all(self) -> list[SpaceIndex]:
        try:
            layout.read_cache_record(self._root)
        except (FileNotFoundError, NotADirectoryError):
            if isinstance(error := layout.no_cache(self._root), CacheFormatError):
                raise error from None
            return []
        try:
            layout.read_space(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [read_index(self._folder, self._fingerprint, {})[0]]

    def _read(self, name: str) -> SpaceIndex:
        """The rows of a new segment; none where it is damaged or does not fit the others, as for a reader."""
        try:
            part = read_segment(self._folder / "segments" / name, self._fingerprint)
        except DamagedSegmentError:
            return EMPTY
        first = self.indexes[0].segments[:1]
        fits = all((one.dtype, one.row_shape) == (part[0].dtype, part[0].row_shape) for one in first)
        return index_of([part] if fits else [])

    def _add(self, index: SpaceIndex) -> None:
        self.indexes.append(index)
        while len(self.indexes) > 1 and len(self.indexes[-2]) <= _GROWTH * len(self.indexes[-1]):
            self.indexes[-2:] = [merged(*self.indexes[-2:])]
