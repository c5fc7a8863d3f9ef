"""Qwen2.5-VL as a frozen feature extractor.

The vision tower joins two neighbouring frames into one time step and sees each step alone, in most layers each window
of it alone; its merger lays 2 x 2 patches side by side and projects them. Rotary positions of video tokens are in time,
height and width: a step lies at its time in the clip, in units that the configuration sets, and that is all the model
is told of time. A token of text after the video lies one place behind the last column, whatever the clip's length.

Taps: `vision` is what the merger gets, for each token its 2 x 2 patches' states side by side; `layer_0` is what it
gives. Frames become squares of 448 px, as for Qwen3-VL, within the processor's bounds on a frame's pixels.

Source: Bai et al., Qwen2.5-VL Technical Report. https://arxiv.org/abs/2502.13923
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from featurecache.backbones.encoder import require_whole_steps
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER
from featurecache.backbones.preprocessing import Geometry, Resize, frame_rule
from featurecache.backbones.processor_files import WHOLE
from featurecache.backbones.qwen3_vl import END, FIELDS, SQUARE_PX, START, padded_square, patches
from featurecache.backbones.video_language import (
    Architecture,
    VideoLanguageBackbone,
    VideoLanguageInputs,
    read_config,
)
from featurecache.errors import UnsupportedModelError

FAMILY = "Qwen2.5-VL"


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize, clip_s: float) -> VideoLanguageInputs:
    """As `featurecache.backbones.open_inputs`."""
    config = read_config(folder, Qwen2_5_VLConfig, FAMILY)
    vision, joined = config.vision_config, config.vision_config.temporal_patch_size
    require_whole_steps(frames, joined, "temporal_patch_size", folder)
    token_px = vision.patch_size * vision.spatial_merge_size
    if vision.window_size < token_px:
        raise UnsupportedModelError(
            f"window_size must hold a token, {token_px} px, but {folder / 'config.json'} says {vision.window_size}. "
            "Take config.json from the model's own repository."
        )
    fields = {**FIELDS, "min_pixels": WHOLE, "max_pixels": WHOLE}
    geometry = partial(_geometry, frames=frames, vision=vision)
    rule = frame_rule(folder, Qwen2VLVideoProcessor, geometry, more_fields=fields, also=("Qwen2VL", "Qwen2_5_VL"))
    steps, side = frames // joined, rule.image_px // token_px
    architecture = Architecture(
        "qwen2_5_vl",
        FAMILY,
        config.video_token_id,
        vision=TapShape(steps, side**2, vision.hidden_size * vision.spatial_merge_size**2),
        video=TapShape(steps, side**2, config.text_config.hidden_size),
        video_text=f"{START}{VIDEO_PLACEHOLDER}{END}",
        markers=(START, END),
        joined_frames=joined,
        more_identity={"places_in_time": times(vision, frames, clip_s).tolist()},
    )
    inputs = VideoLanguageInputs(
        folder, config=config, architecture=architecture, prompt=prompt, frames=frames, resize=resize, rule=rule
    )
    inputs.resumable = ("vision", "layer_0")  # deeper tokens are stored without their places
    return inputs


def open_backbone(inputs: VideoLanguageInputs, load: Load) -> VideoLanguageBackbone:
    """As `featurecache.backbones.open_backbone`."""
    model = load(Qwen2_5_VLModel)
    visual, vision = model.visual, inputs.config.vision_config
    # The tower gives its states unmerged: the merger is the projector here.
    merger, visual.merger = visual.merger, nn.Identity()
    model.merger = merger

    def tower(steps: Tensor) -> Tensor:
        places = _places(len(steps), steps.shape[-1] // vision.patch_size, visual)
        order = places["window_index"].argsort()
        states: Tensor = visual(patches(steps, vision), torch.zeros(0), **places).last_hidden_state
        in_windows = states.reshape(-1, inputs.architecture.vision.width)
        return in_windows[order].reshape(len(steps), -1, inputs.architecture.vision.width)

    def project(tokens: Tensor) -> Tensor:
        video: Tensor = merger(tokens.reshape(-1, vision.hidden_size))
        return video.reshape(*tokens.shape[:2], -1)

    in_time = torch.tensor(inputs.architecture.more_identity["places_in_time"])
    return VideoLanguageBackbone(
        inputs,
        model,
        decoder=model.language_model,
        tower=tower,
        project=project,
        positions=lambda before: positions(before, in_time, int(inputs.architecture.video.tokens_per_step**0.5)),
    )


def times(vision: Any, frames: int, clip_s: float) -> Tensor:
    """Places in time of a clip's steps, counted from the video's first place, in whole units as transformers has it."""
    seconds_a_step = torch.tensor(vision.temporal_patch_size / (frames / clip_s))
    steps = torch.arange(frames // vision.temporal_patch_size)
    units: Tensor = steps * (vision.tokens_per_second * seconds_a_step)
    return units.long()


def positions(before: int, in_time: Tensor, side: int) -> Tensor:
    """Places of all tokens in time, height and width: words in a line, then steps of `side` x `side` tokens, (3, S)."""
    rows = torch.arange(side)
    video = torch.stack(torch.meshgrid(in_time, rows, rows, indexing="ij")).reshape(3, -1)
    return torch.cat([torch.arange(before).expand(3, -1), before + video], dim=1)


def _places(steps: int, side: int, visual: Any) -> dict[str, Any]:
    """Where the tower's patches lie, worked out on the CPU: a device need not be asked, and may be the meta device."""
    grid, config = torch.tensor([[1, side, side]]).expand(steps, -1), visual.config
    lengths, longest = get_vision_attention_seqlens(grid, config)
    windows, of_windows = get_vision_window_index(
        grid, config.spatial_merge_size, window_size=config.window_size, patch_size=config.patch_size
    )
    device = visual.patch_embed.proj.weight.device
    return {
        "position_ids": get_vision_position_ids(grid, config.spatial_merge_size).to(device),
        "cu_seqlens": lengths,
        "max_seqlen": longest,
        "window_index": windows.to(device),
        "cu_window_seqlens": of_windows,
    }


def _geometry(settings: Mapping[str, Any], *, frames: int, vision: Any) -> Geometry:
    """A padded square within the processor's bounds on a frame's pixels."""

    def square_px(least: int, most: int, factor: int) -> int:
        if settings.get("cap_pixels_per_frame"):
            in_all = int(settings["max_video_tokens"] * factor**2 * 0.9)
            most = max(min(most, in_all * vision.temporal_patch_size // frames), int(least * 1.05))
        return int(smart_resize(SQUARE_PX, SQUARE_PX, factor, min_pixels=least, max_pixels=most)[0])

    return padded_square(settings, vision, square_px)
