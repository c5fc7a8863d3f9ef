"""A model's files, as every family needs them: quiet loading, whole weights, digests for the fingerprint.

transformers fills a weight that it does not find in the checkpoint with random numbers and only logs it. Here a
missing weight is an error; weights that are left over (a classifier, a text tower) are not. Safetensors only.

Not here: anything that only one family does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from featurecache.errors import FeatureCacheError, ModelNotFoundError, SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes a model computes in, by their names in the settings."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")

SAMPLING_RULE = "last frame at or before start + (k + 1/2) * length / frames"


@contextmanager
def quiet_loading(folder: Path, family: str) -> Iterator[None]:
    """Loading without the loader's chatter, and with its many exceptions as one of ours.

    Args:
        folder: The model's files, for the message.
        family: What the files should be, e.g. "TimeSformer".

    Raises:
        ModelNotFoundError: If anything in the block fails.
    """
    verbosity = transformers_logging.get_verbosity()
    # Weights of heads and text towers are left out on purpose; the loader would warn about each.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except FeatureCacheError:
        raise
    except Exception as error:  # the loader raises OSError, ValueError, KeyError, SafetensorError, ...
        raise ModelNotFoundError(
            f"the model folder must hold whole {family} files, but loading {folder} gave: "
            f"{type(error).__name__}: {first_line(error)} "
            "Copy the folder again, safetensors and processor files included."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


def load_frozen(
    model_class: Any,
    folder: Path,
    *,
    family: str,
    dtype: str,
    device: str,
    attention: str,
    not_used: Sequence[str] = (),
    config: Any = None,
) -> Any:
    """A model of `model_class` with every weight from the folder, in evaluation mode, without gradients.

    Args:
        model_class: A transformers model class, e.g. `TimesformerModel`.
        folder: The model's files. A checkpoint of a class built around this one (a classifier) will do.
        family: What the files should be, e.g. "TimeSformer".
        dtype: float32, bfloat16 or float16.
        device: A torch device.
        attention: transformers' name of the attention implementation.
        not_used: Parts of the model, by attribute, that the features do not need: they are dropped.
        config: The model's configuration, where it is another than the folder's.

    Raises:
        ModelNotFoundError: If files are missing or damaged, or the checkpoint lacks a weight.
        SettingsError: If the device is not here or has no room for the model.
    """
    with quiet_loading(folder, family):
        model, found = model_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            output_loading_info=True,
        )
    missing = sorted(key for key in found["missing_keys"] if key.split(".")[0] not in not_used)
    if missing:
        raise ModelNotFoundError(
            f"the checkpoint must hold every weight of {model_class.__name__}, but {folder} lacks {len(missing)}, e.g. "
            f"{missing[0]}. Copy the folder again, or name a checkpoint that transformers can load into this class."
        )
    for part in not_used:
        if hasattr(model, part):
            setattr(model, part, None)
    try:
        return model.eval().requires_grad_(False).to(device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f"extract.device must be a device of this machine with room for the model, but {device!r} gave: "
            f"{first_line(error)} Choose another device, e.g. cpu."
        ) from error


def backbone_identity(
    folder: Path, family: str, *, dtype: str, attention: str, sha256_of: Callable[[Path], str]
) -> dict[str, Any]:
    """What a model without a tokenizer is, JSON-ready, for the fingerprint."""
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    return {
        "family": family,
        "config": digests(folder, ("config.json",), sha256_of),
        "weights": digests(folder, weights, sha256_of),
        "processor": digests(folder, PROCESSOR_FILES, sha256_of),
        "compute_dtype": dtype,
        "attention": attention,
    }


def digests(folder: Path, names: Sequence[str], sha256_of: Callable[[Path], str]) -> dict[str, str]:
    """The digest of each of these files that is there, by name."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, ended by a full stop."""
    text = (str(error).strip() or "no reason given").splitlines()[0]
    return text if text.endswith(".") else text + "."
