"""One trial of the convex solver: a whole grid on one combination of features, and the point that is taken from it.

Notable choices: the point is chosen by scores of training clips from columns that never saw their session (folds are
columns of the same solve), so validation stays untouched by the choice; with a single training session, or no folds
asked for, by validation, and then every point counts as a candidate in the estimate of optimism. One point serves all
labels (`convex.choose_points` has the measurements).

What this is not: a search over combinations.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.leakage import touching
from heads.data import KeptSplit
from heads.engines.convex import GridPoint, choose_points, solve_grid
from heads.engines.prepared import Prepared
from heads.folds import session_folds
from heads.scoring.metrics import DEFAULT_THRESHOLD, f1_scores, macro_over_labels, session_counts
from heads.settings import HeadSettings


@dataclass(frozen=True, eq=False)
class Solved:
    """The end of a convex trial.

    Attributes:
        settings: Of the point taken.
        value: Its macro-F1 on validation, at a threshold of 0.5.
        counts: Confusion counts on validation of all that validation chose among, (candidates, S, 3, C).
        converged: Share of the grid's columns that converged, folds included.
    """

    settings: HeadSettings
    value: float
    counts: npt.NDArray[np.int64]
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
    """Solves a grid and takes a point of it.

    Args:
        prepared: The clips.
        combination: `inputs`, `normalization` and `components`.
        points: The grid.
        folds: Inner folds.

    Raises:
        TrainingDataError: If no point converged for all labels.
    """
    inputs = combination["inputs"]
    train, validation = prepared.data.train, prepared.validation(inputs)
    basis = prepared.basis(inputs, combination["normalization"])
    components = min(combination["components"], basis.axes.shape[1])
    grid = solve_grid(basis, train.Y, points, components=components, fold_of=folds.of, beside=folds.beside)
    scores = grid.scores(validation.X)  # (G, n, C)
    if grid.out_of_fold is not None and _has_say(train.Y, grid.out_of_fold):
        at = int(choose_points(train.Y, grid.out_of_fold, points, allowed=grid.converged)[0])
        candidates = scores[[at]]
    else:
        at = int(choose_points(validation.Y, scores, points, allowed=grid.converged)[0])
        candidates = scores
    counts = session_counts(validation.Y, candidates >= DEFAULT_THRESHOLD, validation.sessions)
    of_point = counts[0] if len(counts) == 1 else counts[at]
    return Solved(
        settings=HeadSettings(solver="convex", **combination, **vars(points[at])),
        value=float(macro_over_labels(f1_scores(of_point.sum(axis=0)))),
        counts=counts,
        converged=float(np.concatenate([grid.converged.ravel(), grid.folds_converged.ravel()]).mean()),
    )


def _has_say(Y: npt.NDArray[np.integer], out_of_fold: npt.NDArray[np.float32]) -> bool:
    """Whether some label has a positive and scores of every clip."""
    return bool((Y.any(axis=0) & ~np.isnan(out_of_fold).any(axis=(0, 1))).any())
