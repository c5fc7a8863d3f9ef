"""Which files hold a model's weights: found once, digested for the fingerprint, and loaded, all by the same list.

`model.safetensors`, or the shards that `model.safetensors.index.json` names. Every other file is left alone, whatever
it is called. No two shards may hold a weight of one name: so the weights follow from the shards alone, and the index
cannot choose among them. Headers are read here, in bounds; the tensors behind them are read by safetensors.

Not here: giving the weights to a model (`featurecache.backbones.files`). Pickled weights are never read by this module.

Source of the format: https://github.com/huggingface/safetensors
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError, safe_open

from featurecache.backbones.model_folder import download_command, read_json, require_regular
from featurecache.errors import ModelNotFoundError, UnsafeFileError, UnsupportedModelError

WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
PICKLE_NAME, PICKLE_INDEX_NAME = "pytorch_model.bin", "pytorch_model.bin.index.json"
_NAMES = (WEIGHTS_NAME, INDEX_NAME, PICKLE_NAME, PICKLE_INDEX_NAME)

_ALL_WEIGHTS = "--include 'model*.safetensors*'"
LARGEST_INDEX_BYTES = 32 * 1024**2
_LARGEST_HEADER_BYTES = 16 * 1024**2
_MOST_TENSORS = 100_000
_PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a model's weights.

    Attributes:
        paths: Each file by its name relative to the folder, in order of the names.
        shapes: Shape of each tensor, by name.
        size_bytes: Of all files.
    """

    paths: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    size_bytes: int

    @property
    def values(self) -> int:
        """How many numbers the tensors hold."""
        return sum(prod(shape) for shape in self.shapes.values())


