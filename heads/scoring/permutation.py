"""Permutation check: the same fitting with labels permuted across sessions.

Notable choices: whole sessions exchange their labels, laid end to end in a new order of sessions, so that labels stay
as frequent, as clustered and as dependent on each other as they are, and only their tie to the features is cut. A
pipeline that scores above chance here leaks; a score that does not stand out from these shows nothing learned.

What this is not: a test of settings chosen on the same sessions; the choosing would have to be repeated too.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from heads.folds import Folds
from heads.scoring.cross_fitting import FitScores, cross_fitted_scores, learnable_labels
from heads.scoring.metrics import macro_f1

Targets = npt.NDArray[np.integer]


def shuffled_by_session(Y: Targets, sessions: npt.NDArray[np.str_], *, seed: int) -> Targets:
    """Targets (N, C) with the sessions' blocks laid end to end in another order; within a block nothing moves.

    Args:
        Y: Targets, shape (N, C), in order of time within each session.
        sessions: The session of each clip, shape (N,).
        seed: Seed of the sessions' new order.
    """
    names, of_clip = np.unique(sessions, return_inverse=True)
    rows = np.argsort(of_clip, kind="stable")  # all clips, session by session
    order = np.random.default_rng(seed).permutation(len(names))
    source = np.concatenate([np.flatnonzero(of_clip == session) for session in order])
    shuffled = np.empty_like(Y)
    shuffled[rows] = Y[source]
    return shuffled


def permutation_check(
    fit_scores: FitScores,
    Y: Targets,
    sessions: npt.NDArray[np.str_],
    fold_of: Folds,
    *,
    permutations: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Cross-fitted macro-F1, next to that of labels permuted across sessions.

    Args:
        fit_scores: Fits a head and scores clips.
        Y: Targets, shape (N, C), 0 or 1, in order of time within each session.
        sessions: The session of each clip, shape (N,).
        fold_of: Fold of each clip, shape (N,), from `session_folds`.
        permutations: Number of permutations.
        seed: Seed of the permutations.

    Returns:
        JSON-ready: `observed`, `permuted` (a list, one score each, at a threshold of 0.5; a shuffling without a
        learnable label is left out), `permuted_mean`, `p_value`: the share, observed one included, at least as good.

    Raises:
        TrainingDataError: If no label can be learned in every fold.
    """
    observed = macro_f1(Y, cross_fitted_scores(fit_scores, Y, fold_of))
    permuted = []
    for number in range(permutations):
        shuffled = shuffled_by_session(Y, sessions, seed=seed + number)
        if learnable_labels(shuffled, fold_of).any():
            permuted.append(macro_f1(shuffled, cross_fitted_scores(fit_scores, shuffled, fold_of)))
    as_good = sum(value >= observed for value in permuted)
    return {
        "observed": observed,
        "permuted": permuted,
        "permuted_mean": float(np.mean(permuted)) if permuted else None,
        "p_value": (1 + as_good) / (1 + len(permuted)) if permuted else None,
    }
