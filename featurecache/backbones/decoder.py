"""A causal language model's layers as a loop that stops where it is told to, and starts where it is told to.

`hidden_states` gives what `output_hidden_states=True` would give, one state at a time: nothing is computed before
it is asked for, so the layers above the deepest one asked for never run, and no list of states is kept. Sequences
of a batch have one length, so there is no attention mask and attention takes its causal fast path, unless the caller
gives a key-value cache and a mask of its own (`continuation.py`); there are no logits. Gradients flow, if there are
parameters that want them.

Without gradients on a CPU the widest arrays of a layer, those inside its MLP, are computed for some tokens at a time,
and no copy of the states is kept beside them: the same numbers in the same time, and a third of the memory less.

Not here: what comes before the video, generating text.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from featurecache.backbones.family import TapShape
from featurecache.errors import UnsupportedModelError

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "qwen2_5_vl_text", "qwen3_vl_text")
"""Model types whose forward is exactly this loop, and whose layers are exactly these two sums."""

_FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that turn a position by the same angles in a sequence of any length."""

_SLIDING = "sliding_attention"
_LAYERS = {"full_attention", _SLIDING}
"""Kinds of attention of a layer; one that slides is full where its window holds the whole sequence."""

_TOKENS_AT_ONCE = 512  # of each clip, in an MLP on a CPU: fewer take longer, more take more memory


@dataclass(frozen=True)
class Embedded:
    """A batch of sequences that a language model reads, or resumes from.

    Attributes:
        states: Hidden states of each token, shape (B, S, D).
        positions: Place of each token in its sequence, shape (S,), or (3, S) in time, height and width; None: 0, 1, ...
        added: What is added to the states after layer 0, 1, ..., each of shape (B, S, D).
    """

    states: Tensor
    positions: Tensor | None = None
    added: Sequence[Tensor] = ()

    @property
    def next_position(self) -> int:
        """The place of a token that follows: behind all columns, of a video that lies in time too."""
        return self.states.shape[1] if self.positions is None else int(self.positions[-1].max()) + 1


def decoder_of(model: Any) -> Any:
    """The language model inside a video language model, by either of transformers' names for it."""
    return model.language_model if hasattr(model, "language_model") else model.text_model


def hidden_states(
    decoder: Any,
    read: Embedded,
    first: int = 0,
    *,
    cache: Any = None,
    mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """`hidden_states[first]`, `[first + 1]`, ... of a language model of N layers; the N-th is after the final norm.

    What is added after a layer is not part of that layer's own state, as transformers has it.

    Args:
        decoder: The inner language model, without its logits.
        read: `hidden_states[first]` (of `first` = 0: the embeddings), with their places.
        first: Layers that are behind these states, 0 <= first < N.
        cache: Keys and values of earlier tokens, by transformers' `update`, which gets those of these tokens.
        mask: True where a token sees another, shape (1, 1, S, earlier + S); None: those before it and itself.

    Yields:
        Shape (B, S, D), the first of them the argument itself.
    """
    states = read.states
    places = torch.arange(states.shape[1]) if read.positions is None else read.positions
    places = (places[None] if places.ndim == 1 else places[:, None]).to(states.device)
    rotary = decoder.rotary_emb(states, position_ids=places)
    yield states
    shared = {
        "attention_mask": mask,
        "position_ids": places,
        "position_embeddings": rotary,
        "use_cache": False,
        **({} if cache is None else {_cache_argument(decoder): cache}),
    }
    by_parts = states.device.type == "cpu" and not torch.is_grad_enabled()
    for depth, layer in enumerate(decoder.layers[first:], start=first + 1):
        if by_parts:
            states = states + layer.self_attn(layer.input_layernorm(states), **shared)[0]
            for part in torch.split(states, _TOKENS_AT_ONCE, dim=1):
                part.add_(layer.mlp(layer.post_attention_layernorm(part)))
        else:
            states = layer(states, **shared)
        if depth < len(decoder.layers):
            yield states
        if depth <= len(read.added):
            states = states + read.added[depth - 1]
    yield decoder.norm(states)


def _cache_argument(decoder: Any) -> str:
    """What attention calls its key-value cache: `cache` since transformers 5.24, `past_key_values` before."""
    names = inspect.signature(decoder.layers[0].self_attn.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


@torch.no_grad()
def prefix_states(model: Any, decoder: Any, prefix_ids: Sequence[int], layer: int) -> Tensor:
    """`hidden_states[layer]` of the words before the video, which no video changes.

    Args:
        model: The inner model, without logits.
        decoder: Its language model.
        prefix_ids: Token ids; there may be none.
        layer: Layers behind the states, 0 <= layer < N.

    Returns:
        Shape (S_prefix, D).
    """
    ids = torch.tensor(prefix_ids, dtype=torch.int64, device=model.device)
    words: Tensor = model.get_input_embeddings()(ids)[None]
    if not len(prefix_ids):
        return words.flatten(0, 1)  # (0, D) at every layer
    depths = enumerate(hidden_states(decoder, Embedded(words)))
    return next(states[0] for depth, states in depths if depth == layer)


def language_taps(layers: int, shape: TapShape) -> dict[str, TapShape]:
    """The taps of a language model by name, in order of depth.

    Args:
        layers: Number of its layers.
        shape: Shape of the video tokens' states; from `layer_1` on they come from causal attention.
    """
    deeper = [*(f"layer_{depth}" for depth in range(1, layers)), "final"]
    return {"layer_0": shape, **dict.fromkeys(deeper, replace(shape, is_causal=True))}


def require_decoder(config: Any) -> None:
    """Refuses a language model whose forward is not the loop above.

    Args:
        config: The language model's config.

    Raises:
        UnsupportedModelError: If its type or its layers' attention is unknown here, or its rotary embeddings depend on
            a sequence's length, so that text after the video would change video tokens.
    """
    if config.model_type not in DECODERS:
        raise UnsupportedModelError(
            f"the language model must be one of {', '.join(DECODERS)}, but config.json says {config.model_type!r}. "
            "Use other weights of this family."
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not kinds <= _LAYERS or (_SLIDING in kinds and window is None):
        raise UnsupportedModelError(
            f"layer_types must be {' or '.join(sorted(_LAYERS))}, with a sliding_window where one slides, but "
            f"config.json says {', '.join(sorted(kinds))[:80]}, and sliding_window = {window}. "
            "Take config.json from the model's own repository."
        )
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _FIXED_ROPES:
        raise UnsupportedModelError(
            "the language model's rotary embeddings must not depend on the length of the sequence "
            f"({', '.join(_FIXED_ROPES)}), but config.json says {rope_type!r}: text after the video would change the "
            "features before it. Use weights with one of these, e.g. llava-hf/LLaVA-NeXT-Video-7B-hf."
        )


def require_window(config: Any, longest: int) -> None:
    """Refuses a language model whose attention looks back less far than a sequence of `longest` tokens.

    Raises:
        UnsupportedModelError: Naming both lengths.
    """
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < longest:
        raise UnsupportedModelError(
            f"the language model must see a whole clip, but its attention window is {window} and a clip has "
            f"{longest} tokens. Set features.frames lower."
        )
