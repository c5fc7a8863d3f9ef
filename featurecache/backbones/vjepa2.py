"""V-JEPA 2 as a frozen feature extractor: its encoder, without the predictor.

A token is a tubelet: a patch of `tubelet_size` neighbouring frames, so T frames make T / tubelet_size time steps.
Positions are rotary, so any number of frames that fills tubelets is right; frames of another size than the
checkpoint's would get wrong rows and columns and are refused. There is no class token.

Source: Assran et al., V-JEPA 2: Self-Supervised Video Models Enable Understanding, Prediction and Planning.
https://arxiv.org/abs/2506.09985
"""

from pathlib import Path

from transformers import VJEPA2Config, VJEPA2Model, VJEPA2VideoProcessor

from featurecache.backbones.encoder import (
    ClipEncoder,
    EncoderInputs,
    Parts,
    first_output,
    require_whole_steps,
    step_by_step,
)
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.files import read_as
from featurecache.backbones.preprocessing import Resize, frame_rule

FAMILY = "V-JEPA 2"
ATTENTION = "sdpa"


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    config = read_as(VJEPA2Config, folder, FAMILY)
    require_whole_steps(frames, config.tubelet_size, "tubelet_size", folder)
    rule = frame_rule(folder, VJEPA2VideoProcessor, image_px=config.crop_size)
    patches = (config.crop_size // config.patch_size) ** 2
    return EncoderInputs(
        folder,
        config=config,
        title=FAMILY,
        family="vjepa2",
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=config.num_hidden_layers,
        shape=TapShape(frames // config.tubelet_size, patches, config.hidden_size),
    )


def open_backbone(inputs: EncoderInputs, load: Load) -> ClipEncoder:
    """As `featurecache.backbones.open_backbone`."""
    model = load(VJEPA2Model, not_used=("predictor",))
    encoder = model.encoder
    parts = Parts(model, encoder.embeddings, first_output(encoder.layer), encoder.layernorm)
    return ClipEncoder(inputs, parts, step_by_step(inputs.taps["final"]))
