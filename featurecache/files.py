"""Files for this user alone: created 0600 in folders of 0700, replaced whole or not at all."""

import contextlib
import hashlib
import os
import resource
import secrets
from collections.abc import Callable
from pathlib import Path

_BLOCK = 1 << 20


def private_folder(path: Path) -> Path:
    """Makes a folder and its missing parents with mode 0700 and returns it; one that is there keeps its mode."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Writes a file with mode 0600 so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: If it cannot be written; the old content is then still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # nobody knows the temporary one
        raise


def longest_name(folder: Path) -> int:
    """The most bytes that the name of a file can have which `write_private` writes into a folder that is there."""
    return os.pathconf(folder, "PC_NAME_MAX") - len(f"..{secrets.token_hex(6)}.tmp")


def forbid_core_dumps() -> None:
    """Keeps this process's memory, which holds frames of recordings, from being written to disk when it crashes.

    A soft limit of one byte is the value at which Linux writes no dump to a file and hands none to a program either;
    a limit of zero stops files alone.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (1 if hard == resource.RLIM_INFINITY else min(1, hard), hard))


def sha256_of_file(path: Path, on_read: Callable[[int], None] = lambda _: None) -> str:
    """sha256 of a file's content, 64 hex digits, read in bounded memory; `on_read` is called with the bytes so far."""
    digest, block, done = hashlib.sha256(), bytearray(_BLOCK), 0
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(block):
            digest.update(memoryview(block)[:length])
            done += length
            on_read(done)
    return digest.hexdigest()
