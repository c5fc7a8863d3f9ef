"""What a label's scores are worth elsewhere: at another prevalence, and against what a false alarm costs.

- Prevalence shift: sensitivity and specificity are properties of the head, precision and NPV also of how often a label
  is on. Where only that differs, Bayes' rule gives them, and moves all calibrated probabilities by the same log-odds.
- Decision curve: net benefit = TP / N - FP / N * p / (1 - p), where p is the probability from which somebody would act,
  so that p / (1 - p) false alarms cost as much as one event that is missed. Source: Vickers and Elkin 2006,
  https://doi.org/10.1177/0272989X06295361.

Both assume calibrated probabilities. What this is not: a choice of thresholds.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import scipy  # scipy.special loads on first use: a fifth of a second

FACTORS = (0.5, 1.0, 2.0)
"""Prevalences that are shown: half of what was seen, as seen, and twice."""

PROBABILITIES = np.round(np.arange(0.05, 1, 0.05), 2)
"""From which somebody would act, in a decision curve."""

_EDGE = 1e-6


def at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> dict[str, float | None]:
    """Precision, NPV and F1 of a head where the label is on in this share of clips; None where nothing is reported."""
    hits, misses = prevalence * sensitivity, prevalence * (1 - sensitivity)
    alarms, rejections = (1 - prevalence) * (1 - specificity), (1 - prevalence) * specificity
    return {
        "prevalence": prevalence,
        "precision": hits / (hits + alarms) if hits + alarms else None,
        "npv": rejections / (rejections + misses) if rejections + misses else None,
        "f1": 2 * hits / (2 * hits + alarms + misses) if hits + alarms + misses else None,
    }


def reweighted(probabilities: npt.NDArray[np.floating], *, seen: float, stated: float) -> npt.NDArray[np.float64]:
    """Calibrated probabilities where the label is on in a `stated` share of clips instead of the `seen` one."""
    inside = np.clip(probabilities.astype(np.float64), _EDGE, 1 - _EDGE)
    return np.asarray(
        scipy.special.expit(scipy.special.logit(inside) + scipy.special.logit(stated) - scipy.special.logit(seen))
    )


def prevalence_shift(
    Y: npt.NDArray[np.integer],
    predicted: npt.NDArray[np.bool_],
    at_threshold: npt.NDArray[np.floating],
    *,
    labels: Sequence[str],
    stated: Mapping[str, float] | None = None,
) -> dict[str, list[dict[str, float | None]] | None]:
    """Each label's scores at half, the same and twice its prevalence, and at one that somebody states.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        predicted: Predictions, shape (N, C).
        at_threshold: Calibrated probability of a clip that scores just its label's threshold, shape (C,).
        labels: Names of the C labels.
        stated: Label -> the prevalence of somebody's own recordings, above 0 and below 1.

    Returns:
        Label -> `at_prevalence` of each prevalence below 1, with `probability_at_threshold`, the stated one last and
        with `stated`; None for a label that all clips have, or none.
    """
    found: dict[str, list[dict[str, float | None]] | None] = {}
    for at, label in enumerate(labels):
        on, reported = Y[:, at].astype(bool), predicted[:, at]
        seen = float(on.mean())
        if seen in (0.0, 1.0):
            found[label] = None
            continue
        sensitivity, specificity = float(reported[on].mean()), float((~reported[~on]).mean())

        def row(share: float) -> dict[str, float | None]:
            moved = float(reweighted(at_threshold[at : at + 1], seen=seen, stated=share)[0])  # noqa: B023
            return {**at_prevalence(sensitivity, specificity, share), "probability_at_threshold": moved}  # noqa: B023

        rows = [row(factor * seen) for factor in FACTORS if factor * seen < 1]
        own = [{**row(stated[label]), "stated": True}] if stated and label in stated else []
        found[label] = rows + own
    return found


def decision_curves(
    Y: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating], *, labels: Sequence[str]
) -> dict[str, dict[str, list[float]] | None]:
    """Each label's net benefit over the probability from which somebody would act.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        probabilities: Calibrated, shape (N, C).
        labels: Names of the C labels.

    Returns:
        Label -> `probability`, `model`, and `all_positive` (acting always); acting never has 0. None for a label
        without a positive.
    """
    odds = PROBABILITIES / (1 - PROBABILITIES)
    curves: dict[str, dict[str, list[float]] | None] = {}
    for at, label in enumerate(labels):
        on = Y[:, at].astype(bool)
        if not on.any():
            curves[label] = None
            continue
        acts = probabilities[:, at, None] >= PROBABILITIES  # (N, points)
        model = (acts & on[:, None]).mean(axis=0) - (acts & ~on[:, None]).mean(axis=0) * odds
        curves[label] = {
            "probability": PROBABILITIES.tolist(),
            "model": model.tolist(),
            "all_positive": (on.mean() - (1 - on.mean()) * odds).tolist(),
        }
    return curves
