"""What the plain model of a video language family is given for one clip: token ids and pixels, written out by hand."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

CLIP_S = 3.0


def video_token(config: Any) -> int:
    """The token that stands for a part of a video."""
    found: int = getattr(config, "video_token_id", None) or config.image_token_id
    return found


def _smolvlm(config: Any, frames: int) -> str:
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    count = {2: "two", 4: "four", 8: "eight", 16: "sixteen"}[frames]
    text = f"You are provided the following series of {count} frames from a 0:00:03 [H:MM:SS] video.\n"
    for k in range(frames):
        text += f"\nFrame from 00:0{int((k + 0.5) * CLIP_S / frames)}:<fake_token_around_image><global-img>"
        text += "<image>" * side**2 + "<fake_token_around_image>"
    return text + "\n\n"


def _llava(config: Any, frames: int) -> str:
    side = config.vision_config.image_size // config.vision_config.patch_size
    newline = config.model_type == "llava_onevision"
    return "<video>" * (frames * (-(-side // 2) if newline else side // 2) ** 2 + newline)


def _qwen3_vl(config: Any, frames: int) -> str:
    text = ""
    for step in range(frames // 2):
        text += (
            f"<{(2 * step + 1) * CLIP_S / frames:.1f} seconds><|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
        )
    return text


def _internvl(config: Any, frames: int) -> str:
    return "\n".join(f"Frame{k}: <img>" + "<IMG_CONTEXT>" * 4 + "</img>" for k in range(1, frames + 1))


_TEXTS = {"smolvlm": _smolvlm, "qwen3_vl": _qwen3_vl, "internvl": _internvl}


def plain_batch(config: Any, tokenizer: Any, clip: Tensor, prompt: str, more: Sequence[int] = ()) -> dict[str, Tensor]:
    """What the model's forward takes for a prompt about a clip (T, 3, px, px) and tokens after it."""
    video = _TEXTS.get(config.model_type, _llava)(config, len(clip))
    ids = torch.tensor([[*tokenizer(prompt.replace("<video>", video))["input_ids"], *more]])
    if config.model_type == "qwen3_vl":
        is_video = (ids == config.video_token_id).int()
        patches, *grid = transformers.Qwen3VLVideoProcessor().patchify(
            clip[None], config.vision_config.patch_size, 2, 2
        )
        more_inputs = {"mm_token_type_ids": 2 * is_video, "video_grid_thw": torch.tensor([grid])}
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": patches[0],
            **more_inputs,
        }
    pixels = {"smolvlm": {"pixel_values": clip[None]}, "internvl": {"pixel_values": clip}}
    of_family = pixels.get(config.model_type, {"pixel_values_videos": clip[None]})
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **of_family}


def at_video(config: Any, batch: dict[str, Tensor]) -> Tensor:
    """Places of the video tokens in a batch's sequence; LLaVA-OneVision's newline behind them is none."""
    places = (batch["input_ids"][0] == video_token(config)).nonzero()[:, 0]
    return places[:-1] if config.model_type == "llava_onevision" else places
