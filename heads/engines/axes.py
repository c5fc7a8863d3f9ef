"""Principal axes of features that come in blocks: one block of all rows, or a stream that is read again for each pass.

Notable choices: up to a smaller side of 1024 the axes are exact, from the smaller of the two Gram matrices in double
precision; beyond it they come from a block power iteration in the features' own precision (three passes), so the last
few of them may mix with their neighbours of like variance. Its first iteration looks at some of the rows, which finds
the same subspace nearly as well in a fraction of the time. Directions without variance are no axes.

What this is not: a normalisation; rows come centred.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from heads.data import ROWS_AT_ONCE

AXES_AT_ONCE = 512
"""Axes found where fewer are asked for: an iteration for more of them gives other ones, so all callers find as many."""
EXACT_UP_TO = 1024
"""Smaller side of the features up to which axes come from a full decomposition."""

_OVERSAMPLING = 64
_EARLY_EVERY, _EARLY_ROWS = 4, 4  # the first iteration sees each fourth row, if that leaves four for each axis
_LEAST_VARIANCE = 1e-10  # of the largest; below it an axis is rounding

Blocks = Callable[[], Iterable[Tensor]]
"""Gives all rows, each time it is called, in blocks (n, D) of one dtype on one device."""


def leading_axes(
    blocks: Blocks, shape: tuple[int, int], count: int, *, projections: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Principal axes of centred features and the variances along them, largest first.

    Source of the power iteration: Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061, algorithm 4.4.

    Args:
        blocks: The features.
        shape: Shape of the features, (N, D).
        count: Axes wanted.
        projections: Takes the blocks along the axes, each (n, M), where an iteration makes them anyway.

    Returns:
        Axes, shape (D, M), orthonormal, each with its largest entry positive; variances, shape (M,); both float64. M
        is `count`, or the features' rank where that is lower.
    """
    exact = min(shape) <= max(EXACT_UP_TO, count + _OVERSAMPLING)
    axes, variances = _all_axes(blocks, shape) if exact else _power_iteration(blocks, shape, count, projections)
    kept = min(count, int((variances > _LEAST_VARIANCE * variances[:1].clamp(min=1e-30)).sum()))
    axes, variances = axes[:, :kept], variances[:kept]
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()  # (1, M)
    if projections is not None:
        projections[:] = [block[:, :kept] * signs.to(block) for block in projections]
    return (axes * signs).contiguous(), variances


def _all_axes(blocks: Blocks, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    N, D = shape
    if N < D:
        X = torch.cat([block.double() for block in blocks()])
        variances, vectors = torch.linalg.eigh(X @ X.T / N)
        return X.T @ vectors.flip(1) / (variances.flip(0) * N).clamp(min=1e-300).sqrt(), variances.flip(0)
    gram = torch.zeros(D, D, dtype=torch.float64)
    for block in blocks():
        gram = gram.to(block.device)
        for rows in torch.split(block, ROWS_AT_ONCE):
            gram.addmm_(rows.double().T, rows.double())
    variances, axes = torch.linalg.eigh(gram / N)
    return axes.flip(1), variances.flip(0)


def _power_iteration(
    blocks: Blocks, shape: tuple[int, int], count: int, projections: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    N, D = shape
    Q = torch.randn(D, count + _OVERSAMPLING, generator=torch.Generator().manual_seed(0))
    early = min(_EARLY_EVERY, max(1, N // (_EARLY_ROWS * Q.shape[1])))
    for every in (early, 1):
        Q = torch.linalg.qr(_summed(rows.T @ (rows @ Q.to(rows)) for rows in _thinned(blocks(), every))).Q

    def products() -> Iterable[Tensor]:
        for block in blocks():
            projected = block @ Q
            if projections is not None:
                projections.append(projected)
            yield projected.T @ projected

    variances, vectors = torch.linalg.eigh(_summed(products()).double() / N)
    vectors = vectors.flip(1).to(Q)
    if projections is not None:
        projections[:] = [projected @ vectors for projected in projections]
    return (Q @ vectors).double(), variances.flip(0)


def _thinned(blocks: Iterable[Tensor], every: int) -> Iterable[Tensor]:
    """Each so many-th of all rows, whatever the blocks are."""
    seen = 0
    for block in blocks:
        yield block[-seen % every :: every]
        seen += len(block)


def _summed(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor of one shape."""
    each = iter(terms)
    total = next(each)
    for term in each:
        total += term
    return total
