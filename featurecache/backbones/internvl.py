"""InternVL3 and 3.5 as frozen feature extractors, in transformers' own format (repositories whose names end with -hf).

The vision tower sees each frame alone; the projector lays 2 x 2 patches side by side (448 px: 32 x 32 patches -> 256
video tokens) and works frame by frame too, so clips that share a frame share its video tokens. `vision` is the tower's
tokens without the class token. The processor numbers the frames in words before each, and tells no times.

Not here: images cut into tiles.

Source: Zhu et al., InternVL3: Exploring Advanced Training and Test-Time Recipes for Open-Source Multimodal Models.
https://arxiv.org/abs/2504.10479
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import InternVLConfig, InternVLModel, InternVLVideoProcessor

from featurecache.backbones.encoder import FINAL, Parts, tower_states
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.backbones.video_language import (
    Architecture,
    VideoLanguageBackbone,
    VideoLanguageInputs,
    read_config,
)
from featurecache.errors import UnsupportedModelError

FAMILY = "InternVL3"

_START, _END = "<img>", "</img>"


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize, clip_s: float) -> VideoLanguageInputs:  # noqa: ARG001  # frames are numbered, not timed
    """As `featurecache.backbones.open_inputs`."""
    config = read_config(folder, InternVLConfig, FAMILY)
    vision = config.vision_config
    _tower_tap(config, folder)
    side = vision.image_size[0] // vision.patch_size[0]
    tokens = (side * config.downsample_ratio) ** 2
    rule = frame_rule(folder, InternVLVideoProcessor, image_px=vision.image_size[0], also=("InternVL", "GotOcr2"))
    architecture = Architecture(
        "internvl",
        FAMILY,
        config.image_token_id,
        vision=TapShape(frames, side**2, vision.hidden_size),
        video=TapShape(frames, int(tokens), config.text_config.hidden_size),
        video_text="\n".join(f"Frame{k + 1}: {_START}{VIDEO_PLACEHOLDER}{_END}" for k in range(frames)),
        markers=(_START, _END),
    )
    return VideoLanguageInputs(
        folder, config=config, architecture=architecture, prompt=prompt, frames=frames, resize=resize, rule=rule
    )


def open_backbone(inputs: VideoLanguageInputs, load: Load) -> VideoLanguageBackbone:
    """As `featurecache.backbones.open_backbone`."""
    model = load(InternVLModel)
    tower = model.vision_tower
    parts, tap = (
        Parts(tower, tower.embeddings, tower.encoder.layer, tower.layernorm),
        _tower_tap(inputs.config, inputs.folder),
    )
    side = int(inputs.architecture.vision.tokens_per_step**0.5)

    def project(tokens: Tensor) -> Tensor:
        square = tokens.reshape(len(tokens), side, side, -1)
        shuffled = model.pixel_shuffle(square, scale_factor=inputs.config.downsample_ratio)
        video: Tensor = model.multi_modal_projector(shuffled.reshape(len(tokens), -1, shuffled.shape[-1]))
        return video

    return VideoLanguageBackbone(
        inputs,
        model,
        decoder=model.language_model,
        tower=lambda pixels: parts.state(pixels, tap)[:, 1:],
        project=project,
        projects_frames=True,
    )


def _tower_tap(config: Any, folder: Path) -> str:
    """The tower's tap that the projector gets, where the configuration is one of those known here."""
    vision, chosen = config.vision_config, config.vision_feature_layer
    side = vision.image_size[0] // vision.patch_size[0]
    found = {
        "vision_config.model_type": vision.model_type,
        "image_size": list(vision.image_size),
        "patch_size": list(vision.patch_size),
        "downsample_ratio": config.downsample_ratio,
        "vision_feature_layer": chosen,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    is_known = (
        vision.model_type == "internvl_vision"
        and len(set(vision.image_size)) == len(set(vision.patch_size)) == 1
        and 0 < config.downsample_ratio <= 1
        and side * config.downsample_ratio % 1 == 0
        and isinstance(chosen, int)
        and config.vision_feature_select_strategy == "default"
    )
    if not is_known:
        raise UnsupportedModelError(
            "InternVL must have its own tower for square frames, one layer of it used without the class token, and a "
            f"downsample_ratio that divides its patches, but {folder / 'config.json'} says {found}. "
            "Take config.json from the model's own repository, e.g. OpenGVLab/InternVL3-1B-hf."
        )
    return FINAL if chosen == -1 else f"layer_{tower_states(config, folder)[0]}"
