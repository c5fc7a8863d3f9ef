"""Labels that exclude each other, clip by clip: the rule, whether it pays, and how often predictions break it.

Of labels of which one at most is on at a time, a clip keeps the predicted one that is furthest above its threshold (in
log-odds, as in timelines: thresholds differ, so the highest score need not be the surest).

Notable choice: whether a bundle keeps a rule is chosen by held-out scores, since annotations may disagree with it: a
clip may hold the end of one activity and the start of the next. It is kept where macro-F1 is no lower with it.

What this is not: the rule of timelines, which is always kept (`heads/timelines/timeline.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # scipy.special loads on first use: a fifth of a second

from heads.scoring.metrics import confusion_counts, f1_scores, macro_over_labels

Predicted = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating]
Groups = Sequence[Sequence[str]]

_EDGE = 1e-6


def predicted_labels(
    scores: Scores, thresholds: Scores, labels: Sequence[str] = (), exclusive: Groups = ()
) -> Predicted:
    """What is predicted of each clip: scores at or above their threshold, but one label at most of each group.

    Args:
        scores: Probabilities, shape (N, C); a label with NaN is not predicted.
        thresholds: Shape (C,), or (N, C) where clips have thresholds of their own.
        labels: Names of the C labels.
        exclusive: Groups of labels of which one at most is on at a time.

    Returns:
        Shape (N, C).
    """
    predicted: Predicted = np.asarray(scores >= thresholds)
    if not exclusive:
        return predicted
    margins = log_odds(scores) - log_odds(thresholds)
    for columns in _columns(labels, exclusive):
        ahead = np.where(predicted[:, columns], margins[:, columns], -np.inf).argmax(axis=1)
        predicted[:, columns] &= ahead[:, None] == np.arange(len(columns))
    return predicted


def choose_exclusive(
    Y: npt.NDArray[np.integer], scores: Scores, thresholds: Scores, *, labels: Sequence[str], exclusive: Groups
) -> list[dict[str, Any]]:
    """Which rules a bundle keeps, by held-out scores; each group is tried beside those that are kept already.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Held-out probabilities, shape (N, C); a label with NaN was not scored.
        thresholds: Shape (C,).
        labels: Names of the C labels.
        exclusive: Groups of labels of which one at most is on at a time.

    Returns:
        For each group `labels`; the `clips` of all N (`of`) that are predicted to have two of them without the rule;
        `macro_f1` without and `macro_f1_with` it; and whether it is `kept`.
    """
    is_scored = ~np.isnan(scores).any(axis=0)

    def value(groups: Groups) -> float:
        counts = confusion_counts(Y, predicted_labels(scores, thresholds, labels, groups))
        return float(macro_over_labels(np.where(is_scored, f1_scores(counts), np.nan)))

    kept: list[Sequence[str]] = []
    found = []
    for group in exclusive:
        (broken,) = violations(predicted_labels(scores, thresholds, labels, kept), labels, [group])
        without, with_rule = value(kept), value([*kept, group])
        is_kept = with_rule >= without
        if is_kept:
            kept.append(group)
        found.append({**broken, "macro_f1": without, "macro_f1_with": with_rule, "kept": is_kept})
    return found


def violations(predicted: Predicted, labels: Sequence[str], exclusive: Groups) -> list[dict[str, Any]]:
    """For each group, `labels` and the number of `clips`, `of` N, that are predicted to have two of them.

    Args:
        predicted: Shape (N, C).
        labels: Names of the C labels.
        exclusive: Groups of labels of which one at most is on at a time.
    """
    return [
        {"labels": list(group), "clips": int((predicted[:, own].sum(axis=1) > 1).sum()), "of": len(predicted)}
        for group, own in zip(exclusive, _columns(labels, exclusive), strict=True)
    ]


def _columns(labels: Sequence[str], exclusive: Groups) -> list[list[int]]:
    return [[list(labels).index(name) for name in group] for group in exclusive]


def log_odds(probabilities: Scores) -> npt.NDArray[np.float64]:
    """Of probabilities, which may be 0 or 1, of any shape."""
    return np.asarray(scipy.special.logit(np.clip(probabilities.astype(np.float64), _EDGE, 1 - _EDGE)))
