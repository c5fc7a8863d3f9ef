"""Turns: gc, compact, forget, repair and import of one cache run one after the other, on whatever machines they are.

The turn is a claim like those on recordings: a hidden file in the cache's folder that its holder touches, that ends
at once where its process is gone from this machine, and after two minutes without a touch elsewhere. Nothing that
must hold depends on it: every operation stays right when it is overtaken. It keeps operations from reporting
each other's work as damage, and from doing it twice. Writers and readers take no turn and never wait.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from featurecache.errors import CacheBusyError, CacheWriteError
from featurecache.store.claims import Claims
from featurecache.store.commit import writing

PATIENCE_S = 900.0
"""How long an operation waits for its turn."""

_ASK_AGAIN_S = 0.05
_held = threading.local()


@contextlib.contextmanager
def turn(root: Path, what: str, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Wait until no other operation works on a cache, and keep others waiting meanwhile.

    A thread that holds the turn may begin another operation on the same cache within it.

    Args:
        root: The cache.
        what: The operation, for the message.
        patience_s: How long to wait.

    Raises:
        CacheBusyError: If another operation still works on it after that time.
        CacheWriteError: If the cache cannot be written.
    """
    key = (os.getpid(), str(root.absolute()))
    held: set[tuple[int, str]] = _held.__dict__.setdefault("roots", set())
    if key in held:
        yield
        return
    with Claims(root, hidden=True) as claims:
        deadline = time.monotonic() + patience_s
        while not _taken(claims, root):
            if time.monotonic() > deadline:
                raise CacheBusyError(
                    f"{what} must have the cache {root} to itself, but another gc, compact, forget, repair or import "
                    f"has been working on it for {patience_s:.0f} s. Let it finish or end it, then run {what} again."
                )
            time.sleep(_ASK_AGAIN_S)
        held.add(key)
        try:
            yield
        finally:
            held.discard(key)


def _taken(claims: Claims, root: Path) -> bool:
    try:
        with writing(root):
            return claims.take("care")
    except CacheWriteError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True  # gc must be able to free a full disk; what needs space will say so itself
        raise
