"""One trial of the convex solver: a whole grid on one combination of features, and the points that are taken from it.

Notable choices: points are chosen by scores of training clips from columns that never saw their session (folds are
columns of the same solve), so validation stays untouched by the choice; with a single training session, or no folds
asked for, by validation, and then every point counts as a candidate in the estimate of optimism. Labels differ in the
exponent of their positive weights alone (`grid_choice.py` has the rule and the measurements).

What this is not: a search over combinations.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.leakage import touching
from heads.data import KeptSplit
from heads.engines.convex import Choice, GridPoint, solve_grid
from heads.engines.prepared import Prepared
from heads.folds import session_folds
from heads.scoring.metrics import DEFAULT_THRESHOLD, confusion_counts, f1_scores, macro_over_labels, session_counts
from heads.search.grid_choice import choose_points
from heads.settings import HeadSettings


@dataclass(frozen=True, eq=False)
class Solved:
    """The end of a convex trial.

    Attributes:
        settings: Settings of the chosen grid points.
        value: Macro-F1 of their head on validation, at a threshold of 0.5.
        counts: Confusion counts on validation of all that validation chose among, (candidates, M, 3, C).
        choice: Each label's candidate, (C,).
        converged: Share of the grid's columns that converged, folds included.
    """

    settings: HeadSettings
    value: float
    counts: npt.NDArray[np.int64]
    choice: Choice
    converged: float


class InnerFolds:
    """The folds of the training sessions, and who is left out beside each.

    Args:
        train: The training split.
        count: Folds; fewer where there are fewer sessions.
        seed: Chooses among folds that are alike.

    Attributes:
        of: Fold of each clip, (N,); None where there are none.
        beside: Clips that touch held-out ones, (F, N); None where clip ids are unknown.
    """

    def __init__(self, train: KeptSplit, *, count: int, seed: int) -> None:
        count = min(count, len(np.unique(train.sessions)))
        self.of = session_folds(train.Y, train.sessions, count=count, seed=seed) if count > 1 else None
        self.beside: npt.NDArray[np.bool_] | None = None
        if self.of is not None and train.clip_ids is not None:
            ids = np.array(train.clip_ids)
            self.beside = np.stack(
                [(self.of != fold) & touching(train.clip_ids, ids[self.of == fold].tolist()) for fold in range(count)]
            )


def solve_trial(
    prepared: Prepared, combination: dict[str, Any], points: tuple[GridPoint, ...], folds: InnerFolds
) -> Solved:
    """Solves a grid and takes points of it.

    Args:
        prepared: The clips.
        combination: `inputs`, `normalization`, `components` and `spectral_exponent`.
        points: The grid.
        folds: Inner folds.

    Raises:
        TrainingDataError: If no point converged for all labels.
    """
    inputs = combination["inputs"]
    train, validation = prepared.data.train, prepared.validation(inputs)
    basis = prepared.basis(inputs, combination["normalization"], combination["components"])
    components = min(combination["components"], basis.axes.shape[1])
    grid = solve_grid(
        basis,
        train.Y,
        points,
        components=components,
        spectral_exponent=combination["spectral_exponent"],
        fold_of=folds.of,
        beside=folds.beside,
    )
    scores = np.where(grid.converged[:, None], grid.scores(validation.X), 0)  # (G, n, C)
    labels = np.arange(train.Y.shape[1])
    out_of_fold = None if grid.out_of_fold is None else _f1(train.Y, grid.out_of_fold)
    if out_of_fold is not None and not np.isnan(out_of_fold).any(axis=0).all():
        choice = choose_points(out_of_fold, train.Y.sum(axis=0), points, allowed=grid.converged)
        scores, candidate = scores[choice, :, labels].T[None], np.zeros_like(choice)  # (1, n, C)
    else:
        choice = choose_points(_f1(validation.Y, scores), validation.Y.sum(axis=0), points, allowed=grid.converged)
        candidate = choice
    counts = session_counts(validation.Y, scores >= DEFAULT_THRESHOLD, validation.sessions)
    exponents = [points[at].positive_weight_exponent for at in choice]
    return Solved(
        settings=HeadSettings(
            solver="convex",
            **combination,
            **vars(points[choice[0]])
            | {"positive_weight_exponent": exponents[0] if len(set(exponents)) == 1 else tuple(exponents)},
        ),
        value=float(macro_over_labels(f1_scores(counts.sum(axis=1)[candidate, :, labels].T))),
        counts=counts,
        choice=candidate,
        converged=float(np.concatenate([grid.converged.ravel(), grid.folds_converged.ravel()]).mean()),
    )


def _f1(Y: npt.NDArray[np.integer], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """F1 at 0.5 of every point and label, (G, C); NaN without a positive, or without the score of some clip."""
    f1 = f1_scores(np.stack([confusion_counts(Y, of_point >= DEFAULT_THRESHOLD) for of_point in scores]))
    return np.asarray(np.where(np.isnan(scores).any(axis=(0, 1)), np.nan, f1))
