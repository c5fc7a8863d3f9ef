"""Thresholds from held-out scores: exact for F1, with restraint, for any number of heads at once.

Notable choices: a score and its target fit into one 32-bit integer (the bits of a float32 in [0, 1] leave the
highest one free), so one plain sort orders both, several times faster than an indirect sort, and nothing is rounded.
A tuned threshold is an average over session folds, shrunk towards 0.5 the fewer positives it rests on; one that is no
better than predicting the label everywhere is not taken.
"""

import numpy as np
import numpy.typing as npt

from heads.folds import session_folds
from heads.scoring.metrics import DEFAULT_THRESHOLD

Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.integer]

SHRINKAGE_POSITIVES = 20
"""A tuned threshold counts half as much as 0.5 when it rests on this many positive clips."""
TUNING_FOLDS = 5


def best_f1_thresholds(Y: Targets, scores: Scores) -> npt.NDArray[np.float64]:
    """The exact thresholds of highest F1, halfway between two neighbouring scores.

    Of equally good ones, the nearest to 0.5.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities of K heads, shape (K, N, C), or of one, (N, C); taken as float32.

    Returns:
        Shape (K, C), or (C,). NaN where there is nothing to choose: no positive, no negative, or no threshold beats
        predicting the label everywhere.
    """
    columns = np.ascontiguousarray(np.moveaxis(np.asarray(scores, np.float32), -2, -1))  # (..., C, N)
    N = columns.shape[-1]
    packed = (columns.view(np.uint32) << np.uint32(1)) | Y.T.astype(np.uint32)  # a sign, of -0, is shifted out
    packed.sort(axis=-1)
    bits = packed >> np.uint32(1)
    positives = Y.sum(axis=0, dtype=np.int64)[:, None]  # (C, 1)
    below = np.cumsum(packed & np.uint32(1), axis=-1, dtype=np.int64)
    # Cut i predicts the clips from the i-th lowest score on: cut 0 predicts all.
    true_positives = positives - np.concatenate([np.zeros_like(below[..., :1]), below[..., :-1]], axis=-1)
    f1 = 2 * true_positives / (np.arange(N, 0, -1) + positives)
    f1[..., 1:][bits[..., 1:] == bits[..., :-1]] = -1  # equal scores cannot be parted
    best = f1.max(axis=-1, keepdims=True)
    best[best <= f1[..., :1]] = np.inf  # not better than predicting all
    *heads_and_label, cut = np.nonzero(f1 == best)
    values = bits.view(np.float32)
    halfway = (values[*heads_and_label, cut].astype(np.float64) + values[*heads_and_label, cut - 1]) / 2
    thresholds = np.full(best.shape[:-1], np.nan)
    farthest_first = np.lexsort([cut, -np.abs(halfway - DEFAULT_THRESHOLD)])  # of a column, the last one stays
    thresholds[*(index[farthest_first] for index in heads_and_label)] = halfway[farthest_first]
    return thresholds


def tuned_thresholds(Y: Targets, scores: Scores, sessions: npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
    """A threshold per label: the best of F1 in each of five session folds' absence, averaged and shrunk towards 0.5.

    With P positive clips the average weighs P / (P + 20) and 0.5 the rest; where there is none
    (`best_f1_thresholds`), 0.5 stays. With one session the folds are no folds, and all clips are used at once.
    Measured against 0.5 everywhere, macro-F1 on other data than thresholds were tuned on: emotions +.025 to +.043,
    scene +.004 to +.006, simulated sessions +.002 to +.005; without the average simulated sessions gained -.001 to
    +.003, and untouched exact thresholds lost up to .022 on scene.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Held-out probabilities of K heads, shape (K, N, C), or of one, (N, C).
        sessions: The session of each clip, shape (N,).

    Returns:
        Thresholds within [0, 1], shape (K, C), or (C,).
    """
    session_count = len(np.unique(sessions))
    if session_count > 1:
        fold_of = session_folds(Y, sessions, count=min(TUNING_FOLDS, session_count))
        parts = [fold_of != fold for fold in range(fold_of.max() + 1)]
    else:
        parts = [np.ones(len(Y), bool)]
    found = np.stack([best_f1_thresholds(Y[part], scores[..., part, :]) for part in parts])
    best = np.where(np.isnan(found), DEFAULT_THRESHOLD, found).mean(axis=0)
    positives = Y.sum(axis=0)
    weight = positives / (positives + SHRINKAGE_POSITIVES)  # (C,)
    return np.asarray(DEFAULT_THRESHOLD + weight * (best - DEFAULT_THRESHOLD))
