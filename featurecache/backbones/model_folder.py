"""The door to a model folder: what may be read from it, and in which bounds.

Whatever opens a model (features, checks, training, prediction) comes through here first. A folder may come from
anywhere, so a file is looked at before it is read: it must be a regular file of the folder (or of the Hugging Face
cache that the folder is a snapshot in), of a size that such files have, and no Git LFS pointer. Settings that make a
loader run the folder's own code, fetch code, quantise, or read other files than the ones that are digested are refused
by name, and so are sizes that no model has.

Not here: which files hold the weights (`featurecache.backbones.weight_files`), what a processor's settings mean.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurecache.errors import ModelNotFoundError, UnsafeFileError, UnsupportedModelError

CONFIG_NAME = "config.json"
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "video_processor/preprocessor_config.json",
)
"""Where published folders keep their processors' settings, by the version of transformers that wrote them."""

_MIB = 1024**2
_PARSED = (CONFIG_NAME, *PROCESSOR_FILES, "tokenizer_config.json", "special_tokens_map.json")
_LARGEST_BYTES = dict.fromkeys(_PARSED, 4 * _MIB) | {
    "added_tokens.json": 4 * _MIB,
    "chat_template.json": 4 * _MIB,
    "chat_template.jinja": 4 * _MIB,
    "generation_config.json": 4 * _MIB,
    "merges.txt": 48 * _MIB,
    "tokenizer.json": 48 * _MIB,
    "tokenizer.model": 48 * _MIB,
    "vocab.json": 48 * _MIB,
    "vocab.txt": 48 * _MIB,
}
"""The small files that a loader may read, and the most bytes that each may have."""
_OTHERS = ("*.json", "*.jinja", "*.model", "*.txt", "*.bpe", "*.tiktoken", "additional_chat_templates/*")
"""What else one kind of tokenizer or another may read."""

_DEEPEST = 64
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024

_FROM_REPOSITORY = "Take the file from the model's own repository."
_OWN_CODE = ("runs Python code of the folder", "Use a model of an architecture that transformers itself has.")
_QUANTISED = ("loads quantised weights", "Use the model that these weights were quantised from.")
_REFUSED = {
    "auto_map": _OWN_CODE,
    "audio_tokenizer": ("loads a second model", _FROM_REPOSITORY),
    "compression_config": _QUANTISED,
    "configuration_files": ("replaces config.json by another file", _FROM_REPOSITORY),
    "fast_tokenizer_files": ("replaces tokenizer.json by another file", _FROM_REPOSITORY),
    "fusion_config": ("changes the model's layers", _FROM_REPOSITORY),
    "gguf_file": ("reads another file than the model's own", _FROM_REPOSITORY),
    "init_inputs": ("hands values to a loader in the place of files", _FROM_REPOSITORY),
    "kernel_config": ("fetches native code", _FROM_REPOSITORY),
    "quantization_config": _QUANTISED,
    "transformers_weights": ("replaces the weight files by others", _FROM_REPOSITORY),
}
"""Keys that are refused wherever they are in a file that a loader reads: what a loader does with them, and the mend."""
_ATTENTION_KEYS = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")

_LARGEST = {
    "crop_size": 2048,
    "head_dim": 4096,
    "hidden_size": 65_536,
    "image_size": 2048,
    "intermediate_size": 1_048_576,
    "mlp_ratio": 64,
    "num_attention_heads": 1024,
    "num_channels": 64,
    "num_frames": 4096,
    "num_hidden_layers": 1024,
    "num_key_value_heads": 1024,
    "num_labels": 100_000,
    "patch_size": 2048,
    "projection_dim": 65_536,
    "tubelet_size": 4096,
    "vocab_size": 4_194_304,
}
"""Numbers of config.json that set a model's size, also after a prefix (`pred_hidden_size`): above 0, at most this."""
_MOST_PATCHES = 16_384


def check_model_folder(folder: Path) -> dict[str, Any]:
    """Refuses a folder that may not be opened, before any of it is given to a loader.

    Args:
        folder: The model's files.

    Returns:
        Its config.json.

    Raises:
        ModelNotFoundError: If the folder or its config.json is missing, or a file is damaged or a Git LFS pointer.
        UnsafeFileError: If a file is no regular file of the folder, far too large, or makes a loader run or fetch code.
        UnsupportedModelError: If the model is quantised, of a size no model has, or has an adapter next to it.
    """
    config = check_config(folder)
    for name, largest in _LARGEST_BYTES.items():
        require_regular(folder, name, largest)
    for path in (path for pattern in _OTHERS for path in folder.glob(pattern)):
        require_regular(folder, str(path.relative_to(folder)))
    for name in _PARSED[1:]:
        if os.path.lexists(folder / name):
            _refuse_keys(folder / name, read_json(folder / name))
    _refuse_sizes(folder / CONFIG_NAME, config)
    if os.path.lexists(folder / "adapter_config.json"):
        raise UnsupportedModelError(
            f"a model folder must hold one model, but {folder} has an adapter next to it (adapter_config.json), which "
            "loaders put on top unasked. Merge it into the weights with PEFT's merge_and_unload, or move the adapter's "
            "files out of the folder to use the base model."
        )
    return config


