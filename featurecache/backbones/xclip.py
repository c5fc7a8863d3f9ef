"""X-CLIP as a frozen feature extractor: CLIP's vision tower, whose frames send each other messages.

In each layer a token made of every frame's class token looks at those of the other frames, and is then seen by its own
frame. So frames mix from the first layer on, and their number and size must be those of the checkpoint. `final` is
every token behind the tower's last norm; transformers norms the class token alone, and its `pooler_output` is our class
token of a frame. The transformer behind it, which joins a clip's class tokens, and the text tower are left out.

Source: Ni et al., Expanding Language-Image Pretrained Models for General Video Recognition.
https://arxiv.org/abs/2208.02816
"""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import VideoMAEImageProcessor, XCLIPConfig, XCLIPVisionModel

from featurecache.backbones.encoder import ClipEncoder, EncoderInputs, Parts, inside, require_frames, without_mask
from featurecache.backbones.family import TapShape, TapStates
from featurecache.backbones.files import LOCAL_ONLY, quiet_loading
from featurecache.backbones.preprocessing import Resize, frame_rule, require_size

FAMILY = "X-CLIP"
ATTENTION = "sdpa"


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    with quiet_loading(folder, FAMILY):
        config = XCLIPConfig.from_pretrained(folder, **LOCAL_ONLY).vision_config
    require_frames(frames, config.num_frames, "num_frames", folder)
    rule = frame_rule(folder, VideoMAEImageProcessor)
    require_size(rule, config.image_size, folder)
    return EncoderInputs(
        folder,
        config=config,
        family="xclip",
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=config.num_hidden_layers,
        shape=TapShape(frames, (config.image_size // config.patch_size) ** 2, config.hidden_size, has_cls=True),
    )


def open_backbone(
    inputs: EncoderInputs, *, dtype: Literal["float32", "bfloat16", "float16"], device: str
) -> ClipEncoder:
    """As `featurecache.backbones.open_backbone`."""
    model: Any = inputs.load(inside(XCLIPVisionModel, "vision_model"), FAMILY, dtype=dtype, device=device)

    def embed(pixels: Tensor) -> Tensor:  # (B, T, 3, px, px) -> (B * T, 1 + P, D)
        states: Tensor = model.pre_layernorm(model.embeddings(pixels.flatten(0, 1)))
        return states

    def arrange(states: Tensor) -> TapStates:
        by_frame = states.reshape(-1, inputs.frames, *states.shape[1:])
        return TapStates(by_frame[:, :, 1:], cls=by_frame[:, :, 0])

    parts = Parts(model, embed, without_mask(model.encoder.layers), model.post_layernorm)
    return ClipEncoder(inputs, parts, arrange)
