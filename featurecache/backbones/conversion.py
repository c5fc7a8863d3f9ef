"""Pickled weights turned into safetensors, once and on request: `featurecache model convert`.

A pickle can run code when it is read. So it is read by a process of its own that knows nothing but the two paths
(`featurecache.backbones.pickled_weights`), by torch's unpickler for tensors alone, and answers in JSON. Every tensor is
written in full under each of its names, so weights that were shared are there for every loader. The new files come into
place by rename, an index last; `conversion.json` next to them records the digests of what was read and written. The
pickle stays.

A folder in open_clip's format gets a `config.json` and processor file too (`open_clip.py`).

Not here: reading the pickle. Nothing converts unless it is asked to.
"""

import contextlib
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurecache.backbones import open_clip
from featurecache.backbones.model_folder import CONFIG_NAME, require_regular
from featurecache.backbones.weight_files import (
    INDEX_NAME,
    LARGEST_INDEX_BYTES,
    PICKLE_INDEX_NAME,
    PICKLE_NAME,
    WEIGHTS_NAME,
    read_index,
)
from featurecache.errors import ModelNotFoundError, OutputExistsError, UnsafeFileError
from featurecache.files import sha256_of_file, write_private

RECORD_NAME = "conversion.json"


@dataclass(frozen=True)
class Conversion:
    """What was read and what was written.

    Attributes:
        read: sha256 of each pickled file, by name.
        written: sha256 of each new file of weights, by name.
    """

    read: Mapping[str, str]
    written: Mapping[str, str]


