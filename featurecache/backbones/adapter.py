"""LoRA adapters in the language model of a video language model: put in, written, attached again, merged.

The language model alone is handed to PEFT, so the vision tower, whose layers have the same names, is never touched.
Layers are replaced in place: the backbone goes on through the same objects, with nothing to switch. New adapters
change nothing (B starts at zero). Their weights are float32 whatever the model's dtype. An adapter that was trained on
4-bit weights says so in its file's header, and is attached to, or merged into, weights that are rounded alike.

Not here: training; what an adapter does to fingerprints (`featurecache/backbones/adapter_files.py`).

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models. https://arxiv.org/abs/2106.09685
"""

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featurecache.backbones.four_bit import is_quantised, quantise, round_weights

# isort: split
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from transformers import (
    InternVLForConditionalGeneration,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)

from featurecache.backbones import model_type_of
from featurecache.backbones.adapter_files import CONFIG_NAME, WEIGHTS_NAME, open_adapter
from featurecache.backbones.decoder import decoder_of
from featurecache.backbones.files import load_frozen, quiet_loading, read_as
from featurecache.backbones.loaded_weights import refuse_non_finite
from featurecache.backbones.model_folder import PROCESSOR_FILES
from featurecache.errors import ModelNotFoundError, SettingsError
from featurecache.files import private_folder, write_private

_WHOLE_MODELS = {
    "llava_next_video": LlavaNextVideoForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
    "internvl": InternVLForConditionalGeneration,
}

_BASE_WEIGHTS, _FOUR_BIT = "base_weights", "nf4"
"""In the header of an adapter's weights, where they were trained on rounded ones."""

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth")


def add_adapter(
    backbone: Any, *, rank: int, alpha: int, dropout: float, targets: Sequence[str], layers: Sequence[int], seed: int
) -> PeftModel:
    """Puts new adapters into a backbone's language model.

    Args:
        backbone: The loaded model, of one of `featurecache.backbones.adapter_files.FAMILIES`; it is changed in place.
        rank: r, of each update B A.
        alpha: The update is scaled by alpha / rank.
        dropout: Share of a target's input that its update does not see in training.
        targets: Names of the linear layers, e.g. `q_proj`.
        layers: Numbers of the layers, from 0.
        seed: Of A's initial values.

    Returns:
        The language model as PEFT sees it.

    Raises:
        SettingsError: If a target is not in every one of these layers.
    """
    decoder = backbone.decoder
    for layer in layers:
        linears = {name.rpartition(".")[2] for name, _ in decoder.layers[layer].named_modules()}
        missing = sorted(set(targets) - linears)
        if missing:
            raise SettingsError(
                f"lora.targets must name linear layers of the language model, but layer {layer} has no {missing[0]!r}. "
                "Its attention has q_proj, k_proj, v_proj and o_proj."
            )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        layers_to_transform=list(layers),
        layers_pattern="layers",
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), _peft():
        torch.manual_seed(seed)
        return get_peft_model(decoder, config)


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Writes an adapter's two files; they hold no path and no name of the base model."""
    private_folder(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _adapter_weights(model).items()}
    metadata = {"format": "pt"}
    if is_quantised(model.get_base_model()):
        metadata[_BASE_WEIGHTS] = _FOUR_BIT
    write_private(folder / WEIGHTS_NAME, tensors_to_bytes(tensors, metadata=metadata))
    config = {**model.peft_config["default"].to_dict(), "base_model_name_or_path": None, "inference_mode": True}
    ready = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    write_private(folder / CONFIG_NAME, (json.dumps(ready, indent=2, sort_keys=True) + "\n").encode())


def attach_adapter(backbone: Any, folder: Path) -> None:
    """Puts a written adapter into a backbone's language model, frozen.

    Raises:
        ModelNotFoundError: If the files are damaged or of another model.
        SettingsError: If it was trained on 4-bit weights and bitsandbytes is not installed.
    """
    decoder = backbone.decoder
    with quiet_loading(folder, "adapter"):
        if _is_on_four_bit(folder):
            quantise(decoder, open_adapter(folder).first_layer)
        _with_adapter(decoder, folder).eval().requires_grad_(False)


def merge_adapter(model_folder: Path, adapter_folder: Path, out: Path, *, dtype: str) -> None:
    """Writes a model whose weights have an adapter added to them; it needs no PEFT to run.

    Args:
        model_folder: The base model's files.
        adapter_folder: The adapter's.
        out: A new folder for all files of the model.
        dtype: Of the written weights.

    Raises:
        ModelNotFoundError: If either is damaged.
        OSError: If it cannot be written.
    """
    model_class = _WHOLE_MODELS[model_type_of(model_folder)]
    config = read_as(model_class.config_class, model_folder, "model")
    model = load_frozen(
        model_class, model_folder, family="model", dtype=dtype, device="cpu", attention="sdpa", config=config
    )
    with quiet_loading(adapter_folder, "adapter"):
        decoder = decoder_of(model.model)
        if _is_on_four_bit(adapter_folder):
            round_weights(decoder, open_adapter(adapter_folder).first_layer)
        _with_adapter(decoder, adapter_folder).merge_and_unload(safe_merge=True)  # in place
    private_folder(out)
    model.save_pretrained(out)
    written = {path.name for path in out.iterdir()} - {"generation_config.json"}  # the model's own, where it has one
    weights = {path.name for pattern in _WEIGHT_FILES for path in model_folder.glob(pattern)}
    for path in model_folder.iterdir():
        if path.is_file() and path.name not in written | weights:
            shutil.copyfile(path, out / path.name)
    nested = [name for name in PROCESSOR_FILES if "/" in name and (model_folder / name).is_file()]
    for name in nested:
        private_folder((out / name).parent)
        shutil.copyfile(model_folder / name, out / name)
    for path in out.rglob("*"):
        if path.is_file():
            path.chmod(0o600)


def _with_adapter(decoder: Any, folder: Path) -> PeftModel:
    """A language model with a written adapter put into it, in place."""
    with _peft(), torch.random.fork_rng(devices=[]):
        model = get_peft_model(decoder, LoraConfig(**open_adapter(folder).settings, bias="none", inference_mode=True))
    stored = load_file(folder / WEIGHTS_NAME)
    refuse_non_finite(folder, stored.items())
    expected = _adapter_weights(model)
    differ = sorted(
        name
        for name in stored.keys() | expected.keys()
        if name not in stored or name not in expected or stored[name].shape != expected[name].shape
    )
    if differ:
        raise ModelNotFoundError(
            f"an adapter must be of this language model, but {len(differ)} weights differ, e.g. {differ[0]}. "
            "Use the model it was trained on."
        )
    set_peft_model_state_dict(model, stored)
    return model


def _adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    # Embeddings never have adapters; left to find that out, PEFT asks the hub for the repository named in config.json.
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return weights


def _is_on_four_bit(folder: Path) -> bool:
    with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
        return (file.metadata() or {}).get(_BASE_WEIGHTS) == _FOUR_BIT


@contextmanager
def _peft() -> Iterator[None]:
    """PEFT asks transformers for a name that is about to go; that is between the two."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield
