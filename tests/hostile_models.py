"""Model folders that must not open, and a process that tries them under limits of time and memory.

`python -m tests.hostile_models FOLDER...` opens each folder as an extraction does, and prints one JSON line for each:
what was raised. A folder that takes longer than 30 s of processor time or ten times as long in all, which is a hang on
the busiest machine, or a process that wants 2 GiB of data, ends it.
"""

import json
import math
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile_configs import HOSTILE_CONFIGS, text_config
from tests.hostile_tokenizers import HOSTILE_TOKENIZERS, Case, edit

LONGEST_S = 30
MOST_BYTES = 2 * 1024**3
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 14126112768\n".format("0" * 64)


def split_weights(folder: Path, places: Mapping[str, str] | None = None) -> dict[str, str]:
    """Puts the weights into two shards, and gives the index's weight_map; `places` renames a shard's file."""
    weights = load_file(folder / _WEIGHTS)
    (folder / _WEIGHTS).unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    found: dict[str, str] = {}
    for name, held in shards.items():
        named = (places or {}).get(name, name)
        target = folder / named
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: weights[key] for key in held}, target, metadata={"format": "pt"})
        found |= dict.fromkeys(held, named)
    write_index(folder, found)
    return found


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _lfs_pointer(folder: Path) -> None:
    (folder / _WEIGHTS).write_text(_POINTER)


def _lfs_pointer_for_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(_POINTER)


def _above_snapshots(folder: Path) -> None:
    inside = folder.with_name("moved")
    folder.rename(inside)
    (folder / "snapshots").mkdir(parents=True)
    inside.rename(folder / "snapshots" / "04a83e0")


