"""Points of the precision-recall and reliability curves of each label, ready for JSON and small enough to draw.

What this is not: a picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from heads.scoring.calibration import reliability
from heads.scoring.metrics import operating_points

MOST_POINTS = 101


def curves(
    Y: npt.NDArray[np.integer], scores: npt.NDArray[np.floating], *, labels: Sequence[str]
) -> dict[str, dict[str, Any] | None]:
    """The curves of every label.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities, shape (N, C); a label with a NaN was not scored.
        labels: Names of the C labels.

    Returns:
        Label -> None where it has no positive or was not scored, else
        `precision_recall`: lists `threshold`, `precision`, `recall` from the highest threshold to the lowest, at most
        101 of them, evenly spaced over the operating points; and
        `reliability`: lists `score` (mean), `observed` (share of positives) and `clips` of up to 10 bins.
    """
    is_defined = Y.any(axis=0) & ~np.isnan(scores).any(axis=0)
    return {label: _of_label(Y[:, at], scores[:, at]) if is_defined[at] else None for at, label in enumerate(labels)}


def _of_label(y: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]) -> dict[str, Any]:
    true_positives, predicted, thresholds = operating_points(y, scores)
    kept = np.unique(np.linspace(0, len(predicted) - 1, MOST_POINTS).round().astype(int))
    mean_score, observed, clips = reliability(y, scores)
    return {
        "precision_recall": {
            "threshold": thresholds[kept].tolist(),
            "precision": (true_positives[kept] / predicted[kept]).tolist(),
            "recall": (true_positives[kept] / y.sum()).tolist(),
        },
        "reliability": {"score": mean_score.tolist(), "observed": observed.tolist(), "clips": clips.tolist()},
    }
