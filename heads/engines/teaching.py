"""A teacher for the weights that heads give to parts: the gradient of the cross-entropy between the two.

Source: LLaVA-Ultra, equation 5, whose teacher is the relevance of each part to a text (`heads/samples/teacher.py`).
"""

import torch
from torch import Tensor


def teacher_gradient(
    first: Tensor, teacher: Tensor, absent: Tensor | None, *, shares: Tensor, queries: int, root: float
) -> Tensor:
    """D sum over heads of share * mean over queries of the cross-entropy of a batch's samples / d products.

    Args:
        first: Products of parts with the rows of K heads, each with its outputs first and its queries last, (B * P, R).
        teacher: The teacher's weights, (B, P); rows of zeros for samples without, which add nothing.
        absent: Which parts have no weight, (B * P,); None: none of them.
        shares: Weight of each head's cross-entropy, (K,).
        queries: Q of each head.
        root: What products with queries are multiplied by before the softmax.

    Returns:
        Shape (B * P, R).
    """
    gradient = torch.zeros_like(first)
    of_queries = slice(first.shape[1] // len(shares) - queries, None)
    scores = first.view(len(teacher), -1, len(shares), first.shape[1] // len(shares))[..., of_queries] * root
    if absent is not None:
        scores = scores.masked_fill(absent.view(len(teacher), -1, 1, 1), -torch.inf)
    taught = teacher[:, :, None, None]  # (B, P, 1, 1)
    differ = (torch.softmax(scores, dim=1) - taught) * taught.sum(dim=1, keepdim=True)  # (B, P, K, Q)
    gradient.view(*scores.shape[:3], -1)[..., of_queries] = differ * shares[:, None] * (root / queries)
    return gradient
