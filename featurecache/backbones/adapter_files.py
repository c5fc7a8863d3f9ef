"""A trained adapter as files, and what it does to feature spaces. Imports no torch.

An adapter is LoRA weights of the language model's layers in PEFT's own format: `adapter_config.json` and
`adapter_model.safetensors`. A tap above the first layer that has one gives other states than the base model, so the
adapter's digests join the fingerprint there. Taps below are the base model's own: their features are shared.

Not here: weights in memory (`backbones/adapter.py`), training.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featurecache.errors import ModelNotFoundError
from featurecache.files import sha256_of_file

FAMILIES = ("llava_next_video", "llava_onevision")
"""`model_type` in config.json of the models that can go on from stored tokens, and so can be trained from them."""

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """A folder with an adapter.

    Attributes:
        folder: Where its two files are.
        first_layer: Layers below this one, counted from 0, have none.
        sha256: Digest of each file, by name.
    """

    folder: Path
    first_layer: int
    sha256: Mapping[str, str]

    def changes(self, tap: str) -> bool:
        """Whether a tap's states are others than the base model's."""
        return tap != "vision" and (tap == "final" or depth_of(tap, 0) > self.first_layer)


def open_adapter(folder: Path) -> Adapter:
    """Reads what there is to know of an adapter without its weights.

    Raises:
        ModelNotFoundError: If a file is missing or does not say which layers it is for.
    """
    try:
        layers = json.loads((folder / CONFIG_NAME).read_bytes())["layers_to_transform"]
        digests = {name: sha256_of_file(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)}
        return Adapter(folder, min(map(int, layers)), digests)
    except OSError as error:
        raise ModelNotFoundError(
            f"an adapter must be a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, but reading {folder} gave: "
            f"{error.strerror}. Copy the whole bundle."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelNotFoundError(
            f"{folder / CONFIG_NAME} must say in layers_to_transform which layers the adapter is for, but reading it "
            f"gave {type(error).__name__}: {error}. Copy the bundle again."
        ) from error


def depth_of(tap: str, layers: int) -> int:
    """Layers of the language model that are behind a tap, of `layers` in all."""
    return layers if tap == "final" else int(tap.removeprefix("layer_"))
