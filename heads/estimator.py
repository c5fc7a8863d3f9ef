"""The scikit-learn face of heads, for Pipelines, cross-validation and people who know nothing else.

Notable choices: heads are fitted by the same `fit_head` as everywhere; single-label targets are learned one class
against the rest and their probabilities scaled to sum to one; multi-label targets (N, C) keep one probability per
label. Features may be numpy arrays or torch tensors; clip ids of a feature cache go through `CachedFeatures` first,
so that a grid search can choose the tap. Only weights and biases are kept, in the units of the features, so a fitted
estimator is plain numpy. The linear head goes to its optimum by default and then needs no learning rate; `C` means
what it means in scikit-learn's `LogisticRegression`, on standardised features.

What this is not: a bundle. It knows no feature space and tunes no threshold.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from featurecache.errors import SettingsError
from heads.engines.fitting import fit_head
from heads.models import Head, LinearHead, MLPHead
from heads.settings import HeadSettings

Layer = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
_DTYPES = [np.float64, np.float32, np.float16]


class _HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What both heads share: targets into labels, labels into classes."""

    positive_weight_exponent: float
    standardize: bool
    learning_rate: float
    weight_decay: float
    dropout: float
    batch_size: int
    epochs: int
    random_state: int | np.random.RandomState | None
    device: str

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    @abstractmethod
    def _settings(self, rows: int, /) -> HeadSettings:
        """The head's settings for that many training rows."""

    def _common_settings(self) -> HeadSettings:
        """The settings of the parameters that both heads have."""
        return HeadSettings(
            positive_weight_exponent=self.positive_weight_exponent,
            normalization="standardize" if self.standardize else "none",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            dropout=self.dropout,
            batch_size=self.batch_size,
            epochs=self.epochs,
        )

    @abstractmethod
    def _keep(self, head: Head) -> None:
        """Takes from the head what predicting needs."""

    @abstractmethod
    def _logits(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(N, D) -> (N, C)."""

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on features (N, D) and classes (N,) or multi-label targets (N, C).

        Raises:
            ValueError: If the arrays are unusable, there is one class only, or a label is never or always on.
            SettingsError: If a parameter is out of its range, training diverges, or the solver does not converge.
        """
        X, y = validate_data(self, _on_cpu(X), _on_cpu(y), dtype=_DTYPES, multi_output=True)
        settings = self._settings(len(X))
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
        self._keep(fit_head(features, targets.astype(np.int8), settings, seed=seed, device=self.device))
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Probabilities (N, classes), rows summing to one; for multi-label targets (N, C), one per label."""
        check_is_fitted(self)
        X = validate_data(self, _on_cpu(X), dtype=_DTYPES, reset=False).astype(np.float64)
        scores: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * self._logits(X)))  # logistic, without overflow
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


class LinearHeadClassifier(_HeadClassifier):
    """FT-LC as a scikit-learn classifier.

    Parameters are checked by `fit`.

    Args:
        solver: `convex` goes to the optimum that `C` defines, from which nothing random moves it; `adamw` takes steps.
        C: Inverse strength of the penalty, as in `LogisticRegression`; `convex` alone reads it.
        positive_weight_exponent: Power of (negatives / positives) that weighs the positive term.
        standardize: Features are centred and scaled by the training rows.
        learning_rate: Step size; this and what follows is read by `adamw` alone.
        weight_decay: Decoupled decay of weights.
        dropout: Share of features dropped in training.
        batch_size: Rows per step.
        epochs: Passes over the rows.
        random_state: Seed of the order of rows and of dropout.
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
        solver: Literal["convex", "adamw"] = "convex",
        C: float = 1.0,
        positive_weight_exponent: float = 0.0,
        standardize: bool = True,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-2,
        dropout: float = 0.0,
        batch_size: int = 64,
        epochs: int = 50,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        self.solver = solver
        self.C = C
        self.positive_weight_exponent = positive_weight_exponent
        self.standardize = standardize
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.dropout = dropout
        self.batch_size = batch_size
        self.epochs = epochs
        self.random_state = random_state
        self.device = device

    def _settings(self, rows: int, /) -> HeadSettings:
        if not self.C > 0:
            raise SettingsError(f"C must be above 0, but it is {self.C!r}. Give e.g. 1.0.")
        return replace(self._common_settings(), solver=self.solver, l2=1 / (self.C * rows))

    def _keep(self, head: Head) -> None:
        if not isinstance(head, LinearHead):
            raise TypeError(f"a linear head must come back, but it is a {type(head).__name__}. Report this.")
        self.coef_, self.intercept_ = _unscaled(head, head.output)

    def _logits(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(X @ self.coef_.T + self.intercept_)


class MLPHeadClassifier(_HeadClassifier):
    """A head with hidden ReLU layers as a scikit-learn classifier.

    Parameters mean what they mean in `HeadSettings`, and are checked by `fit`. The defaults take more steps than
    `HeadSettings`', since sets that come this way are small.

    Args:
        hidden_width: Hidden units; several numbers for as many layers.
        learning_rate: Step size of AdamW.
        weight_decay: Decoupled decay of weights.
        positive_weight_exponent: Power of (negatives / positives) that weighs the positive term.
        dropout: Share of hidden units dropped in training.
        batch_size: Rows per step.
        epochs: Passes over the rows.
        standardize: Features are centred and scaled by the training rows.
        random_state: Seed of the order of rows, initial weights and dropout.
        device: Where to train: `cpu`, `cuda`, ...

    Attributes:
        classes_: The classes, or 0 to C - 1 for multi-label targets.
        coefs_: Weights of the hidden layer (H, D) and of the output layer (classes or labels, H).
        intercepts_: Biases of both.
        n_features_in_: D.
    """

    def __init__(
        self,
        *,
        hidden_width: int | tuple[int, ...] = 64,
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
        self.hidden_width = hidden_width
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.positive_weight_exponent = positive_weight_exponent
        self.dropout = dropout
        self.batch_size = batch_size
        self.epochs = epochs
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    def _settings(self, _rows: int, /) -> HeadSettings:
        return replace(self._common_settings(), kind="mlp", hidden_width=self.hidden_width)

    def _keep(self, head: Head) -> None:
        if not isinstance(head, MLPHead):
            raise TypeError(f"an MLP head must come back, but it is a {type(head).__name__}. Report this.")
        layers = (_unscaled(head, head.hidden), *map(_layer, head.hidden_layers[1:]), _layer(head.output))
        self.coefs_, self.intercepts_ = [list(parts) for parts in zip(*layers, strict=True)]

    def _logits(self, X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        hidden = X
        for weight, bias in zip(self.coefs_[:-1], self.intercepts_[:-1], strict=True):
            hidden = np.maximum(hidden @ weight.T + bias, 0)
        return np.asarray(hidden @ self.coefs_[-1].T + self.intercepts_[-1])


def _layer(layer: torch.nn.Linear) -> Layer:
    """Weights and biases in float64."""
    return tuple(tensor.detach().numpy().astype(np.float64) for tensor in (layer.weight, layer.bias))  # type: ignore[return-value]


def _unscaled(head: LinearHead | MLPHead, layer: torch.nn.Linear) -> Layer:
    """A first layer that takes features as they are: standardisation is worked into it."""
    weight, bias = _layer(layer)
    mean, scale = (tensor.numpy().astype(np.float64) for tensor in (head.front.mean, head.front.scale))
    weight = weight / scale
    return weight, bias - weight @ mean


def _on_cpu(array: Any) -> Any:
    """Torch tensors as numpy arrays; anything else as it is."""
    if not isinstance(array, torch.Tensor):
        return array
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
