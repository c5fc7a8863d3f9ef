"""One feature space as one new HDF5 or npz file, written in bounded memory and put in place whole.

HDF5 does not survive a write that fails: on a full disk it prints tracebacks and may end the process. So it writes to
a file that never tells it, and the first failure is raised between two of its writes, and after the last one.
"""

import contextlib
import hashlib
import io
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, CacheWriteError
from featurecache.store.commit import writing
from featurecache.store.proof import ArrayDigest, digest_of, proof_notes


def require_suffix(path: Path) -> None:
    """Check that a file's name says what it is.

    Raises:
        CacheFormatError: If it does not.
    """
    if path.suffix not in (".h5", ".hdf5", ".npz"):
        raise CacheFormatError(f"the file must end in .h5, .hdf5 or .npz, but is {path.name}. Choose one of these.")


@dataclass(frozen=True, eq=False)
class ExportContent:
    """What an export holds.

    Attributes:
        shape: Of the features, (N, ...).
        dtype: Of the features.
        batches: The features, from the first row to the last. It is exhausted before `columns` are read.
        columns: The other arrays, each of N rows.
        notes: Texts.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    batches: Iterator[npt.NDArray[Any]]
    columns: Mapping[str, npt.NDArray[Any]]
    notes: Mapping[str, str]

    def proven_notes(self, features_sha256: str) -> dict[str, str]:
        """The notes, and those that prove arrays and notes."""
        digests = {name: digest_of(array) for name, array in self.columns.items()}
        digests["features"] = ArrayDigest(self.dtype.str, self.shape, features_sha256)
        return {**self.notes, **proof_notes(digests, self.notes)}


def write_export(target: Path, content: ExportContent) -> None:
    """Write a file with its proof.

    Args:
        target: As `require_suffix` asks; must not exist yet, not even as a link to nowhere.
        content: What it holds.

    Raises:
        CacheWriteError: If the file is already there or cannot be written.
    """
    with _new_file(target) as temporary:
        (_write_npz if target.suffix == ".npz" else _write_hdf5)(temporary, content)


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A private temporary file that becomes the target when all went well."""
    if os.path.lexists(target):
        raise CacheWriteError(
            f"an export must go to a new file, but {target} exists. Remove it or choose another name."
        )
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        with writing(target, "the export"):
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_hdf5(path: Path, content: ExportContent) -> None:
    rows, digest, at = content.shape[0], hashlib.sha256(), 0
    with path.open("r+b", buffering=0) as raw:
        disk = _Disk(raw)
        with h5py.File(disk, "w") as file:
            features = file.create_dataset(
                "features", content.shape, content.dtype, fletcher32=bool(rows), chunks=True if rows else None
            )
            for batch in content.batches:
                features[at : at + len(batch)] = batch
                digest.update(batch.data)
                at += len(batch)
                disk.raise_failure()
            for column, array in content.columns.items():
                file.create_dataset(column, data=array)
            file.attrs.update(content.proven_notes(digest.hexdigest()))
        disk.raise_failure()


class _Disk(io.RawIOBase):
    """A file as HDF5 writes to it, which keeps the first failure to itself; what comes after that is not written."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._failure: OSError | None = None
        self._at = self._end = 0

    def raise_failure(self) -> None:
        """Raise what went wrong so far."""
        if self._failure is not None:
            raise self._failure

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._attempt(lambda: self._write_all(view))
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        self._attempt(lambda: self._read_into(view))
        self._at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._end = self._at if size is None else size
        self._attempt(lambda: self._raw.truncate(self._end))
        return self._end

    def _write_all(self, rest: memoryview) -> None:
        self._raw.seek(self._at)
        while rest:
            rest = rest[self._raw.write(rest) or 0 :]

    def _read_into(self, view: memoryview) -> None:
        self._raw.seek(self._at)
        self._raw.readinto(view)

    def _attempt(self, work: Callable[[], object]) -> None:
        if self._failure is None:
            try:
                work()
            except OSError as failure:
                self._failure = failure


def _write_npz(path: Path, content: ExportContent) -> None:
    digest = hashlib.sha256()
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            descr = np.lib.format.dtype_to_descr(content.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": content.shape}
            np.lib.format.write_array_header_2_0(member, header)
            for batch in content.batches:
                member.write(batch.data)
                digest.update(batch.data)
        notes = {name: np.array(text) for name, text in content.proven_notes(digest.hexdigest()).items()}
        for name, array in {**content.columns, **notes}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
