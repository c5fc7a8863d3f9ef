"""A causal language model that answers questions about a text with 0 or 1: the local judge of ZSC-J.

Its folder comes in by the same door as a backbone's: checked files, safetensors alone, no code of the folder, weights
that are all there. An answer is read at its first token, by the model's own probabilities; nothing is sampled. The
questions about one caption run as one tree of tokens, so that what they begin with alike runs once.

Not here: what is asked, and when an answer is unparsable (`heads/zeroshot/`).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import AutoConfig, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from featurecache.backbones.chat_template import chat_frame
from featurecache.backbones.decoder import Embedded, hidden_states, require_decoder
from featurecache.backbones.files import TOKENIZER_FILES, digests, load_frozen, quiet_loading, read_as
from featurecache.backbones.model_folder import check_model_folder
from featurecache.backbones.token_tree import TokenTree
from featurecache.backbones.tokenizer import open_tokenizer
from featurecache.backbones.versions import require_tested_transformers
from featurecache.backbones.weight_files import find_weight_files
from featurecache.device import check_dtype, device_of, use_full_float32
from featurecache.errors import UnsupportedModelError

_FAMILY, _ATTENTION = "judging language model", "sdpa"
_CLASSES: dict[str, Any] = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM}

_SPACE_MARKS = " ▁Ġ"
"""How tokenizers write a space before a word."""
_BLANKS = (*_SPACE_MARKS, "\n", "Ċ", "<0x0A>")
"""Tokens of one space or new line: an answer can begin with one."""


class Digits(NamedTuple):
    """How an answer begins: probability of 0 and of 1, and the digit that is said freely (None: neither)."""

    zero: float
    one: float
    said: int | None


class JudgeFiles:
    """All of a judge but its weights.

    Attributes:
        folder: The model's files.
        config: The architecture.
        frame: What the chat template puts before and after a question.

    Args:
        folder: The model's files.
        questions: What it will be asked, to try the tokenizer with.

    Raises:
        ModelNotFoundError, UnsafeFileError: As for any model folder.
        UnsupportedModelError: If it is of another architecture, has no chat template, or no tokens for 0 and 1.
    """

    def __init__(self, folder: Path, questions: Sequence[str]) -> None:
        require_tested_transformers()
        found = check_model_folder(folder)["model_type"]
        if found not in _CLASSES:
            raise UnsupportedModelError(
                f"a judge's architecture must be one of {', '.join(_CLASSES)}, but {folder / 'config.json'} says "
                f"{found[:100]!r}. Use such a model, e.g. mistralai/Mistral-7B-Instruct-v0.2, or serve this one on "
                "this machine and set zeroshot.judge to its address."
            )
        self.folder = folder
        self.config: Any = read_as(AutoConfig, folder, _FAMILY)
        require_decoder(self.config)
        self._tokenizer = open_tokenizer(folder, questions, 0, family=_FAMILY)
        self.frame = chat_frame(self._tokenizer, folder)
        with quiet_loading(folder, _FAMILY):
            vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self.zero, self.one = (
            sorted(id for token, id in vocabulary.items() if token.strip(_SPACE_MARKS) == digit) for digit in "01"
        )
        self.blank = sorted(id for token, id in vocabulary.items() if token in _BLANKS)
        if not self.zero or not self.one:
            raise UnsupportedModelError(
                f"a judge's tokenizer must have 0 and 1 as tokens, but that in {folder} has not. Use another model."
            )

    def identity(self, dtype: str, sha256_of: Callable[[Path], str]) -> dict[str, Any]:
        """What changes an answer, JSON-ready, for the fingerprint."""
        return {
            "kind": "model",
            "weights": {name: sha256_of(path) for name, path in find_weight_files(self.folder).paths.items()},
            "config": digests(self.folder, ("config.json",), sha256_of),
            "tokenizer": digests(self.folder, TOKENIZER_FILES, sha256_of),
            "frame": list(self.frame),
            "compute_dtype": dtype,
            "attention": _ATTENTION,
        }

    def tree(self, questions: Sequence[str]) -> tuple[TokenTree, list[tuple[int, list[int]]]]:
        """The questions as one tree, and of each its last node and the nodes of blank tokens behind it."""
        before, after = self.frame
        with quiet_loading(self.folder, _FAMILY):
            asked = [
                self._tokenizer(f"{before}{question}{after}", add_special_tokens=False)["input_ids"]
                for question in questions
            ]
        each = 1 + len(self.blank)
        tree = TokenTree.of([[*ids, *more] for ids in asked for more in ([], *([token] for token in self.blank))])
        ends = [(tree.ends[at * each], list(tree.ends[at * each + 1 : (at + 1) * each])) for at in range(len(asked))]
        return tree, ends

    @cached_property
    def values(self) -> int:
        """Numbers that the weight files hold: twice as many operations are done for a token."""
        return find_weight_files(self.folder).values


class JudgeModel:
    """The loaded judge.

    Args:
        files: All of it but the weights.
        dtype: The dtype it computes in.
        device: As `featurecache.backbones.open_backbone`.

    Raises:
        ModelNotFoundError, UnsafeFileError, SettingsError: As `open_backbone`.
    """

    def __init__(self, files: JudgeFiles, *, dtype: Literal["float32", "bfloat16", "float16"], device: str) -> None:
        device = device_of(device)
        check_dtype(dtype, device)
        if dtype == "float32":
            use_full_float32()
        self._files, self._device = files, device
        self._model = load_frozen(
            _CLASSES[files.config.model_type],
            files.folder,
            family=_FAMILY,
            dtype=dtype,
            device=device,
            attention=_ATTENTION,
            config=files.config,
        )

    @torch.inference_mode()
    def answers(self, questions: Sequence[str]) -> list[Digits]:
        """How the answer to each of Q questions begins.

        A space or a new line before the digit is taken as part of it: SentencePiece writes " 1" as two tokens.
        """
        tree, ends = self._files.tree(questions)
        window = getattr(self._files.config, "sliding_window", None)
        most = min(self._files.config.max_position_embeddings, window or self._files.config.max_position_embeddings)
        if max(tree.depths) >= most:
            return [Digits(0.0, 0.0, None)] * len(questions)
        embed = self._model.get_input_embeddings()
        states = embed(torch.tensor(tree.tokens, device=self._device))[None]
        positions = torch.tensor(tree.depths, device=self._device)
        mask = tree.visible.to(self._device)[None, None]
        for states in hidden_states(self._model.model, Embedded(states, positions), mask=mask):  # noqa: B007, B020
            pass
        return [self._read(states[0], end, blanks) for end, blanks in ends]

    def _read(self, states: torch.Tensor, end: int, blanks: list[int]) -> Digits:
        """An answer from the states behind a question's last token and behind blank tokens after it, (nodes, D)."""
        probable = torch.softmax(self._model.lm_head(states[[end, *blanks]]).float(), dim=-1)  # (1 + blanks, V)
        way = torch.cat([torch.ones(1, device=probable.device), probable[0, self._files.blank]])  # (1 + blanks,)
        zero, one = (float((way @ probable[:, ids]).sum()) for ids in (self._files.zero, self._files.one))
        first = int(probable[0].argmax())
        if first in self._files.blank:
            first = int(probable[1 + self._files.blank.index(first)].argmax())
        said = 1 if first in self._files.one else 0 if first in self._files.zero else None
        return Digits(zero, one, said)
