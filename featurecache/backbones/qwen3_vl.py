"""Qwen3-VL as a frozen feature extractor.

The vision tower joins two neighbouring frames into one time step and sees each step alone; its merger lays 2 x 2
patches side by side and projects them. States of some of the tower's layers have mergers of their own, and are added to
the video tokens after the language model's first layers (DeepStack). Rotary positions of video tokens are in time,
height and width. The processor writes the time of each step before it, to a tenth of a second, counted here from the
clip's beginning.

Taps: `vision` is what the mergers get: for each token its 2 x 2 patches' states side by side, of the tower's end and
then of each DeepStack layer. `layer_0` is what the first merger gives. `layer_k` is `hidden_states[k]`, the state
behind layer k - 1 before anything is added to it. Language model and adapters can resume from `vision` alone.

Its processor keeps the sides of each recording, so that the number of tokens differs between recordings. A feature
space needs one: frames become squares of 448 px (`resize = "model"` pads them), then the processor's bounds on pixels
apply.

Source: Bai et al., Qwen3-VL Technical Report. https://arxiv.org/abs/2511.21631
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLModel, Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from featurecache.backbones.encoder import require_whole_steps
from featurecache.backbones.family import Load, TapShape
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER
from featurecache.backbones.preprocessing import Geometry, Resize, frame_rule, sides
from featurecache.backbones.processor_files import WHOLE
from featurecache.backbones.video_language import (
    Architecture,
    VideoLanguageBackbone,
    VideoLanguageInputs,
    read_config,
)
from featurecache.errors import UnsupportedModelError

FAMILY = "Qwen3-VL"

START, END = "<|vision_start|>", "<|vision_end|>"
SQUARE_PX = 448
"""Side of a frame: 14 x 14 tokens a step of patches of 16 px."""

_SWITCH = ("true or false", lambda value: isinstance(value, bool))
FIELDS = {
    "cap_pixels_per_frame": _SWITCH,
    "max_video_tokens": WHOLE,
    "merge_size": WHOLE,
    "patch_size": WHOLE,
    "temporal_patch_size": WHOLE,
}


def open_inputs(folder: Path, *, prompt: str, frames: int, resize: Resize, clip_s: float) -> VideoLanguageInputs:
    """As `featurecache.backbones.open_inputs`."""
    config = read_config(folder, Qwen3VLConfig, FAMILY)
    vision, joined = config.vision_config, config.vision_config.temporal_patch_size
    require_whole_steps(frames, joined, "temporal_patch_size", folder)
    layers, levels = config.text_config.num_hidden_layers, vision.deepstack_visual_indexes
    if len(levels) > layers or not all(0 <= level < vision.depth for level in levels):
        raise UnsupportedModelError(
            f"deepstack_visual_indexes must name layers of the tower, from 0 to {vision.depth - 1}, at most {layers}, "
            f"but {folder / 'config.json'} says {list(levels)}. Take config.json from the model's own repository."
        )
    geometry = partial(_geometry, frames=frames, vision=vision)
    rule = frame_rule(folder, Qwen3VLVideoProcessor, geometry, more_fields=FIELDS, also=("Qwen2VL", "Qwen3VL"))
    tokens = (rule.image_px // vision.patch_size // vision.spatial_merge_size) ** 2
    steps, width = frames // joined, vision.hidden_size * vision.spatial_merge_size**2
    architecture = Architecture(
        "qwen3_vl",
        FAMILY,
        config.video_token_id,
        vision=TapShape(steps, tokens, width * (1 + len(levels))),
        video=TapShape(steps, tokens, config.text_config.hidden_size),
        video_text=video_text(frames, joined, clip_s),
        markers=(START, END),
        joined_frames=joined,
        deepstack=len(levels),
    )
    return VideoLanguageInputs(
        folder, config=config, architecture=architecture, prompt=prompt, frames=frames, resize=resize, rule=rule
    )


def open_backbone(inputs: VideoLanguageInputs, load: Load) -> VideoLanguageBackbone:
    """As `featurecache.backbones.open_backbone`."""
    model = load(Qwen3VLModel)
    visual, vision = model.visual, inputs.config.vision_config
    # The tower gives its states unmerged: the mergers are the projector here.
    mergers = model.mergers = nn.ModuleList([visual.merger, *visual.deepstack_merger_list])
    visual.merger = nn.Identity()
    visual.deepstack_merger_list = nn.ModuleList(nn.Identity() for _ in mergers[1:])
    merged = vision.hidden_size * vision.spatial_merge_size**2

    def tower(steps: Tensor) -> Tensor:
        flat = patches(steps, vision)
        found = visual(flat, torch.zeros(0), **_places(len(steps), steps.shape[-1] // vision.patch_size, visual))
        states = [found.pooler_output, *found.deepstack_features]
        return torch.cat([one.reshape(len(steps), -1, merged) for one in states], dim=-1)

    def project(tokens: Tensor) -> Tensor:
        parts = torch.split(tokens, merged, dim=-1)
        video = [merger(part.reshape(-1, vision.hidden_size)) for merger, part in zip(mergers, parts, strict=True)]
        return torch.cat([one.reshape(*tokens.shape[:2], -1) for one in video], dim=-1)

    side = inputs.image_px // vision.patch_size // vision.spatial_merge_size
    return VideoLanguageBackbone(
        inputs,
        model,
        decoder=model.language_model,
        tower=tower,
        project=project,
        positions=lambda before: positions([before, *map(len, inputs.words.between)], side),
    )


def video_text(frames: int, joined: int, clip_s: float) -> str:
    """What the processor writes in the place of a clip, with `<video>` for the tokens of each step."""
    times = [(k + joined / 2) * clip_s / frames for k in range(0, frames, joined)]  # the middle of a step's frames
    return "".join(f"<{time:.1f} seconds>{START}{VIDEO_PLACEHOLDER}{END}" for time in times)


def positions(words: Sequence[int], side: int) -> Tensor:
    """Places of all tokens in time, height and width.

    A word takes the next place in all three; a step's tokens lie in a square at one time, and take `side` places.

    Args:
        words: Number of words before each step.
        side: Rows and columns of a step's tokens.

    Returns:
        Shape (3, S).
    """
    place, parts = 0, []
    rows = torch.arange(side)
    square = torch.stack(torch.meshgrid(torch.zeros(1, dtype=rows.dtype), rows, rows, indexing="ij")).reshape(3, -1)
    for count in words:
        parts += [torch.arange(place, place + count).expand(3, -1), place + count + square]
        place += count + side
    return torch.cat(parts, dim=1)


def patches(steps: Tensor, vision: Any) -> Tensor:
    """Frames (N, joined, 3, px, px) as the tower's patches, those of a token after one another: (patches, values)."""
    count, joined, channels, px, _ = steps.shape
    merge, patch = vision.spatial_merge_size, vision.patch_size
    tokens = px // patch // merge
    cut = steps.reshape(count, joined, channels, tokens, merge, patch, tokens, merge, patch)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * joined * patch**2)


