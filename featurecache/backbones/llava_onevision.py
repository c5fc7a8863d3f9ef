"""LLaVA-OneVision as a frozen feature extractor.

A SigLIP tower sees each frame alone; the projector and a pooling by two behind it (384 px: 27 x 27 patches -> 14 x 14
tokens) also work frame by frame, so clips that share a frame share its video tokens. `vision` is before the pooling
(729 tokens a frame). The newline token that transformers puts behind the last frame comes after all video tokens and is
not run.

Not here: images, towers other than SigLIP.

Source: Li et al., LLaVA-OneVision: Easy Visual Task Transfer. https://arxiv.org/abs/2408.03326
"""

import math
from pathlib import Path

from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel, LlavaOnevisionVideoProcessor

from featurecache.backbones.encoder import siglip_parts, tower_states
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.backbones.video_language import (
    Architecture,
    VideoLanguageBackbone,
    VideoLanguageInputs,
    read_config,
)
from featurecache.errors import UnsupportedModelError

FAMILY = "LLaVA-OneVision"


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize, clip_s: float) -> VideoLanguageInputs:  # noqa: ARG001
    """As `featurecache.backbones.open_inputs`."""
    config = read_config(folder, LlavaOnevisionConfig, FAMILY)
    vision = config.vision_config
    _tower_tap(config, folder)
    rule = frame_rule(folder, LlavaOnevisionVideoProcessor, image_px=vision.image_size)
    side = vision.image_size // vision.patch_size
    architecture = Architecture(
        "llava_onevision",
        FAMILY,
        config.video_token_id,
        vision=TapShape(frames, side**2, vision.hidden_size),
        video=TapShape(frames, math.ceil(side / 2) ** 2, config.text_config.hidden_size),
    )
    return VideoLanguageInputs(
        folder, config=config, architecture=architecture, prompt=prompt, frames=frames, resize=resize, rule=rule
    )


def open_backbone(inputs: VideoLanguageInputs, load: Load) -> VideoLanguageBackbone:
    """As `featurecache.backbones.open_backbone`."""
    model = load(LlavaOnevisionModel)
    parts, tap = siglip_parts(model.vision_tower), _tower_tap(inputs.config, inputs.folder)

    def project(tokens: Tensor) -> Tensor:
        pooled: Tensor = model.apply_pooling(model.multi_modal_projector(tokens))
        return pooled

    return VideoLanguageBackbone(
        inputs,
        model,
        decoder=model.language_model,
        tower=lambda pixels: parts.state(pixels, tap),
        project=project,
        projects_frames=True,
        after_video=model.image_newline[None],
    )


def _tower_tap(config: LlavaOnevisionConfig, folder: Path) -> str:
    chosen = config.vision_feature_layer
    found = {
        "vision_config.model_type": config.vision_config.model_type,
        "vision_feature_layer": chosen,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    if (
        found["vision_config.model_type"] != "siglip_vision_model"
        or not isinstance(chosen, int)
        or config.vision_feature_select_strategy != "full"
    ):
        raise UnsupportedModelError(
            "LLaVA-OneVision must have a SigLIP tower of which one layer is used in full, but "
            f"{folder / 'config.json'} says {found}. Use such weights, e.g. llava-hf/llava-onevision-qwen2-7b-ov-hf."
        )
    return f"layer_{tower_states(config, folder)[0]}"