def convert_weights(folder: Path) -> Conversion:
    """Writes a model's pickled weights as safetensors next to them.

    Args:
        folder: The model's files, with `pytorch_model.bin` or `pytorch_model.bin.index.json` and its shards; or in
            open_clip's format.

    Raises:
        ModelNotFoundError: If there are no pickled weights, or a file is missing or damaged.
        OSError: If the new files cannot be written; nothing is changed then.
        OutputExistsError: If the folder has safetensors weights.
        UnsafeFileError: If a pickle holds anything but tensors, a file must not be opened, or two would get one name.
        UnsupportedModelError: If a model in open_clip's format is no CLIP with a plain ViT.
    """
    for name in (WEIGHTS_NAME, INDEX_NAME):
        if (folder / name).exists():
            raise OutputExistsError(
                f"weights are converted where there are pickled ones alone, but {folder} has {name}. "
                "Use the folder as it is, or move that file away first."
            )
    if not (folder / CONFIG_NAME).exists() and (folder / open_clip.CONFIG_NAME).exists():
        return _convert_open_clip(folder)
    shards = _shards(folder)
    names = {source: _new_name(source) for source in shards}
    if len(set(names.values())) < len(names):
        raise UnsafeFileError(
            f"each file that {PICKLE_INDEX_NAME} names must get a name of its own, but in {folder} two become "
            f"{max(names.values(), key=list(names.values()).count)}. Use the files of one revision of the model's "
            "repository."
        )
    temporaries = {source: (folder / name).with_name(f".{secrets.token_hex(6)}.tmp") for source, name in names.items()}
    try:
        made = {source: _convert(folder, source, temporaries[source]) for source in shards}
        written = {names[source]: sha256_of_file(temporaries[source]) for source in shards}
        read = {source: str(answer["sha256"]) for source, answer in made.items()}
        _write_json(folder / RECORD_NAME, _record(Conversion(read, written)))
        for source, temporary in temporaries.items():
            temporary.chmod((folder / source).stat().st_mode & 0o777)  # readable by whoever could read the pickle
            temporary.rename(folder / names[source])
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
    if list(names) != [PICKLE_NAME]:
        places = {weight: names[source] for source, answer in made.items() for weight in answer["weights"]}
        total = sum(int(answer["bytes"]) for answer in made.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(folder / INDEX_NAME, index)
    return Conversion(read, written)


def _convert_open_clip(folder: Path) -> Conversion:
    """The vision tower of a folder in open_clip's format, as a DINOv2; config.json comes last."""
    from safetensors.torch import load_file, save_file

    source = open_clip.WEIGHTS_NAME if (folder / open_clip.WEIGHTS_NAME).exists() else open_clip.PICKLE_NAME
    if require_regular(folder, source) is None:
        raise ModelNotFoundError(
            f"a folder in open_clip's format must hold {open_clip.WEIGHTS_NAME} or {open_clip.PICKLE_NAME}, but "
            f"{folder} has neither. Fetch one from the model's repository."
        )
    plain, new = (folder / f".{secrets.token_hex(6)}.tmp" for _ in range(2))
    try:
        if source == open_clip.PICKLE_NAME:
            read = str(_convert(folder, source, plain)["sha256"])
            weights = load_file(plain)
        else:
            read, weights = sha256_of_file(folder / source), load_file(folder / source)
        config, processor, tower = open_clip.as_dinov2(folder, weights)
        save_file(tower, new, metadata={"format": "pt"})
        done = Conversion({source: read}, {WEIGHTS_NAME: sha256_of_file(new)})
        _write_json(folder / RECORD_NAME, _record(done))
        _write_json(folder / "preprocessor_config.json", processor)
        new.chmod((folder / source).stat().st_mode & 0o777)
        new.rename(folder / WEIGHTS_NAME)
        _write_json(folder / CONFIG_NAME, config)
    finally:
        for temporary in (plain, new):
            temporary.unlink(missing_ok=True)
    return done


def _record(done: Conversion) -> dict[str, Any]:
    return {"tool": f"featurecache {version('featurecache')}", "read": done.read, "written": done.written}


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_private(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def _shards(folder: Path) -> list[str]:
    """Names of the pickled files."""
    if require_regular(folder, PICKLE_NAME) is not None:
        return [PICKLE_NAME]
    if require_regular(folder, PICKLE_INDEX_NAME, LARGEST_INDEX_BYTES) is None:
        raise ModelNotFoundError(
            f"a folder to convert must hold {PICKLE_NAME} or {PICKLE_INDEX_NAME}, but {folder} has neither. "
            "Name the folder that the weights were downloaded to."
        )
    shards = sorted(read_index(folder, PICKLE_INDEX_NAME, ".bin"))
    for name in shards:
        if require_regular(folder, name) is None:
            raise ModelNotFoundError(
                f"{PICKLE_INDEX_NAME} names {len(shards)} files of weights, but {folder / name} is missing. "
                "Fetch it from the same revision of the model's repository."
            )
    return shards


def _new_name(source: str) -> str:
    """`pytorch_model-00001-of-00002.bin` -> `model-00001-of-00002.safetensors`."""
    folder, _, name = source.rpartition("/")
    new = f"{name.removeprefix('pytorch_').removesuffix('.bin')}.safetensors"
    return f"{folder}/{new}" if folder else new


def _convert(folder: Path, source: str, target: Path) -> dict[str, Any]:
    """One file, in a process of its own: its digest, the names of its weights and their bytes."""
    # -P: a module of featurecache.backbones must not be taken for one of Python's that has its name.
    command = [sys.executable, "-P", str(Path(__file__).with_name("pickled_weights.py"))]
    done = subprocess.run(  # noqa: S603  # this interpreter
        [*command, str((folder / source).resolve()), str(target.absolute())],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        if done.returncode == -signal.SIGXCPU:
            raise UnsafeFileError(
                f"pickled weights must be read in the time that their size explains, but {folder / source} takes more. "
                "Use a revision of the model with model.safetensors."
            ) from error
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelNotFoundError(
            f"pickled weights must be readable in the memory of this machine, but reading {folder / source} ended with "
            f"code {done.returncode}: {said[:200].rstrip('.')}. Free memory, or convert on a larger machine."
        ) from error
    if "refused" in answer:
        raise UnsafeFileError(
            f"pickled weights must be tensors by name and nothing else, but {folder / source}: {answer['refused']}. "
            "Use a revision of the model with model.safetensors."
        )
    if "damaged" in answer:
        raise ModelNotFoundError(
            f"pickled weights must be whole, but {folder / source} cannot be read: {answer['damaged']}. "
            "Compare its sha256 with the one on the repository's page, and fetch it again if they differ."
        )
    if "system" in answer:
        raise OSError(answer["system"][0], answer["system"][1], str(folder / source))
    return answer
