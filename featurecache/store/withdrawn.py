"""Which recordings were withdrawn: marks that keep them from ever coming back into a cache.

`withdrawn/<mark>`: a mark is a digest of the recording's digest, so that the cache no longer tells which recording it
was, yet recognises its rows. Marks are made before anything is removed, and looked at after every commit; whichever
of withdrawal and commit comes last therefore sees the other. Readers serve no row of a marked recording.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurecache.errors import WithdrawnRecordingError
from featurecache.store import files, format

FOLDER = "withdrawn"


@dataclass(frozen=True)
class Withdrawn:
    """The recordings that were withdrawn from a cache.

    Attributes:
        marks: Of each of them.
    """

    marks: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.marks)

    def covers(self, video_sha256: str) -> bool:
        """Whether a recording was withdrawn.

        Args:
            video_sha256: Its digest; the first 16 digits decide, as in clip ids.
        """
        return bool(self.marks) and mark_of(video_sha256) in self.marks

    def rows(self, video_sha256: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which rows are of withdrawn recordings.

        Args:
            video_sha256: Digests, shape (N, 32).

        Returns:
            True where the recording was withdrawn, shape (N,).
        """
        if not self.marks:
            return np.zeros(len(video_sha256), bool)
        prefixes, place = np.unique(np.ascontiguousarray(video_sha256[:, :8]).view(">u8").ravel(), return_inverse=True)
        covered = np.array([self.covers(f"{prefix:016x}") for prefix in prefixes.tolist()], bool)
        found: npt.NDArray[np.bool_] = covered[place] if len(prefixes) else np.zeros(0, bool)
        return found


@lru_cache(maxsize=1 << 16)
def _mark(prefix: str) -> str:
    return hashlib.sha256(f"featurecache withdrawn {prefix}".encode()).hexdigest()


def mark_of(video_sha256: str) -> str:
    """The mark of a recording, 64 hex digits, from at least the first 16 digits of its sha256."""
    return _mark(video_sha256[:16])


def read_withdrawn(root: Path) -> Withdrawn:
    """The recordings that were withdrawn from a cache.

    Raises:
        CacheReadError: If the disk refuses.
    """
    return Withdrawn(frozenset(filter(format.SHA256.fullmatch, files.list_names(root / FOLDER))))


def mark_withdrawn(root: Path, video_sha256: str) -> str:
    """Mark a recording as withdrawn, durably; one that is marked stays so.

    Returns:
        The mark.

    Raises:
        OSError: If it cannot be written.
    """
    mark, folder = mark_of(video_sha256), root / FOLDER
    files.make_folder(folder, exist_ok=True)
    files.sync_folder(root)
    if not files.exists(folder / mark):
        files.replace_file(folder / mark, f"{mark}\n".encode(), f".{format.new_segment_id()}.tmp")
    return mark


def refusal(video_sha256: str) -> WithdrawnRecordingError:
    """The error for a row of a withdrawn recording."""
    return WithdrawnRecordingError(
        f"a recording must not have been withdrawn to be cached, but {video_sha256[:16]} was, by featurecache cache "
        f"forget. Leave it out; if consent was given again, remove {FOLDER}/{mark_of(video_sha256)} from the cache."
    )
