"""Scores of multi-label predictions: pure functions on numpy arrays.

Notable choices: a label without a positive clip has no F1, recall or average precision: it is None, listed under
`undefined`, and left out of the macro average, never counted as 0 or 1. A label that is predicted nowhere has no
precision (its F1 is 0).

What this is not: thresholds, calibration, intervals (`intervals.py`), comparisons (`statistics.py`), or a logged
test-set evaluation (`evaluation.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.session_notes import instead_of_interval
from heads.scoring.intervals import MIN_SESSIONS, f1_intervals, macro_f1_interval

Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.integer]

DEFAULT_THRESHOLD = 0.5

_LABEL_SCORES = (
    "f1",
    "f1_ci95",
    "precision",
    "recall",
    "average_precision",
    "auroc",
    "specificity",
    "npv",
    "support",
    "sessions",
)


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
    """Mean F1 of the labels that have a positive clip and were scored; NaN if none is such.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities, shape (N, C); a label with a NaN was not scored.
        thresholds: A label is predicted where its score is at least this; one for all, or (C,).
    """
    f1 = f1_scores(confusion_counts(Y, scores >= thresholds))
    return float(macro_over_labels(np.where(np.isnan(scores).any(axis=0), np.nan, f1)))


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


def auroc(y: Targets, scores: Scores) -> float:
    """Share of (positive, negative) pairs in which the positive clip has the higher score, ties half: two (N,).

    NaN without a positive or a negative. Equals `sklearn.metrics.roc_auc_score`.
    """
    positives = int(y.sum())
    if positives in (0, len(y)):
        return float("nan")
    true_positives, predicted, _ = operating_points(y, scores)
    hits = np.concatenate([[0], true_positives])
    alarms = np.concatenate([[0], predicted - true_positives])
    return float(np.trapezoid(hits, alarms) / (positives * (len(y) - positives)))


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


def metrics_document(
    Y: Targets,
    scores: Scores,
    thresholds: Scores,
    sessions: npt.NDArray[np.str_],
    *,
    labels: Sequence[str],
    split: str,
    annotated: int | None = None,
    predicted: npt.NDArray[np.bool_] | None = None,
    unit: str = "clip",
) -> dict[str, Any]:
    """All scores of a split as the JSON document of `*_metrics.json`.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities, shape (N, C); a label with a NaN was not scored and is undefined.
        thresholds: Shape (C,), or (N, C) where clips have thresholds of their own; the document names the mean.
        sessions: The session of each clip, shape (N,).
        labels: Names of the C labels.
        split: The split's name.
        annotated: Annotated sessions of all splits; None: unknown, and a reason says nothing of what to do.
        predicted: What is predicted, shape (N, C), where rules change it (`exclusive.py`); None: scores at thresholds.
        unit: What the N rows are: "clip", or "sample" of several clips.

    Returns:
        JSON-ready mapping. Undefined scores are None, and `macro_f1_ci95_reason` says why an interval is None. Of a
        label, `sessions` counts those that have a positive clip of it; `per_session` has macro-F1 and F1 of each.
    """
    predicted = scores >= thresholds if predicted is None else predicted
    counts = session_counts(Y, predicted, sessions)  # (M, 3, C)
    is_scored = np.asarray(~np.isnan(scores).any(axis=0))
    is_defined = np.asarray(is_scored & Y.any(axis=0))
    f1 = np.where(is_defined, f1_scores(counts.sum(axis=0)), np.nan)
    mean_thresholds = thresholds if thresholds.ndim == 1 else thresholds.mean(axis=0)
    intervals = f1_intervals(counts)
    per_class = {
        label: _label_scores(Y[:, at], scores[:, at], counts[..., at], intervals[at])
        if is_defined[at]
        else dict.fromkeys(_LABEL_SCORES) | {"support": int(Y[:, at].sum())}
        for at, label in enumerate(labels)
    }
    for at, label in enumerate(labels):
        per_class[label]["threshold"] = float(mean_thresholds[at]) if is_scored[at] else None
    undefined = [label for label, defined in zip(labels, is_defined, strict=True) if not defined]
    interval = macro_f1_interval(counts[..., is_scored])
    session_count = len(counts)
    document: dict[str, Any] = {
        "macro_f1": float(macro_over_labels(f1)) if len(undefined) < len(labels) else None,
        "macro_f1_ci95": None if np.isnan(interval).any() else interval.tolist(),
        "per_class": per_class,
        "undefined": undefined,
        "n_clips": len(Y),
        "unit": unit,
        "n_sessions": session_count,
        "split": split,
        "per_session": _session_scores(counts, is_scored, sessions, labels),
    }
    if np.isnan(interval).any():
        document["macro_f1_ci95_reason"] = (
            f"an interval needs at least {MIN_SESSIONS} sessions, but {split} has {session_count}"
            + ("" if annotated is None else f"; {instead_of_interval(annotated)}")
            if session_count < MIN_SESSIONS
            else f"no label has a positive {unit} in {split}"
        )
    return document


def _label_scores(
    y: Targets, scores: Scores, counts: npt.NDArray[np.int64], interval: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Scores of a label with a positive clip: targets and scores (N,), counts (M, 3), the interval of F1 (2,)."""
    true_positives, false_positives, false_negatives = (int(count) for count in counts.sum(axis=0))
    true_negatives = len(y) - true_positives - false_positives - false_negatives
    support = true_positives + false_negatives
    found = (
        2 * true_positives / (support + true_positives + false_positives),
        None if np.isnan(interval).any() else interval.tolist(),
        _ratio(true_positives, true_positives + false_positives),
        _ratio(true_positives, support),
        average_precision(y, scores),
        _defined(auroc(y, scores)),
        _ratio(true_negatives, true_negatives + false_positives),
        _ratio(true_negatives, true_negatives + false_negatives),
        support,
        int((counts[:, 0] + counts[:, 2] > 0).sum()),
    )
    return dict(zip(_LABEL_SCORES, found, strict=True))


def _session_scores(
    counts: npt.NDArray[np.int64],
    is_scored: npt.NDArray[np.bool_],
    sessions: npt.NDArray[np.str_],
    labels: Sequence[str],
) -> list[dict[str, Any]]:
    """Macro-F1 and F1 of each session, in order of their names; counts (M, 3, C)."""
    names, clips = np.unique(sessions, return_counts=True)
    f1 = np.where(is_scored, f1_scores(counts), np.nan)  # (M, C)
    return [
        {
            "session": str(name),
            "n_clips": int(clips[at]),
            "macro_f1": _defined(float(macro_over_labels(f1[at]))),
            "f1": {label: _defined(float(value)) for label, value in zip(labels, f1[at], strict=True)},
        }
        for at, name in enumerate(names)
    ]


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