def find_weight_files(folder: Path) -> WeightFiles:
    """The files that are loaded as a model's weights, their headers held against their sizes, the index and each other.

    Args:
        folder: The model's files, checked by `check_model_folder`.

    Raises:
        ModelNotFoundError: If a file is missing, cut off, damaged or a Git LFS pointer, or the weights are pickled.
        UnsafeFileError: If the index names a file that is not a safetensors file of this folder, if files share a
            name, or a header is far too large.
        UnsupportedModelError: If weights are quantised.
    """
    indexed = _indexed(folder)
    paths = {name: folder / name for name in sorted(indexed)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in paths:
        if require_regular(folder, name) is None:
            raise ModelNotFoundError(
                f"{INDEX_NAME} names {len(paths)} files of weights, but {folder / name} is missing. "
                f"Fetch it from the same revision: {download_command(name, folder)}"
            )
    for name, path in paths.items():
        found = read_header(path)
        twice = sorted(shapes.keys() & found.keys())
        if twice:
            raise UnsafeFileError(
                f"each weight must be in one file, but {path} and another file that {INDEX_NAME} names both hold "
                f"{len(twice)} weights, e.g. {twice[0]}. Use the files of one revision of the model's repository."
            )
        lacking = sorted(indexed[name] - found.keys())
        if lacking:
            raise ModelNotFoundError(
                f"{path} must hold what {INDEX_NAME} says, but it lacks {len(lacking)} weights, e.g. {lacking[0]}. "
                f"Fetch both from one revision: {download_command(f'{INDEX_NAME} {name}', folder)}"
            )
        shapes |= found
        if len(shapes) > _MOST_TENSORS:
            raise _too_many(path, f"{len(shapes)} tensors or more")
    return WeightFiles(paths, shapes, sum(path.stat().st_size for path in paths.values()))


def _indexed(folder: Path) -> dict[str, set[str]]:
    """Names of the files, and the weights that the index says each holds."""
    if require_regular(folder, WEIGHTS_NAME) is not None:
        return {WEIGHTS_NAME: set()}
    if require_regular(folder, INDEX_NAME, LARGEST_INDEX_BYTES) is None:
        raise _no_weights(folder)
    return read_index(folder, INDEX_NAME, ".safetensors")


def read_index(folder: Path, index: str, suffix: str) -> dict[str, set[str]]:
    """The files that an index of shards names, each with the weights that it holds.

    Args:
        folder: The model's files.
        index: Name of the index, of at most `LARGEST_INDEX_BYTES`.
        suffix: How the name of each shard must end.

    Raises:
        ModelNotFoundError: If the index is no JSON, or names no files.
        UnsafeFileError: If it names a file outside the folder, or one of another format.
    """
    places = read_json(folder / index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ModelNotFoundError(
            f"weight_map in {index} must give each weight's file, but in {folder / index} it does not. "
            f"Fetch it from the model's repository: {download_command(index, folder)}"
        )
    wanted: dict[str, set[str]] = {}
    for weight, name in places.items():
        wanted.setdefault(name, set()).add(weight)
    for name in wanted:
        pure = PurePosixPath(name)
        is_plain = name.isprintable() and "\\" not in name and str(pure) == name  # no NUL, no lone surrogate
        if not is_plain or pure.is_absolute() or ".." in pure.parts:
            raise UnsafeFileError(
                f"{index} must name files of its own folder, but {folder / index} names {name[:200]!r}. "
                "Use the files of the model's own repository."
            )
        if pure.suffix != suffix and pure.suffix.lower() == suffix:
            raise ModelNotFoundError(
                f"{index} must name {suffix} files, but {folder / index} names {name[:200]!r}. "
                f"Rename the file, here and there, to end in {suffix}."
            )
        if pure.suffix != suffix:
            raise UnsafeFileError(
                f"{index} must name {suffix} files, but {folder / index} names {name[:200]!r}, and other formats can "
                "hold code. Use the files of one revision of the model's repository."
            )
    return wanted


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Each tensor's shape, from a safetensors file's header.

    Args:
        path: A regular file, as `require_regular` has found.

    Raises:
        ModelNotFoundError: If the file is damaged or cut off.
        UnsafeFileError: If its header is far too large.
        UnsupportedModelError: If weights are quantised.
    """
    damaged = ModelNotFoundError(
        f"a file of weights must be whole, but {path} is damaged or cut off. "
        f"Fetch it again: {download_command(path.name, path.parent)}"
    )
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise damaged
    if length > _LARGEST_HEADER_BYTES:
        raise _too_many(path, f"a header of {length / 1024**2:.0f} MiB")
    try:
        with safe_open(path, framework="np") as opened:  # it holds the header against the file's size
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            dtypes = {name: str(one.get_dtype()) for name, one in slices.items()}
    except SafetensorError as error:
        raise damaged from error
    for name, dtype in dtypes.items():
        if name.endswith(".weight") and dtype not in _PLAIN_DTYPES:
            raise UnsupportedModelError(
                f"weights must be of {', '.join(_PLAIN_DTYPES)}, but {name} in {path} is of {dtype!r}: they "
                "are quantised. Use the original of the model."
            )
    return shapes


def _too_many(path: Path, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"the weights of a model must be at most {_MOST_TENSORS} tensors, but {path} has {what}. "
        "Take the files from the model's own repository."
    )


def _no_weights(folder: Path) -> ModelNotFoundError:
    if any((folder / name).exists() for name in (PICKLE_NAME, PICKLE_INDEX_NAME)):
        return ModelNotFoundError(
            f"weights must be safetensors files, but {folder} holds pickled ones alone ({PICKLE_NAME}), which can hold "
            f"code. Convert them once, in a process of its own: featurecache model convert {folder}"
        )
    there = sorted(path.name for path in folder.iterdir())
    renamed = [name for name in there if name not in _NAMES and name.lower() in _NAMES]
    if renamed:
        return ModelNotFoundError(
            f"a model folder must hold {WEIGHTS_NAME}, or {INDEX_NAME}, in this spelling, but {folder} holds "
            f"{renamed[0]}. Rename it to {renamed[0].lower()}."
        )
    others = [name for name in there if name.lower().endswith((".safetensors", ".gguf", ".h5", ".bin", ".pt", ".pth"))]
    found = f"other files of weights, e.g. {others[0]}" if others else "no weights"
    return ModelNotFoundError(
        f"a model folder must hold {WEIGHTS_NAME}, or {INDEX_NAME} and the files that it names, but {folder} holds "
        f"{found}. Fetch them: {download_command(_ALL_WEIGHTS, folder)} (where the repository has {PICKLE_NAME} alone, "
        f"fetch that, and run featurecache model convert {folder})"
    )
