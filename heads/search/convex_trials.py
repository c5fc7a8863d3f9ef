"""One trial of the convex solver: a whole grid on one combination of features, and the points that are taken from it.

Notable choices: points are chosen by out-of-fold scores of all clips that are not test, from heads that never saw a
clip's session (folds are problems of the same solve); the trial's score is the same scores' macro-F1. Every point
counts as a candidate in the estimate of selection bias. Labels differ in the exponent of their positive weights alone
(`grid_choice.py` has the rule and the measurements).

Features of more than 1024 dimensions are searched coarse to fine: the whole grid on their leading 512 principal axes,
at an eighth of the cost or less; then, on all features, the chosen point, its neighbours by exponent, and the next two
stronger penalties, since directions beyond the axes add more noise than they tell.

What this is not: a search over combinations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heads.engines.convex import Choice, ConvexGrid, GridPoint, Mask, solve_grid
from heads.engines.prepared import Prepared
from heads.scoring.cross_fitting import out_of_fold_counts
from heads.scoring.metrics import f1_scores, macro_over_labels
from heads.search.grid_choice import choose_points
from heads.settings import HeadSettings

SEARCHED_WHOLE = 1024
"""Feature width up to which the grid is solved on all features."""


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


def solve_trial(prepared: Prepared, combination: dict[str, Any], points: tuple[GridPoint, ...]) -> Solved:
    """Solves a grid and takes points of it.

    Args:
        prepared: The clips and their folds.
        combination: `inputs`, `normalization`, `components` and `variance_exponent`.
        points: The grid.

    Raises:
        TrainingDataError: If no point converged for all labels.
    """
    clips, folds = prepared.data.fitting, prepared.folds
    basis = prepared.basis(combination["inputs"], combination["normalization"], combination["components"])
    components = min(combination["components"], basis.axes.shape[1])
    is_coarse = not components and basis.X.shape[1] > SEARCHED_WHOLE

    def solve(components: int, wanted: Mask | None = None) -> tuple[ConvexGrid, npt.NDArray[np.int64]]:
        grid = solve_grid(
            basis,
            clips.Y,
            points,
            components=components,
            variance_exponent=combination["variance_exponent"],
            fold_of=folds.of,
            beside=folds.beside,
            wanted=wanted,
            folds_alone=True,
        )
        return grid, out_of_fold_counts(clips.Y, grid.out_of_fold, clips.sessions)

    grid, counts = solve(basis.axes.shape[1] if is_coarse else components)
    allowed: Mask = np.asarray(grid.folds_converged.all(axis=0))
    labels = np.arange(clips.Y.shape[1])

    def choose() -> Choice:
        return choose_points(f1_scores(counts.sum(axis=1)), clips.Y.sum(axis=0), points, allowed=allowed)

    choice, converged = choose(), float(grid.folds_converged.mean())
    if is_coarse:
        wanted = _near(points, choice)
        grid, fine = solve(0, wanted)
        counts = np.where(wanted[:, None, None], fine, counts)
        allowed = wanted & grid.folds_converged.all(axis=0)
        choice = choose()
    own = np.moveaxis(counts[choice, :, :, labels], 0, -1)  # (M, 3, C)
    exponents = [points[at].positive_weight_exponent for at in choice]
    return Solved(
        settings=HeadSettings(
            solver="convex",
            **combination,
            **vars(points[choice[0]])
            | {"positive_weight_exponent": exponents[0] if len(set(exponents)) == 1 else tuple(exponents)},
        ),
        value=float(macro_over_labels(f1_scores(own.sum(axis=0)))),
        counts=counts,
        own=own,
        converged=converged,
    )


def _near(points: Sequence[GridPoint], choice: Choice) -> Mask:
    """Each label's chosen point, its neighbours by exponent, and those of the next two stronger penalties: (G, C)."""
    penalties = sorted({point.l2 for point in points})
    exponents = sorted({point.positive_weight_exponent for point in points})
    chosen = [points[at] for at in choice]

    def is_near(point: GridPoint, to: GridPoint) -> bool:
        stronger = penalties.index(point.l2) - penalties.index(to.l2)
        apart = exponents.index(point.positive_weight_exponent) - exponents.index(to.positive_weight_exponent)
        same_scale = point.positive_weight_scale == to.positive_weight_scale
        return same_scale and ((stronger == 0 and abs(apart) <= 1) or (stronger in (1, 2) and apart == 0))

    return np.array([[is_near(point, to) for to in chosen] for point in points])
