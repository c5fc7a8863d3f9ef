"""Every touch of the file system by the store: a few functions over `os`, and nothing else anywhere.

One place, so that a test can break each operation in turn (`tests/test_store_faults.py` puts a faulty
`os` here). Files are made 0600 and folders 0700 whatever the umask; a new file is written, synced and
closed before anyone is told; what fails is abandoned, never synced again in hope. A file or folder that
is not there raises FileNotFoundError; any other failure to read becomes CacheReadError, so that a sick
disk is never mistaken for an absent row. No locks: they do not work on NFS and can be left behind.
"""

# One faulty `os` must reach every operation; pathlib would hide them from it.
# ruff: noqa: PTH101, PTH102, PTH104, PTH105, PTH106, PTH108, PTH116, PTH208

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

from featurecache.errors import CacheReadError

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EACCES}
_MOST_VIEWS = 512  # POSIX promises 16, Linux and macOS take 1024 buffers a call


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Make one folder, 0700 under any umask; its parent must exist."""
    try:
        os.mkdir(path, _FOLDER_MODE)
    except FileExistsError:
        if exist_ok:
            return
        raise
    if stat.S_IMODE(os.stat(path).st_mode) & 0o777 != _FOLDER_MODE:
        os.chmod(path, _FOLDER_MODE)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist yet, 0600 under any umask, and sync it; one that fails is removed again.

    Errors of close count too: network file systems report a full disk there.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        try:
            if stat.S_IMODE(os.fstat(file).st_mode) != _FILE_MODE:
                os.fchmod(file, _FILE_MODE)
            rest = memoryview(data)
            while rest:
                written = os.write(file, rest)
                if written == 0:
                    raise OSError(errno.EIO, "a write stored no byte", str(path))
                rest = rest[written:]
            os.fsync(file)
        finally:
            os.close(file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def move(source: Path, target: Path) -> None:
    """Rename to a name that nobody else uses; an error whose rename did happen is a success.

    Over NFS the reply to a rename can be lost and the repeated request answered "no such file".
    """
    try:
        os.rename(source, target)
    except OSError:
        if exists(source) or not exists(target):
            raise


def link(source: Path, target: Path, data: bytes) -> bool:
    """Give a file a second name unless that is taken; whether it worked, also where NFS lost the reply.

    Args:
        source: The file.
        target: Its second name.
        data: The file's content, written to a new file of that name where the file system has no hard links.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        return os.lstat(source).st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        try:
            write_new(target, data)
        except FileExistsError:
            return False
    return True


def replace(source: Path, target: Path) -> None:
    """Rename over whatever has the name."""
    os.replace(source, target)


def touch_own(path: Path, data: bytes) -> bool:
    """Set a file's times to the present of the machine that keeps it, if it holds this content; whether it does.

    Content and times are those of one opened file: whatever takes the name meanwhile is not touched.

    Raises:
        FileNotFoundError: If it is not there.
        OSError: If it cannot be read or touched.
    """
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.read(file, len(data) + 1) != data:
            return False
        os.utime(file)
    finally:
        os.close(file)
    return True


def server_time(folder: Path, probe_name: str) -> float:
    """The present by the clock that gives this folder's files their times: on a share the file server's.

    Args:
        folder: Where to make a file for a moment.
        probe_name: Its name, which nobody else uses.

    Raises:
        OSError: If the folder cannot be written.
    """
    probe = folder / probe_name
    try:
        write_new(probe, b"")
        return os.lstat(probe).st_mtime
    finally:
        remove_file(probe)


def replace_file(path: Path, data: bytes, temporary_name: str) -> None:
    """Put a whole file in place of another (or of none) by rename, durably."""
    temporary = path.with_name(temporary_name)
    try:
        write_new(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file; one that is already gone is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, following no link; one that is already gone is fine."""
    with contextlib.suppress(FileNotFoundError):
        with os.scandir(path) as entries:
            inside = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
        for entry_path, is_folder in inside:
            if is_folder:
                remove_tree(entry_path)
            else:
                remove_file(entry_path)
        os.rmdir(path)


def remove_empty_folder(path: Path) -> bool:
    """Remove a folder unless it holds something; whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def exists(path: Path) -> bool:
    """Whether the name is there; only "no such file" means no."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    return True


def list_names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(names_in(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def names_in(folder: Path) -> set[str]:
    """Names in a folder, in no order: sorting those of thousands of segments takes longer than listing them."""
    with _reading(folder):
        return set(os.listdir(folder))


def inside(folder: Path) -> list[Path]:
    """What a folder holds, sorted; nothing where there is no folder."""
    return [folder / name for name in list_names(folder)]


def is_folder(path: Path) -> bool:
    """Whether the name is a folder, following no link; False where it is not there."""
    try:
        return stat.S_ISDIR(file_status(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_regular(path: Path) -> bool:
    """Whether the name is a file of bytes, no link, device or the like.

    Raises:
        FileNotFoundError: If it is not there.
    """
    return stat.S_ISREG(file_status(path).st_mode)


def walk(path: Path) -> Iterator[Path]:
    """Every file below a folder, following no link; the path itself where it is a file."""
    if not is_folder(path):
        yield path
        return
    for inner in inside(path):
        yield from walk(inner)


def process_lives(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def file_status(path: Path | str) -> os.stat_result:
    """Size and times of a file, following no link."""
    with _reading(path):
        return os.lstat(path)


def read_file(path: Path | str) -> bytes:
    """A whole file."""
    with _reading(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(file, max(os.fstat(file).st_size, 1 << 16)):
                parts.append(part)
        finally:
            os.close(file)
    return b"".join(parts)


def read_pieces(path: Path, size: int) -> Generator[bytes, None, None]:
    """A file's bytes piece after piece; nothing of what is no regular file.

    Raises:
        FileNotFoundError: If it is not there.
        CacheReadError: If it cannot be read.
    """
    if not stat.S_ISREG(file_status(path).st_mode):
        return
    with _reading(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while piece := os.read(file, size):
                yield piece
        finally:
            os.close(file)


def read_scattered(path: str, size: int, pieces: Iterable[tuple[int, Sequence[memoryview]]]) -> None:
    """Read stretches of one file straight into memory.

    Args:
        path: The file.
        size: Bytes the file must have.
        pieces: (offset in the file, writable byte views to fill one after the other).

    Raises:
        FileNotFoundError: If the file is not there.
        EOFError: If the file has another size, or ends while it is read.
        CacheReadError: If it cannot be read.
    """
    with _reading(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(file).st_size
            if found != size:
                raise EOFError(f"{found} bytes instead of {size}")
            for offset, views in pieces:
                _fill(file, offset, views)
        finally:
            os.close(file)


def _fill(file: int, offset: int, views: Sequence[memoryview]) -> None:
    """Fill views from one offset on, whatever lengths the system returns."""
    for first in range(0, len(views), _MOST_VIEWS):
        some = list(views[first : first + _MOST_VIEWS])
        while some:
            got = os.preadv(file, some, offset)
            if got == 0:
                raise EOFError("it ended while it was read")
            offset += got
            while some and got >= len(some[0]):
                got -= len(some.pop(0))
            if got:
                some[0] = some[0][got:]


@contextlib.contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    """Lets only a file that is not there be an OSError: whatever else the system refuses becomes CacheReadError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path | str, error: OSError) -> CacheReadError:
    name = errno.errorcode.get(error.errno or 0, "unknown")
    return CacheReadError(
        f"the cache must be readable, but {path} gave {name} ({error.strerror}). "
        "Nothing is known to be missing: check the disk, the mount and the permissions, then try again."
    )
