"""One trial of the convex solver: a whole grid on one combination of features, and the points that are taken from it.

Notable choices: points are chosen by out-of-fold scores of all clips that are not test, from heads that never saw a
clip's session (folds are problems of the same solve); the trial's score is the same scores' macro-F1. Every point
counts as a candidate in the estimate of selection bias. Labels differ in the exponent of their positive weights alone
(`grid_choice.py` has the rule and the measurements).

Features of more than 1024 dimensions are searched coarse to fine. On their leading 512 principal axes, at an eighth of
the cost or less: every second penalty and exponent (counts of those between are halfway between their neighbours'),
then the neighbours of each label's choice. On all features: that choice, its neighbours by exponent, and the next two
stronger penalties, since directions beyond the axes add more noise than they tell.

What this is not: a search over combinations.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from heads.engines.convex import Choice, GridPoint, Mask, solve_grid
from heads.engines.prepared import Prepared
from heads.scoring.cross_fitting import out_of_fold_counts
from heads.scoring.metrics import f1_scores, macro_over_labels
from heads.search.grid_choice import choose_points, grid_steps
from heads.settings import HeadSettings

SEARCHED_WHOLE = 1024
"""Feature width up to which the grid is solved on all features."""
COARSE_TOLERANCE = 1e-3
"""Of the objective, on the axes."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Solved:
    """The end of a convex trial.

    Attributes:
        settings: Settings of the chosen grid points.
        value: Out-of-fold macro-F1 at a threshold of 0.5.
        counts: Out-of-fold confusion counts of every point, (G, M, 3, C), summed over the assignments to folds.
        own: Those of the chosen points, (M, 3, C); on all features where the grid was solved on their leading axes.
        converged: Share of the grid's problems that converged, folds included.
    """

    settings: HeadSettings
    value: float
    counts: npt.NDArray[np.int64]
    own: npt.NDArray[np.int64]
    converged: float


def solve_trial(prepared: Prepared, settings: HeadSettings, points: tuple[GridPoint, ...]) -> Solved:
    """Solves a grid and takes points of it.

    Args:
        prepared: The clips and their folds.
        settings: Settings of the trial's heads, but for what differs between points.
        points: The grid.

    Raises:
        TrainingDataError: If no point converged for all labels.
    """
    grid = _Grid(prepared, settings, points)
    if settings.components or grid.basis.X.shape[1] <= SEARCHED_WHOLE:
        counts, allowed = grid.counts(grid.everywhere, grid.components)
        choice = grid.choose(counts, allowed)
    else:
        counts, choice = _coarse_to_fine(grid)
    own = np.moveaxis(counts[choice, :, :, np.arange(len(choice))], 0, -1)  # (M, 3, C)
    exponents = [points[at].positive_weight_exponent for at in choice]
    return Solved(
        settings=replace(
            settings,
            l2=points[choice[0]].l2,
            positive_weight_exponent=exponents[0] if len(set(exponents)) == 1 else tuple(exponents),
        ),
        value=float(macro_over_labels(f1_scores(own.sum(axis=0)))),
        counts=counts,
        own=own,
        converged=grid.converged / grid.solved,
    )


class _Grid:
    """A grid on one combination of features.

    Attributes:
        basis: The features of all clips that are not test.
        components: Principal components that heads read; 0 for all features.
        points: The G points.
        everywhere: Every point and label, (G, C).
        solved: Problems that were solved, and of these `converged`.
    """

    def __init__(self, prepared: Prepared, settings: HeadSettings, points: tuple[GridPoint, ...]) -> None:
        self._clips, self._folds = prepared.data.fitting, prepared.folds
        self._variance_exponent, self._prior = settings.variance_exponent, prepared.prior(settings)
        self._positives = self._clips.Y.sum(axis=0)
        self.basis = prepared.basis(settings.inputs, settings.normalization, settings.components)
        self.components = min(settings.components, self.basis.axes.shape[1])
        self.points = points
        self.everywhere = np.ones((len(points), self._clips.Y.shape[1]), bool)
        self.solved = self.converged = 0

    def counts(self, wanted: Mask, components: int, tolerance: float = 1e-4) -> tuple[Counts, Mask]:
        """Out-of-fold counts (G, M, 3, C) of the points and labels that are wanted, and which of them converged."""
        grid = solve_grid(
            self.basis,
            self._clips.Y,
            self.points,
            components=components,
            variance_exponent=self._variance_exponent,
            prior=self._prior,
            fold_of=self._folds.of,
            excluded=self._folds.excluded,
            wanted=wanted,
            folds_alone=True,
            tolerance=tolerance,
        )
        converged = grid.folds_converged.all(axis=0) & wanted
        self.solved += int(wanted.sum())
        self.converged += int(converged.sum())
        return out_of_fold_counts(self._clips.Y, grid.out_of_fold, self._clips.sessions), converged

    def choose(self, counts: Counts, allowed: Mask) -> Choice:
        """The point of each label by such counts, among those that are allowed."""
        return choose_points(f1_scores(counts.sum(axis=1)), self._positives, self.points, allowed=allowed)


def _coarse_to_fine(grid: _Grid) -> tuple[Counts, Choice]:
    """Counts and choice where features are wide, by the rule at the top of this file."""
    steps, axes = grid_steps(grid.points), grid.basis.axes.shape[1]
    coarse = grid.everywhere & (steps % 2 == 0).all(axis=1, keepdims=True)
    counts, allowed = grid.counts(coarse, axes, COARSE_TOLERANCE)
    counts = _filled(counts, steps)
    choice = grid.choose(counts, allowed)

    around = (np.abs(steps[:, None] - steps[choice]) <= 1).all(axis=-1)  # (G, C)
    finer = around & ~coarse
    found, also = grid.counts(finer, axes, COARSE_TOLERANCE)
    counts = np.where(finer[:, None, None], found, counts)
    choice = grid.choose(counts, around & (allowed | also))

    penalty, exponent = np.moveaxis(steps[:, None] - steps[choice], -1, 0)  # each (G, C)
    stronger = ((penalty == 1) | (penalty == 2)) & (exponent == 0)
    last = stronger | ((penalty == 0) & (np.abs(exponent) <= 1))
    found, allowed = grid.counts(last, 0)
    counts = np.where(last[:, None, None], found, counts)
    return counts, grid.choose(counts, allowed)


def _filled(counts: Counts, steps: npt.NDArray[np.int64]) -> Counts:
    """Counts (G, M, 3, C) that are known at even steps, with those of the others halfway between their neighbours'."""
    sizes = steps.max(axis=0) + 1
    grid = np.zeros((*sizes, *counts.shape[1:]), np.int64)
    grid[tuple(steps.T)] = counts
    for axis in range(2):
        along = np.moveaxis(grid, axis, 0)
        for at in range(1, len(along), 2):
            before = along[at - 1]
            after = along[at + 1] if at + 1 < len(along) else before
            along[at] = (before + after) // 2
            along[at][..., 2, :] = (before[..., 0, :] + before[..., 2, :]) - along[at][..., 0, :]  # positives stay
    return np.asarray(grid[tuple(steps.T)])
