"""What many linear heads on the same clips share: normalised, centred features and their leading principal axes.

Notable choices:

- Built once for clips and normalisation; every solve on them reuses it. The features stay in their own coordinates, so
  nothing here can move the optimum of a head that reads all of them: the axes only say in which directions the
  features vary, which is what makes the solver fast (`descent.py`).
- The axes are nested: the first P of them are the PCA of width P, so the width of a head costs nothing new.
- Leading axes are enough. With 512 of 4096 the solver took 1.1 times the steps it takes with all where features are of
  low rank, and 1.4 times where their variances fall off as a power law; all axes cost three times as much to find.
- Features are centred even where the normalisation does not do it: the bias is free, so the optimum stays.
- For penalties that follow the variance, the directions beyond the axes share their mean variance.

Memory: N x (D + M) + D x M numbers, of 4 bytes (8 at double precision); while axes are found, N x M + 3 D x M more.
What this is not: a way to fit anything (`convex.py`).
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from featurecache.device import device_of
from featurecache.errors import SettingsError
from heads.data import row_blocks
from heads.engines.axes import AXES_AT_ONCE, leading_axes
from heads.engines.training_clips import Features, as_tensor, on_device
from heads.models import Front

_LEAST_REST = 1e-6
"""Of all variance; what remains beyond the axes with less is rounding."""
_LEAST_OF_MEAN = 1e-2
"""Of the mean variance; a direction with less counts as having that much, or no penalty would be finite."""

Scaling = Callable[[Tensor], Tensor]
"""A symmetric linear map of rows (k, W) -> (k, W) that stretches principal directions."""


def scale_directions(rows: Tensor, axes: Tensor | None, along: Tensor, rest: Tensor | float) -> Tensor:
    """Stretches the parts of rows along axes, and what is beyond them.

    Args:
        rows: Shape (k, W).
        axes: Orthonormal, shape (W, M); None where rows are given along the axes already, M = W.
        along: Factors along the axes, shape (M,), or (k, M) for factors of each row's own.
        rest: Factor of all else, one number or shape (k, 1).
    """
    if axes is None:
        return rows * along
    parts = rows @ axes
    beyond = torch.addmm(rows, parts, axes.T, alpha=-1)  # before the factors, which may be far apart
    return torch.addmm(beyond * rest, parts * along, axes.T)


@dataclass(frozen=True, eq=False)
class Basis:
    """Training features made ready for any number of convex fits.

    Attributes:
        front: What features go through first; without axes, on the CPU.
        center: Mean of what the front makes, shape (D,).
        X: What the front makes, centred, shape (N, D).
        axes: Leading principal axes, orthonormal, shape (D, M), largest variance first.
        variances: Variances of the features along the axes, shape (M,).
        rest_variance: Mean variance of the D - M other directions; 0 where there are none.
        projected: X along the axes, shape (N, M); the first P columns are the PCA of width P.
        squares: Squared length of each row of X, shape (N,), float64.
    """

    front: Front
    center: Tensor
    X: Tensor
    axes: Tensor
    variances: Tensor
    rest_variance: float
    projected: Tensor
    squares: Tensor

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        X: Features,
        front: Front,
        *,
        components: int = AXES_AT_ONCE,
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
            SettingsError: If the front has axes already, components is not positive, or the device is not here.
        """
        if front.axes is not None or components < 1:
            raise SettingsError(
                "a basis must be made of features that are not rotated, with at least 1 component, but the front has "
                f"{front.output_width} of {front.feature_width} and {components} are asked for. Take the front of "
                "View(normalization, 0)."
            )
        device = device_of(device)
        stored, dtype = as_tensor(X), torch.float32 if precision == "float32" else torch.float64
        normalise = deepcopy(front).to(device=device, dtype=dtype)
        centred = torch.empty(*stored.shape, dtype=dtype, device=device)
        total = torch.zeros(front.feature_width, dtype=torch.float64, device=device)
        for rows in row_blocks(len(stored)):
            block = normalise(on_device(stored[rows], torch.device(device)).to(dtype))
            centred[rows] = block
            total += block.sum(dim=0, dtype=torch.float64)
        center = (total / len(stored)).to(dtype)
        centred -= center
        projected: list[Tensor] = []
        axes, variances = (
            part.to(dtype)
            for part in leading_axes(
                lambda: [centred], (len(stored), front.feature_width), components, projections=projected
            )
        )
        squares = torch.cat(
            [centred[rows].square().sum(dim=1, dtype=torch.float64) for rows in row_blocks(len(centred))]
        )
        rest_variance = _rest_variance(centred, variances, centred.new_full(squares.shape, 1 / len(centred)), squares)
        along = projected[0] if projected else centred @ axes
        return cls(front, center, centred, axes, variances, rest_variance, along, squares)

    def in_double(self) -> "Basis":
        """The same in double precision."""
        parts = {name: getattr(self, name).double() for name in ("center", "X", "axes", "variances", "projected")}
        return replace(self, **parts)

    def of_clips(self, chosen: Tensor) -> "Basis":
        """The same features along the principal axes of some clips alone, within the span of these axes.

        Args:
            chosen: Which clips, shape (N,), bool.
        """
        own = self.projected[chosen]
        own = own - own.mean(dim=0)
        variances, turned = torch.linalg.eigh((own.T @ own).double() / len(own))
        variances, turned = variances.flip(0).clamp(min=0).to(self.X), turned.flip(1).to(self.X)
        return replace(
            self,
            axes=self.axes @ turned,
            variances=variances,
            rest_variance=_rest_variance(self.X, variances, chosen.to(self.X) / len(own), self.squares),
            projected=self.projected @ turned,
        )

    def read(self, components: int) -> Tensor:
        """What a head of so many principal components reads, (N, P); of 0, all features (N, D)."""
        return self.projected[:, :components] if components else self.X

    def relative_variances(self) -> tuple[Tensor, Tensor]:
        """Variances along the axes (M,) and beyond them (), over the mean of all directions."""
        beyond = self.X.shape[1] - len(self.variances)
        rest = self.variances.new_tensor(self.rest_variance)
        mean = ((self.variances.sum() + beyond * rest) / self.X.shape[1]).clamp(min=torch.finfo(rest.dtype).tiny)
        return (self.variances / mean).clamp(min=_LEAST_OF_MEAN), (rest / mean).clamp(min=_LEAST_OF_MEAN)

    def scaling(self, power: float, components: int) -> Scaling:
        """Stretches each principal direction by its relative variance to a power.

        Args:
            power: 0 leaves everything as it is.
            components: P, where rows have that many principal components; 0 where they have all features.
        """
        if not power:
            return lambda rows: rows
        along, rest = (of**power for of in self.relative_variances())
        if components:
            of_rows = torch.cat([along, rest.expand(max(0, components - len(along)))])[:components]
            return lambda rows: scale_directions(rows, None, of_rows, rest)
        axes = self.axes  # what is made here shall not keep the features
        return lambda rows: scale_directions(rows, axes, along, rest)

    def weights_of(self, stored: Tensor, components: int) -> Tensor:
        """Weights of features as stored, (k, D), as those of what a head of so many components reads, (k, P or D).

        Where each clip is scaled to one length, they are those of clips of length 1.
        """
        weights = stored.to(self.X) * self.front.scale.to(self.X)
        if self.front.unit_length:
            widths = torch.tensor(self.front.part_widths)
            weights /= torch.repeat_interleave(widths, widths).to(self.X).sqrt()
        return weights @ self.axes[:, :components] if components else weights

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


def _rest_variance(X: Tensor, variances: Tensor, share: Tensor, squares: Tensor) -> float:
    """Mean variance beyond axes that have these variances (M,), of clips that count by their share (N,)."""
    whole = float(squares @ share.double()) - float((share @ X).square().sum(dtype=torch.float64))
    rest, beyond = X.shape[1] - len(variances), whole - float(variances.sum(dtype=torch.float64))
    return beyond / rest if rest > 0 and beyond > _LEAST_REST * whole else 0.0
