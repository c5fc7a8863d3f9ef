"""Committing a segment: staged, made durable, renamed into place; and how a failed operation is told.

The rename is the commit point: a segment is there whole or not at all, and never changed afterwards.
"""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

from featurecache.errors import CacheWriteError, FeatureCacheError
from featurecache.store import files


def commit_segment(space_folder: Path, segment_id: str, contents: Mapping[str, bytes]) -> None:
    """Write a segment to staging, make it durable, and rename it into place.

    Args:
        space_folder: `.../spaces/<name>`.
        segment_id: A new one.
        contents: What `encode_segment` made.

    Raises:
        OSError: If it failed. Before the rename nothing is left behind; after it, in the last sync, the
            segment is visible but not known to be durable.
    """
    staged = space_folder / "staging" / segment_id
    folders = sorted({parent for path in contents for parent in (staged / path).parents if staged in parent.parents})
    try:
        files.make_folder(staged)
        for folder in folders:
            files.make_folder(folder)
        for path, data in contents.items():
            files.write_new(staged / path, data)
        for folder in [*folders, staged]:
            files.sync_folder(folder)
        files.move(staged, space_folder / "segments" / segment_id)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove_tree(staged)
        raise
    files.sync_folder(space_folder / "segments")


@contextlib.contextmanager
def writing(path: Path, what: str = "the cache") -> Iterator[None]:
    """Tell a failed operation on a cache, or on something else that is written, as CacheWriteError, with its errno."""
    try:
        yield
    except FeatureCacheError:
        raise
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        wrapped = CacheWriteError(
            f"{what} {path} must be writable, but {error.filename or 'writing it'} gave {name} "
            f"({error.strerror or error}). {_ADVICE.get(error.errno or 0, _OTHER_ADVICE)}"
        )
        wrapped.errno = error.errno
        raise wrapped from error


_ADVICE = {
    errno.ENOSPC: "The disk is full; what was saved is intact. Free space, then run the same command again.",
    errno.EDQUOT: "Your quota is used up; what was saved is intact. Free space, then run the same command again.",
    errno.EROFS: "It is mounted read-only. Mount it writable, or choose another folder.",
    errno.EACCES: "Check the owner and the permissions of the folder.",
    errno.EPERM: "Check the owner and the permissions of the folder.",
    errno.ENOENT: "Check that the folder and its disk are there; what was saved is intact.",
}
_OTHER_ADVICE = "What was saved is intact. Check the disk and the mount, then run the same command again."
