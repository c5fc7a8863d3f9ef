"""X-CLIP as a frozen feature extractor: CLIP's vision tower, whose frames send each other messages.

In each layer a token made of every frame's class token looks at those of the other frames, and is then seen by its own
frame. So frames mix from the first layer on, and their number and size must be those of the checkpoint. `final` is
every token behind the tower's last norm; transformers norms the class token alone, and its `pooler_output` is our class
token of a frame.

`joint` is the clip's `video_embeds`: a transformer reads the frames' projected class tokens, whose mean is scaled to
unit length. A text's vector is made anew for every clip, of its patches (`xclip_prompts.py`): `prompted` is all that
this takes of a clip, the token of `joint`, and behind it the patches, projected and averaged over frames. It is kept as
`prompted/tokens`, (1 + P, D). A checkpoint without what makes them has neither tap.

Source: Ni et al., Expanding Language-Image Pretrained Models for General Video Recognition.
https://arxiv.org/abs/2208.02816
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import VideoMAEImageProcessor, XCLIPConfig, XCLIPVisionModel
from transformers.models.x_clip.modeling_x_clip import XCLIPMultiframeIntegrationTransformer, XCLIPPreTrainedModel

from featurecache.backbones.encoder import (
    JOINT,
    PROMPTED,
    ClipEncoder,
    EncoderInputs,
    Parts,
    inside,
    require_frames,
    without_mask,
)
from featurecache.backbones.family import Load, TapShape, TapStates
from featurecache.backbones.files import read_as
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.backbones.weight_files import find_weight_files
from featurecache.errors import UnsupportedModelError

FAMILY = "X-CLIP"
ATTENTION = "sdpa"
_JOINING = ("visual_projection", "mit", "prompts_visual_layernorm", "prompts_visual_projection")
"""Parts that `joint` and `prompted` alone need."""


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    whole = read_as(XCLIPConfig, folder, FAMILY)
    config, width = whole.vision_config, whole.projection_dim
    if config.mit_hidden_size != width:
        raise UnsupportedModelError(
            f"frames are joined in the width they are projected to, but {folder / 'config.json'} says projection_dim = "
            f"{width} and mit_hidden_size = {config.mit_hidden_size}. Take config.json from the model's own repository."
        )
    require_frames(frames, config.num_frames, "num_frames", folder)
    rule = frame_rule(folder, VideoMAEImageProcessor, image_px=config.image_size)
    patches = (config.image_size // config.patch_size) ** 2
    has_joint = any(name.endswith(_JOINING[-1]) for name in find_weight_files(folder).shapes)
    inputs = EncoderInputs(
        folder,
        config=whole,
        title=FAMILY,
        family="xclip",
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=config.num_hidden_layers,
        shape=TapShape(frames, patches, config.hidden_size, has_cls=True),
        joint=TapShape(1, 1, width) if has_joint else None,
    )
    if has_joint:
        inputs.taps[PROMPTED] = TapShape(1, 1 + patches, width)
    return inputs


def open_backbone(inputs: EncoderInputs, load: Load) -> ClipEncoder:
    """As `featurecache.backbones.open_backbone`."""
    unused = () if JOINT in inputs.taps else _JOINING
    half = load(inside(_VideoHalf, ""), not_used=unused)
    model = half.vision_model

    def embed(pixels: Tensor) -> Tensor:  # (B, T, 3, px, px) -> (B * T, 1 + P, D)
        states: Tensor = model.pre_layernorm(model.embeddings(pixels.flatten(0, 1)))
        return states

    def joint(final: Tensor) -> Tensor:  # (B * T, 1 + P, D) -> (B, 1, 1, D)
        frames = half.visual_projection(final[:, 0]).reshape(-1, inputs.frames, half.config.projection_dim)
        return normalize(half.mit(frames).pooler_output, dim=-1)[:, None, None]

    def prompted(last: Tensor, final: Tensor) -> Tensor:  # (B * T, 1 + P, D) twice -> (B, 1, 1 + P, D)
        patches = half.prompts_visual_layernorm(last[:, 1:]) @ half.prompts_visual_projection
        by_frame = patches.reshape(-1, inputs.frames, *patches.shape[1:])
        return torch.cat([joint(final), by_frame.mean(dim=1, keepdim=True)], dim=2)

    def arrange(states: Tensor) -> TapStates:
        if states.ndim == 4:  # of whole clips
            return TapStates(states)
        by_frame = states.reshape(-1, inputs.frames, *states.shape[1:])
        return TapStates(by_frame[:, :, 1:], cls=by_frame[:, :, 0])

    layers = without_mask(model.encoder.layers)
    return ClipEncoder(inputs, Parts(half, embed, layers, model.post_layernorm, joint, prompted), arrange)


class _VideoHalf(XCLIPPreTrainedModel):  # type: ignore[misc]
    """An X-CLIP without its text tower and generator of prompts."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        vision, width = config.vision_config, config.projection_dim
        self.vision_model = XCLIPVisionModel(vision)
        of_frames = copy.copy(vision)
        for size in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            setattr(of_frames, size, getattr(vision, f"mit_{size}"))
        self.visual_projection = nn.Linear(vision.hidden_size, width, bias=False)
        self.mit = XCLIPMultiframeIntegrationTransformer(of_frames)
        self.prompts_visual_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.prompts_visual_projection = nn.Parameter(torch.empty(vision.hidden_size, width))
        self.post_init()
