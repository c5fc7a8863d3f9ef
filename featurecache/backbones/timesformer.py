"""TimeSformer as a frozen feature extractor, and opened for training: the supervised baseline's encoder.

Divided attention: each patch looks at itself in the other frames, then at the other patches of its frame. Frames mix
from the first layer on, so nothing is computed on a frame alone. One class token stands for the whole clip. Frames
and their size must be those of the checkpoint: transformers would silently stretch the learned positions.

Not here: the classifier of a fine-tuned checkpoint (its encoder is loaded, the classifier left out); `space_only`
attention, which has no time.

Source: Bertasius, Wang, Torresani, Is Space-Time Attention All You Need for Video Understanding?
https://arxiv.org/abs/2102.05095
"""

import json
from pathlib import Path

from safetensors.torch import save as tensors_to_bytes
from torch import Tensor
from transformers import TimesformerConfig, TimesformerModel, VideoMAEImageProcessor

from featurecache.backbones.encoder import ClipEncoder, EncoderInputs, Parts, first_output, require_frames
from featurecache.backbones.family import Load, TapShape, TapStates
from featurecache.backbones.files import read_as
from featurecache.backbones.model_folder import PROCESSOR_FILES
from featurecache.backbones.preprocessing import Resize, frame_rule
from featurecache.errors import SettingsError, UnsupportedModelError
from featurecache.files import private_folder, write_private

FAMILY = "TimeSformer"
ATTENTION = "eager"  # the only one that transformers has for it


def open_inputs(folder: Path, *, frames: int, resize: Resize) -> EncoderInputs:
    """As `featurecache.backbones.open_inputs`."""
    config = read_as(TimesformerConfig, folder, FAMILY)
    if config.attention_type not in ("divided_space_time", "joint_space_time"):
        raise UnsupportedModelError(
            "TimeSformer's attention_type must be divided_space_time or joint_space_time, but "
            f"{folder / 'config.json'} says {config.attention_type!r}. Use a checkpoint that sees time."
        )
    require_frames(frames, config.num_frames, "num_frames", folder)
    rule = frame_rule(folder, VideoMAEImageProcessor, image_px=config.image_size)
    patches = (config.image_size // config.patch_size) ** 2
    return EncoderInputs(
        folder,
        config=config,
        title=FAMILY,
        family="timesformer",
        attention=ATTENTION,
        frames=frames,
        resize=resize,
        rule=rule,
        layers=config.num_hidden_layers,
        shape=TapShape(frames, patches, config.hidden_size, has_cls=True),
    )


def open_backbone(inputs: EncoderInputs, load: Load) -> ClipEncoder:
    """As `featurecache.backbones.open_backbone`."""
    model = load(TimesformerModel)
    parts = Parts(model, model.embeddings, first_output(model.encoder.layer), model.layernorm)
    shape = inputs.taps["final"]

    def arrange(states: Tensor) -> TapStates:  # (B, 1 + P * T, D): the class token, then each patch's T frames
        patches = states[:, 1:].reshape(-1, shape.tokens_per_step, shape.steps, shape.width)  # (B, P, T, D)
        return TapStates(tokens=patches.transpose(1, 2), cls=states[:, :1])

    return ClipEncoder(inputs, parts, arrange)


def unfreeze(backbone: ClipEncoder, *, last_layers: int, gradient_checkpointing: bool) -> None:
    """Lets a loaded model be trained.

    Args:
        backbone: The model; changed in place.
        last_layers: Layers from the top, with the final norm; 0: everything, embeddings included.
        gradient_checkpointing: Compute each layer twice instead of keeping its activations.

    Raises:
        SettingsError: If it has fewer layers.
    """
    model = backbone.parts.model
    layers = model.encoder.layer
    if last_layers > len(layers):
        raise SettingsError(
            f"finetune.last_layers must be at most {len(layers)}, the layers of the model, but it is {last_layers}. "
            "Set it lower, or 0 for the whole model."
        )
    for part in [*layers[-last_layers:], model.layernorm] if last_layers else [model]:
        part.requires_grad_(True)
    if gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def write_model(backbone: ClipEncoder, folder: Path) -> None:
    """Writes a loaded model as transformers keeps one: config, weights, and its processor's files as they came."""
    private_folder(folder)
    model = backbone.parts.model
    config = {**model.config.to_diff_dict(), "architectures": [type(model).__name__]}
    write_private(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    tensors = {name: one.detach().cpu().contiguous() for name, one in model.state_dict().items()}
    write_private(folder / "model.safetensors", tensors_to_bytes(tensors, metadata={"format": "pt"}))
    for name in PROCESSOR_FILES:
        if (backbone.inputs.folder / name).is_file():
            private_folder((folder / name).parent)
            write_private(folder / name, (backbone.inputs.folder / name).read_bytes())
