"""SmolVLM2 as a frozen feature extractor: small enough for a laptop (256M, 500M and 2.2B parameters).

A SigLIP tower sees each frame alone and to its last layer; the projector lays neighbouring patches side by side
(512 px: 32 x 32 patches -> 8 x 8 video tokens) and works frame by frame too, so clips that share a frame share its
video tokens.

The processor tells the model how many frames there are, how long the video is and when each frame stands, in words
before the video and between its frames. Here a clip is the video: the times count from its beginning, in whole seconds
as there, and follow from the settings (`frames`, `length_s`). They join the fingerprint as token ids.

Source: Marafioti et al., SmolVLM: Redefining small and efficient multimodal models. https://arxiv.org/abs/2504.05299
"""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import SmolVLMConfig, SmolVLMModel, SmolVLMVideoProcessor

from featurecache.backbones.encoder import FINAL, Parts, siglip_parts
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER
from featurecache.backbones.preprocessing import LARGEST_PX, Geometry, Resize, frame_rule, sides
from featurecache.backbones.processor_files import SIZE
from featurecache.backbones.video_language import (
    Architecture,
    VideoLanguageBackbone,
    VideoLanguageInputs,
    read_config,
)
from featurecache.errors import SettingsError, UnsupportedModelError

FAMILY = "SmolVLM2"

_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"
_MOST_FRAMES = 999

_UNITS = (  # noqa: SIM905  # a list would take a line for each
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize, clip_s: float) -> VideoLanguageInputs:
    """As `featurecache.backbones.open_inputs`."""
    config = read_config(folder, SmolVLMConfig, FAMILY)
    vision, side = config.vision_config, config.vision_config.image_size // config.vision_config.patch_size
    if config.scale_factor < 1 or side % config.scale_factor:
        raise UnsupportedModelError(
            f"scale_factor must divide {side}, the patches along a frame's side, but {folder / 'config.json'} says "
            f"{config.scale_factor}. Take config.json from the model's own repository."
        )
    if frames > _MOST_FRAMES:
        raise SettingsError(
            f"features.frames must be at most {_MOST_FRAMES} for {FAMILY}, but it is {frames}. Set it lower."
        )
    rule = frame_rule(
        folder,
        SmolVLMVideoProcessor,
        _geometry,
        image_px=vision.image_size,
        more_fields={"max_image_size": SIZE, "video_sampling": ("an object", lambda value: isinstance(value, dict))},
        also=("SmolVLM", "Idefics3"),
    )
    architecture = Architecture(
        "smolvlm",
        FAMILY,
        config.image_token_id,
        vision=TapShape(frames, side**2, vision.hidden_size),
        video=TapShape(frames, (side // config.scale_factor) ** 2, config.text_config.hidden_size),
        video_text=video_text(frames, clip_s),
        markers=(_FAKE, _GLOBAL),
    )
    return VideoLanguageInputs(
        folder, config=config, architecture=architecture, prompt=prompt, frames=frames, resize=resize, rule=rule
    )


def open_backbone(inputs: VideoLanguageInputs, load: Load) -> VideoLanguageBackbone:
    """As `featurecache.backbones.open_backbone`."""
    model = load(SmolVLMModel)
    whole = siglip_parts(model.vision_model)
    side = model.vision_model.embeddings.num_patches_per_side

    def embed(pixels: Tensor) -> Tensor:
        is_seen = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
        states: Tensor = model.vision_model.embeddings(pixel_values=pixels, patch_attention_mask=is_seen)
        return states

    parts = Parts(model, embed, whole.layers, whole.final_norm)
    return VideoLanguageBackbone(
        inputs,
        model,
        decoder=model.text_model,
        tower=partial(parts.state, tap=FINAL),
        project=model.connector,
        projects_frames=True,
    )


def video_text(frames: int, clip_s: float) -> str:
    """What the processor writes in the place of a clip, with `<video>` for the tokens of each frame."""
    times = [int(round((k + 0.5) * clip_s / frames, 6)) for k in range(frames)]
    lines = [
        f"\nFrame from {time // 60:02d}:{time % 60:02d}:{_FAKE}{_GLOBAL}{VIDEO_PLACEHOLDER}{_FAKE}" for time in times
    ]
    return (
        f"You are provided the following series of {in_words(frames)} frames from a "
        f"{timedelta(seconds=int(clip_s))} [H:MM:SS] video.\n{''.join(lines)}\n\n"
    )


def in_words(number: int) -> str:
    """A number from 0 to 999 in English words, as the processor's num2words writes it."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_UNITS[units]}" if units else "")
    hundreds, rest = divmod(number, 100)
    return f"{_UNITS[hundreds]} hundred" + (f" and {in_words(rest)}" if rest else "")


def _geometry(settings: Mapping[str, Any]) -> Geometry:
    """The longest edge is scaled to one size, then the frame is squashed to the tower's."""
    size, most = sides(settings.get("size")), sides(settings.get("max_image_size"))
    long_edge_px, image_px = min(LARGEST_PX, size.get("longest_edge", 0)), most.get("longest_edge", 0)
    refused = {"size": set(size) != {"longest_edge"} or long_edge_px <= 0, "max_image_size": not 0 < image_px <= 4096}
    named = next((name for name, is_refused in refused.items() if is_refused), "")
    return Geometry(image_px, "squash", image_px, long_edge_px, refused=named)
