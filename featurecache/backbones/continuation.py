"""What a video language model says after a video: its next words' probabilities, and the words it would go on with.

The words before the video and the video run once; their keys and values are kept, and every question continues from
there. Numbers equal those of a forward of the whole text (1e-5 in float32). The key-value cache here is used for one
batch of clips and never found again by token ids: all clips have the same placeholder tokens.

Not here: which words are asked (`asking.py`), tokenizers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from featurecache.backbones.decoder import Embedded, decoder_of, hidden_states
from featurecache.backbones.token_tree import TokenTree
from featurecache.backbones.weight_files import find_weight_files
from featurecache.errors import ModelNotFoundError

Pick = Callable[[Tensor, int], Tensor]
"""Chooses a column of logits (B, V) at a step of an answer: shape (B,)."""

_NODES_AT_ONCE = 32  # whose logits over all words are in memory at once

SAID = "_said"
"""Ends the name of a tap of decisions and words, or of numbers that hang on these."""

NOTHING_SAID = -1
"""Fills token ids of an answer behind its end."""


def most_probable(logits: Tensor, step: int) -> Tensor:  # noqa: ARG001
    """Greedy decoding, temperature 0: the most probable token, (B, V) -> (B,)."""
    return logits.argmax(dim=-1)


def sampled(temperature: float, noise: Tensor) -> Pick:
    """Sampling at a temperature by the Gumbel-max trick.

    Args:
        temperature: Above 0; 1 samples from the model's own distribution.
        noise: Gumbel noise of each step and column, shape (steps, V): the same for all clips, so that an answer does
            not depend on the batch it is in.
    """
    return lambda logits, step: (logits / temperature + noise[step, : logits.shape[-1]].to(logits)).argmax(dim=-1)


def gumbel_noise(shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Standard Gumbel noise, which `sampled` needs."""
    return -torch.empty(shape).exponential_(generator=draws).log()


class KeyValues:
    """Keys and values of the tokens so far, layer by layer, as transformers' attention asks for them.

    Attributes:
        grows: Whether tokens that run are kept for later ones.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []
        self.grows = True

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self._layers[0][0].shape[2] if self._layers else 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, of shape (B, heads, tokens, width), those of new tokens behind the others."""
        is_first = layer == len(self._layers)
        if not is_first:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(self._layers[layer], (keys, values), strict=True))
        if self.grows and is_first:
            self._layers.append((keys, values))
        elif self.grows:
            self._layers[layer] = keys, values
        return keys, values


