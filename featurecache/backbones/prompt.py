"""The words of a prompt that stand before the video, as token ids.

The tokenizer alone makes them: how many video tokens follow is the model's own geometry, and no chat template is read.

Not here: words behind the video. Attention is causal, so they cannot change a video token and are not run.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from featurecache.backbones.files import LOCAL_ONLY, quiet_loading
from featurecache.backbones.model_folder import download_command
from featurecache.errors import ModelNotFoundError, NoVideoTokensError, SettingsError

VIDEO_PLACEHOLDER = "<video>"

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def text_after_video(prompt: str) -> str:
    """What a prompt puts behind the video; empty where nothing."""
    return prompt.partition(VIDEO_PLACEHOLDER)[2].strip()


def prefix_ids(folder: Path, prompt: str, *, video_token_id: int, vocab_size: int, family: str) -> Tensor:
    """Token ids before the video, shape (S_prefix,).

    Args:
        folder: The model's files; its tokenizer is opened.
        prompt: Words around `<video>`.
        video_token_id: The token that the model replaces by the video, as its config.json says.
        vocab_size: Tokens that the model has embeddings of, as its config.json says.
        family: What the files should be, e.g. "LLaVA-NeXT-Video", for the message.

    Raises:
        ModelNotFoundError: If the folder holds no whole tokenizer, or that of another model.
        SettingsError: If the prompt does not hold the video once, or begins with a token the tokenizer adds itself.
        NoVideoTokensError: If the tokenizer does not know the video token.
    """
    if prompt.count(VIDEO_PLACEHOLDER) != 1:
        raise SettingsError(
            f"features.prompt must hold {VIDEO_PLACEHOLDER} exactly once, "
            f"but it holds it {prompt.count(VIDEO_PLACEHOLDER)} times. Write the words first, then {VIDEO_PLACEHOLDER}."
        )
    if not any((folder / name).exists() for name in _VOCABULARIES):
        raise ModelNotFoundError(
            f"the folder of a {family} must hold its tokenizer, but {folder} has none of {', '.join(_VOCABULARIES)}. "
            f"Fetch it from the model's repository: {download_command('tokenizer.json tokenizer_config.json', folder)}"
        )
    with quiet_loading(folder, family):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
        token = tokenizer.convert_ids_to_tokens(video_token_id)
        ids = tokenizer(prompt.replace(VIDEO_PLACEHOLDER, str(token)))["input_ids"]
    if ids.count(video_token_id) != 1:
        raise NoVideoTokensError(
            f"the tokenizer must have the model's video token, id {video_token_id} in config.json, but in {folder} "
            f"that id is {token!r} and no token of its own. Take the tokenizer's files from the model's repository."
        )
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise SettingsError(
            f"features.prompt must not begin with {tokenizer.bos_token!r}, "
            "but it does, and the tokenizer adds its own. Remove it."
        )
    before = ids[: ids.index(video_token_id)]
    if max(before, default=0) >= vocab_size:
        raise ModelNotFoundError(
            f"the tokenizer must be the model's own, but the one in {folder} makes token {max(before)} of the prompt, "
            f"and config.json says vocab_size = {vocab_size}. Take the tokenizer's files from the model's repository."
        )
    return torch.tensor(before, dtype=torch.int64)
