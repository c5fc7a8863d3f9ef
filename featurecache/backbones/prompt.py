"""The words of a prompt before and after the video, as token ids.

The tokenizer alone makes them: how many video tokens follow is the model's own geometry, and no chat template is read.
Features need the words before the video alone: attention is causal, so those after it cannot change a video token. They
are what a zero-shot method asks (`wording.py`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurecache.backbones.files import quiet_loading
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER
from featurecache.backbones.tokenizer import OWN_FILES, open_tokenizer
from featurecache.errors import ModelNotFoundError, NoVideoTokensError, SettingsError, UnsafeFileError

_MOST_TOKENS = 16
"""Of a byte of a prompt: tokenizers make less than one, and add one or two at the beginning."""


def prefix_ids(folder: Path, prompt: str, *, video_token_id: int, vocab_size: int, family: str) -> Tensor:
    """Token ids before the video, shape (S_prefix,).

    Args:
        folder: The model's files; its tokenizer is opened.
        prompt: Words around `<video>`, which it holds once (`require_one_video`).
        video_token_id: The token that the model replaces by the video, as its config.json says.
        vocab_size: Tokens that the model has embeddings of, as its config.json says.
        family: What the files should be, e.g. "LLaVA-NeXT-Video", for the message.

    Raises:
        ModelNotFoundError: If the folder holds no whole tokenizer, or that of another model.
        SettingsError: If the prompt begins with a token the tokenizer adds itself.
        NoVideoTokensError: If the model or the tokenizer does not know the video token.
        UnsafeFileError: If the tokenizer takes more time or memory, or makes more tokens, than any tokenizer.
    """
    require_video_token(folder, video_token_id, vocab_size)
    tokenizer = open_tokenizer(folder, prompt.split(VIDEO_PLACEHOLDER), video_token_id, family=family)
    with quiet_loading(folder, family):
        before, _ = split_ids(
            tokenizer,
            prompt,
            video_token_id=video_token_id,
            vocab_size=vocab_size,
            folder=folder,
            name="features.prompt",
        )
    return torch.tensor(before, dtype=torch.int64)


def require_video_token(folder: Path, video_token_id: int, vocab_size: int) -> None:
    """Refuses a model whose video token has no embedding.

    Raises:
        NoVideoTokensError: If it is no token of the model.
    """
    if not isinstance(video_token_id, int) or not 0 <= video_token_id < vocab_size:
        raise NoVideoTokensError(
            f"the video token must be one that the model has an embedding of, from 0 to {vocab_size - 1}, but "
            f"{folder / 'config.json'} says {video_token_id!r:.60}. Take config.json from the model's own repository."
        )


def split_ids(
    tokenizer: Any, prompt: str, *, video_token_id: int, vocab_size: int, folder: Path, name: str
) -> tuple[list[int], list[int]]:
    """Token ids before and after the video of a prompt that holds it once.

    Args:
        tokenizer: The model's.
        prompt: Words around `<video>`.
        video_token_id: As `prefix_ids`.
        vocab_size: As `prefix_ids`.
        folder: The model's files, for the message.
        name: The prompt's, for the message.

    Raises:
        ModelNotFoundError: If the tokenizer is that of another model.
        SettingsError: If the prompt begins with a token the tokenizer adds itself.
        NoVideoTokensError: If the tokenizer does not know the video token.
        UnsafeFileError: If the tokenizer makes more tokens than any.
    """
    token = tokenizer.convert_ids_to_tokens(video_token_id)
    ids: list[int] = tokenizer(prompt.replace(VIDEO_PLACEHOLDER, str(token)))["input_ids"]
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
            f"{name} must not begin with {tokenizer.bos_token!r}, "
            "but it does, and the tokenizer adds its own. Remove it."
        )
    at = ids.index(video_token_id)
    before, after = ids[:at], ids[at + 1 :]
    highest = max([*before, *after], default=0)
    if highest >= vocab_size:
        raise ModelNotFoundError(
            f"the tokenizer must be the model's own, but the one in {folder} makes token {highest} of the prompt, "
            f"and config.json says vocab_size = {vocab_size}. {OWN_FILES}"
        )
    return before, after
