"""What many linear heads on the same clips share: normalised, centred features and their leading principal axes.

Notable choices:

- Built once for clips and normalisation; every solve on them reuses it. The features stay in their own coordinates, so
  nothing here can move the optimum of a head that reads all of them: the axes only say in which directions the
  features vary, which is what makes the solver fast (`descent.py`).
- The axes are nested: the first P of them are the PCA of width P, so the width of a head costs nothing new.
- Leading axes are enough. With 512 of 4096 the solver took 1.1 times the steps it takes with all where features are of
  low rank, and 1.4 times where their variances fall off as a power law; all axes cost three times as much to find.
  Up to a smaller side of 1024 the axes are exact; beyond it they come from a block power iteration, so the last few
  of them may mix with their neighbours of like variance.
- Features are centred even where the normalisation does not do it: the bias is free, so the optimum stays.

Memory: N x (D + M) + D x M numbers, of 4 bytes (8 at double precision); while axes are found, N x M + 3 D x M more.
What this is not: a way to fit anything (`convex.py`).
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from featurecache.errors import SettingsError
from heads.data import row_blocks
from heads.engines.training_clips import Features, as_tensor
from heads.models import Front

EXACT_UP_TO = 1024
"""Smaller side of the features up to which axes come from a full decomposition."""
DEFAULT_AXES = 512

_OVERSAMPLING, _POWER_ITERATIONS = 64, 3
_LEAST_VARIANCE = 1e-10  # of the largest; below it an axis is rounding


@dataclass(frozen=True, eq=False)
class Basis:
    """Training features made ready for any number of convex fits.

    Attributes:
        front: What features go through first; without axes, on the CPU.
        center: Mean of what the front makes, shape (D,).
        X: What the front makes, centred, shape (N, D).
        axes: Leading principal axes, orthonormal, shape (D, M), largest variance first.
        variances: Of the features along the axes, shape (M,).
        rest_variance: Mean variance of the D - M other directions; 0 where there are none.
    """

    front: Front
    center: Tensor
    X: Tensor
    axes: Tensor
    variances: Tensor
    rest_variance: float

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        X: Features,
        front: Front,
        *,
        components: int = DEFAULT_AXES,
        precision: Literal["float32", "float64"] = "float32",
        device: str = "cpu",
    ) -> "Basis":
        """Normalises and centres features and finds their axes.

        Args:
            X: Training features, shape (N, D), float16, bfloat16 or float32.
            front: Their normalisation, without axes: `clips.front(View(normalization, 0))`.
            components: M, the axes to find; fewer where the features' rank is lower.
            precision: Of all that follows.
            device: Where the copy lives and fits run.

        Raises:
            SettingsError: If the front has axes already, or components is not positive.
        """
        if front.axes is not None or components < 1:
            raise SettingsError(
                "a basis must be made of features that are not rotated, with at least 1 component, but the front has "
                f"{front.output_width} of {front.feature_width} and {components} are asked for. Take the front of "
                "View(normalization, 0)."
            )
        stored, dtype = as_tensor(X), torch.float32 if precision == "float32" else torch.float64
        normalise = deepcopy(front).to(device=device, dtype=dtype)
        centred = torch.empty(*stored.shape, dtype=dtype, device=device)
        total = torch.zeros(front.feature_width, dtype=torch.float64, device=device)
        for rows in row_blocks(len(stored)):
            block = normalise(stored[rows].to(device=device, dtype=dtype))
            centred[rows] = block
            total += block.sum(dim=0, dtype=torch.float64)
        center = (total / len(stored)).to(dtype)
        centred -= center
        axes, variances = leading_axes(centred, components)
        spread = sum(float(centred[rows].square().sum(dtype=torch.float64)) for rows in row_blocks(len(centred)))
        rest = centred.shape[1] - len(variances)
        rest_variance = max(0.0, spread / len(centred) - float(variances.sum())) / rest if rest else 0.0
        return cls(front, center, centred, axes, variances, rest_variance)

    @cached_property
    def projected(self) -> Tensor:
        """The features along the axes, shape (N, M); made at first use. A prefix is the PCA of that width."""
        return self.X @ self.axes

    def rotated_front(self, components: int) -> Front:
        """A front that ends in the first P axes: features as stored (..., D) -> (..., P), centred."""
        front = self.front
        rotated = Front(
            front.feature_width, unit_length=front.unit_length, components=components, part_widths=front.part_widths
        ).requires_grad_(False)
        rotated.mean.copy_(front.mean + front.scale * self.center.cpu())
        rotated.scale.copy_(front.scale)
        if rotated.axes is not None:
            rotated.axes.copy_(self.axes[:, :components])
        return rotated


def leading_axes(X: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Principal axes of centred features and the variances along them, largest first.

    Source of the power iteration: Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061, algorithm 4.4.

    Args:
        X: Centred features, shape (N, D).
        count: Axes wanted.

    Returns:
        Axes, shape (D, M), orthonormal, each with its largest entry positive; variances, shape (M,). M is `count`,
        or the rank of X where that is lower.
    """
    smaller = min(X.shape)
    exact = smaller <= max(EXACT_UP_TO, count + _OVERSAMPLING)
    axes, variances = _all_axes(X) if exact else _power_iteration(X, count)
    kept = int((variances > _LEAST_VARIANCE * variances[:1].clamp(min=1e-30)).sum())
    axes, variances = axes[:, : min(count, kept)], variances[: min(count, kept)]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))  # (1, M)
    return (axes * largest.sign()).to(X.dtype).contiguous(), variances.to(X.dtype)


def _all_axes(X: Tensor) -> tuple[Tensor, Tensor]:
    """From the smaller of the two Gram matrices, in double precision."""
    tall = X if len(X) >= X.shape[1] else X.T
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=X.device)
    for rows in row_blocks(len(tall)):
        block = tall[rows].double()
        gram.addmm_(block.T, block)
    variances, vectors = torch.linalg.eigh(gram / len(X))
    variances, vectors = variances.flip(0), vectors.flip(1)
    if tall is X:
        return vectors, variances
    lengths = (variances * len(X)).clamp(min=1e-300).sqrt()
    return torch.cat([tall[rows].double() @ vectors for rows in row_blocks(len(tall))]) / lengths, variances


def _power_iteration(X: Tensor, count: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(X.shape[1], count + _OVERSAMPLING, generator=torch.Generator().manual_seed(0))
    Q = drawn.to(X)
    for _ in range(_POWER_ITERATIONS):
        Q = torch.linalg.qr(X.T @ (X @ Q)).Q  # (D, M + oversampling)
    projected = X @ Q
    variances, vectors = torch.linalg.eigh((projected.T @ projected).double() / len(X))
    return Q @ vectors.flip(1).to(Q), variances.flip(0)
