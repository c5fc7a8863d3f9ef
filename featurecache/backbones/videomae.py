"""VideoMAE as a frozen feature extractor.

A token is a tubelet: a patch of two neighbouring frames, so T frames make T / 2 time steps. All tokens look at each
other from the first layer on. There is no class token. Frames and their size must be those of the checkpoint: its
positions are a table.

Checkpoints made for classification by mean pooling (`use_mean_pooling`) have no norm behind the layers: there `final`
is the last layer's state itself. Their classifier, and the decoder of a pre-trained checkpoint, are left out.

Source: Tong et al., VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training.
https://arxiv.org/abs/2203.12602
"""

from pathlib import Path

from transformers import VideoMAEConfig, VideoMAEModel, VideoMAEVideoProcessor

from featurecache.backbones.encoder import ClipEncoder, EncoderInputs, Parts, require_frames, step_by_step
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.files import read_as
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.errors import UnsupportedModelError

FAMILY = "VideoMAE"
ATTENTION = "sdpa"

_LARGEST_TABLE = 2**22
"""transformers computes the table of positions number by number, 2 microseconds each; the largest model has 2.2 M."""


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    config = read_as(VideoMAEConfig, folder, FAMILY)
    require_frames(frames, config.num_frames, "num_frames", folder)
    rule = frame_rule(folder, VideoMAEVideoProcessor, image_px=config.image_size)
    patches = (config.image_size // config.patch_size) ** 2
    tokens = frames // config.tubelet_size * patches
    if tokens * config.hidden_size > _LARGEST_TABLE:
        raise UnsupportedModelError(
            f"VideoMAE's positions must be at most {_LARGEST_TABLE:,} values, but {folder / 'config.json'} asks for "
            f"{tokens} tokens of {config.hidden_size}. Take config.json from the model's own repository."
        )
    return EncoderInputs(
        folder,
        config=config,
        title=FAMILY,
        family="videomae",
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=config.num_hidden_layers,
        shape=TapShape(frames // config.tubelet_size, patches, config.hidden_size),
    )


def open_backbone(inputs: EncoderInputs, load: Load) -> ClipEncoder:
    """As `featurecache.backbones.open_backbone`."""
    model = load(VideoMAEModel)
    parts = Parts(
        model,
        embed=lambda pixels: model.embeddings(pixels, None),
        layers=list(model.encoder.layer),
        final_norm=model.layernorm if model.layernorm is not None else lambda states: states,
    )
    return ClipEncoder(inputs, parts, step_by_step(inputs.taps["final"]))
