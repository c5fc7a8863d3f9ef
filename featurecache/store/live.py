"""What feature spaces hold by now: one view for each process and cache, which reads only segments that are new.

A `FeatureCache` is a snapshot; asking for a new one before every recording reads every segment again. Here each
feature space keeps a few indexes, each many times larger than the next, so that the cost of a new row grows with the
logarithm of the rows. A folder is listed again when its time of modification changed, and once a second anyway, since
some file systems keep coarse times: a segment of the very same tick may be seen that much later, and what depends on
it is effort, never a value.
"""

import threading
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, DamagedSegmentError
from featurecache.spec import FeatureSpace
from featurecache.store import files, format, layout
from featurecache.store.clip_columns import Wanted
from featurecache.store.index import EMPTY, SpaceIndex, index_of, lacking, merged, read_index
from featurecache.store.segment import read_segment

_RELIST_S = 1.0
_GROWTH = 16  # an index is looked up in many times for each time it is merged: few large ones


class LiveCache:
    """The clips of a cache as they are whenever one asks; safe for several threads.

    Args:
        root: The cache; need not be there yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
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
            if space.fingerprint not in self._spaces:
                folder = self._root / "spaces" / format.space_folder_name(space)
                self._spaces[space.fingerprint] = _LiveSpace(self._root, folder, space.fingerprint)
            live = self._spaces[space.fingerprint]
            live.refresh()
            return lacking(live.indexes, wanted)


@lru_cache(maxsize=1)
def live_cache(root: Path) -> LiveCache:
    """This process's view of a cache; the one that was asked for last is kept."""
    return LiveCache(root)


class _LiveSpace:
    """A feature space that is followed; `indexes` hold it together, the largest first."""

    def __init__(self, root: Path, folder: Path, fingerprint: str) -> None:
        self._root, self._folder, self._fingerprint = root, folder, fingerprint
        self.indexes: list[SpaceIndex] = []
        self._known: set[str] = set()
        self._changed_ns = -1
        self._listed_s = float("-inf")

    def refresh(self) -> None:
        """Take in what is new, or all again where something known is gone."""
        now_s = time.monotonic()
        try:
            changed_ns = files.file_status(self._folder / "segments").st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            changed_ns = -1
        if changed_ns == self._changed_ns and now_s - self._listed_s < _RELIST_S:
            return
        try:
            listed = files.names_in(self._folder / "segments")
        except (FileNotFoundError, NotADirectoryError):
            listed = set()
        new = listed - self._known
        if self._known and len(listed) - len(new) == len(self._known):  # nothing known is gone
            for name in sorted(filter(format.SEGMENT_ID.fullmatch, new)):
                self._add(self._read(name))
        else:
            self.indexes = self._read_all()
        self._known, self._changed_ns, self._listed_s = listed, changed_ns, now_s

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
