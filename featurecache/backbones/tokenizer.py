"""A model's tokenizer, opened after a trial in a process of its own.

A tokenizer.json is a small program, and may come from anywhere. The library that runs it ends the whole process where
memory is lacking. So it first encodes what will be encoded, and every token that the files next to it add, in a child
process with limits of time and memory (`featurecache.backbones.tokenizer_trial`).

Not here: what tokens mean (`featurecache.backbones.prompt`). Chat templates are never rendered.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from featurecache.backbones.files import LOCAL_ONLY, quiet_loading
from featurecache.backbones.model_folder import download_command, read_json
from featurecache.errors import ModelNotFoundError, UnsafeFileError, UnsupportedModelError

OWN_FILES = "Take the tokenizer's files from the model's own repository."
"""What helps against any fault of theirs."""

_NAME = "tokenizer.json"
_ADDING_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MAKING_TOKENS = ("extra_ids", "offset")
"""Settings of some tokenizers that make so many tokens."""

_MOST_SECONDS, _MOST_BYTES = 5, 1024**3
_MOST_TOKENS, _MOST_ADDED = 1_000_000, 20_000
"""Gemma's, the largest tokenizer in use, has 262,144, and adds 6,242 of them to its vocabulary."""


def open_tokenizer(folder: Path, text: Sequence[str], token_id: int, *, family: str) -> Any:
    """The tokenizer as transformers opens it.

    Args:
        folder: The model's files.
        text: What it will encode, in parts with a token between them.
        token_id: Id of that token.
        family: What the files should be, e.g. "LLaVA-NeXT-Video", for messages.

    Raises:
        ModelNotFoundError: If there is no tokenizer.json, or it is damaged.
        UnsafeFileError: If it takes more time or memory, or has more tokens, than any tokenizer.
        UnsupportedModelError: If it leaves the choice of tokens to chance.
    """
    _require(folder, family)
    _try(folder, text, token_id, _added_texts(folder))
    with quiet_loading(folder, family):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
    _refuse_dropout(folder, getattr(tokenizer, "backend_tokenizer", None))
    return tokenizer


def open_encoder(folder: Path, texts: Sequence[str], *, family: str) -> Tokenizer:
    """The tokenizer.json by itself, without any class of transformers: some of these need further libraries.

    It neither cuts off nor fills up.

    Args:
        folder: The model's files.
        texts: What it will encode.
        family: As `open_tokenizer`, whose errors it raises.
    """
    _require(folder, family)
    _try(folder, [], 0, [*texts, *_added_texts(folder)])
    tokenizer = Tokenizer.from_file(str(folder / _NAME))
    _refuse_dropout(folder, tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _require(folder: Path, family: str) -> None:
    if not (folder / _NAME).exists():
        raise ModelNotFoundError(
            f"the folder of a {family} must hold its tokenizer, but {folder} has no {_NAME}. "
            f"Fetch it from the model's repository: {download_command(f'{_NAME} tokenizer_config.json', folder)}"
        )


def _refuse_dropout(folder: Path, tokenizer: Any) -> None:
    if dropout := getattr(getattr(tokenizer, "model", None), "dropout", None):
        raise UnsupportedModelError(
            f"a tokenizer must make the same tokens of a prompt each time, but {folder / _NAME} sets dropout = "
            f"{dropout}. Set it to null there, as it is after training."
        )


def _added_texts(folder: Path) -> list[str]:
    """Every string of the files that add tokens, once."""
    found: set[str] = set()
    for name in _ADDING_TOKENS:
        if not (folder / name).is_file():
            continue
        document = read_json(folder / name)
        found.update(_strings(document))
        made = max((value for key in _MAKING_TOKENS if isinstance(value := document.get(key), int)), default=0)
        if max(len(found), made) > _MOST_ADDED:
            raise UnsafeFileError(
                f"a tokenizer must add at most {_MOST_ADDED} tokens to its vocabulary, but {folder / name} asks for "
                f"{max(len(found), made)}. {OWN_FILES}"
            )
    return sorted(found)


def _try(folder: Path, text: Sequence[str], token_id: int, more: Sequence[str]) -> None:
    """Encodes in a child process what this one will encode."""
    # -P: python must not look for modules in the working folder, which may be the model's.
    command = [sys.executable, "-P", str(Path(__file__).with_name("tokenizer_trial.py"))]
    limits = [str(limit) for limit in (_MOST_SECONDS, _MOST_BYTES, _MOST_ADDED, _MOST_TOKENS)]
    done = subprocess.run(  # noqa: S603  # this interpreter
        [*command, str((folder / _NAME).resolve()), *limits],
        input=json.dumps([text, token_id, more]).encode(),
        capture_output=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
    )
    if done.returncode == 0:
        return
    said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
    if done.returncode > 0 and not said.startswith("MemoryError"):
        raise ModelNotFoundError(
            f"a model's tokenizer must be sound, but {folder / _NAME} is not: {said[:200].rstrip('.')}. {OWN_FILES}"
        )
    raise UnsafeFileError(
        f"a tokenizer must encode a prompt within {_MOST_SECONDS} s and {_MOST_BYTES // 1024**2} MiB, but "
        f"{folder / _NAME} takes more. {OWN_FILES}"
    )


def _strings(document: Any) -> Iterator[str]:
    """Every string of a JSON document, keys too, that can become a token: all but a chat template."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, list):
        for one in document:
            yield from _strings(one)
    elif isinstance(document, dict):
        for key, one in document.items():
            if key != "chat_template":
                yield key
                yield from _strings(one)
