"""The words of a prompt that stand before the video, as token ids.

The tokenizer alone makes them: how many video tokens follow is the model's own geometry, and no chat template is read.

Not here: words behind the video. Attention is causal, so they cannot change a video token and are not run.
"""

from pathlib import Path

import torch
from torch import Tensor

from featurecache.backbones.files import quiet_loading
from featurecache.backbones.tokenizer import OWN_FILES, open_tokenizer
from featurecache.errors import ModelNotFoundError, NoVideoTokensError, SettingsError, UnsafeFileError

VIDEO_PLACEHOLDER = "<video>"

_MOST_TOKENS = 16
"""Of a byte of a prompt: tokenizers make less than one, and add one or two at the beginning."""


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
        NoVideoTokensError: If the model or the tokenizer does not know the video token.
        UnsafeFileError: If the tokenizer takes more time or memory, or makes more tokens, than any tokenizer.
    """
    if prompt.count(VIDEO_PLACEHOLDER) != 1:
        raise SettingsError(
            f"features.prompt must hold {VIDEO_PLACEHOLDER} exactly once, "
            f"but it holds it {prompt.count(VIDEO_PLACEHOLDER)} times. Write the words first, then {VIDEO_PLACEHOLDER}."
        )
    if not isinstance(video_token_id, int) or not 0 <= video_token_id < vocab_size:
        raise NoVideoTokensError(
            f"the video token must be one that the model has an embedding of, from 0 to {vocab_size - 1}, but "
            f"{folder / 'config.json'} says {video_token_id!r:.60}. Take config.json from the model's own repository."
        )
    tokenizer = open_tokenizer(folder, prompt.split(VIDEO_PLACEHOLDER), video_token_id, family=family)
    with quiet_loading(folder, family):
        token = tokenizer.convert_ids_to_tokens(video_token_id)
        ids = tokenizer(prompt.replace(VIDEO_PLACEHOLDER, str(token)))["input_ids"]
    if len(ids) > _MOST_TOKENS * len(prompt.encode()):
        raise UnsafeFileError(
            f"a tokenizer must make at most {_MOST_TOKENS} tokens of a byte, but the one in {folder} makes {len(ids)} "
            f"of a prompt of {len(prompt.encode())} bytes. {OWN_FILES}"
        )
    if ids.count(video_token_id) != 1:
        raise NoVideoTokensError(
            f"the tokenizer must have the model's video token, id {video_token_id} in config.json, but in {folder} "
            f"that id is {token!r} and no token of its own. {OWN_FILES}"
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
            f"and config.json says vocab_size = {vocab_size}. {OWN_FILES}"
        )
    return torch.tensor(before, dtype=torch.int64)