class Continuation:
    """A batch of B clips behind the words before them, ready to go on.

    Args:
        model: The inner model with its language model, without logits.
        to_logits: Weights of the output layer, shape (V, D).
        before: The sequence up to the last token of the video and what the model puts behind it.
    """

    def __init__(self, model: Any, to_logits: Tensor, before: Embedded) -> None:
        self._model, self._to_logits, self._batch = model, to_logits, len(before.states)
        self._past = KeyValues()
        self._ahead = (
            before.next_position - before.states.shape[1]
        )  # not 0 where a video takes fewer places than tokens
        self._run(before)

    @property
    def words(self) -> int:
        """V, tokens that the output layer knows."""
        return len(self._to_logits)

    def _run(self, read: Embedded, *, mask: Tensor | None = None) -> Tensor:
        """Final states of more tokens, (B, S, D)."""
        last = read.states
        for last in hidden_states(decoder_of(self._model), read, cache=self._past, mask=mask):  # noqa: B007
            pass
        return last

    def _places(self, steps: Tensor) -> Tensor:
        """Places in the sequence of tokens that are so many steps behind what has run."""
        return self._past.length + self._ahead + steps

    def _words(self, ids: Tensor) -> Tensor:
        """Embedded tokens: (S,) -> (B, S, D), or (B,) -> (B, 1, D) where they differ from clip to clip."""
        embedded: Tensor = self._model.get_input_embeddings()(ids)
        return embedded.expand(self._batch, *embedded.shape)

    def logits(self, states: Tensor) -> Tensor:
        """Logits over all tokens, in the model's dtype and then float32: (..., D) -> (..., V)."""
        return torch.nn.functional.linear(states, self._to_logits).float()

    def after(self, tree: TokenTree) -> Tensor:
        """Final states of the tokens of a tree, each behind its own branch alone: (B, nodes, D). Nothing is kept."""
        device, past = self._to_logits.device, self._past.length
        places = self._places(torch.tensor(tree.depths, device=device))
        seen = torch.ones(len(tree.tokens), past, dtype=torch.bool)
        mask = torch.cat([seen, tree.visible], dim=1).to(device)[None, None]
        self._past.grows = False
        states = self._run(Embedded(self._words(torch.tensor(tree.tokens, device=device)), places), mask=mask)
        self._past.grows = True
        return states

    def log_probabilities(self, tree: TokenTree, states: Tensor) -> Tensor:
        """How probable each node's children are behind it: (B, nodes, most children); -inf where there is none.

        Args:
            tree: The tree.
            states: Of `after`, shape (B, nodes, D).
        """
        children = tree.children.to(states.device)
        tokens = torch.tensor(tree.tokens, device=states.device)[children.clamp(min=0)]  # (nodes, most)
        parts = []
        for part, columns in zip(
            torch.split(states, _NODES_AT_ONCE, dim=1), torch.split(tokens, _NODES_AT_ONCE), strict=True
        ):
            normalised = torch.log_softmax(self.logits(part), dim=-1)
            parts.append(normalised.gather(2, columns.expand(len(part), -1, -1)))
        return torch.cat(parts, dim=1).masked_fill(children < 0, -torch.inf)

    def say(self, ids: Sequence[int], *, most: int, ends: Sequence[int], pick: Pick = most_probable) -> Tensor:
        """What the model says freely after some text, which then follows the video: (B, most) token ids.

        Args:
            ids: Token ids of the words, one or more.
            most: Tokens of an answer at most.
            ends: Tokens that end an answer; they are part of it, and `NOTHING_SAID` follows.
            pick: Chooses each token.
        """
        device, past = self._to_logits.device, self._past.length
        places = self._places(torch.arange(len(ids), device=device))
        seen = torch.ones(len(ids), past + len(ids), dtype=torch.bool, device=device).tril(past)
        states = self._run(Embedded(self._words(torch.tensor(ids, device=device)), places), mask=seen[None, None])
        said = torch.full((self._batch, most), NOTHING_SAID, device=device)
        has_ended = torch.zeros(self._batch, dtype=torch.bool, device=device)
        ending = torch.tensor(ends, device=device)
        for step in range(most):
            token = pick(self.logits(states[:, -1]), step)  # (B,)
            said[:, step] = token.masked_fill(has_ended, NOTHING_SAID)
            has_ended = has_ended | torch.isin(token, ending)
            if step == most - 1 or (not has_ended.is_meta and bool(has_ended.all())):
                break
            embedded = self._model.get_input_embeddings()(token)[:, None]  # (B, 1, D)
            states = self._run(Embedded(embedded, self._places(torch.zeros(1, dtype=torch.int64, device=device))))
        return said


def output_weights(model: Any, folder: Path, family: str) -> Tensor:
    """Weights of the layer that makes logits, which backbones are loaded without: (V, D), as the model's own.

    Args:
        model: The inner model, loaded.
        folder: Its files.
        family: What the files are, for the message.

    Raises:
        ModelNotFoundError: If there are none, or of another width.
    """
    embedded: Tensor = model.get_input_embeddings().weight
    if any(getattr(one, "tie_word_embeddings", False) for one in (model.config, model.config.text_config)):
        return embedded
    for path in find_weight_files(folder).paths.values():
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                if name in ("lm_head.weight", "language_model.lm_head.weight"):
                    found = torch.empty(file.get_slice(name).get_shape(), device="meta")
                    if found.shape != embedded.shape:
                        break
                    return found.to(embedded) if embedded.is_meta else file.get_tensor(name).to(embedded)
    raise ModelNotFoundError(
        f"the checkpoint of a {family} that is asked questions must hold lm_head.weight of shape "
        f"{tuple(embedded.shape)}, but {folder} does not. Take the whole model's weights from its repository."
    )
