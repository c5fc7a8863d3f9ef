"""Which stretches to annotate next: active learning on cached features, one stretch after the other.

Notable choices: a stretch is worth its doubt times its novelty, each over its mean. Doubt is the entropy of calibrated
probabilities, summed over labels; a label weighs 1 / sqrt(1 + its positive clips), so that rare ones come first.
Novelty is how far a stretch lies from what is annotated or chosen already: 1 - the highest cosine. The next stretch is
of a session of which the fewest are chosen, so that a budget is spread over sessions. What that is worth against a
random order is measured in `python -m benchmarks.bench_suggest`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from heads.scoring.metrics import Scores

Vectors = npt.NDArray[np.float32]
"""Unit vectors in feature space, one a row."""

_TINY = 1e-12


def label_doubt(probabilities: Scores, positives: Sequence[int]) -> npt.NDArray[np.float64]:
    """Doubt about clips, in bits.

    Args:
        probabilities: Calibrated, shape (N, C).
        positives: Positive clips of each label so far, C of them.

    Returns:
        Shape (N,), between 0 and 1.
    """
    p = np.clip(np.asarray(probabilities, np.float64), _TINY, 1 - _TINY)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))  # (N, C)
    weights = 1 / np.sqrt(1 + np.asarray(positives, np.float64))
    return np.asarray(entropy @ (weights / weights.sum()))


def suggested_order(
    doubt: npt.NDArray[np.float64],
    vectors: Vectors,
    annotated: Vectors,
    sessions: npt.NDArray[np.str_],
    seconds: npt.NDArray[np.float64],
    *,
    budget_s: float,
) -> list[int]:
    """Stretches in the order in which to annotate them, until the budget is used up; the last one may exceed it.

    Args:
        doubt: Of U stretches, shape (U,).
        vectors: Where they lie, shape (U, D).
        annotated: Where stretches lie that are annotated already, shape (V, D).
        sessions: Their sessions, shape (U,).
        seconds: Their lengths, shape (U,).
        budget_s: Seconds that can be annotated.
    """
    nearest = (vectors @ annotated.T).max(axis=1, initial=-1.0)  # (U,), the highest cosine
    _, session = np.unique(sessions, return_inverse=True)
    of_session = np.zeros(session.max(initial=-1) + 1)
    free, order, spent = np.ones(len(doubt), bool), [], 0.0
    while free.any() and spent < budget_s:
        novelty = 1 - nearest
        worth = doubt / max(doubt[free].mean(), _TINY) * novelty / max(novelty[free].mean(), _TINY)
        is_next = free & (of_session[session] == of_session[session[free]].min())
        chosen = int(np.argmax(np.where(is_next, worth, -np.inf)))
        order.append(chosen)
        free[chosen], spent = False, spent + float(seconds[chosen])
        of_session[session[chosen]] += 1
        nearest = np.maximum(nearest, vectors @ vectors[chosen])
    return order
