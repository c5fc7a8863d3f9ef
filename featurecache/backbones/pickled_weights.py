"""Reads one pickled file of weights and writes it as safetensors; run by `featurecache.backbones.conversion` alone.

    python -P pickled_weights.py SOURCE TARGET

torch's unpickler for tensors (`weights_only=True`) refuses everything else. What it does accept can still ask for far
more memory than the file has: compressed records, and tensors that show one number many times. Both are refused.
"""

import hashlib
import json
import os
import pickle
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_LARGEST_PICKLE_BYTES = 64 * 1024**2
"""Of the part of a file that is unpickled: names, shapes and places of tensors, without their numbers."""

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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, their numbers in the file where its format allows.

    Raises:
        RefusedError: If there is anything else in it.
        Exception: Of torch or zipfile, if it is torn.
    """
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as file:
            for entry in file.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise RefusedError("it holds compressed records, which torch does not write")
                if entry.filename.endswith("data.pkl") and entry.file_size > _LARGEST_PICKLE_BYTES:
                    raise RefusedError(f"its pickle has {entry.file_size} bytes")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        said = str(error).strip().splitlines()
        why = next((line.strip() for line in said if "GLOBAL" in line or "Unsupported" in line), said[0])
        raise RefusedError(f"torch's unpickler for tensors says: {why.rstrip('.')[:200]}") from error
    if not isinstance(found, dict) or not found:
        raise RefusedError(f"it holds a {type(found).__name__}, no tensors by name")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise RefusedError(f"its entry {name!r:.100} is a {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
            raise RefusedError(f"{name} is a {tensor.layout} tensor of {tensor.dtype}")
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


def main() -> None:
    """Converts, and answers in one JSON document on stdout."""
    source, target = map(Path, sys.argv[1:])
    answer: dict[str, Any]
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tensors = read_tensors(source)
        save_file(_in_full(tensors), target, metadata={"format": "pt"})
        with target.open("rb") as file:
            os.fsync(file.fileno())
        size = sum(tensor.nbytes for tensor in tensors.values())
        answer = {"sha256": digest, "weights": sorted(tensors), "bytes": size}
    except RefusedError as error:
        answer = {"refused": str(error)}
    except OSError as error:
        answer = {"system": [error.errno, error.strerror or str(error)]}
    except Exception as error:  # torch's and zipfile's ways to say that a file is torn are many
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        answer = {"damaged": f"{type(error).__name__}: {said.rstrip('.')[:200]}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
