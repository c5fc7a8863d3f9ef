"""Where a training run stands, in one safetensors file: replaced whole or not at all, nothing pickled.

Tensors are the trainable parameters, AdamW's moments, and the best epoch's parameters; the file's own header carries a
JSON document with all the rest. Order of clips, learning rate and random numbers are functions of seed and step
(`loop.py`), so the step stands for sampler, scheduler and generator.
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
        document: JSON-ready: step, history and what the run began with.
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


def load_checkpoint(path: Path, began_with: Mapping[str, Any]) -> Checkpoint | None:
    """Reads a checkpoint; None where there is none.

    Args:
        path: The file.
        began_with: What the run must have begun with (`document["began_with"]`), JSON-ready.

    Raises:
        CheckpointError: If it is damaged, or of a run that began with something else.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            document = json_object(file.metadata()["document"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        found = document["began_with"]
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"a checkpoint must be whole, but reading {path} gave: {error}. Start over: the same command with --fresh."
        ) from error
    unlike = [name for name in sorted({*found, *began_with}) if found.get(name) != began_with.get(name)]
    if unlike:
        name = unlike[0]
        raise CheckpointError(
            f"a run must be resumed with the settings it started with, but {name} "
            f"differs (then {_short(found.get(name))}, now {_short(began_with.get(name))}). Set it back, or start "
            "over: the same command with --fresh."
        )
    return Checkpoint(document, tensors)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
