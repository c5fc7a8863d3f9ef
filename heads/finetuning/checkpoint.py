"""Where a training run stands, in one safetensors file: replaced whole or not at all, nothing pickled.

Tensors are the trainable parameters, AdamW's moments, and the best epoch's parameters; the file's own header carries a
JSON document with all the rest. Order of clips, learning rate and random numbers are functions of seed and step
(`loop.py`), so the step replaces the states of sampler, scheduler and generator.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from featurecache.errors import CheckpointError
from featurecache.files import private_folder, write_private
from featurecache.spec import json_object

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run's state.

    Attributes:
        document: JSON-ready: step, history and its signature (`run.py`).
        tensors: Tensors by name, on the CPU.
    """

    document: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes or replaces a checkpoint.

    Raises:
        OSError: If it cannot be written; the earlier one is then still there.
    """
    private_folder(path.parent)
    document = json.dumps({"format": FORMAT, **checkpoint.document}, allow_nan=False)
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    write_private(path, tensors_to_bytes(tensors, metadata={"document": document}))


def load_checkpoint(path: Path, signature: Mapping[str, Any]) -> Checkpoint | None:
    """Reads a checkpoint; None where there is none.

    Args:
        path: The file.
        signature: What the run starts with (the document's `signature`), JSON-ready.

    Raises:
        CheckpointError: If it is damaged, or of a run that started with something else.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            document = json_object(file.metadata()["document"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found = document["signature"]
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"a checkpoint must be whole, but reading {path} gave: {error}. Start over: the same command with --fresh."
        ) from error
    changes = [_change(name, found.get(name), signature.get(name)) for name in sorted({*found, *signature})]
    changed = ", and ".join(filter(None, changes))
    if changed:
        raise CheckpointError(
            f"a run must be resumed with what it started with, but {changed}. Change that back and run it again to "
            "resume, or start over: the same command with --fresh."
        )
    return Checkpoint(document, tensors)


_DIGESTS = {
    "clips": "clips.csv has other training or validation clips, or other targets",
    "head": "the tuned bundle that it starts from was made anew",
    "model": "the model or the settings under [features] are others",
    "tokens": "the model or the settings under [features] are others",
}
"""What has changed where two digests differ, which nobody can read."""


def _change(name: str, then: Any, now: Any) -> str:
    """What differs between the start of a run and now, in words; empty where nothing does."""
    if then == now:
        return ""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        return ", and ".join(filter(None, (_change(key, then.get(key), now.get(key)) for key in sorted({*then, *now}))))
    return _DIGESTS.get(name, f"{name} was {json.dumps(then)} and is {json.dumps(now)}")
