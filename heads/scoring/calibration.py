"""Calibration: scores that can be read as probabilities, and how far they are from it.

Notable choices: each label has a temperature and an offset, fitted on held-out scores. A temperature alone, as is usual
(Guo et al. 2017), cannot undo what positive weights do on purpose: they move every score of a label up. Measured on the
test parts of two public sets, positive weights at exponent 0.5, expected calibration error: emotions .094 as trained,
.095 with a temperature, .085 with both; scene .067, .072 and .028. Both are shrunk towards 1 and 0 by a standard normal
prior, so few clips change little. Order is preserved, so thresholds on scores as trained stay right.

What this is not: a part of deciding. Predictions compare scores as trained with their thresholds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heads.folds import session_folds

Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.integer]
PerLabel = npt.NDArray[np.float64]

BINS = 10
CALIBRATION_FOLDS = 5
_EDGE = 1e-7  # float32 scores saturate at 0 and 1
_LEAST_SLOPE = 0.05
_STEPS = 50


@dataclass(frozen=True, eq=False)
class Calibration:
    """What makes a head's scores probabilities: log-odds / temperature + offset, label by label.

    Attributes:
        temperatures: Shape (C,), above 0.
        offsets: Shape (C,).
    """

    temperatures: PerLabel
    offsets: PerLabel

    @classmethod
    def from_mapping(cls, record: Mapping[str, Any], label_count: int) -> "Calibration":
        """What `to_mapping` gave.

        Raises:
            ValueError: If it is not for this many labels.
        """
        found = cls(np.array(record["temperatures"], np.float64), np.array(record["offsets"], np.float64))
        both = np.stack([found.temperatures, found.offsets])
        if both.shape != (2, label_count) or not np.isfinite(both).all() or not (found.temperatures > 0).all():
            raise ValueError(f"the calibration is {record!r}, not a temperature above 0 and an offset for each label")
        return found

    def to_mapping(self) -> dict[str, list[float]]:
        """Both by name, ready for JSON."""
        return {"temperatures": self.temperatures.tolist(), "offsets": self.offsets.tolist()}

    def apply(self, scores: Scores) -> npt.NDArray[np.float64]:
        """Calibrated probabilities: (N, C) -> (N, C)."""
        return _logistic(_log_odds(scores) / self.temperatures + self.offsets)


def fit_calibration(Y: Targets, scores: Scores) -> Calibration:
    """The most likely temperatures and offsets, with a standard normal prior around 1 / temperature = 1 and offset = 0.

    Newton's method, all labels at once; the problem is convex. A label without a positive or a negative, or without
    scores, keeps its scores. The slope 1 / temperature stays above 0.05, so that order is never turned round.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Held-out probabilities, shape (N, C); a label with a NaN was not scored.
    """
    is_scored = ~np.isnan(scores).any(axis=0)
    z = _log_odds(np.where(is_scored, scores, 0.5))  # (N, C)
    label_count = Y.shape[1]
    parameters = np.tile([1.0, 0.0], (label_count, 1))  # (C, 2): slope, offset
    best = _objective(parameters, z, Y)
    step = np.ones(label_count)
    for _ in range(_STEPS):
        p = _logistic(z * parameters[:, 0] + parameters[:, 1])
        error, curvature = p - Y, p * (1 - p)
        gradient = np.stack([(error * z).sum(0), error.sum(0)], axis=1) + parameters - [1, 0]  # (C, 2)
        mixed = (curvature * z).sum(0)
        hessian = np.array([[(curvature * z * z).sum(0) + 1, mixed], [mixed, curvature.sum(0) + 1]])  # (2, 2, C)
        move = np.linalg.solve(hessian.transpose(2, 0, 1), gradient[..., None])[..., 0]
        if np.abs(gradient).max() < 1e-8 or not (step > 1e-9).any():
            break
        tried = parameters - step[:, None] * move
        value = _objective(tried, z, Y)
        better = value <= best
        parameters[better], best[better] = tried[better], value[better]
        step = np.where(better, np.minimum(2 * step, 1), step / 2)
    positives = Y.sum(axis=0)
    keeps = (positives == 0) | (positives == len(Y)) | ~is_scored
    slopes = np.where(keeps, 1.0, np.maximum(parameters[:, 0], _LEAST_SLOPE))
    return Calibration(1 / slopes, np.where(keeps, 0.0, parameters[:, 1]))


def cross_calibrated(Y: Targets, scores: Scores, sessions: npt.NDArray[np.str_]) -> npt.NDArray[np.float64] | None:
    """Calibrated scores of the clips that calibration is fitted on, each by a fit without its session's fold.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities, shape (N, C).
        sessions: The session of each clip, shape (N,).

    Returns:
        Shape (N, C); None where there is one session only.
    """
    session_count = len(np.unique(sessions))
    if session_count < 2:
        return None
    fold_of = session_folds(Y, sessions, count=min(CALIBRATION_FOLDS, session_count))
    calibrated = np.empty(scores.shape)
    for fold in range(fold_of.max() + 1):
        here = fold_of == fold
        calibrated[here] = fit_calibration(Y[~here], scores[~here]).apply(scores[here])
    return calibrated


def choose_calibration(
    Y: Targets, scores: Scores, sessions: npt.NDArray[np.str_]
) -> tuple[Calibration, npt.NDArray[np.float64] | None]:
    """The fitted calibration of each label that it helps; other labels keep their scores.

    In the likelihood a few wrong scores near 0 or 1 outweigh all others, which the fit then makes worse. It helps where
    scores that are calibrated without their session's fold have the lower Brier score.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Held-out probabilities, shape (N, C); a label with a NaN was not scored.
        sessions: The session of each clip, shape (N,).

    Returns:
        The calibration, and what it makes of these clips when fitted without their folds, (N, C). Where there is one
        session, nothing can be held out: the fit as it is, and None.
    """
    fitted, crossed = fit_calibration(Y, scores), cross_calibrated(Y, scores, sessions)
    if crossed is None:
        return fitted, None
    helps = brier_scores(Y, crossed) < brier_scores(Y, scores)
    chosen = Calibration(np.where(helps, fitted.temperatures, 1.0), np.where(helps, fitted.offsets, 0.0))
    return chosen, np.where(helps, crossed, scores)


def brier_scores(Y: Targets, scores: Scores) -> PerLabel:
    """Mean squared difference of score and target: two (N, C) -> (C,), NaN without a positive, or without scores."""
    return _where_defined(Y, ((scores.astype(np.float64) - Y) ** 2).mean(axis=0))


def calibration_errors(Y: Targets, scores: Scores) -> PerLabel:
    """Expected calibration error: mean distance of scores and share of positives over bins of like many clips.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities, shape (N, C).

    Returns:
        Shape (C,), NaN where there is no positive.
    """
    errors = []
    for label in range(Y.shape[1]):
        mean_score, observed, clips = reliability(Y[:, label], scores[:, label])
        errors.append((clips * np.abs(mean_score - observed)).sum() / len(Y))
    return _where_defined(Y, np.array(errors))


def reliability(
    y: Targets, scores: Scores
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Mean score, share of positives and clips of up to 10 bins that hold like many clips; equal scores stay together.

    Args:
        y: Targets of one label, shape (N,).
        scores: Its scores, shape (N,).
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1]))
    bin_of = np.searchsorted(edges, scores, side="right")
    clips = np.bincount(bin_of)
    used = clips > 0
    sums = [np.bincount(bin_of, weights=values.astype(np.float64))[used] for values in (scores, y)]
    return sums[0] / clips[used], sums[1] / clips[used], clips[used]


def calibration_document(
    Y: Targets, scores: Scores, calibrated: Scores | None, *, labels: Sequence[str]
) -> dict[str, Any]:
    """Calibration errors and Brier scores of a split before and after, for `*_metrics.json`.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Probabilities as trained, shape (N, C).
        calibrated: Calibrated ones, shape (N, C); None where there are none.
        labels: Names of the C labels.

    Returns:
        JSON-ready: "before" and "after", each with the means over the defined labels and `per_class`; "after" may be
        None.
    """

    def errors(of: Scores) -> dict[str, Any]:
        both = {"ece": calibration_errors(Y, of), "brier": brier_scores(Y, of)}
        defined = ~np.isnan(both["brier"])
        return {
            **{name: float(values[defined].mean()) if defined.any() else None for name, values in both.items()},
            "per_class": {
                label: {name: float(values[at]) if defined[at] else None for name, values in both.items()}
                for at, label in enumerate(labels)
            },
        }

    return {"before": errors(scores), "after": None if calibrated is None else errors(calibrated)}


def _objective(parameters: npt.NDArray[np.float64], z: npt.NDArray[np.float64], Y: Targets) -> PerLabel:
    log_odds = z * parameters[:, 0] + parameters[:, 1]
    loss = (np.logaddexp(0, log_odds) - Y * log_odds).sum(axis=0)
    return np.asarray(loss + 0.5 * ((parameters - [1, 0]) ** 2).sum(axis=1))


def _log_odds(scores: Scores) -> npt.NDArray[np.float64]:
    inside = np.clip(scores.astype(np.float64), _EDGE, 1 - _EDGE)
    return np.asarray(np.log(inside / (1 - inside)))


def _logistic(log_odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * log_odds)))


def _where_defined(Y: Targets, values: PerLabel) -> PerLabel:
    return np.where(Y.any(axis=0), values, np.nan)
