"""A trained adapter as files, and what it does to feature spaces. Imports no torch.

An adapter is LoRA weights of the language model's layers in PEFT's own format: `adapter_config.json` and
`adapter_model.safetensors`. A tap above the first layer that has one gives other states than the base model, so the
adapter's digests join the fingerprint there. Taps below are the base model's own: their features are shared.

Not here: weights in memory (`backbones/adapter.py`), training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.backbones.model_folder import read_json, require_regular
from featurecache.backbones.weight_files import read_header
from featurecache.errors import ModelNotFoundError, UnsafeFileError
from featurecache.files import sha256_of_file

FAMILIES = ("llava_next_video", "llava_onevision", "smolvlm", "qwen2_5_vl", "qwen3_vl", "internvl")
"""`model_type` in config.json of the models that can resume from stored tokens, and so can be trained from them."""

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"

_LARGEST_CONFIG_BYTES = 1024**2
_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "layers_pattern")
_WITHOUT_EFFECT = (
    "base_model_name_or_path",
    "bias",
    "inference_mode",
    "init_lora_weights",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
)
"""Settings that change nothing in a plain adapter that is read. Whatever else is set asks for another kind of adapter,
which may import modules, read other files, or give other features."""


@dataclass(frozen=True)
class Adapter:
    """A folder with an adapter.

    Attributes:
        folder: Where its two files are.
        first_layer: Layers below this one, counted from 0, have none.
        sha256: Digest of each file, by name.
        settings: What PEFT's `LoraConfig` gets, of `adapter_config.json`.
    """

    folder: Path
    first_layer: int
    sha256: Mapping[str, str]
    settings: Mapping[str, Any]

    def changes(self, tap: str) -> bool:
        """Whether a tap's states are others than the base model's."""
        return tap != "vision" and (tap == "final" or depth_of(tap, 0) > self.first_layer)


def open_adapter(folder: Path) -> Adapter:
    """Reads what there is to know of an adapter without its weights, from files that may come from anywhere.

    Raises:
        ModelNotFoundError: If a file is missing or damaged, or its settings are not those of an adapter written here.
        UnsafeFileError: If a file must not be opened, or the settings ask for more than plain LoRA in linear layers.
    """
    for name, largest in ((CONFIG_NAME, _LARGEST_CONFIG_BYTES), (WEIGHTS_NAME, None)):
        if require_regular(folder, name, largest) is None:
            raise ModelNotFoundError(
                f"an adapter must be a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, but {folder} has no {name}. "
                "Copy the whole bundle."
            )
    found = read_json(folder / CONFIG_NAME)
    more = sorted(key for key, value in found.items() if value and key not in (*_SETTINGS, *_WITHOUT_EFFECT))
    if more or (found.get("peft_type"), found.get("bias")) != ("LORA", "none"):
        named = more[0] if more else "another peft_type or bias"
        raise UnsafeFileError(
            f"an adapter must be plain LoRA in linear layers, but {folder / CONFIG_NAME} sets {named}. "
            "Use an adapter that featurecache lora-finetune wrote."
        )
    settings = {key: found.get(key) for key in _SETTINGS}
    layers: Any = settings["layers_to_transform"]
    targets, rank = settings["target_modules"], settings["r"]
    ranks = {shape[0] for name, shape in read_header(folder / WEIGHTS_NAME).items() if name.endswith(".lora_A.weight")}
    if not _all(int, layers) or not _all(str, targets) or min(layers) < 0 or ranks != {rank}:
        raise ModelNotFoundError(
            f"{folder / CONFIG_NAME} must name in layers_to_transform and target_modules where the adapter is, and the "
            f"rank of {WEIGHTS_NAME}, but they are {layers!r:.80}, {targets!r:.80} and {rank!r:.80}. "
            "Copy the bundle again."
        )
    digests = {name: sha256_of_file(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}
    return Adapter(folder, min(layers), digests, settings)


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(value) is kind for value in values)


def depth_of(tap: str, layers: int) -> int:
    """Layers of the language model that are behind a tap, of `layers` in all."""
    return layers if tap == "final" else int(tap.removeprefix("layer_"))
