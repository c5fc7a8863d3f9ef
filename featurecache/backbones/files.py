"""A model's files, as every family needs them: quiet loading, whole weights, digests for the fingerprint.

transformers gets the tensors of `find_weight_files`, the files that the fingerprint digests; it never looks for weights
itself. It fills a weight that is not among them with random numbers and only logs it: here a missing weight is an
error; weights that are left over (a classifier, a text tower) are not.

Not here: anything that only one family does.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.utils import logging as transformers_logging

from featurecache.backbones.loaded_weights import refuse_non_finite, refuse_other_shapes, refuse_second_names
from featurecache.backbones.model_folder import PROCESSOR_FILES
from featurecache.backbones.weight_files import WeightFiles, find_weight_files
from featurecache.errors import FeatureCacheError, ModelNotFoundError, SettingsError, UnsupportedModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes a model computes in, by their names in the settings."""

LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}
"""What every `from_pretrained` gets: no network, and no code of the folder."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What a tokenizer is made of, where a folder has it."""

_ROOM_FACTOR, _ROOM_VALUES = 2, 50_000_000
"""A model may ask for this many times the values that its files hold, and so many besides: parts that are not used."""

SAMPLING_RULE = "last frame at or before start + (k + 1/2) * length / frames"


@contextmanager
def quiet_loading(folder: Path, family: str) -> Iterator[None]:
    """Loading without the network and the loader's chatter, and with its many exceptions as one of ours.

    Args:
        folder: The model's files, for the message.
        family: What the files should be, e.g. "TimeSformer".

    Raises:
        ModelNotFoundError: If anything in the block fails.
    """
    verbosity, offline = transformers_logging.get_verbosity(), constants.HF_HUB_OFFLINE
    # Weights of heads and text towers are left out on purpose; the loader would warn about each.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except FeatureCacheError:
        raise
    except Exception as error:  # the loader raises OSError, ValueError, KeyError, SafetensorError, ...
        raise ModelNotFoundError(
            f"the model folder must hold whole {family} files, but loading {folder} gave: "
            f"{type(error).__name__}: {first_line(error)} "
            "Hold its files against the model's repository, safetensors and processor files included."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
        constants.HF_HUB_OFFLINE = offline


def read_as(config_class: Any, folder: Path, family: str) -> Any:
    """A model's config.json as transformers' class of it reads it; arguments and errors as of `quiet_loading`."""
    with quiet_loading(folder, family):
        return config_class.from_pretrained(folder, **LOCAL_ONLY)


def load_frozen(
    model_class: Any,
    folder: Path,
    *,
    family: str,
    dtype: str,
    device: str,
    attention: str,
    config: Any,
    not_used: Sequence[str] = (),
) -> Any:
    """A model of `model_class` with every weight from the folder, in evaluation mode, without gradients.

    Args:
        model_class: A transformers model class, e.g. `TimesformerModel`.
        folder: The model's files. A checkpoint of a class built around this one (a classifier) will do.
        family: What the files should be, e.g. "TimeSformer".
        dtype: float32, bfloat16 or float16.
        device: A torch device; "meta" lays the model out without weights.
        attention: transformers' name of the attention implementation.
        config: The model's configuration, as the family has read it.
        not_used: Parts of the model, by attribute, that the features do not need: they are dropped.

    Raises:
        ModelNotFoundError: If files are missing or damaged, or the checkpoint lacks a weight or holds NaN.
        SettingsError: If the device is not here or has no room for the model.
        UnsafeFileError: If the weights are not those of this folder alone, or one is there under two names.
        UnsupportedModelError: If config.json describes a far larger model than the weights are of.
    """
    weights = find_weight_files(folder)
    with quiet_loading(folder, family), _fitting(weights, folder), ExitStack() as opened:
        if device == "meta":  # shapes alone: what a clip costs needs no weights
            with torch.device("meta"):
                model, missing_keys = model_class(copy.deepcopy(config)), []
        else:
            model, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=_tensors(weights, opened),
                local_files_only=True,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the loader's own error names neither weight nor shapes
            )
            missing_keys = found["missing_keys"]
            refuse_other_shapes(folder, sorted(found["mismatched_keys"]))
            refuse_second_names(folder, model, weights.shapes)
    missing = sorted(key for key in missing_keys if key.split(".")[0] not in not_used)
    if missing:
        raise ModelNotFoundError(
            f"the checkpoint must hold every weight of {model_class.__name__}, but {folder} lacks {len(missing)}, e.g. "
            f"{missing[0]}. Name a checkpoint that transformers can load into this class."
        )
    for part in not_used:
        if hasattr(model, part):
            setattr(model, part, None)
    try:
        model = model.eval().requires_grad_(False).to(device)
    except RuntimeError as error:
        raise SettingsError(
            f"extract.device must be here and have room for the model, but {device!r} gave: {first_line(error)} "
            "Free its memory, choose another device, e.g. cpu, or a smaller model."
        ) from error
    refuse_non_finite(folder, model.named_parameters())
    return model


def _tensors(weights: WeightFiles, opened: ExitStack) -> dict[str, Any]:
    """Every tensor of the files as a slice that is read when it is asked for, while the files stay open."""
    files = [opened.enter_context(safe_open(path, framework="pt")) for path in weights.paths.values()]
    return {name: file.get_slice(name) for file in files for name in file.keys()}  # noqa: SIM118  # no mapping


@contextmanager
def _fitting(weights: WeightFiles, folder: Path) -> Iterator[None]:
    """Refuses a model that would fill the memory with weights that no file holds, while it is still without memory."""
    most, asked = _ROOM_FACTOR * weights.values + _ROOM_VALUES, 0

    def count(module: Any, name: str, parameter: Any) -> None:  # noqa: ARG001
        nonlocal asked
        if parameter is not None and parameter.is_meta:
            asked += parameter.numel()
        if asked > most:
            raise UnsupportedModelError(
                f"config.json must describe the weights next to it, but {folder / 'config.json'} asks for more than "
                f"{most:,} values where the weight files hold {weights.values:,}. "
                "Take both from one revision of the model's repository."
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def backbone_identity(
    folder: Path, family: str, *, dtype: str, attention: str, sha256_of: Callable[[Path], str]
) -> dict[str, Any]:
    """What a model without a tokenizer is, JSON-ready, for the fingerprint."""
    return {
        "family": family,
        "config": digests(folder, ("config.json",), sha256_of),
        "weights": {name: sha256_of(path) for name, path in find_weight_files(folder).paths.items()},
        "processor": digests(folder, PROCESSOR_FILES, sha256_of),
        "compute_dtype": dtype,
        "attention": attention,
    }


def digests(folder: Path, names: Sequence[str], sha256_of: Callable[[Path], str]) -> dict[str, str]:
    """The digest of each of these files that is there, by name."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, with the next where it announces one, ended by a full stop."""
    first, *more = (str(error).strip() or "no reason given").splitlines()
    text = f"{first} {more[0].strip()}" if first.endswith(":") and more else first
    return text if text.endswith(".") else text + "."
