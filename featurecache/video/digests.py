"""Digests of large files, remembered so that a second run opens none of them.

The memo is a small JSON file outside the cache. An entry holds as long as the file's size and times of
modification and change are what they were. As in git's index, one that was made within two seconds of
the file's last change is not trusted: a write in the same tick of the clock would not show. The memo
saves time and decides nothing: damaged, it is ignored, and without it everything is read again.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from featurecache.files import private_folder, sha256_of_file, write_private
from featurecache.spec import json_object, sealed, unsealed

_VERSION = 3
_RACY_NS = 2_000_000_000


class DigestMemo:
    """Path -> sha256 of the file's content, and facts that were learned from that content; paths by a digest alone.

    Args:
        path: Where the memo lies; None to remember nothing beyond this object.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._files = _load(path)
        self._changed = False

    def sha256(self, path: Path, on_read: Callable[[int], None] = lambda _: None) -> str:
        """sha256 of a file's content, 64 hex digits, read only where the memo does not know it.

        Args:
            path: The file.
            on_read: Called with the bytes read so far, while it is read.

        Raises:
            OSError: If the file cannot be read, or changes while it is.
        """
        before = path.stat()
        entry = self._files.get(_key(path))
        if entry is not None and entry["state"] == _state(before):
            last_change_ns = max(before.st_mtime_ns, before.st_ctime_ns)
            if entry["noted_ns"] - last_change_ns > _RACY_NS:
                return str(entry["sha256"])
        sha256 = sha256_of_file(path, on_read)
        entry = {"state": _state(before), "noted_ns": time.time_ns(), "sha256": sha256, "facts": {}}
        _refuse_change(path, entry)
        self._files[_key(path)] = entry
        self._changed = True
        return str(entry["sha256"])

    def knows(self, path: Path) -> bool:
        """Whether a file seems to be as it was when it was read; `sha256` looks more closely."""
        entry = self._files.get(_key(path))
        with contextlib.suppress(OSError):
            return entry is not None and entry["state"] == _state(path.stat())
        return False

    def refuse_change(self, path: Path) -> None:
        """Check that a file is what it was when its digest was asked for.

        Raises:
            OSError: If it has changed since then.
        """
        _refuse_change(path, self._files[_key(path)])

    def recall(self, path: Path, source: str) -> dict[str, Any] | None:
        """The facts that `source` learned from the file whose digest was just asked for, or None."""
        facts = self._files[_key(path)]["facts"].get(source)
        return None if facts is None else dict(facts)

    def remember(self, path: Path, source: str, facts: Mapping[str, Any]) -> None:
        """Keeps JSON-ready facts that `source` learned from the file since its digest was asked for.

        Raises:
            OSError: If the file has changed since then.
        """
        entry = self._files[_key(path)]
        _refuse_change(path, entry)
        entry["facts"] = {source: dict(facts)}
        self._changed = True

    def forget(self, digits: str) -> None:
        """Drops every file whose sha256 begins with these digits."""
        kept = {key: entry for key, entry in self._files.items() if not entry["sha256"].startswith(digits)}
        self._changed = self._changed or len(kept) < len(self._files)
        self._files = kept

    def save(self) -> None:
        """Writes the memo, mode 0600, if it learned anything."""
        if self._path is None or not self._changed:
            return
        document = sealed({"version": _VERSION, "files": self._files})
        # Without the memo the next run is slower and no less right.
        with contextlib.suppress(OSError):
            private_folder(self._path.parent)
            write_private(self._path, json.dumps(document, indent=1, sort_keys=True).encode())


def _key(path: Path) -> str:
    """What the memo knows a file by: it tells no name and no folder of a recording."""
    return hashlib.sha256(str(path.absolute()).encode(errors="surrogateescape")).hexdigest()[:32]


def _state(status: os.stat_result) -> dict[str, int]:
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}


def _refuse_change(path: Path, entry: Mapping[str, Any]) -> None:
    if _state(path.stat()) != entry["state"]:
        raise OSError(errno.ESTALE, "it changed while it was read; run again when it is complete", str(path))


def _load(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        document = unsealed(json_object(path.read_bytes()))
    except (OSError, ValueError):
        return {}
    return dict(document["files"]) if document.get("version") == _VERSION else {}
