"""The scikit-learn face: its own checks, Pipelines, and the same head as everywhere."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from featurecache.errors import SettingsError, TrainingDataError
from heads import LinearHeadClassifier
from heads.models import head_scores
from heads.settings import HeadSettings
from heads.training import TrainingClips, fit_heads
from tests.test_training import make_clips


@parametrize_with_checks([LinearHeadClassifier()])
def test_linear_head_classifier_passes_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def test_linear_head_classifier_is_the_head_that_fit_heads_gives() -> None:
    data = make_clips()
    random = np.random.RandomState(3)
    ours = LinearHeadClassifier(epochs=5, random_state=3).fit(data.X, data.Y)
    settings = HeadSettings(learning_rate=0.01, positive_weight_exponent=0.0, batch_size=64, epochs=5)
    (theirs,) = fit_heads(TrainingClips(data.X, data.Y, seed=random.randint(2**31 - 1)), [settings])
    assert theirs.head is not None
    np.testing.assert_allclose(ours.predict_proba(data.X), head_scores(theirs.head, data.X), atol=1e-6)
    assert (ours.predict(data.X) == (ours.predict_proba(data.X) >= 0.5)).all()


def test_linear_head_classifier_works_in_a_pipeline_with_grouped_folds() -> None:
    data = make_clips(clips_each=100)
    model = make_pipeline(FunctionTransformer(np.tanh), LinearHeadClassifier(random_state=0))
    folds = GroupKFold(4)
    accuracy = cross_val_score(clone(model), data.X, data.Y[:, 0], groups=data.sessions, cv=folds)
    assert accuracy.mean() > 0.75


def test_linear_head_classifier_refuses_what_it_cannot_learn() -> None:
    data = make_clips()
    with pytest.raises(SettingsError, match="epochs must be"):
        LinearHeadClassifier(epochs=0).fit(data.X, data.Y)
    never = data.Y * np.array([1, 1, 0], np.int8)
    with pytest.raises(TrainingDataError, match="some training clips"):
        LinearHeadClassifier().fit(data.X, never)
