"""Scores of multi-label predictions: pure functions on numpy arrays.

Notable choices: a label without a positive clip has no F1, recall or average precision: it is None, listed under
`undefined`, and left out of the macro average, never counted as 0 or 1. A label that is predicted nowhere has no
precision (its F1 is 0). Confidence intervals resample whole sessions, because clips of one session are correlated.

What this is not: thresholds, calibration, comparisons (`statistics.py`), or a logged test-set evaluation
(`evaluation.py`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.integer]

DEFAULT_THRESHOLD = 0.5
MIN_SESSIONS = 5
"""Fewer sessions than this give no confidence interval: there is too little to resample."""


def confusion_counts(Y: Targets, predicted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """True positives, false positives and false negatives per label: two (N, C) -> (3, C)."""
    on = Y.astype(bool)
    return np.stack([(on & predicted).sum(0), (~on & predicted).sum(0), (on & ~predicted).sum(0)]).astype(np.int64)


def f1_scores(counts: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """F1 = 2 TP / (2 TP + FP + FN): counts (..., 3, C) -> (..., C), NaN where there is no positive."""
    true_positives, false_positives, false_negatives = np.moveaxis(counts.astype(np.float64), -2, 0)
    positives = true_positives + false_negatives
    denominator = np.where(positives > 0, positives + true_positives + false_positives, np.nan)
    return np.asarray(2 * true_positives / denominator)


def macro_f1(Y: Targets, scores: Scores, thresholds: float | Scores = DEFAULT_THRESHOLD) -> float:
    """Mean F1 of the labels that have a positive clip; NaN if none has.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities, shape (N, C).
        thresholds: A label is predicted where its score is at least this; one for all, or (C,).
    """
    return float(macro_over_labels(f1_scores(confusion_counts(Y, scores >= thresholds))))


def average_precision(y: Targets, scores: Scores) -> float:
    """Sum over thresholds of precision times gained recall, equal scores together: two (N,) -> NaN without a positive.

    Equals `sklearn.metrics.average_precision_score`.
    """
    positives = int(y.sum())
    if positives == 0:
        return float("nan")
    true_positives, predicted, _ = operating_points(y, scores)
    gained = np.diff(true_positives, prepend=0)
    return float((gained * true_positives / predicted).sum() / positives)


def operating_points(
    y: Targets, scores: Scores
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each distinct score from high to low: true positives and predictions at or above it, and the score."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order].astype(np.float64)
    last_of_ties = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    return np.cumsum(y[order], dtype=np.int64)[last_of_ties], last_of_ties + 1, ordered[last_of_ties]


def session_counts(
    Y: Targets, predicted: npt.NDArray[np.bool_], sessions: npt.NDArray[np.str_]
) -> npt.NDArray[np.int64]:
    """Confusion counts of each session, in order of their names.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        predicted: Predictions, shape (N, C), or (..., N, C) of many heads.
        sessions: The session of each clip, shape (N,).

    Returns:
        Counts as `confusion_counts`, shape (..., M, 3, C) for M sessions.
    """
    order = np.argsort(sessions, kind="stable")
    _, starts = np.unique(sessions[order], return_index=True)
    on, chosen = Y[order].astype(bool), predicted[..., order, :]
    kinds = [
        np.add.reduceat(clips, starts, axis=-2, dtype=np.int64) for clips in (on & chosen, ~on & chosen, on & ~chosen)
    ]
    return np.stack(kinds, axis=-2)


def macro_over_labels(f1: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Macro average: the mean of the defined F1 scores over labels, (..., C) -> (...); NaN where none is defined."""
    defined = ~np.isnan(f1)
    count = defined.sum(axis=-1)
    return np.asarray(np.where(defined, f1, 0).sum(axis=-1) / np.where(count > 0, count, np.nan))