def _no_processor(folder: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _missing_shard(folder: Path) -> None:
    split_weights(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _deep(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")

    return make


def _many_tensors(folder: Path) -> None:
    entries = (f'"w{at}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for at in range(900_000))
    header = ("{" + ",".join(entries) + "}").encode()
    (folder / _WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def _large_tokenizer(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 256 * 1024**2)


def _fifo(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def _device(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to("/dev/zero")


def _auto_map(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "own.py").write_text("raise SystemExit('the folder ran its own code')\n")
        own = {"auto_map": {"AutoTokenizer": [None, "own.Own"], "AutoConfig": "own.Own"}, "tokenizer_class": "Own"}
        edit(folder / name, lambda document: document.update(own))

    return make


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))


def _fifo_of_another_tokenizer(folder: Path) -> None:
    os.mkfifo(folder / "spiece.model")


def _dangling(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../blobs/none")


def _loop(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("tokenizer.json")


def _odd_name(folder: Path) -> None:
    split_weights(folder)
    write_index(folder, {"a": "model-\ud800.safetensors"})


def _lying_header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        data = (folder / _WEIGHTS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        changed = json.dumps(header).encode()
        (folder / _WEIGHTS).write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])

    return make


def _deep_header(folder: Path) -> None:
    header = ('{"w": ' + "[" * 200_000 + "]" * 200_000 + "}").encode()
    (folder / _WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def _first(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(value for name, value in header.items() if name != "__metadata__")
    return entry


def _other_config(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    edit(folder / "config.json", lambda config: config.update(configuration_files=["config.4.0.0.json"]))


def _other_weights(folder: Path) -> None:
    shutil.copy(folder / _WEIGHTS, folder / "other.safetensors")
    edit(folder / "config.json", lambda config: config.update(transformers_weights="other.safetensors"))


def _unknown_family(folder: Path) -> None:
    """With two more faults, whose mends would be in vain."""
    edit(folder / "config.json", lambda config: config.update(model_type="qwen2_vl"))
    _no_processor(folder)
    _lfs_pointer_for_the_tokenizer(folder)


def _unknown_language_model(folder: Path) -> None:
    text_config(model_type="gemma")(folder)
    _no_processor(folder)


def _shard_at(place: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        split_weights(folder, {"model-00002-of-00002.safetensors": place})

    return make


def _one_weight(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], None]:
    """Changes the weights at a layer of the language model."""

    def make(folder: Path) -> None:
        weights = load_file(folder / _WEIGHTS)
        change(weights, next(name for name in sorted(weights) if "layers.1.mlp.up_proj" in name))
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})

    return make


def _two_names(weights: dict[str, torch.Tensor], name: str) -> None:
    weights[name.replace("language_model.model.", "model.language_model.")] = torch.zeros_like(weights[name])


def _weights_in_capitals(folder: Path) -> None:
    (folder / _WEIGHTS).rename(folder / "model.SAFETENSORS")


def _torn_weights(folder: Path) -> None:
    os.truncate(folder / _WEIGHTS, (folder / _WEIGHTS).stat().st_size // 2)


def _absolute_shard(folder: Path) -> None:
    split_weights(folder, {"model-00002-of-00002.safetensors": str(folder.with_name("elsewhere") / "w.safetensors")})


def _pickled_shard(folder: Path) -> None:
    places = split_weights(folder)
    write_index(
        folder, {key: name.replace("model-00002-of-00002.safetensors", "w.bin") for key, name in places.items()}
    )
    (folder / "model-00002-of-00002.safetensors").rename(folder / "w.bin")


def _other_vocabulary(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda made: made["model"]["vocab"].update(hand=10**7))


def _sparse_weights(folder: Path) -> None:
    """Far more bytes than the header says, which a digest would read to the end."""
    os.truncate(folder / _WEIGHTS, 64 * 1024**3)


def _above_the_model(folder: Path) -> None:
    inside = folder.with_name("moved")
    folder.rename(inside)
    folder.mkdir()
    inside.rename(folder / "inner")


def _dangling_weights(folder: Path) -> None:
    (folder / _WEIGHTS).unlink()
    (folder / _WEIGHTS).symlink_to("../../blobs/none")


def _linked_shard(folder: Path) -> None:
    split_weights(folder)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.symlink_to(shutil.move(shard, folder.with_name("linked.safetensors")))


def _doubled_names(folder: Path) -> None:
    places = split_weights(folder)
    first, second = sorted(set(places.values()))
    both = load_file(folder / first) | load_file(folder / second)
    save_file(both, folder / second, metadata={"format": "pt"})


HOSTILE: dict[str, Case] = {
    **HOSTILE_TOKENIZERS,
    **HOSTILE_CONFIGS,
    "lfs pointer": (_lfs_pointer, "ModelNotFoundError", _WEIGHTS, "is a Git LFS pointer"),
    "lfs tokenizer": (_lfs_pointer_for_the_tokenizer, "ModelNotFoundError", "tokenizer.json", "is a Git LFS pointer"),
    "above snapshots": (_above_snapshots, "ModelNotFoundError", "snapshots/04a83e0", "repository of the Hugging Face"),
    "no processor": (_no_processor, "ModelNotFoundError", "preprocessor_config.json", "has none of"),
    "no config": (_without("config.json"), "ModelNotFoundError", "config.json", "has none. Name the"),
    "no tokenizer": (_without("tokenizer.json"), "ModelNotFoundError", "", "ORGANISATION/NAME tokenizer"),
    "no weights": (_without(_WEIGHTS), "ModelNotFoundError", "", "holds no weights. Fetch them: hf download"),
    "lost weight": (
        _one_weight(lambda weights, name: weights.pop(name)),
        "ModelNotFoundError",
        "",
        "must hold every weight of LlavaNextVideoModel",
    ),
    "missing shard": (_missing_shard, "ModelNotFoundError", "model-00002-of-00002.safetensors", "is missing"),
    "deep config": (_deep("config.json"), "UnsafeFileError", "config.json", "is nested deeper"),
    "deep processor": (_deep("processor_config.json"), "UnsafeFileError", "processor_config.json", "is nested deeper"),
    "deep tokenizer": (_deep("tokenizer.json"), "UnsafeFileError", "tokenizer.json", "is nested deeper"),
    "many tensors": (_many_tensors, "UnsafeFileError", _WEIGHTS, "a header of"),
    "large tokenizer": (_large_tokenizer, "UnsafeFileError", "tokenizer.json", "has 256 MiB"),
    "fifo config": (_fifo("config.json"), "UnsafeFileError", "config.json", "is a FIFO"),
    "fifo tokenizer": (_fifo("tokenizer.json"), "UnsafeFileError", "tokenizer.json", "is a FIFO"),
    "fifo weights": (_fifo(_WEIGHTS), "UnsafeFileError", _WEIGHTS, "is a FIFO"),
    "device": (_device, "UnsafeFileError", "tokenizer_config.json", "/dev/zero"),
    "own tokenizer": (_auto_map("tokenizer_config.json"), "UnsafeFileError", "tokenizer_config.json", "sets auto_map"),
    "own config": (_auto_map("config.json"), "UnsafeFileError", "config.json", "sets auto_map"),
    "own processor": (_auto_map("processor_config.json"), "UnsafeFileError", "processor_config.json", "sets auto_map"),
    "adapter": (_adapter, "UnsupportedModelError", "adapter_config.json", "has an adapter next to it"),
    "other config": (_other_config, "UnsafeFileError", "config.json", "sets configuration_files"),
    "other weights": (_other_weights, "UnsafeFileError", "config.json", "sets transformers_weights"),
    "fifo of another tokenizer": (_fifo_of_another_tokenizer, "UnsafeFileError", "spiece.model", "is a FIFO"),
    "dangling": (_dangling, "ModelNotFoundError", "config.json", "is a link to ../blobs/none"),
    "dangling weights": (_dangling_weights, "ModelNotFoundError", _WEIGHTS, "is a link to ../../blobs/none"),
    "above the model": (_above_the_model, "ModelNotFoundError", "config.json", "such as"),
    "other vocabulary": (_other_vocabulary, "ModelNotFoundError", "config.json", "makes token 10000000"),
    "torn weights": (_torn_weights, "ModelNotFoundError", _WEIGHTS, "is damaged or cut off"),
    "sparse weights": (_sparse_weights, "ModelNotFoundError", _WEIGHTS, "is damaged or cut off"),
    "unknown family": (_unknown_family, "UnsupportedModelError", "config.json", "says 'qwen2_vl'"),
    "unknown language model": (_unknown_language_model, "UnsupportedModelError", "config.json", "says 'gemma'"),
    "loop": (_loop, "ModelNotFoundError", "tokenizer.json", "must be readable"),
    "odd name": (_odd_name, "UnsafeFileError", _INDEX, "must name files of its own folder"),
    "deep header": (_deep_header, "ModelNotFoundError", _WEIGHTS, "is damaged or cut off"),
    "huge shape": (
        _lying_header(lambda header: _first(header).update(shape=[10**18])),
        "ModelNotFoundError",
        _WEIGHTS,
        "is damaged or cut off",
    ),
    "negative offset": (
        _lying_header(lambda header: _first(header).update(data_offsets=[-8, 8])),
        "ModelNotFoundError",
        _WEIGHTS,
        "is damaged or cut off",
    ),
    "shard outside": (_shard_at("../outside/w.safetensors"), "UnsafeFileError", _INDEX, "../outside/w.safetensors"),
    "two names": (_one_weight(_two_names), "UnsafeFileError", "model", "as language_model.model.layers.1.mlp.up_proj"),
    "not a number": (
        _one_weight(lambda weights, name: weights[name][3].fill_(math.nan)),
        "ModelNotFoundError",
        "model",
        "layers.1.mlp.up_proj.weight of",
    ),
    "endless number": (
        _one_weight(lambda weights, name: weights[name][-1].fill_(-math.inf)),
        "ModelNotFoundError",
        "model",
        "holds NaN or infinity in torch.float32",
    ),
    "shard in capitals": (_shard_at("w.SAFETENSORS"), "ModelNotFoundError", _INDEX, "Rename the file"),
    "weights in capitals": (
        _weights_in_capitals,
        "ModelNotFoundError",
        "model.SAFETENSORS",
        "Rename it to model.safetensors",
    ),
    "shard elsewhere": (_absolute_shard, "UnsafeFileError", _INDEX, "must name files of its own folder"),
    "shard behind a link": (_linked_shard, "UnsafeFileError", "model-00002-of-00002.safetensors", "linked.safetensors"),
    "pickled shard": (_pickled_shard, "UnsafeFileError", _INDEX, "w.bin"),
    "doubled names": (_doubled_names, "UnsafeFileError", "model-00002-of-00002.safetensors", "both hold"),
}


def make_hostile(sound: Path, out: Path) -> dict[str, Path]:
    """A folder for each case, by the case's name, made from a copy of a sound one."""
    made = {}
    for name, (change, *_) in HOSTILE.items():
        made[name] = Path(shutil.copytree(sound, out / name.replace(" ", "-") / "model"))
        change(made[name])
    return made


def main() -> None:
    """Opens each folder, and prints what was raised."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    from featurecache.backbones import open_backbone, open_inputs
    from featurecache.files import sha256_of_file

    for folder in map(Path, sys.argv[1:]):
        signal.setitimer(signal.ITIMER_PROF, LONGEST_S)  # these end the process
        signal.alarm(10 * LONGEST_S)
        try:
            inputs = open_inputs(folder, prompt="user: hand <video>", frames=4, resize="model")
            inputs.identity("final", "float32", sha256_of_file)
            open_backbone(inputs, dtype="float32", device="cpu")
        except Exception as error:
            sys.stdout.write(json.dumps([type(error).__name__, str(error)]) + "\n")
        else:
            sys.stdout.write(json.dumps(["", "it opened"]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
