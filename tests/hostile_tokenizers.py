"""Tokenizers that must not open: each is one change of a sound model folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Case = tuple[Callable[[Path], None], str, str, str]
"""What is done to a sound folder, the error, the file it names, what is wrong."""

_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON file in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _tokenizer(**parts: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer.json", lambda made: made.update(parts))


def _adds_tokens(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer_config.json", lambda made: made.update(settings))


def _growing(letter: str, pattern: str = "String") -> dict[str, Any]:
    """Each rule makes its match ten times longer."""
    rule = {"type": "Replace", "pattern": {pattern: letter}, "content": letter * 10}
    return {"type": "Sequence", "normalizers": [rule] * 12}


def _growing_token(folder: Path) -> None:
    """Nothing of the prompt grows, but a token that another file adds."""
    _tokenizer(normalizer=_growing("Q"))(folder)
    _adds_tokens(extra_special_tokens=["Q"])(folder)


def _template(tokens: int) -> dict[str, Any]:
    special, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    ids = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": [special] * tokens + [text], "pair": [text], "special_tokens": ids}


def _many_vocabulary(folder: Path) -> None:
    vocabulary = {f"v{at}": 100 + at for at in range(1_000_000)}
    edit(folder / "tokenizer.json", lambda made: made["model"]["vocab"].update(vocabulary))


def _by_chance(folder: Path) -> None:
    def change(made: dict[str, Any]) -> None:
        vocabulary = made["model"]["vocab"]
        made["model"] = {"type": "BPE", "dropout": 0.5, "unk_token": "<unk>", "vocab": vocabulary, "merges": []}

    edit(folder / "tokenizer.json", change)


def _sentencepiece_alone(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


HOSTILE_TOKENIZERS: dict[str, Case] = {
    "growing text": (_tokenizer(normalizer=_growing("a")), "UnsafeFileError", "tokenizer.json", "takes more"),
    "growing text by expressions": (
        _tokenizer(normalizer=_growing(".", "Regex")),
        "UnsafeFileError",
        "tokenizer.json",
        "takes more",
    ),
    "growing words": (
        _tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [_BYTES] * 24}),
        "UnsafeFileError",
        "tokenizer.json",
        "takes more",
    ),
    "growing token": (_growing_token, "UnsafeFileError", "tokenizer.json", "takes more"),
    "padding": (
        _tokenizer(
            padding={
                **{"strategy": {"Fixed": 10**9}, "direction": "Left", "pad_to_multiple_of": None},
                **{"pad_id": 3, "pad_type_id": 0, "pad_token": "<pad>"},
            }
        ),
        "UnsafeFileError",
        "tokenizer.json",
        "takes more",
    ),
    "panicking tokenizer": (
        _tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA" * 100}),
        "ModelNotFoundError",
        "tokenizer.json",
        "must be sound",
    ),
    "long template": (_tokenizer(post_processor=_template(3000)), "UnsafeFileError", "model", "makes 3004"),
    "many words": (_many_vocabulary, "ModelNotFoundError", "tokenizer.json", "has 1000018 tokens"),
    "many added tokens": (
        _adds_tokens(extra_special_tokens=[f"<{at}>" for at in range(50_000)]),
        "UnsafeFileError",
        "tokenizer_config.json",
        "add at most 20000 tokens",
    ),
    "made up tokens": (
        _adds_tokens(tokenizer_class="T5Tokenizer", extra_ids=10**9),
        "UnsafeFileError",
        "tokenizer_config.json",
        "asks for 1000000000",
    ),
    "tokens by chance": (_by_chance, "UnsupportedModelError", "tokenizer.json", "sets dropout = 0.5"),
    "another tokenizer file": (
        _adds_tokens(gguf_file="other.gguf"),
        "UnsafeFileError",
        "tokenizer_config.json",
        "sets gguf_file",
    ),
    "sentencepiece alone": (_sentencepiece_alone, "ModelNotFoundError", "tokenizer.json", "hf download"),
}
