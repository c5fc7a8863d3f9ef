"""Arrays in HDF5 and npz files from elsewhere, which are distrusted.

Pickled objects, external storage, external and soft links, virtual data sets, unknown filters and sizes that
the file cannot hold are refused before any array is read: an HDF5 file with external storage reads any file
of this machine, and a few hundred bytes can claim terabytes. What turns out to be damaged while it is read is
named so, whatever the library that read it says.
"""

import contextlib
import errno
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, FeatureCacheError, UnsafeFileError

_MOST_RATIO = 64  # a compressed file that claims to hold more than this many times its size is a bomb
_KNOWN_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf
_CHECKING_FILTERS = {2, 3}  # shuffle and fletcher32 make nothing smaller
_DAMAGE = (  # what zipfile, numpy and h5py raise on bytes that are not what was written
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def open_foreign(path: Path) -> "ForeignFile":
    """Open a file by its suffix: `.npz`, otherwise HDF5. A context manager.

    Raises:
        FileNotFoundError: If it is not there.
        CacheFormatError: If it is not of this form.
    """
    if path.suffix == ".npz":
        return _Npz(path)
    return _Hdf5(path)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Tell damage that is found while reading as CacheFormatError; what the disk refuses stays as it is."""
    try:
        yield
    except FeatureCacheError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, 0, errno.EINVAL):
            raise
        found = " ".join(str(error).split()) or type(error).__name__
        raise CacheFormatError(
            f"a file must be whole, but {path.name} is damaged ({found}). Export it again."
        ) from None


class _DataSet:
    """A data set of an HDF5 file, read by slices."""

    def __init__(self, path: Path, found: h5py.Dataset) -> None:
        self.shape, self.dtype, self._path = found.shape, found.dtype, path
        self._values = found.asstr() if h5py.check_string_dtype(found.dtype) else found

    def __getitem__(self, rows: slice) -> Any:
        with _whole(self._path):
            return self._values[rows]


class _Hdf5:
    """An HDF5 file from elsewhere; only plain data sets stored in the file itself are touched."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise CacheFormatError(f"{path.name} must be an HDF5 file, but {error}. Check the file.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def has(self, name: str) -> bool:
        """Whether there is something of this name."""
        with _whole(self._path):
            return self._file.get(name, getlink=True) is not None

    def note(self, name: str) -> str:
        """An attribute that is text; empty where there is none."""
        with _whole(self._path):
            value = self._file.attrs.get(name, "")
        return value if isinstance(value, str) else ""

    def array(self, name: str) -> Any:
        """A data set that may be sliced, of numbers or text."""
        with _whole(self._path):
            return _DataSet(self._path, self._plain(name))

    def _plain(self, name: str) -> h5py.Dataset:
        link = self._file.get(name, getlink=True)
        if link is None:
            raise _lacks(self._path, f"it has no {name}")
        if not isinstance(link, h5py.HardLink):
            raise _unsafe(self._path, f"{name} is a link")
        found = self._file[name]
        if not isinstance(found, h5py.Dataset):
            raise _lacks(self._path, f"{name} is no data set")
        if found.external or found.is_virtual:
            raise _unsafe(self._path, f"{name} is stored in another file")
        plist = found.id.get_create_plist()
        filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
        if filters - _KNOWN_FILTERS:
            raise _unsafe(self._path, f"{name} needs the filters {sorted(filters - _KNOWN_FILTERS)}")
        claimed = found.size * found.dtype.itemsize
        if claimed > (_MOST_RATIO if filters - _CHECKING_FILTERS else 1) * self._size:
            raise _unsafe(self._path, f"{name} claims {claimed} bytes in a file of {self._size}")
        return found


class _Npz:
    """An npz file from elsewhere; headers are checked before any array is read."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        with _whole(path):
            try:
                self._archive = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise CacheFormatError(f"{path.name} must be an npz file, but {error}. Check the file.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def has(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return f"{name}.npy" in self._archive.namelist()

    def note(self, name: str) -> str:
        """An array of one text; empty where there is none."""
        if not self.has(name):
            return ""
        value = self.array(name)
        return str(value) if value.ndim == 0 and value.dtype.kind == "U" else ""

    def array(self, name: str) -> Any:
        """A whole array of numbers or text."""
        with _whole(self._path):
            return self._read(name)

    def _read(self, name: str) -> npt.NDArray[Any]:
        if not self.has(name):
            raise _lacks(self._path, f"it has no {name}")
        info = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(info) as member:
            try:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            except ValueError as error:
                raise _lacks(self._path, f"{name} is no array ({error})") from None
            if dtype.hasobject:
                raise _unsafe(self._path, f"{name} holds pickled objects")
            claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if claimed != info.file_size - member.tell() or info.file_size > _MOST_RATIO * self._size:
                raise _unsafe(self._path, f"{name} claims {claimed} bytes in a file of {self._size}")
        with self._archive.open(info) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
        return array.astype(str) if array.dtype.kind == "S" else array


ForeignFile = _Hdf5 | _Npz


def _unsafe(path: Path, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"{path.name} must hold plain arrays in itself, but {what}. Save the features again as plain arrays."
    )


def _lacks(path: Path, what: str) -> CacheFormatError:
    return CacheFormatError(f"{path.name} must hold features and clip_id, but {what}. Check the file.")
