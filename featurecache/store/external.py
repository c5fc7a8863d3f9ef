"""Arrays in HDF5 and npz files from elsewhere, which are distrusted: the side that asks.

The file is parsed by another process (`external_reader.py`), which has little memory and little time for each answer.
Whatever it does there (refuse, loop, run out of memory, crash), what happens here is one named error.
"""

import contextlib
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from featurecache.errors import CacheFormatError, CacheReadError, UnsafeFileError
from featurecache.store import external_reader
from featurecache.store.external_reader import ANSWER_CPU_S, MOST_TEXT_BYTES

_BATCH_ROWS = 1024
_BATCH_BYTES = 32 << 20
_ERRORS = {
    "unfit": CacheFormatError,
    "unsafe": UnsafeFileError,
    "damaged": CacheFormatError,
    "disk": CacheReadError,
}


class ExternalFile:
    """An HDF5 or npz file (by its suffix `.npz`) from elsewhere; a context manager.

    Every method raises CacheFormatError where the file is damaged or holds something else than asked for,
    UnsafeFileError where it uses what could do harm, and CacheReadError where the disk refuses.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If it is not there.
        CacheFormatError: If it is no file.
    """

    def __init__(self, path: Path) -> None:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CacheFormatError(f"what is imported must be a file, but {path} is none. Check the path.")
        self.path = path
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
            [sys.executable, "-P", external_reader.__file__, str(path.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:  # closes the pipes and waits
            pass

    def has(self, name: str) -> bool:
        """Whether there is something of this name."""
        return bool(self._ask({"ask": "has", "name": name})[0]["value"])

    def has_packed_arrays(self) -> bool:
        """Whether the bytes of any array of an HDF5 file are not simply its values, so that they cannot be searched."""
        return bool(self._ask({"ask": "packed", "name": ""})[0]["value"])

    def note(self, name: str) -> str:
        """An attribute (in npz: an array of one text) that is text; empty where there is none."""
        return str(self._ask({"ask": "note", "name": name})[0]["value"])

    def array(self, name: str) -> "ExternalArray":
        """An array of numbers or short texts, of one to four dimensions."""
        found, _ = self._ask({"ask": "array", "name": name})
        return ExternalArray(self, name, tuple(found["shape"]), found["dtype"])

    def rows(self, name: str, first: int, stop: int) -> npt.NDArray[Any]:
        """Some rows of an array, little-endian; texts as bytes."""
        found, data = self._ask({"ask": "rows", "name": name, "first": first, "stop": stop})
        return np.frombuffer(data, found["dtype"]).reshape(found["shape"])

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        asked, answered = self._process.stdin, self._process.stdout
        if asked is None or answered is None:
            raise ValueError("the process must have pipes")
        try:
            asked.write(json.dumps(request).encode() + b"\n")
            asked.flush()
            line = answered.readline()
            answer: dict[str, Any] = json.loads(line) if line else {"bytes": 0}
            data = answered.read(answer["bytes"])
        except BrokenPipeError:
            line, answer, data = b"", {"bytes": 0}, b""
        if not line or len(data) != answer["bytes"]:
            raise self._died()
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer, data

    def _died(self) -> UnsafeFileError:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            found = f"a part of it took more than {ANSWER_CPU_S} s of processor time"
        else:
            found = f"the process that read it died ({signal.strsignal(-code) if code < 0 else f'exit code {code}'})"
        return UnsafeFileError(
            f"{self.path.name} must be readable in bounded time and memory, but {found}. It is damaged or made to do "
            "harm: export it again."
        )


class ExternalArray:
    """An array of an external file; as text, its dtype and shape.

    Attributes:
        file: Where it is.
        name: What it is called there.
        shape: Its dimensions.
        dtype: numpy's, little-endian; None for texts.
    """

    def __init__(self, file: ExternalFile, name: str, shape: tuple[int, ...], dtype: str) -> None:
        self.file = file
        self.name, self.shape = name, shape
        self.dtype = None if dtype == "text" else np.dtype(dtype)

    def __str__(self) -> str:
        return f"{'text' if self.dtype is None else self.dtype} of shape {self.shape}"

    def batches(self) -> Iterator[npt.NDArray[Any]]:
        """All rows from the first to the last, in memory for one batch at a time."""
        itemsize = MOST_TEXT_BYTES if self.dtype is None else self.dtype.itemsize
        row_bytes = max(1, int(np.prod(self.shape[1:], dtype=object)) * itemsize)
        step = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
        for first in range(0, self.shape[0], step):
            yield self.file.rows(self.name, first, min(first + step, self.shape[0]))

    def read(self) -> npt.NDArray[Any]:
        """All of it, shape `self.shape`."""
        parts = list(self.batches())
        if not parts:
            return np.empty(self.shape, "S1" if self.dtype is None else self.dtype)
        return np.concatenate(parts)