def resampled_sessions(count: int, *, seed: int, resamples: int) -> npt.NDArray[np.int64]:
    """How often each of M sessions is drawn when M are drawn with replacement, shape (resamples, M)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def interval_of(resampled: npt.NDArray[np.float64], session_count: int) -> tuple[float, float]:
    """The 95% interval that resampled values give: percentiles, taken wider the fewer sessions there were.

    Plain percentiles of few sessions are too narrow. They are expanded as a t interval is against a normal one, and for
    the spread that resampling M sessions misses, sqrt(M / (M - 1)). Source: Hesterberg 2015,
    https://doi.org/10.1080/00031305.2015.1089789. Values that are NaN are left out.
    """
    z, freedom = 1.959964, session_count - 1
    t = (  # Student's quantile, by the Cornish-Fisher expansion: 2.77 for 4 degrees of freedom (exact 2.776)
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    tail = 0.5 * math.erfc(t * math.sqrt(session_count / freedom) / math.sqrt(2))
    low, high = np.quantile(resampled[~np.isnan(resampled)], [tail, 1 - tail])
    return float(low), float(high)


def macro_f1_interval(
    Y: Targets, predicted: npt.NDArray[np.bool_], sessions: npt.NDArray[np.str_], *, seed: int, resamples: int = 10_000
) -> tuple[float, float] | None:
    """95% bootstrap interval of macro-F1, resampling sessions with replacement (`interval_of`).

    In a resample, the macro average is of the labels that have a positive in it.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        predicted: Predictions, shape (N, C).
        sessions: The session of each clip, shape (N,).
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.

    Returns:
        (low, high), or None with fewer than five sessions or no positive clip of any label.
    """
    counts = session_counts(Y, predicted, sessions)
    if len(counts) < MIN_SESSIONS or not Y.any():
        return None
    drawn = resampled_sessions(len(counts), seed=seed, resamples=resamples)
    return interval_of(macro_over_labels(f1_scores(np.tensordot(drawn, counts, axes=1))), len(counts))


def metrics_document(
    Y: Targets,
    scores: Scores,
    thresholds: Scores,
    sessions: npt.NDArray[np.str_],
    *,
    labels: Sequence[str],
    split: str,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of a split as the JSON document of `*_metrics.json`.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities, shape (N, C); a label with a NaN was not scored and is undefined.
        thresholds: Shape (C,), or (N, C) where clips have thresholds of their own; the document names the mean.
        sessions: The session of each clip, shape (N,).
        labels: Names of the C labels.
        split: The split's name.
        seed: Seed of the bootstrap.

    Returns:
        JSON-ready mapping. Undefined scores are None, and `macro_f1_ci95_reason` says why an interval is None.
    """
    predicted = scores >= thresholds
    counts = confusion_counts(Y, predicted)
    is_scored = np.asarray(~np.isnan(scores).any(axis=0))
    is_defined = np.asarray(is_scored & Y.any(axis=0))
    f1 = np.where(is_defined, f1_scores(counts), np.nan)
    mean_thresholds = thresholds if thresholds.ndim == 1 else thresholds.mean(axis=0)
    per_class = {}
    for at, label in enumerate(labels):
        true_positives, false_positives, false_negatives = (int(count) for count in counts[:, at])
        support = true_positives + false_negatives
        defined = bool(is_defined[at])
        per_class[label] = {
            "f1": float(f1[at]) if defined else None,
            "precision": _ratio(true_positives, true_positives + false_positives) if defined else None,
            "recall": _ratio(true_positives, support) if defined else None,
            "average_precision": average_precision(Y[:, at], scores[:, at]) if defined else None,
            "threshold": float(mean_thresholds[at]) if is_scored[at] else None,
            "support": support,
        }
    undefined = [label for label, defined in zip(labels, is_defined, strict=True) if not defined]
    interval = macro_f1_interval(Y[:, is_scored], predicted[:, is_scored], sessions, seed=seed)
    session_count = len(np.unique(sessions))
    document: dict[str, Any] = {
        "macro_f1": float(macro_over_labels(f1)) if len(undefined) < len(labels) else None,
        "macro_f1_ci95": None if interval is None else list(interval),
        "per_class": per_class,
        "undefined": undefined,
        "n_clips": len(Y),
        "n_sessions": session_count,
        "split": split,
    }
    if interval is None:
        document["macro_f1_ci95_reason"] = (
            f"an interval needs at least {MIN_SESSIONS} sessions to resample, but {split} has {session_count}; "
            "score every session instead: featurecache evaluate --leave-one-session-out"
            if session_count < MIN_SESSIONS
            else f"no label has a positive clip in {split}"
        )
    return document


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
