"""Low-cost baselines on the features that a head reads: nearest neighbours and ridge regression, by scikit-learn.

Notable choices: both are fitted on all clips that are not test, and their thresholds come from out-of-fold scores, as a
head's do. Nothing else is tuned: 20 neighbours (the k-NN protocol of DINO, https://arxiv.org/abs/2104.14294, without
its weights), and a ridge penalty of one for each standardised feature. A head that is not above them is not worth its
search. What this is not: a run; no bundle predicts with them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heads.data import LabelledFeatures
from heads.scoring.cross_fitting import CrossFolds, Labels, Rows, Scores, Targets, cross_fitted_scores
from heads.scoring.metrics import DEFAULT_THRESHOLD, metrics_document
from heads.scoring.thresholds import tuned_thresholds

NEIGHBOURS = 20

_MODELS: Mapping[str, Callable[[int, int], Any]] = {
    "nearest neighbours": lambda clips, _: KNeighborsRegressor(min(NEIGHBOURS, clips)),
    "ridge regression": lambda _, width: Ridge(alpha=width),
}
"""By name, from the number of clips and the features' width, what predicts targets."""


def baseline_metrics(
    fitting: LabelledFeatures, test: LabelledFeatures, labels: Sequence[str], *, annotated: int | None = None
) -> dict[str, dict[str, Any]]:
    """Scores of each baseline on the test split.

    Args:
        fitting: All labelled clips that are not test, with features (N, D).
        test: The test clips.
        labels: Names of the C labels.
        annotated: As `metrics_document`.

    Returns:
        By the baseline's name, the document of `test_metrics.json`.

    Raises:
        TrainingDataError: If no label can be learned without each fold.
    """
    Y, sessions, X = fitting.Y, fitting.sessions, fitting.X.astype(np.float32)
    folds = CrossFolds.assign(Y, sessions, fitting.clip_ids)
    found = {}
    for name, make in _MODELS.items():
        fitted = _Fitted(make, X)
        held_out = cross_fitted_scores(fitted, Y, folds.of[0], clip_ids=fitting.clip_ids)
        scored = ~np.isnan(held_out).any(axis=0)
        thresholds = np.full(len(labels), DEFAULT_THRESHOLD)
        thresholds[scored] = tuned_thresholds(Y[:, scored], held_out[:, scored], sessions)
        scores = fitted.scores(np.arange(len(Y)), Y, test.X.astype(np.float32))
        found[name] = metrics_document(
            test.Y,
            scores,
            thresholds,
            test.sessions,
            labels=labels,
            split="test",
            annotated=annotated,
            unit=test.unit,
        )
    return found


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Fits a model on some rows of the features X (N, D), and scores others; a `FitScores`."""

    make: Callable[[int, int], Any]
    X: npt.NDArray[np.float32]

    def __call__(self, train: Rows, Y_train: Targets, learnable: Labels, held_out: Rows) -> Scores:
        return self.scores(train, Y_train[:, learnable], self.X[held_out])

    def scores(self, train: Rows, Y_train: Targets, X: npt.NDArray[np.float32]) -> Scores:
        """Predicted targets, cut to between 0 and 1."""
        at_mean = SimpleImputer(keep_empty_features=True)  # of absent parts of samples, as heads read them
        model = make_pipeline(at_mean, StandardScaler(), self.make(len(train), X.shape[1]))
        predicted = model.fit(self.X[train], Y_train.astype(np.float32)).predict(X)
        return np.asarray(np.clip(predicted.reshape(len(X), -1), 0, 1))
