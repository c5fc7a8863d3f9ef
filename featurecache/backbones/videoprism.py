"""VideoPrism as a frozen feature extractor: a factorised encoder of space, then time.

The first layers see each frame alone, the others each patch's frames. `layer_k` counts both: with S spatial layers,
`layer_S` is the last spatial state, `layer_{S+1}` the first one after time has been seen. Between them lies a norm, and
the positions in time are added. There is no class token. Frames and their size must be those of the checkpoint.

Attention logits are capped, which only transformers' eager attention does. Models with a text tower (LvT) have `joint`:
the clip's `video_embeds`, one vector, made of `final` by auxiliary layers and a pooling head, which serve it alone.

Source: Zhao et al., VideoPrism: A Foundational Visual Encoder for Video Understanding. https://arxiv.org/abs/2402.13217
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    LlavaOnevisionVideoProcessor,
    VideoPrismClipModel,
    VideoPrismConfig,
    VideoPrismVisionConfig,
    VideoPrismVisionModel,
)
from transformers.models.videoprism.modeling_videoprism import l2norm

from featurecache.backbones import model_type_of
from featurecache.backbones.encoder import ClipEncoder, EncoderInputs, Parts, require_frames
from featurecache.backbones.family import Load, TapShape, TapStates
from featurecache.backbones.files import read_as
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.errors import UnsupportedModelError

FAMILY = "VideoPrism"
ATTENTION = "eager"  # the others do not cap attention logits


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    config_class = VideoPrismConfig if model_type_of(folder) == "videoprism" else VideoPrismVisionConfig
    config = read_as(config_class, folder, FAMILY)
    vision = getattr(config, "vision_config", config)
    joined, *patch = vision.tubelet_size
    if joined != 1 or len(set(patch)) != 1 or not isinstance(vision.image_size, int):
        raise UnsupportedModelError(
            "VideoPrism's patches must be squares of one frame, and its frames squares, but "
            f"{folder / 'config.json'} says tubelet_size = {list(vision.tubelet_size)} and image_size = "
            f"{vision.image_size}. Take config.json from the model's own repository."
        )
    require_frames(frames, vision.num_frames, "num_frames", folder)
    rule = frame_rule(folder, LlavaOnevisionVideoProcessor, image_px=vision.image_size)
    return EncoderInputs(
        folder,
        config=config,
        title=FAMILY,
        family="videoprism",
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=vision.num_spatial_layers + vision.num_temporal_layers,
        shape=TapShape(frames, (vision.image_size // patch[0]) ** 2, vision.hidden_size),
        joint=TapShape(1, 1, vision.hidden_size) if vision is not config else None,
    )


def open_backbone(inputs: EncoderInputs, load: Load) -> ClipEncoder:
    """As `featurecache.backbones.open_backbone`."""
    is_whole = isinstance(inputs.config, VideoPrismConfig)
    model = load(VideoPrismClipModel if is_whole else VideoPrismVisionModel, not_used=("text_model",))
    encoder = model.video_model.vision_model if is_whole else model
    shape = inputs.taps["final"]

    def embed(pixels: Tensor) -> Tensor:  # (B, T, 3, px, px) -> (B, T, P, D), as all states here
        states: Tensor = encoder.spatial_embeddings(pixels)
        return states.reshape(len(pixels), shape.steps, shape.tokens_per_step, shape.width)

    def in_time(states: Tensor) -> Tensor:
        """The norm behind the spatial layers, then positions in time."""
        batch, frames = states.shape[:2]
        features = encoder.layernorm1(states.flatten(0, 1))
        embedded = encoder.temporal_embeddings(features, (batch, frames, 3, inputs.image_px, inputs.image_px))
        return _by_frame(embedded, batch)

    first, *others = encoder.temporal_layers
    layers = [
        *(_spatial(layer) for layer in encoder.spatial_layers),
        lambda states: _temporal(first)(in_time(states)),
        *(_temporal(layer) for layer in others),
    ]
    joint = partial(_joint, model.video_model) if is_whole else None
    return ClipEncoder(inputs, Parts(model, embed, layers, encoder.layernorm2, joint), lambda states: TapStates(states))


def _joint(tower: Any, final: Tensor) -> Tensor:
    """What the model compares with a text, of the encoder's states: (B, T, P, D) -> (B, 1, 1, D)."""
    states = final.flatten(1, 2)
    for layer in tower.auxiliary_layers:
        states = layer(states)
    embedding: Tensor = tower.head_layernorm(tower.head(states)[0])  # (B, 1, D)
    return (l2norm(embedding) if tower.config.apply_l2norm else embedding)[:, None]


def _by_frame(states: Tensor, batch: int) -> Tensor:
    """Each patch's frames (B * P, T, D) -> (B, T, P, D)."""
    return states.reshape(batch, -1, *states.shape[1:]).transpose(1, 2)


def _spatial(layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda states: layer(states.flatten(0, 1)).view_as(states)


def _temporal(layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda states: _by_frame(layer(states.transpose(1, 2).flatten(0, 1)), len(states))