def _places(steps: int, side: int, visual: Any) -> dict[str, Any]:
    """Where the tower's patches lie, worked out on the CPU: a device need not be asked, and may be the meta device."""
    grid = torch.tensor([[1, side, side]]).expand(steps, -1)
    merge, device = visual.config.spatial_merge_size, visual.pos_embed.weight.device
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=merge,
    )
    lengths, longest = get_vision_attention_seqlens(grid, visual.config)
    return {
        "interp_indices": indices.to(device),
        "interp_weights": weights.to(device),
        "position_ids": get_vision_position_ids(grid, merge).to(device),
        "cu_seqlens": lengths,
        "max_seqlen": longest,
    }


def _geometry(settings: Mapping[str, Any], *, frames: int, vision: Any) -> Geometry:
    """A padded square within the processor's bounds on a video's pixels."""

    def square_px(least: int, most: int, factor: int) -> int:
        if settings.get("cap_pixels_per_frame"):
            cap = settings["max_video_tokens"] * factor**2
            most = max(min(cap, most // frames), int(least * 1.05)) * frames
        px, _ = smart_resize(
            frames, SQUARE_PX, SQUARE_PX, vision.temporal_patch_size, factor, min_pixels=least, max_pixels=most
        )
        return int(px)

    return padded_square(settings, vision, square_px)


def padded_square(settings: Mapping[str, Any], vision: Any, square_px: Callable[[int, int, int], int]) -> Geometry:
    """A square of whole tokens, of frames that are padded to one.

    Args:
        settings: The processor's.
        vision: The tower's configuration, with which they must agree.
        square_px: Least and most pixels that the processor allows, and pixels across a token -> the square's side.
    """
    size = sides(settings.get("size"))
    least, most = size.get("shortest_edge", 0), size.get("longest_edge", 0)
    refused = {
        "patch_size": settings.get("patch_size") != vision.patch_size,
        "merge_size": settings.get("merge_size") != vision.spatial_merge_size,
        "temporal_patch_size": settings.get("temporal_patch_size") != vision.temporal_patch_size,
        "size": set(size) != {"shortest_edge", "longest_edge"} or not 0 < least <= most,
    }
    named = next((name for name, is_refused in refused.items() if is_refused), "")
    if named:
        return Geometry(0, "pad", 0, refused=named)
    px = square_px(least, most, vision.patch_size * vision.spatial_merge_size)
    return Geometry(px, "pad", px)
