"""The words of a prompt before and after the video, as token ids.

The tokenizer alone makes them: how many video tokens follow is the model's own geometry, and no chat template is read.
Features need the words before the video, and those that a model's processor writes between its time steps: attention is
causal, so words after the video cannot change a video token. They are what a zero-shot method asks (`wording.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.backbones.files import quiet_loading
from featurecache.backbones.placeholder import VIDEO_PLACEHOLDER
from featurecache.backbones.tokenizer import OWN_FILES, open_tokenizer
from featurecache.errors import ModelNotFoundError, NoVideoTokensError, SettingsError, UnsafeFileError

_MOST_TOKENS = 16
"""Of a byte of a prompt: tokenizers make less than one, and add one or two at the beginning."""


@dataclass(frozen=True)
class Words:
    """Token ids around a video.

    Attributes:
        before: Before the first video token.
        between: Between one run of video tokens and the next; empty where the video is one run.
        after: After the last video token.
    """

    before: tuple[int, ...]
    between: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]


def prompt_words(
    folder: Path,
    prompt: str,
    *,
    video_token_id: int,
    vocab_size: int,
    family: str,
    video_text: str,
    markers: Sequence[str] = (),
) -> Words:
    """Token ids of the words around the video.

    Args:
        folder: The model's files; its tokenizer is opened.
        prompt: Words around `<video>`, which it holds once (`require_one_video`).
        video_token_id: The token that the model replaces by video tokens, as its config.json says.
        vocab_size: Tokens that the model has embeddings of, as its config.json says.
        family: What the files should be, e.g. "LLaVA-NeXT-Video", for the message.
        video_text: As `split_ids`.
        markers: Tokens of `video_text` that the tokenizer must have.

    Raises:
        ModelNotFoundError: If the folder holds no whole tokenizer, or that of another model.
        SettingsError: If the prompt begins with a token the tokenizer adds itself.
        NoVideoTokensError: If the model or the tokenizer does not know the video token.
        UnsafeFileError: If the tokenizer takes more time or memory, or makes more tokens, than any tokenizer.
    """
    require_video_token(folder, video_token_id, vocab_size)
    parts = prompt.replace(VIDEO_PLACEHOLDER, video_text).split(VIDEO_PLACEHOLDER)
    tokenizer = open_tokenizer(folder, parts, video_token_id, family=family)
    with quiet_loading(folder, family):
        vocabulary = tokenizer.get_vocab() if markers else {}
        missing = [marker for marker in markers if marker not in vocabulary]
        if missing:
            raise ModelNotFoundError(
                f"the tokenizer of a {family} must have the token {missing[0]!r}, which its videos are written with, "
                f"but the one in {folder} has none. {OWN_FILES}"
            )
        return split_ids(
            tokenizer,
            prompt,
            video_token_id=video_token_id,
            vocab_size=vocab_size,
            video_text=video_text,
            folder=folder,
            name="features.prompt",
        )


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
    tokenizer: Any, prompt: str, *, video_token_id: int, vocab_size: int, video_text: str, folder: Path, name: str
) -> Words:
    """Token ids around the video of a prompt that holds it once.

    Args:
        tokenizer: The model's.
        prompt: Words around `<video>`.
        video_token_id: As `prompt_words`.
        vocab_size: As `prompt_words`.
        video_text: What the model's processor writes in the place of `<video>`, with `<video>` for each run of video
            tokens.
        folder: The model's files, for the message.
        name: The prompt's, for the message.

    Raises:
        ModelNotFoundError: If the tokenizer is that of another model.
        SettingsError: If the prompt begins with a token the tokenizer adds itself, or holds the video token.
        NoVideoTokensError: If the tokenizer does not know the video token.
        UnsafeFileError: If the tokenizer makes more tokens than any.
    """
    token = str(tokenizer.convert_ids_to_tokens(video_token_id))
    if token != VIDEO_PLACEHOLDER and token in prompt and token in tokenizer.get_added_vocab():
        raise SettingsError(
            f"{name} must not hold {token!r}, which the model takes for a part of a video, but it does. Remove it."
        )
    text = prompt.replace(VIDEO_PLACEHOLDER, video_text).replace(VIDEO_PLACEHOLDER, token)
    ids: list[int] = tokenizer(text)["input_ids"]
    if len(ids) > _MOST_TOKENS * len(text.encode()):
        raise UnsafeFileError(
            f"a tokenizer must make at most {_MOST_TOKENS} tokens of a byte, but the one in {folder} makes {len(ids)} "
            f"of a prompt of {len(text.encode())} bytes. {OWN_FILES}"
        )
    if ids.count(video_token_id) != video_text.count(VIDEO_PLACEHOLDER):
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
    places = [at for at, one in enumerate(ids) if one == video_token_id]
    before, *between = [
        tuple(ids[start:end]) for start, end in zip([0, *(at + 1 for at in places)], [*places, None], strict=True)
    ]
    words = Words(before, tuple(between[:-1]), between[-1])
    highest = max((one for one in ids if one != video_token_id), default=0)
    if highest >= vocab_size:
        raise ModelNotFoundError(
            f"the tokenizer must be the model's own, but the one in {folder} makes token {highest} of the prompt, "
            f"and config.json says vocab_size = {vocab_size}. {OWN_FILES}"
        )
    return words
