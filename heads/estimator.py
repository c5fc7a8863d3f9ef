"""The scikit-learn face of a linear head, for Pipelines, cross-validation and people who know nothing else.

Notable choices: it trains with the same `fit_heads` as everything else; single-label targets are learned one class
against the rest and their probabilities scaled to sum to one; multi-label targets (N, C) keep one probability
per label. Only `coef_` and `intercept_` are kept, in the units of the features, so a fitted estimator is plain
numpy. Its defaults take more steps than `HeadSettings`', since sets that come this way are small.

What this is not: a bundle. It knows no feature space and tunes no threshold.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from heads.models import LinearHead
from heads.settings import HeadSettings
from heads.training import TrainingClips, fit_heads


class LinearHeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """FT-LC as a scikit-learn classifier.

    Parameters mean what they mean in `HeadSettings`, and are checked by `fit`.

    Args:
        learning_rate: Step size of AdamW.
        weight_decay: Decoupled decay of weights.
        positive_weight_exponent: Power of (negatives / positives) that weighs the positive term.
        dropout: Share of features dropped in training.
        batch_size: Rows per step.
        epochs: Passes over the rows.
        standardize: Features are centred and scaled by the training rows.
        random_state: Of the order of rows and of dropout.
        device: Where to train: `cpu`, `cuda`, ...

    Attributes:
        classes_: The classes, or 0 to C - 1 for multi-label targets.
        coef_: Weights, shape (classes or labels, D); one row for two classes.
        intercept_: Biases, one per row of `coef_`.
        n_features_in_: D.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-2,
        positive_weight_exponent: float = 0.0,
        dropout: float = 0.0,
        batch_size: int = 64,
        epochs: int = 50,
        standardize: bool = True,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.positive_weight_exponent = positive_weight_exponent
        self.dropout = dropout
        self.batch_size = batch_size
        self.epochs = epochs
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on features (N, D) and classes (N,) or multi-label targets (N, C).

        Raises:
            ValueError: If the arrays are unusable, there is one class only, or a label is never or always on.
            SettingsError: If a parameter is out of its range, or training diverges.
        """
        settings = HeadSettings(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            positive_weight_exponent=self.positive_weight_exponent,
            dropout=self.dropout,
            batch_size=self.batch_size,
            epochs=self.epochs,
            standardize=self.standardize,
        )
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32, np.float16], multi_output=True)
        check_classification_targets(y)
        self._is_multilabel = type_of_target(y) == "multilabel-indicator"
        if self._is_multilabel:
            self.classes_ = np.arange(y.shape[1])
            targets = np.asarray(y)
        else:
            self.classes_, of_row = np.unique(column_or_1d(y, warn=True), return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(f"y must have at least two classes, but it has one class: {self.classes_[0]!r}.")
            targets = of_row[:, None] == np.arange(len(self.classes_))
            if len(self.classes_) == 2:
                targets = targets[:, 1:]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        features = X if X.dtype == np.float16 else X.astype(np.float32)
        clips = TrainingClips(features, targets.astype(np.int8), seed=seed, device=self.device)
        (fitted,) = fit_heads(clips, [settings])
        if not isinstance(fitted.head, LinearHead):
            raise fitted.diverged_error()
        mean, scale, weight, bias = (
            tensor.detach().numpy().astype(np.float64)
            for tensor in (
                fitted.head.standardize.mean,
                fitted.head.standardize.scale,
                fitted.head.output.weight,
                fitted.head.output.bias,
            )
        )
        self.coef_ = weight / scale
        self.intercept_ = bias - self.coef_ @ mean
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities (N, classes), rows summing to one; for multi-label targets (N, C), one per label."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32, np.float16], reset=False).astype(np.float64)
        logits = X @ self.coef_.T + self.intercept_
        scores: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits))  # the logistic function, without overflow
        if self._is_multilabel:
            return scores
        if len(self.classes_) == 2:
            return np.hstack([1 - scores, scores])
        scores = np.maximum(scores, np.finfo(np.float64).tiny)
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Classes (N,); for multi-label targets (N, C) of 0 and 1."""
        scores = self.predict_proba(X)
        if self._is_multilabel:
            return (scores >= 0.5).astype(int)
        return np.asarray(self.classes_[scores.argmax(axis=1)])
