"""Contents of config.json that must not open: each is one change of a sound model folder."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile_tokenizers import Case, edit


def _model_type_list(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(model_type=["llava_next_video"]))


def _rather_deep(folder: Path) -> None:
    """Deeper than settings are, and not so deep that the parser gives up."""
    edit(folder / "config.json", lambda config: config.update(a=json.loads("[" * 200 + "]" * 200)))


def _image_size(folder: Path) -> None:
    size = {"size": {"shortest_edge": 64_800}, "crop_size": {"height": 64_800, "width": 64_800}}
    edit(folder / "config.json", lambda config: config["vision_config"].update(image_size=64_800))
    edit(folder / "preprocessor_config.json", lambda made: made.update(size))


def _large_in_bounds(folder: Path) -> None:
    """Each size is one that some model has; together they ask for 270 billion values."""
    edit(folder / "config.json", lambda config: config["text_config"].update(vocab_size=4_000_000, hidden_size=65_536))


def _layers(part: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config[part].update(num_hidden_layers=200_000))


def _no_patch(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["vision_config"].update(patch_size=0))


def _quantised(folder: Path) -> None:
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    edit(folder / "config.json", lambda config: config.update(quantization_config=quantised))


def _hub_kernel(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["text_config"].update(_attn_implementation="someone/attention"))


def _timm_tower(folder: Path) -> None:
    tower = {"model_type": "timm_wrapper", "architecture": "hf_hub:someone/tower", "image_size": 56, "patch_size": 14}
    edit(folder / "config.json", lambda config: config.update(vision_config=tower))


def _many_lists(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "clip", "a": [' + "[]," * 1_300_000 + "[]]}")


def text_config(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config["text_config"].update(settings))


def _tower_layer(layer: int | list[int]) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(vision_feature_layer=layer))


def _pooled_away(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(spatial_pool_stride=1000))


def _many_labels(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(num_labels=10**9))


def _other_shapes(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["text_config"].update(num_key_value_heads=1))


def _text_config_list(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(text_config=[]))


def _other_encoding(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text(), encoding="utf-16")


def _processor(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "preprocessor_config.json", lambda made: made.update(settings))


def _processor_case(wanted: str, **settings: Any) -> Case:
    return (_processor(**settings), "UnsupportedModelError", "preprocessor_config.json", f"must be {wanted}")


HOSTILE_CONFIGS: dict[str, Case] = {
    "model type": (_model_type_list, "UnsupportedModelError", "config.json", "has a list"),
    "rather deep config": (_rather_deep, "UnsafeFileError", "config.json", "is nested deeper"),
    "image size": (_image_size, "UnsupportedModelError", "config.json", "has 64800"),
    "many layers": (_layers("text_config"), "UnsupportedModelError", "config.json", "has 200000"),
    "many tower layers": (_layers("vision_config"), "UnsupportedModelError", "config.json", "has 200000"),
    "large in bounds": (_large_in_bounds, "UnsupportedModelError", "config.json", "asks for"),
    "no patch": (_no_patch, "UnsupportedModelError", "config.json", "patch_size of a model must be"),
    "quantised": (_quantised, "UnsupportedModelError", "config.json", "sets quantization_config"),
    "hub kernel": (_hub_kernel, "UnsafeFileError", "config.json", "fetches native code"),
    "timm tower": (_timm_tower, "UnsupportedModelError", "config.json", "vision tower must be"),
    "tower layer too deep": (_tower_layer(999), "UnsupportedModelError", "config.json", "says 999"),
    "tower layer too low": (_tower_layer(-99), "UnsupportedModelError", "config.json", "says -99"),
    "no tower layer": (_tower_layer([]), "UnsupportedModelError", "config.json", "says []"),
    "pooled away": (_pooled_away, "UnsupportedModelError", "config.json", "spatial_pool_stride"),
    "many labels": (_many_labels, "UnsupportedModelError", "config.json", "has 1000000000"),
    "other shapes": (_other_shapes, "ModelNotFoundError", "config.json", "self_attn.k_proj.weight: ["),
    "text config list": (_text_config_list, "ModelNotFoundError", "", "text_config': TypeError"),
    "no such token": (
        lambda folder: edit(folder / "config.json", lambda config: config.update(video_token_index=-1)),
        "NoVideoTokensError",
        "config.json",
        "says -1",
    ),
    "video token that is a word": (
        lambda folder: edit(folder / "config.json", lambda config: config.update(video_token_index=7)),
        "NoVideoTokensError",
        "config.json",
        "that id is 'assistant:'",
    ),
    "frames of another size": (
        _processor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
        "UnsupportedModelError",
        "",
        "make 224 px",
    ),
    "sliding without a window": (
        text_config(model_type="qwen2", use_sliding_window=False, layer_types=["sliding_attention"] * 2),
        "UnsupportedModelError",
        "config.json",
        "layer_types must be",
    ),
    "layer types of other layers": (
        text_config(model_type="qwen2", layer_types=["full_attention"] * 3),
        "ModelNotFoundError",
        "",
        "number of `layer_types`",
    ),
    "other encoding": (_other_encoding, "ModelNotFoundError", "config.json", "in another encoding"),
    "size that is no number": _processor_case("a whole number", size={"shortest_edge": math.nan}),
    "endless size": _processor_case("a whole number", crop_size=math.inf),
    "part of a pixel": _processor_case("a whole number", size={"shortest_edge": 56.5}),
    "size of sizes": _processor_case("a whole number", size={"shortest_edge": {"shortest_edge": 56}}),
    "resample list": _processor_case("a whole number", resample=[3]),
    "statistics by channel": _processor_case("a number", image_mean={"red": 0.5}),
    "endless statistic": _processor_case("a number", image_std=[0.5, 0.5, math.inf]),
    "scale that is no number": _processor_case("a number", rescale_factor="1/255"),
    "switch in words": _processor_case("true or false", do_center_crop="no"),
    "many lists": (_many_lists, "UnsafeFileError", "config.json", "holds more"),
}