def check_config(folder: Path) -> dict[str, Any]:
    """The part of `check_model_folder` that looks at config.json alone: what says which model this is comes first.

    Returns:
        The config.json; its model_type is a string.

    Raises:
        ModelNotFoundError: As `check_model_folder`, of this file.
        UnsafeFileError: As `check_model_folder`, of this file.
        UnsupportedModelError: If the model is quantised, or names no architecture.
    """
    _require_config(folder)
    require_regular(folder, CONFIG_NAME, _LARGEST_BYTES[CONFIG_NAME])
    config = read_json(folder / CONFIG_NAME)
    if not isinstance(config.get("model_type"), str):
        raise UnsupportedModelError(
            f"model_type in a model's config.json must be a name, but {folder / CONFIG_NAME} has "
            f"{_shown(config.get('model_type'))}. Take config.json from the model's own repository."
        )
    _refuse_keys(folder / CONFIG_NAME, config)
    return config


def name_broken_file(folder: Path) -> None:
    """Says which file of a folder that a loader could not read is no JSON, of those that are too large to parse always.

    Raises:
        ModelNotFoundError: If one is no JSON object.
        UnsafeFileError: If one is nested deeper than any such file.
    """
    for name in _LARGEST_BYTES:
        if name.endswith(".json") and name not in _PARSED and (folder / name).is_file():
            read_json(folder / name, most_values=None)


def read_json(path: Path, *, most_values: int | None = 300_000) -> dict[str, Any]:
    """A JSON object of a model folder whose kind and size `check_model_folder` has looked at.

    Args:
        path: The file.
        most_values: How many values it may hold, lists and objects among them; None for any number.

    Raises:
        ModelNotFoundError: If it cannot be read or is no JSON object.
        UnsafeFileError: If it is nested deeper, or holds more values, than any such file.
    """
    too_deep = UnsafeFileError(
        f"a model's settings must be nested at most {_DEEPEST} deep, but {path} is nested deeper. "
        "Take the file from the model's own repository."
    )
    try:
        document = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise ModelNotFoundError(
            f"{path.name} of a model must be readable, but {path} gave: {error.strerror}. "
            f"Fetch it from the model's repository: {download_command(path.name, path.parent)}"
        ) from error
    except RecursionError as error:
        raise too_deep from error
    except UnicodeDecodeError as error:
        raise ModelNotFoundError(
            f"{path.name} of a model must be JSON in UTF-8, but {path} is in another encoding (byte {error.start}). "
            "Save it as UTF-8, or take the file from the model's own repository."
        ) from error
    except ValueError as error:
        raise ModelNotFoundError(
            f"{path.name} of a model must be JSON, but {path} is not ({error}). Correct that line, or take the file of "
            "a later revision of the model's repository."
        ) from error
    if not isinstance(document, dict):
        raise ModelNotFoundError(
            f"{path.name} of a model must be a JSON object, but {path} holds {_shown(document)}. "
            "Take the file from the model's own repository."
        )
    for count, (depth, _, _) in enumerate(_entries(document), start=1):
        if depth > _DEEPEST:
            raise too_deep
        if most_values is not None and count > most_values:
            raise UnsafeFileError(
                f"a model's settings must hold at most {most_values} values, but {path} holds more. "
                "Take the file from the model's own repository."
            )
    return document


def require_regular(folder: Path, name: str, largest: int | None = None) -> Path | None:
    """Looks at a file before it is read.

    Args:
        folder: The model's files.
        name: The file's name, relative to the folder.
        largest: The most bytes that it may have; None for any number.

    Returns:
        The file with links resolved; None where there is none.

    Raises:
        ModelNotFoundError: If it is a Git LFS pointer.
        UnsafeFileError: If it is outside the folder, no regular file, or larger.
    """
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
        status = resolved.stat()
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        raise ModelNotFoundError(
            f"{name} of a model must be there, but {path} is a link to {path.readlink()}, where there is no file. "
            f"Fetch it: {download_command(name, folder)}"
        ) from None
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise ModelNotFoundError(
            f"{name} of a model must be readable, but {path} gave: {error}. Put the file itself there."
        ) from error
    if not any(resolved.is_relative_to(root) for root in _roots(folder)):
        raise UnsafeFileError(
            f"a model's files must be in its folder, but {path} is {resolved}. "
            "Put the file itself into the folder, or name the folder that holds it."
        )
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(
            f"a model's files must be regular files, but {path} is {_kind(status.st_mode)}. "
            "Put the file of the model's own repository there."
        )
    if largest is not None and status.st_size > largest:
        raise UnsafeFileError(
            f"{name} of a model must have at most {largest // _MIB} MiB, but {path} has "
            f"{status.st_size / _MIB:.0f} MiB. Take the file from the model's own repository."
        )
    if status.st_size <= _POINTER_BYTES and resolved.read_bytes().startswith(_POINTER):
        raise ModelNotFoundError(
            f"{name} must be the file itself, but {path} is a Git LFS pointer to it. Run git lfs pull where the "
            f"repository was cloned, or fetch it: {download_command(name, folder)}"
        )
    return resolved


