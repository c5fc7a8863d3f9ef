"""Frozen models that turn clips into features: find the files, choose the family, open it.

A family is chosen by `model_type` in the model's own config.json. Everything is read from this
machine; only `find_model(..., allow_download=True)` may use the network. This package is the only
importer of transformers, but for what makes the demo backbone.
"""

from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from featurecache.backbones.model_folder import check_config, check_model_folder, name_broken_file
from featurecache.backbones.model_lookup import DEMO_MODEL, find_model
from featurecache.backbones.placeholder import require_one_video
from featurecache.backbones.versions import require_tested_transformers
from featurecache.device import check_dtype, device_of, use_full_float32
from featurecache.errors import ModelNotFoundError, UnsupportedModelError
from featurecache.project.features import Crop

if TYPE_CHECKING:
    from featurecache.backbones.family import Backbone, Inputs

__all__ = ["DEMO_MODEL", "find_model", "model_type_of", "open_backbone", "open_inputs", "read_config"]

_FAMILIES = {
    "llava_next_video": "llava_next_video",
    "timesformer": "timesformer",
    "clip": "frame_encoder",
    "clip_vision_model": "frame_encoder",
    "xclip": "xclip",
    "siglip2": "frame_encoder",
    "siglip": "frame_encoder",
    "siglip_vision_model": "frame_encoder",
    "dinov2": "frame_encoder",
    "dinov2_with_registers": "frame_encoder",
    "dinov3_vit": "frame_encoder",
    "videomae": "videomae",
    "videoprism": "videoprism",
    "videoprism_vision_model": "videoprism",
    "vjepa2": "vjepa2",
    "pe_audio_video": "perception",
    "pe_video": "perception",
    "llava_onevision": "llava_onevision",
    "smolvlm": "smolvlm",
    "qwen3_vl": "qwen3_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "internvl": "internvl",
}
"""`model_type` in config.json -> the module here that has `open_inputs` and `open_backbone` for it."""

_WITH_WORDS = ("llava_next_video", "llava_onevision", "smolvlm", "qwen2_5_vl", "qwen3_vl", "internvl")
"""The families with a language model, whose features depend on the prompt."""


def open_inputs(
    folder: Path,
    *,
    prompt: str,
    frames: int,
    resize: Literal["model", "crop", "pad", "squash"],
    clip_s: float = 3.0,
    crop: Crop | None = None,
) -> "Inputs":
    """All of a model but its weights, with the family that its config.json names.

    Args:
        folder: The model's files.
        prompt: Words around `<video>`; families without a language model ignore it.
        frames: T, frames sampled from a clip.
        resize: How a frame that is not square becomes one; `model`: as the model's own processor does.
        clip_s: Length of a clip in seconds; models that read the times of frames are told them.
        crop: The part of each frame that is cut out first; None: the whole frame.

    Raises:
        ModelNotFoundError: If a file is missing or damaged.
        SettingsError: If the prompt or the number of frames does not fit.
        UnsafeFileError: If a file must not be opened, e.g. because it names code to run.
        UnsupportedModelError: If the architecture is unknown here or the processor's settings do not fit.
        UntestedVersionError: If another version of transformers is installed than was tested.
    """
    require_tested_transformers()
    settings: dict[str, Any] = {"frames": frames, "resize": resize}
    if model_type_of(folder) in _WITH_WORDS:
        require_one_video(prompt, "features.prompt")  # before the seconds that the family's imports take
        settings |= {"prompt": prompt, "clip_s": clip_s}
    family = _family(folder)
    from featurecache.backbones.files import quiet_loading

    try:
        with quiet_loading(folder, "model"):  # values that no check foresaw end as a named error too
            inputs: Inputs = family.open_inputs(folder, **settings)
    except ModelNotFoundError:
        name_broken_file(folder)
        raise
    inputs.frame_resize = inputs.frame_resize.within(crop)
    return inputs


def open_backbone(inputs: "Inputs", *, dtype: Literal["float32", "bfloat16", "float16"], device: str) -> "Backbone":
    """The loaded, frozen model behind its inputs.

    Args:
        inputs: What `open_inputs` gave.
        dtype: The dtype the model computes in.
        device: "cpu", or a CUDA GPU, e.g. "cuda:0".

    Raises:
        ModelNotFoundError: If the weights are missing or damaged.
        UnsafeFileError: If the weights are not safetensors files of this folder.
        SettingsError: If the device is not here, does not compute in this dtype or has no room for the model.
    """
    device = device_of(device)
    check_dtype(dtype, device)
    if dtype == "float32":
        use_full_float32()
    return _opened(inputs, dtype, device)


def lay_out(inputs: "Inputs") -> "Backbone":
    """The same model on PyTorch's meta device: its shapes, without a weight.

    Raises:
        ModelNotFoundError: If the weights are missing.
        UnsupportedModelError: If config.json describes a far larger model than the weights are of.
    """
    return _opened(inputs, "float32", "meta")


def _opened(inputs: "Inputs", dtype: str, device: str) -> "Backbone":
    """The family's backbone; with its output layer where the model is asked something."""
    from featurecache.backbones.asking import AskedBackbone, AskedInputs
    from featurecache.backbones.files import load_frozen

    own: Any = inputs.inner if isinstance(inputs, AskedInputs) else inputs
    of_model = {"folder": own.folder, "family": own.title, "config": own.config, "attention": own.attention}
    load = partial(load_frozen, **of_model, dtype=dtype, device=device)
    backbone = _family(own.folder).open_backbone(own, load)
    return AskedBackbone(inputs, backbone, family=own.title) if isinstance(inputs, AskedInputs) else backbone


def model_type_of(folder: Path) -> str:
    """The architecture by transformers' name for it, as `model_type` in config.json should have it.

    Revisions of LLaVA-NeXT-Video before August 2024 say `llava_next`, which is another model; what they are stands in
    `architectures`.

    Raises:
        ModelNotFoundError: If the folder or its config.json is missing, or a file of settings is damaged.
        UnsafeFileError: If a file must not be opened.
        UnsupportedModelError: If the architecture is unknown here, or the model cannot be used whatever it is.
    """
    config = check_config(folder)
    model_type: str = config["model_type"]
    if model_type == "llava_next" and config.get("architectures") == ["LlavaNextVideoForConditionalGeneration"]:
        model_type = "llava_next_video"
    if model_type == "llava-next-video":
        raise UnsupportedModelError(
            f"the model's architecture must be one of {', '.join(_FAMILIES)}, but {folder / 'config.json'} says "
            f"{model_type!r}, as the first revisions of June 2024 did. Take a later revision of the same repository, "
            "e.g. main of llava-hf/LLaVA-NeXT-Video-7B-hf."
        )
    if model_type not in _FAMILIES:
        raise UnsupportedModelError(
            f"the model's architecture must be one of {', '.join(_FAMILIES)}, but {folder / 'config.json'} says "
            f"{model_type[:100]!r}. Use such weights, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
        )
    check_model_folder(folder)  # only now: advice on the other files of a model that is not supported helps nobody
    return model_type


def _family(folder: Path) -> ModuleType:
    return import_module(f"featurecache.backbones.{_FAMILIES[model_type_of(folder)]}")


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json; the folder's other files are for `open_inputs` to check.

    Raises:
        ModelNotFoundError: If the folder or its config.json is missing, or the file is damaged.
        UnsafeFileError: If the file must not be opened.
        UnsupportedModelError: If the model is quantised, or names no architecture.
    """
    return check_config(folder)
