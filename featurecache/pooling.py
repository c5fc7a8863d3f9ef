"""How a tap's video tokens become one array. Pure tensor functions.

Sums accumulate in float32 whatever the model's dtype: in float16 the sum over the 7B model's 2304
video tokens overflows as soon as a channel's mean exceeds 28.4.
"""

import torch
from torch import Tensor

from featurecache.errors import NoVideoTokensError


def mean_of_tokens(states: Tensor) -> Tensor:
    """Mean over each clip's video tokens, accumulated in float32.

    Source: Guerriero et al., section 3.5 ("we compute the mean of the video token embeddings").

    Args:
        states: States of the video tokens alone, shape (B, S, D), any floating dtype.

    Returns:
        Features, shape (B, D), float32.

    Raises:
        NoVideoTokensError: If S is 0.
    """
    if states.shape[1] == 0:
        raise NoVideoTokensError(
            "a clip must have at least one video token to pool, but it has 0. "
            "Check the backbone's patch size and pooling stride."
        )
    return states.mean(dim=1, dtype=torch.float32)
