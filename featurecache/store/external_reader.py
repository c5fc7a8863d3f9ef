"""The process that reads HDF5 and npz files from elsewhere; `external.py` starts it and asks.

Such a file can make the library that parses it loop, claim gigabytes or crash. So it is parsed here, under limits on
memory and processor time, and what goes back is numbers and short texts as plain bytes, never an object. Refused
before any value is read: pickled objects, links, external storage, virtual data sets, unknown filters and chains of
compressing ones, chunks and arrays larger than the file can hold, and values that are no numbers or short texts.

Requests are lines of JSON on stdin: `{"ask": "has" | "note" | "array" | "rows" | "packed", "name": ..}`, rows with
`first` and `stop`. Each answer is a line of JSON on stdout, followed by as many bytes as it names. Nothing of
featurecache is imported here, so that the process starts in a quarter of a second.
"""

import errno
import json
import resource
import struct
import sys
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import h5py

ANSWER_CPU_S = 5
"""Processor time for one answer."""
MOST_TEXT_BYTES = 256
"""Of one text in an array."""

_MEMORY_BYTES = 512 << 20
_MOST_RATIO = 64  # a compressed file that claims to hold more than this many times its size is a bomb
_MOST_CHUNK_BYTES = 64 << 20  # one chunk is decoded whole
_CHUNK_SLACK_BYTES = 4096  # a compressed chunk is hardly ever larger than a plain one
_MOST_NOTE_BYTES = 16 << 20
_SKIP_BYTES = 1 << 20
_TEXTS_AT_ONCE = 64  # texts of variable length may all name the same large one
_KNOWN_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf
_FLETCHER32 = 3
_SEARCHED_BYTES = 64  # of a row, by which copies of it are recognised
_CHECKING_FILTERS = {2, _FLETCHER32}  # shuffle and fletcher32 make nothing smaller
_DAMAGE = (  # what zipfile, numpy and h5py raise on bytes that are not what was written
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class UnsafeError(Exception):
    """What the file uses could do harm."""


class UnfitError(Exception):
    """The file is sound but does not hold what was asked for."""


class Hdf5Reader:
    """An HDF5 file from elsewhere; only plain data sets stored in the file itself are touched."""

    def __init__(self, path: Path) -> None:
        import h5py

        self._h5py = h5py
        self._size = path.stat().st_size
        self._sets: dict[str, h5py.Dataset] = {}
        try:
            self._file = h5py.File(path, "r", rdcc_nbytes=_MOST_CHUNK_BYTES)
        except OSError as error:
            raise UnfitError(f"{path.name} must be an HDF5 file, but {error}. Check the file.") from None

    def has(self, name: str) -> bool:
        """Whether there is something of this name."""
        return self._file.get(name, getlink=True) is not None

    def note(self, name: str) -> str:
        """An attribute that is text; empty where there is none."""
        if name not in self._file.attrs:
            return ""
        found = self._file.attrs.get_id(name)
        is_text = self._h5py.check_string_dtype(found.dtype) is not None
        if not is_text or found.shape != () or found.get_storage_size() > _MOST_NOTE_BYTES:
            return ""
        value = self._file.attrs[name]
        return value if isinstance(value, str) else ""

    def array(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and numpy dtype of an array that may be read; the dtype of texts is "text"."""
        found = self._sets[name] = self._plain(name)
        return found.shape, "text" if found.dtype.kind in "OS" else found.dtype.newbyteorder("<").str

    def rows(self, name: str, first: int, stop: int) -> npt.NDArray[Any]:
        """Rows of an array that was asked for before."""
        found = self._sets[name]
        if self._h5py.check_string_dtype(found.dtype) is None or found.dtype.kind == "S":
            return np.asarray(found[first:stop])
        texts: list[bytes] = []
        for at in range(first, stop, _TEXTS_AT_ONCE):
            texts += found[at : min(at + _TEXTS_AT_ONCE, stop)].tolist()
            if max(map(len, texts[-_TEXTS_AT_ONCE:])) > MOST_TEXT_BYTES:
                raise UnsafeError(f"{name} has texts of more than {MOST_TEXT_BYTES} bytes")
        return np.array(texts, "S")

    def has_packed_arrays(self) -> bool:
        """Whether the bytes of any data set are not simply its values: packed, shuffled or torn into short pieces."""
        packed = False

        def look(_: str, found: Any) -> None:
            nonlocal packed
            if isinstance(found, self._h5py.Dataset):
                plist = found.id.get_create_plist()
                filters = {plist.get_filter(place)[0] for place in range(plist.get_nfilters())}
                torn = found.chunks is not None and found.chunks[-1] < found.shape[-1]
                packed = packed or filters != filters & {_FLETCHER32}
                packed = packed or (torn and found.chunks[-1] * found.dtype.itemsize < _SEARCHED_BYTES)

        self._file.visititems(look)
        return packed

    def _plain(self, name: str) -> "h5py.Dataset":
        link = self._file.get(name, getlink=True)
        if link is None:
            raise UnfitError(f"it has no {name}")
        if not isinstance(link, self._h5py.HardLink):
            raise UnsafeError(f"{name} is a link")
        found = self._file[name]
        if not isinstance(found, self._h5py.Dataset):
            raise UnfitError(f"{name} is no data set")
        if found.external or found.is_virtual:
            raise UnsafeError(f"{name} is stored in another file")
        if found.shape is None:
            raise UnfitError(f"{name} has no values (a null data space)")
        text = self._h5py.check_string_dtype(found.dtype)
        _require_plain(name, found.shape, found.dtype, variable_text=text is not None and text.length is None)
        plist = found.id.get_create_plist()
        filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        compressing = [one for one in filters if one not in _CHECKING_FILTERS]
        if set(filters) - _KNOWN_FILTERS:
            raise UnsafeError(f"{name} needs the filters {sorted(set(filters) - _KNOWN_FILTERS)}")
        if len(compressing) > 1 or len(set(filters)) < len(filters):
            raise UnsafeError(f"{name} is compressed more than once (filters {filters})")
        _require_honest_size(name, found.size * found.dtype.itemsize, self._size, compressed=bool(compressing))
        if found.chunks is not None:
            self._require_small_chunks(name, found, compressed=bool(compressing))
        return found

    def _require_small_chunks(self, name: str, found: "h5py.Dataset", *, compressed: bool) -> None:
        """A chunk must fit the memory, and be stored in no more bytes than it has: inflating knows no other bound."""
        chunk_bytes = int(np.prod(found.chunks, dtype=object)) * found.dtype.itemsize
        if chunk_bytes > min(_MOST_CHUNK_BYTES, _MOST_RATIO * self._size):
            raise UnsafeError(f"{name} has chunks of {chunk_bytes} bytes in a file of {self._size}")
        stored = [0]

        def look(chunk: Any) -> None:
            stored[0] = max(stored[0], chunk.size)

        if compressed:
            found.id.chunk_iter(look)
        if stored[0] > chunk_bytes + chunk_bytes // 8 + _CHUNK_SLACK_BYTES:
            raise UnsafeError(f"{name} stores a chunk of {chunk_bytes} bytes in {stored[0]}")


class NpzReader:
    """An npz file from elsewhere; headers are checked before any value is read, which is then read in order."""

    def __init__(self, path: Path) -> None:
        self._size = path.stat().st_size
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UnfitError(f"{path.name} must be an npz file, but {error}. Check the file.") from None
        self._members: dict[str, _Member] = {}

    def has(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return f"{name}.npy" in self._archive.namelist()

    def note(self, name: str) -> str:
        """An array of one text; empty where there is none."""
        if not self.has(name):
            return ""
        member = self._member(name)
        if member.shape != () or member.dtype.kind != "U" or member.dtype.itemsize > _MOST_NOTE_BYTES:
            return ""
        return str(np.frombuffer(_exactly(member.stream, member.dtype.itemsize, at_end=True), member.dtype)[0])

    def array(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and numpy dtype of an array that may be read; the dtype of texts is "text"."""
        if not self.has(name):
            raise UnfitError(f"it has no {name}")
        member = self._members[name] = self._member(name)
        _require_plain(name, member.shape, member.dtype)
        if member.transposed and member.size > _MEMORY_BYTES // 4:
            raise UnfitError(
                f"{name} has {member.size} bytes in Fortran order, of which at most {_MEMORY_BYTES // 4} can be read "
                "(np.ascontiguousarray gives the other order)"
            )
        return member.shape, "text" if member.dtype.kind in "US" else member.dtype.newbyteorder("<").str

    def rows(self, name: str, first: int, stop: int) -> npt.NDArray[Any]:
        """Rows of an array that was asked for before."""
        member = self._members[name]
        if member.transposed:  # the columns lie one after the other: rows can be had from the whole alone
            whole = np.frombuffer(_exactly(self._member(name).stream, member.size, at_end=True), member.dtype)
            return whole.reshape(member.shape[::-1]).transpose()[first:stop]
        if first < member.at:
            member = self._members[name] = self._member(name)
        row_bytes = member.size // member.shape[0]
        while member.at < first:
            step = min(first - member.at, max(1, _SKIP_BYTES // max(row_bytes, 1)))
            _exactly(member.stream, step * row_bytes)
            member.at += step
        data = _exactly(member.stream, (stop - first) * row_bytes, at_end=stop == member.shape[0])
        member.at = stop
        rows = np.frombuffer(data, member.dtype).reshape(stop - first, *member.shape[1:])
        return np.char.encode(rows, "utf-8") if member.dtype.kind == "U" and rows.size else rows

    def _member(self, name: str) -> "_Member":
        """An array's member of the archive, open behind its header, its size checked."""
        info = self._archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnsafeError(f"{name} is compressed by another method than deflate")
        stream = self._archive.open(info)
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(stream)
        except ValueError as error:
            raise UnfitError(f"{name} is no array ({error})") from None
        if dtype.hasobject:
            raise UnsafeError(f"{name} holds pickled objects")
        claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if claimed != info.file_size - stream.tell():
            raise UnsafeError(f"{name} claims {claimed} bytes in a file of {self._size}")
        _require_honest_size(name, info.file_size, self._size, compressed=True)
        return _Member(stream, shape, dtype, claimed, transposed=bool(fortran_order) and len(shape) > 1)


@dataclass
class _Member:
    """An array of an npz file, read from its first row to its last."""

    stream: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    size: int
    transposed: bool
    at: int = 0


def _exactly(member: IO[bytes], size: int, *, at_end: bool = False) -> bytes:
    """So many bytes; at the end of a member the archive's own checksum is compared too."""
    data = member.read(size) if size else b""
    if len(data) != size or (at_end and member.read(1)):
        raise EOFError("an array ends too early or too late")
    return data


def _require_plain(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], *, variable_text: bool = False) -> None:
    if not 1 <= len(shape) <= 4:
        raise UnfitError(f"{name} is of shape {shape}, which is not one to four dimensions")
    if not variable_text and (dtype.kind not in "fiuSU" or dtype.subdtype is not None):
        raise UnsafeError(f"{name} holds {dtype} and not numbers or text")
    if dtype.kind in "SU" and dtype.itemsize > MOST_TEXT_BYTES:
        raise UnsafeError(f"{name} has texts of {dtype.itemsize} bytes")


def _require_honest_size(name: str, claimed: int, size: int, *, compressed: bool) -> None:
    if claimed > (_MOST_RATIO if compressed else 1) * size:
        raise UnsafeError(f"{name} claims {claimed} bytes in a file of {size}")


def _answer(file: Hdf5Reader | NpzReader, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The answer to one request, and the bytes that follow it."""
    ask, name = request["ask"], request["name"]
    if ask == "packed":
        return {"value": isinstance(file, Hdf5Reader) and file.has_packed_arrays()}, b""
    if ask == "has":
        return {"value": file.has(name)}, b""
    if ask == "note":
        return {"value": file.note(name)}, b""
    if ask == "array":
        shape, dtype = file.array(name)
        return {"shape": [int(length) for length in shape], "dtype": dtype}, b""
    rows = file.rows(name, request["first"], request["stop"])
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    return {"dtype": rows.dtype.str, "shape": list(rows.shape)}, rows.tobytes()


def _limit_memory() -> None:
    """Allow so much more memory than the libraries took, and no core dump of what was read."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # not Linux: the limit would be a guess
        return
    _lower_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + _MEMORY_BYTES)


def _limit_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + ANSWER_CPU_S)


def _lower_limit(what: int, wanted: int) -> None:
    _, most = resource.getrlimit(what)
    resource.setrlimit(what, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def _failure(path: Path, error: Exception) -> dict[str, Any]:
    """A named error for the process that asked."""
    found = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnfitError):
        whole = found.startswith(path.name)  # the file itself could not be opened
        return {
            "error": "unfit",
            "message": found if whole else f"{path.name} must hold features and clip_id, but {found}. Check the file.",
        }
    if isinstance(error, MemoryError):
        error, found = UnsafeError(), f"reading it takes more than {_MEMORY_BYTES >> 20} MiB"
    if isinstance(error, UnsafeError):
        return {
            "error": "unsafe",
            "message": f"{path.name} must hold plain arrays in itself, but {found}. "
            "Save the features again as plain arrays.",
        }
    if isinstance(error, OSError) and error.errno not in (None, 0, errno.EINVAL):
        return {"error": "disk", "message": f"{path.name} must be readable, but {found}. Check the disk and try again."}
    return {
        "error": "damaged",
        "message": f"a file must be whole, but {path.name} is damaged ({found}). Export it again.",
    }


def main(path: Path) -> None:
    """Answer requests about one file until stdin ends or something is wrong."""
    answers = sys.stdout.buffer
    file: Hdf5Reader | NpzReader | None = None
    if path.suffix != ".npz":
        import h5py  # noqa: F401 - before memory is limited
    _limit_memory()
    for line in sys.stdin.buffer:
        _limit_time()
        try:
            file = file or (NpzReader(path) if path.suffix == ".npz" else Hdf5Reader(path))
            answer, data = _answer(file, json.loads(line))
        except (UnfitError, UnsafeError, MemoryError, *_DAMAGE) as error:
            answer, data = _failure(path, error), b""
        answers.write(json.dumps(answer | {"bytes": len(data)}).encode() + b"\n" + data)
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
