"""How a tap's video tokens become one array. Pure tensor functions.

Sums accumulate in float32 whatever the model's dtype: in float16 the sum over the 7B model's 2304
video tokens overflows as soon as a channel's mean exceeds 28.4.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featurecache.errors import NoVideoTokensError

if TYPE_CHECKING:
    from featurecache.backbones.family import TapStates


def pool(states: "TapStates", pooling: str) -> Tensor:
    """A batch of clips' features of one tap.

    Args:
        states: The tap's states: tokens (B, T', P, D), class tokens where the model has them.
        pooling: `mean`, `motion`, `frames`, `tokens`, `cls` or `last`.

    Returns:
        Float32, shape (B, D), or (B, T', D) for `frames`; for `tokens` (B, S, D) in the model's dtype.

    Raises:
        NoVideoTokensError: If there is no token to pool, or no class token for `cls`.
        ValueError: If the pooling is none of these.
    """
    if 0 in states.tokens.shape[1:3]:
        raise NoVideoTokensError(
            f"a clip must have at least one video token to pool, but its states are {tuple(states.tokens.shape)}. "
            "Check the backbone's patch size and pooling stride."
        )
    if pooling == "mean":
        return mean_of_tokens(states.tokens)
    if pooling == "motion":
        return motion_of_frames(mean_of_frames(states.tokens))
    if pooling == "frames":
        return mean_of_frames(states.tokens)
    if pooling == "tokens":
        return states.tokens.flatten(1, 2)
    if pooling == "last":
        return states.tokens[:, -1, -1].to(torch.float32, copy=True)  # a view would hold all tokens in memory
    if pooling == "cls":
        if states.cls is None:
            raise NoVideoTokensError("pooling cls needs a class token, but this tap has none. Keep its mean instead.")
        return states.cls.mean(dim=1, dtype=torch.float32)
    raise ValueError(f"pooling must be mean, motion, frames, tokens, cls or last, but it is {pooling!r}.")


def mean_of_tokens(tokens: Tensor) -> Tensor:
    """Mean over each clip's video tokens, accumulated in float32: (B, T', P, D) -> (B, D).

    Source: Guerriero et al., section 3.5 ("we compute the mean of the video token embeddings").
    """
    return tokens.mean(dim=(1, 2), dtype=torch.float32)


def mean_of_frames(tokens: Tensor) -> Tensor:
    """Mean over each time step's tokens, accumulated in float32: (B, T', P, D) -> (B, T', D)."""
    return tokens.mean(dim=2, dtype=torch.float32)


def motion_of_frames(frames: Tensor) -> Tensor:
    """Mean absolute difference of consecutive time steps: (B, T', D) -> (B, D). T' must be at least 2."""
    return frames.diff(dim=1).abs().mean(dim=1)
