"""Which model a new project takes where none is named: the best that is here and fits, else the one to fetch.

The rule: of the video language models on this machine whose weights in 16 bits leave half of the memory of its GPU (or
of the machine, where there is none) free, the largest; where there is none, the largest encoder that does; on a CPU
the smallest instead of the largest, since each clip takes seconds. Where nothing fits, a repository is named by the
memory alone. Everything is looked for in the Hugging Face cache and in folders called `models` in the project or
beside it; nothing is fetched.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.backbones import model_type_of
from featurecache.backbones.adapter_files import FAMILIES
from featurecache.backbones.model_lookup import snapshots_here
from featurecache.backbones.weight_files import find_weight_files
from featurecache.device import device_of
from featurecache.errors import FeatureCacheError
from featurecache.setup.checks import GIB

_TO_FETCH = (
    (28 * GIB, "llava-hf/LLaVA-NeXT-Video-7B-hf"),
    (9 * GIB, "Qwen/Qwen3-VL-2B-Instruct"),
    (0, "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
)
"""Memory of a GPU -> the repository to fetch for it: its weights in 16 bits fill half of that at the most."""


@dataclass(frozen=True)
class ModelHere:
    """A model on this machine.

    Attributes:
        name: Its folder, or its repository in the Hugging Face cache.
        model_type: As `model_type_of`.
        bytes_: Of its weights in 16 bits.
    """

    name: str
    model_type: str
    bytes_: int


def choose_model(directory: Path) -> tuple[str, str]:
    """A model for a new project, its folder or repository, and why it was taken.

    Args:
        directory: The project's folder, which need not be there yet.
    """
    on_gpu, memory_bytes = _memory()
    return choose(list(_models_here(directory)), on_gpu=on_gpu, memory_bytes=memory_bytes)


def choose(here: Sequence[ModelHere], *, on_gpu: bool, memory_bytes: int) -> tuple[str, str]:
    """The rule above.

    Args:
        here: The models on this machine.
        on_gpu: Whether a GPU will be used.
        memory_bytes: Of the GPU, or of the machine.
    """
    machine = f"a {'GPU' if on_gpu else 'machine without a GPU'}, of {memory_bytes / GIB:.0f} GiB"
    fitting = [one for one in here if 2 * one.bytes_ <= memory_bytes]
    if not fitting:
        name = next(name for least, name in _TO_FETCH if least <= (memory_bytes if on_gpu else 0))
        return name, f"proposed: {name} for {machine}; none that fits is on this machine. Others: --model"
    pick = max if on_gpu else min
    chosen = pick(
        [one for one in fitting if one.model_type in FAMILIES] or fitting, key=lambda one: (one.bytes_, one.name)
    )
    return chosen.name, (
        f"proposed: {chosen.name}, which is on this machine and whose {chosen.bytes_ / GIB:.2f} GiB of weights in "
        f"16 bits suit {machine}. Others: --model"
    )


def _models_here(directory: Path) -> Iterator[ModelHere]:
    """Every supported model with weights that can be loaded."""
    beside = {str(path.resolve()): path for place in (directory, directory.parent) for path in _below(place)}
    for name, folder in {**snapshots_here(), **beside}.items():
        try:
            yield ModelHere(name, model_type_of(folder), 2 * find_weight_files(folder).values)
        except FeatureCacheError:
            continue  # another kind of model, or half of one: `doctor` and `--model` say what is wrong with it


def _below(place: Path) -> list[Path]:
    models = place / "models"
    return sorted(path for path in models.iterdir() if path.is_dir()) if models.is_dir() else []


def _memory() -> tuple[bool, int]:
    """Whether there is a GPU that will be used, and its memory, or the machine's."""
    device = device_of("auto")
    if device == "cpu":
        return False, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    import torch

    return True, int(torch.cuda.get_device_properties(device).total_memory)
