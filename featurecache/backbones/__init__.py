"""Frozen models that turn clips into features: find the files, choose the family, open it.

A family is chosen by `model_type` in the model's own config.json. Everything is read from this
machine; only `find_model(..., allow_download=True)` may use the network. This package is the only
importer of transformers.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featurecache.errors import ModelNotFoundError, UnsupportedModelError

if TYPE_CHECKING:
    from featurecache.backbones.llava_next_video import LlavaNextVideoInputs

DEMO_MODEL = "demo"
"""The name that stands for the small backbone shipped with the package."""

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]


def find_model(model: str, *, allow_download: bool = False) -> Path:
    """The folder with the model's files.

    Args:
        model: `demo`, a local folder, or the name of a hub repository whose snapshot is on this machine.
        allow_download: Fetch the repository from the Hugging Face hub when it is not here. The only network use.

    Raises:
        ModelNotFoundError: If there is no such folder and no such snapshot.
    """
    if model == DEMO_MODEL:
        return Path(__file__).parent.parent / "demo" / "backbone"
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if len(Path(model).parts) != 2 or folder.is_absolute() or model.startswith((".", "~")):
        raise ModelNotFoundError(
            f"features.model must be a folder or a hub repository such as llava-hf/LLaVA-NeXT-Video-7B-hf, "
            f"but {model!r} is neither. "
            "Copy the model to this machine and name its folder."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=not allow_download, allow_patterns=_HUB_FILES))
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"the model {model!r} must be on this machine, but no snapshot of it is in the Hugging Face cache. "
            "Name a local folder in features.model, or run once with --allow-download."
        ) from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"the model {model!r} must be downloadable, but the hub answered: {str(error).splitlines()[0]} "
            "Check the name and the connection, or name a local folder in features.model."
        ) from error


def open_inputs(
    folder: Path, *, prompt: str, frames: int, resize: Literal["crop", "pad", "squash"]
) -> "LlavaNextVideoInputs":
    """All of a model but its weights, with the family that its config.json names.

    Raises:
        ModelNotFoundError: If a file is missing or damaged.
        UnsupportedModelError: If the architecture is unknown here or the processor's settings do not fit.
        SettingsError: If the prompt does not fit.
    """
    model_type = read_config(folder).get("model_type")
    if model_type != "llava_next_video":
        raise UnsupportedModelError(
            f"the model's architecture must be llava_next_video, but {folder / 'config.json'} says {model_type!r}. "
            "Use LLaVA-NeXT-Video weights, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
        )
    from featurecache.backbones.llava_next_video import LlavaNextVideoInputs

    return LlavaNextVideoInputs(folder, prompt=prompt, frames=frames, resize=resize)


def read_config(folder: Path) -> dict[str, object]:
    """The model's config.json.

    Raises:
        ModelNotFoundError: If it is missing or not JSON.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise ModelNotFoundError(
            f"a model folder must hold a readable config.json, but {path} gave: {error.strerror}. "
            "Copy the whole model folder."
        ) from error
    except ValueError as error:
        raise ModelNotFoundError(
            f"a model's config.json must be JSON, but {path} is not ({error}). Copy the model folder again."
        ) from error
    if not isinstance(config, dict):
        raise ModelNotFoundError(
            f"a model's config.json must be a JSON object, but {path} is not. Copy the model folder again."
        )
    return config
