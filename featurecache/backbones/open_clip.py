"""The vision tower of a model in open_clip's format as a DINOv2: what `model convert` makes of BiomedCLIP.

open_clip publishes `open_clip_config.json` and one file of weights. Where the vision tower is a ViT of timm, its
computation is that of a DINOv2 without registers whose layer scales are one, so transformers' class runs it, number for
number. The class token behind the norm is what the model projects into the space of texts. The projection and the text
tower are left out: transformers has no class for them, and the open_clip library asks the hub for the text tower's own
repository.

Source of the format: Ilharco et al., OpenCLIP. https://doi.org/10.5281/zenodo.5143773
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurecache.backbones.model_folder import read_json
from featurecache.errors import UnsupportedModelError

CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME = (
    "open_clip_config.json",
    "open_clip_pytorch_model.bin",
    "open_clip_model.safetensors",
)
_TRUNK = "visual.trunk."
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16}
_RENAMED = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_WHOLE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def as_dinov2(folder: Path, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """What a folder in transformers' layout holds of the vision tower: config, processor and weights.

    Args:
        folder: The model's files, for `open_clip_config.json`.
        weights: All weights by their published names.

    Raises:
        UnsupportedModelError: If the vision tower is no plain ViT of timm whose class token is projected, or frames are
            prepared in another way than by scaling the short edge and cutting the centre.
    """
    read = read_json(folder / CONFIG_NAME)
    vision, frames = (read.get("model_cfg") or {}).get("vision_cfg") or {}, read.get("preprocess_cfg") or {}
    named = re.fullmatch(r"vit_(tiny|small|base|large)_patch\d+_\d+", str(vision.get("timm_model_name")))
    way = frames.get("resize_mode", "shortest"), frames.get("interpolation", "bicubic"), frames.get("mode", "RGB")
    is_plain = vision.get("timm_pool") in ("", "token") and vision.get("timm_proj") == "linear"
    trunk = {name.removeprefix(_TRUNK): one for name, one in weights.items() if name.startswith(_TRUNK)}
    new = dict(_converted(trunk))
    if named is None or not is_plain or way != ("shortest", "bicubic", "RGB") or set(new) != _names(new):
        raise UnsupportedModelError(
            "of open_clip's models those are converted whose vision tower is a plain ViT of timm with a projected "
            f"class token, but {folder / CONFIG_NAME} says timm_model_name = {vision.get('timm_model_name')!s:.60}, "
            f"timm_pool = {vision.get('timm_pool')!s:.20}, timm_proj = {vision.get('timm_proj')!s:.20} and frames "
            f"{', '.join(way):.60}. Use a CLIP in the layout of transformers, e.g. openai/clip-vit-large-patch14-336."
        )
    width, _, patch, _ = new[_WHOLE["patch_embed.proj.weight"]].shape
    image_px = int(vision["image_size"])
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": _layers(new),
        "num_attention_heads": _HEADS[named[1]],
        "mlp_ratio": new["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": image_px,
        "patch_size": patch,
        "qkv_bias": True,
    }
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": image_px},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": image_px, "width": image_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(frames["mean"]),
        "image_std": list(frames["std"]),
        "do_convert_rgb": True,
    }
    return config, processor, new


def _converted(trunk: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights of a ViT of timm by DINOv2's names; names that it has not are kept."""
    for name, one in trunk.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            yield _WHOLE.get(name, name), one
            continue
        layer, part, kind = block.groups()
        if part == "attn.qkv":
            for which, third in zip(("query", "key", "value"), one.chunk(3), strict=True):
                yield f"encoder.layer.{layer}.attention.attention.{which}.{kind}", third.contiguous()
        else:
            yield f"encoder.layer.{layer}.{_RENAMED.get(part, part)}.{kind}", one
        if (part, kind) == ("norm1", "weight"):
            for scale in ("layer_scale1", "layer_scale2"):
                yield f"encoder.layer.{layer}.{scale}.lambda1", torch.ones_like(one)
    if "cls_token" in trunk:
        yield "embeddings.mask_token", torch.zeros_like(trunk["cls_token"][0])


def _layers(weights: Mapping[str, Tensor]) -> int:
    return sum(name.endswith("attention.attention.query.weight") for name in weights)


def _names(weights: Mapping[str, Tensor]) -> set[str]:
    """Names of a DINOv2 of so many layers."""
    attention = [f"attention.attention.{which}" for which in ("query", "key", "value")]
    parts = [*_RENAMED.values(), *attention]
    scales = ("layer_scale1.lambda1", "layer_scale2.lambda1")
    own = [*(f"{part}.{kind}" for part in parts for kind in ("weight", "bias")), *scales]
    found = {f"encoder.layer.{layer}.{name}" for layer in range(_layers(weights)) for name in own}
    return found | set(_WHOLE.values()) | {"embeddings.mask_token"}
