"""Reads one pickled file of weights and writes it as safetensors; run by `featurecache.backbones.conversion` alone.

    python -P pickled_weights.py SOURCE TARGET

torch's unpickler for tensors (`weights_only=True`) refuses everything else. What it does accept can still ask for far
more memory or time than the file explains: compressed records, tensors that show one number many times, millions of
instructions that make nothing. All are refused; what no check foresaw ends at limits of memory and of computing time.
"""

import hashlib
import json
import os
import pickle
import resource
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor

_LARGEST_PICKLE_BYTES = 8 * 1024**2
"""Of the part of a file that is unpickled: names, shapes and places of tensors, a hundred bytes of each."""
_MOST_READS = 2_000_000
"""Of that part in a file that is no zip file: the unpickler reads it by instructions, some sixty for a tensor."""

_BASE_BYTES, _BASE_SECONDS, _BYTES_A_SECOND = 2 * 1024**3, 30, 20e6
"""What a conversion may take besides five times the file's bytes, and besides a second for so many of them."""

_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


class RefusedError(ValueError):
    """The file holds what weights never hold."""


class _Counted:
    """A file that counts how often it is read, without a descriptor by which torch would read past it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MOST_READS
        self.tell, self.seek, self.readinto = file.tell, file.seek, file.readinto  # type: ignore[attr-defined]

    def read(self, size: int = -1) -> bytes:
        self._count()
        return self._file.read(size)

    def readline(self) -> bytes:
        self._count()
        return self._file.readline()

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise RefusedError(f"its pickle takes more than {_MOST_READS:,} reads, where weights take thousands")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, their numbers in the file where its format allows.

    Raises:
        RefusedError: If there is anything else in it.
        Exception: Of torch or zipfile, if it is torn.
    """
    is_zip = zipfile.is_zipfile(path)
    if not is_zip and tarfile.is_tarfile(path):
        raise RefusedError(
            "it is in the tar format of PyTorch before 0.1.10, which can only be read with the code in it"
        )
    if is_zip:
        with zipfile.ZipFile(path) as file:
            for entry in file.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise RefusedError("it holds compressed records, which torch does not write")
                if entry.filename.endswith("data.pkl") and entry.file_size > _LARGEST_PICKLE_BYTES:
                    raise RefusedError(f"its pickle has {entry.file_size} bytes")
    try:
        with path.open("rb") as opened:
            source: Any = path if is_zip else _Counted(opened)
            found = torch.load(source, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        said = str(error).strip().splitlines()
        why = next((line.strip() for line in said if "GLOBAL" in line or "Unsupported" in line), said[0])
        why = why.partition(" was not an allowed global")[0]  # what follows tells programmers how to allow it
        raise RefusedError(f"torch's unpickler for tensors says: {why.rstrip('.')[:200]}") from error
    if not isinstance(found, dict) or not found:
        raise RefusedError(f"it holds a {type(found).__name__}, no tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise RefusedError(f"its entry {name!r:.100} is a {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
            raise RefusedError(f"{name} is a {tensor.layout} tensor of {tensor.dtype}")
        if tensor.is_meta:
            raise RefusedError(f"{name} is a tensor without numbers (on the device meta)")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise RefusedError(f"{name} has {tensor.nbytes} bytes of which the file holds fewer")
    if sum(tensor.nbytes for tensor in found.values()) > 2 * path.stat().st_size:
        raise RefusedError("its tensors share numbers so often that they would take more than twice its size")
    return found


def _in_full(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor dense, and with memory of its own where several share it: safetensors knows no sharing."""
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        if users[tensor.untyped_storage().data_ptr()] > 1
        else tensor.detach().contiguous()
        for name, tensor in tensors.items()
    }


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    """Converts, and answers in one JSON document on stdout."""
    source, target = map(Path, sys.argv[1:])
    size = source.stat().st_size
    _limit(resource.RLIMIT_CPU, _BASE_SECONDS + int(size / _BYTES_A_SECOND))
    _limit(resource.RLIMIT_DATA, _BASE_BYTES + 5 * size)
    answer: dict[str, Any]
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tensors = read_tensors(source)
        save_file(_in_full(tensors), target, metadata={"format": "pt"})
        with target.open("rb") as file:
            os.fsync(file.fileno())
        total = sum(tensor.nbytes for tensor in tensors.values())
        answer = {"sha256": digest, "weights": sorted(tensors), "bytes": total}
    except RefusedError as error:
        answer = {"refused": str(error)}
    except OSError as error:
        answer = {"system": [error.errno, error.strerror or str(error)]}
    except MemoryError:
        answer = {"refused": "it asks for more memory than its size explains"}
    except Exception as error:  # torch's and zipfile's ways to say that a file is torn are many
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        answer = {"damaged": f"{type(error).__name__}: {said.rstrip('.')[:200]}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
