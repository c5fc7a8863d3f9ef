"""The words of a prompt that stand before the video, as token ids.

Not here: words behind the video. Attention is causal, so they cannot change a video token and are not run.
"""

from typing import Any

import torch
from torch import Tensor

from featurecache.errors import NoVideoTokensError, SettingsError

VIDEO_PLACEHOLDER = "<video>"


def text_after_video(prompt: str) -> str:
    """What a prompt puts behind the video; empty where nothing."""
    return prompt.partition(VIDEO_PLACEHOLDER)[2].strip()


def prefix_ids(processor: Any, prompt: str, *, frames: int, image_px: int) -> tuple[Tensor, int]:
    """Token ids before the video (S_prefix,), and how many video tokens the processor puts behind them.

    Args:
        processor: A processor of transformers with a tokenizer and a video processor.
        prompt: Words around `<video>`.
        frames: T, frames of a clip.
        image_px: Height and width of a frame as the model sees it.

    Raises:
        SettingsError: If the prompt does not hold the video once, or begins with a token the tokenizer adds itself.
        NoVideoTokensError: If the processor makes no video token.
    """
    if prompt.count(VIDEO_PLACEHOLDER) != 1:
        raise SettingsError(
            f"features.prompt must hold {VIDEO_PLACEHOLDER} exactly once, "
            f"but it holds it {prompt.count(VIDEO_PLACEHOLDER)} times. Write the words first, then {VIDEO_PLACEHOLDER}."
        )
    blank = torch.zeros(frames, 3, image_px, image_px, dtype=torch.uint8)
    ids = processor(text=[prompt], videos=[blank], do_sample_frames=False, return_tensors="pt")["input_ids"][0]
    positions = (ids == processor.video_token_id).nonzero()[:, 0]
    if len(positions) == 0:
        raise NoVideoTokensError(
            f"the prompt must become video tokens, but {frames} frames of {image_px} px gave none. "
            "Check the processor's patch_size."
        )
    bos = processor.tokenizer.bos_token_id
    if bos is not None and ids[:2].tolist() == [bos, bos]:
        raise SettingsError(
            f"features.prompt must not begin with {processor.tokenizer.bos_token!r}, "
            "but it does, and the tokenizer adds its own. Remove it."
        )
    return ids[: int(positions[0])], len(positions)
