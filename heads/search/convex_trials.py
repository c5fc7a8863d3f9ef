"""One trial of the convex solver: a whole grid on one combination of features, and the points that are taken from it.

Notable choices: points are chosen by out-of-fold scores of all clips that are not test, from heads that never saw a
clip's session (folds are problems of the same solve); the trial's score is the same scores' macro-F1. Every point
counts as a candidate in the estimate of selection bias. Labels differ in the exponent of their positive weights alone
(`grid_choice.py` has the rule and the measurements).

What this is not: a search over combinations.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heads.engines.convex import Choice, GridPoint, solve_grid
from heads.engines.prepared import Prepared
from heads.scoring.cross_fitting import out_of_fold_counts
from heads.scoring.metrics import f1_scores, macro_over_labels
from heads.search.grid_choice import choose_points
from heads.settings import HeadSettings


@dataclass(frozen=True, eq=False)
class Solved:
    """The end of a convex trial.

    Attributes:
        settings: Settings of the chosen grid points.
        value: Out-of-fold macro-F1 at a threshold of 0.5.
        counts: Out-of-fold confusion counts of every point, (G, M, 3, C), summed over the assignments to folds.
        choice: Each label's point, (C,).
        converged: Share of the grid's problems that converged, folds included.
    """

    settings: HeadSettings
    value: float
    counts: npt.NDArray[np.int64]
    choice: Choice
    converged: float


def solve_trial(prepared: Prepared, combination: dict[str, Any], points: tuple[GridPoint, ...]) -> Solved:
    """Solves a grid and takes points of it.

    Args:
        prepared: The clips and their folds.
        combination: `inputs`, `normalization`, `components` and `spectral_exponent`.
        points: The grid.

    Raises:
        TrainingDataError: If no point converged for all labels.
    """
    clips, folds = prepared.data.fitting, prepared.folds
    basis = prepared.basis(combination["inputs"], combination["normalization"], combination["components"])
    grid = solve_grid(
        basis,
        clips.Y,
        points,
        components=min(combination["components"], basis.axes.shape[1]),
        spectral_exponent=combination["spectral_exponent"],
        fold_of=folds.of,
        beside=folds.beside,
    )
    counts = out_of_fold_counts(clips.Y, grid.out_of_fold, clips.sessions)
    f1 = f1_scores(counts.sum(axis=1))  # (G, C)
    choice = choose_points(f1, clips.Y.sum(axis=0), points, allowed=grid.converged)
    exponents = [points[at].positive_weight_exponent for at in choice]
    return Solved(
        settings=HeadSettings(
            solver="convex",
            **combination,
            **vars(points[choice[0]])
            | {"positive_weight_exponent": exponents[0] if len(set(exponents)) == 1 else tuple(exponents)},
        ),
        value=float(macro_over_labels(f1[choice, np.arange(len(choice))])),
        counts=counts,
        choice=choice,
        converged=float(np.concatenate([grid.converged.ravel(), grid.folds_converged.ravel()]).mean()),
    )
