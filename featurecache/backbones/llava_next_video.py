"""LLaVA-NeXT-Video as a frozen feature extractor.

The vision tower is loaded without the layers above the one that is used, and sees each frame alone; its tokens are
pooled by two before the projector, so `vision` and `layer_0` have as many tokens. A video is one run of tokens, without
words between frames.

Source of the architecture: https://llava-vl.github.io/blog/2024-04-30-llava-next-video/
"""

import copy
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlavaNextVideoConfig, LlavaNextVideoModel, LlavaNextVideoVideoProcessor

from featurecache.backbones.encoder import tower_states
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.backbones.video_language import (
    Architecture,
    VideoLanguageBackbone,
    VideoLanguageInputs,
    read_config,
)
from featurecache.errors import UnsupportedModelError

FAMILY = "LLaVA-NeXT-Video"

_TOWERS = ("clip_vision_model", "siglip_vision_model")


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize, clip_s: float) -> VideoLanguageInputs:  # noqa: ARG001
    """As `featurecache.backbones.open_inputs`."""
    config = read_config(folder, LlavaNextVideoConfig, FAMILY)
    vision = config.vision_config
    if vision.model_type not in _TOWERS:  # others may be fetched by their name
        raise UnsupportedModelError(
            f"LLaVA-NeXT-Video's vision tower must be one of {', '.join(_TOWERS)}, but {folder / 'config.json'} "
            f"says {vision.model_type!r}. Use such weights, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
        )
    if config.vision_feature_select_strategy != "default":
        raise UnsupportedModelError(
            "LLaVA-NeXT-Video must leave the tower's class token out (vision_feature_select_strategy = 'default'), "
            f"but {folder / 'config.json'} says {config.vision_feature_select_strategy!r}, with which it "
            "takes no video. Use such weights, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
        )
    states = tower_states(config, folder)
    _require_pooling(config, folder)
    rule = frame_rule(folder, LlavaNextVideoVideoProcessor, image_px=vision.image_size)
    tokens = (vision.image_size // vision.patch_size // config.spatial_pool_stride) ** 2
    architecture = Architecture(
        "llava_next_video",
        FAMILY,
        config.video_token_id,
        vision=TapShape(frames, tokens, vision.hidden_size * len(states)),
        video=TapShape(frames, tokens, config.text_config.hidden_size),
        digests_tokenizer=True,
    )
    return VideoLanguageInputs(
        folder, config=config, architecture=architecture, prompt=prompt, frames=frames, resize=resize, rule=rule
    )


def open_backbone(inputs: VideoLanguageInputs, load: Load) -> VideoLanguageBackbone:
    """As `featurecache.backbones.open_backbone`."""
    states = tower_states(inputs.config, inputs.folder)
    model = load(LlavaNextVideoModel, config=_without_unused_layers(inputs.config, max(1, *states)))

    def tower(pixels: Tensor) -> Tensor:
        kept = model.vision_tower(pixels, output_hidden_states=states, return_dict=True).hidden_states
        tokens = torch.cat([kept[layer] for layer in states], dim=-1)  # (F, 1 + patches, D_vision)
        pooled: Tensor = model.vision_resampler(tokens[:, 1:])
        return pooled

    return VideoLanguageBackbone(
        inputs, model, decoder=model.language_model, tower=tower, project=model.multi_modal_projector
    )


def _without_unused_layers(config: LlavaNextVideoConfig, layers: int) -> LlavaNextVideoConfig:
    """The config with so many layers of the tower; it keeps its states only where it has one."""
    smaller = copy.deepcopy(config)
    smaller.vision_config.num_hidden_layers = layers
    return smaller


def _require_pooling(config: LlavaNextVideoConfig, folder: Path) -> None:
    """Refuses a pooling that leaves no token of a frame."""
    side, stride = config.vision_config.image_size // config.vision_config.patch_size, config.spatial_pool_stride
    if not 0 < stride <= side:
        raise UnsupportedModelError(
            f"spatial_pool_stride must be from 1 to {side}, the patches along a frame's side, but "
            f"{folder / 'config.json'} says {stride}. Take config.json from the model's own repository."
        )