def download_command(names: str, folder: Path) -> str:
    """The command that fetches files of a model's repository into its folder, on a machine with a network."""
    repository = _repository(folder.resolve())
    if repository is not None:  # `models--ORGANISATION--NAME`
        name = repository.name.removeprefix("models--").replace("--", "/", 1)
        return f"hf download {name} {names} --revision {folder.resolve().name}"
    return f"hf download ORGANISATION/NAME {names} --local-dir {folder}"


def _repository(folder: Path) -> Path | None:
    """The repository of the Hugging Face cache that a folder is a snapshot of; None where it is none."""
    repository = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if is_snapshot else None


def _require_config(folder: Path) -> None:
    if os.path.lexists(folder / CONFIG_NAME):
        return
    if (folder / "open_clip_config.json").exists():
        raise UnsupportedModelError(
            f"a model folder must hold config.json, but {folder} is laid out for open_clip. Convert its vision tower, "
            f"which leaves words out: featurecache model convert {folder}; or use a CLIP in the layout of transformers."
        )
    snapshots = folder / "snapshots"
    if snapshots.is_dir():
        inside = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
        mend = f"Name one of them, such as {snapshots / inside[0]}." if inside else "Download the model into it again."
        raise ModelNotFoundError(
            f"a model folder must hold config.json, but {folder} is a repository of the Hugging Face cache, whose "
            f"models are the folders below snapshots: {', '.join(inside) or 'none'}. {mend}"
        )
    below = sorted(str(path.parent) for path in folder.glob(f"*/{CONFIG_NAME}"))
    where = f"such as {below[0]}" if below else "that holds it"
    raise ModelNotFoundError(
        f"a model folder must hold config.json, but {folder} has none. Name the folder {where}, or fetch the file: "
        f"{download_command(CONFIG_NAME, folder)}"
    )


def _roots(folder: Path) -> Iterator[Path]:
    """Where a model's files may be: its folder, and the blobs of the cache that the folder is a snapshot in."""
    yield folder.resolve()
    repository = _repository(folder.resolve())
    if repository is not None:
        yield repository / "blobs"
        yield repository.parent / "blobs"  # what repositories share, since huggingface_hub 2


def _entries(document: Any) -> Iterator[tuple[int, str, Any]]:
    """(depth, key, value) of every entry of a JSON document; of a list's items the key of the list."""
    left: list[tuple[int, str, Any]] = [(0, "", document)]
    while left:
        depth, key, value = left.pop()
        if depth:
            yield depth, key, value
        if depth > _DEEPEST:
            continue
        if isinstance(value, dict):
            left.extend((depth + 1, name, one) for name, one in value.items())
        elif isinstance(value, list):
            left.extend((depth + 1, key, one) for one in value)


def _refuse_keys(path: Path, document: dict[str, Any]) -> None:
    for _, key, value in _entries(document):
        if key in _REFUSED and value not in (None, {}, [], False):
            does, mend = _REFUSED[key]
            kind = UnsupportedModelError if _REFUSED[key] is _QUANTISED else UnsafeFileError
            raise kind(f"a model folder must hold plain settings, but {path} sets {key}, which {does}. {mend}")
        if key in _ATTENTION_KEYS and isinstance(value, str) and "/" in value:
            raise UnsafeFileError(
                f"a model's attention must be one that transformers brings along, but {path} sets {key} = {value!r}, "
                f"which fetches native code. Remove {key} from the file."
            )


def _refuse_sizes(path: Path, config: dict[str, Any]) -> None:
    for _, key, value in _entries(config):
        if value is None or isinstance(value, (dict, list)):
            continue
        largest = next((_LARGEST[name] for name in _LARGEST if key == name or key.endswith(f"_{name}")), None)
        if largest is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= largest:
            raise UnsupportedModelError(
                f"{key} of a model must be a number above 0 and at most {largest}, but {path} has {_shown(value)}. "
                "Take config.json from the model's own repository."
            )
    for part in (config, *(value for _, _, value in _entries(config) if isinstance(value, dict))):
        _refuse_patches(path, part)


def _refuse_patches(path: Path, config: dict[str, Any]) -> None:
    image_px, patch_px = config.get("image_size"), config.get("patch_size")
    if isinstance(image_px, int) and isinstance(patch_px, int) and patch_px > 0:
        patches = (image_px // patch_px) ** 2
        if patches > _MOST_PATCHES:
            raise UnsupportedModelError(
                f"a model must cut a frame into at most {_MOST_PATCHES} patches, but image_size = {image_px} and "
                f"patch_size = {patch_px} in {path} make {patches}. Take config.json from the model's own repository."
            )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _shown(value: Any) -> str:
    """A value of an external file in one short line."""
    text = repr(value) if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
