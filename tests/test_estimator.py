"""The scikit-learn face: its own checks, Pipelines, grids, tensors, caches, and the same head as everywhere."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featurecache import FeatureCache
from featurecache.errors import MissingFeaturesError, SettingsError, TrainingDataError
from heads import CachedFeatures, LinearHeadClassifier, MLPHeadClassifier
from heads.engines.fitting import fit_head
from heads.models import head_scores
from heads.settings import HeadSettings
from tests.cache_samples import make_rows, names, space, values, write
from tests.learning_samples import make_clips

BOTH = (LinearHeadClassifier(), MLPHeadClassifier(epochs=10))


@parametrize_with_checks(
    [LinearHeadClassifier(), LinearHeadClassifier(solver="adamw"), MLPHeadClassifier(hidden_width=16, epochs=25)]
)
def test_head_classifiers_pass_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (
            LinearHeadClassifier(solver="adamw", epochs=5, random_state=3),
            HeadSettings(learning_rate=0.01, positive_weight_exponent=0.0, batch_size=64, epochs=5),
        ),
        (
            MLPHeadClassifier(hidden_width=(8, 6), epochs=5, random_state=3),
            HeadSettings(
                kind="mlp",
                hidden_width=(8, 6),
                learning_rate=0.01,
                positive_weight_exponent=0.0,
                batch_size=64,
                epochs=5,
            ),
        ),
        (
            LinearHeadClassifier(C=0.5, positive_weight_exponent=0.5),
            HeadSettings(solver="convex", l2=1 / 100, positive_weight_exponent=0.5),
        ),
    ],
)
def test_head_classifiers_are_the_heads_that_fit_head_gives(estimator: Any, settings: HeadSettings) -> None:
    data = make_clips(sessions=4)
    seed = np.random.RandomState(3).randint(2**31 - 1)
    ours = estimator.fit(data.X, data.Y)
    theirs = fit_head(data.X, data.Y, settings, seed=seed)
    np.testing.assert_allclose(ours.predict_proba(data.X), head_scores(theirs, data.X), atol=1e-6)
    assert (ours.predict(data.X) == (ours.predict_proba(data.X) >= 0.5)).all()


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_linear_head_classifier_equals_logistic_regression_when_nothing_is_weighed(C: float) -> None:
    data = make_clips(sessions=4)
    X = data.X * np.linspace(0.1, 5, data.X.shape[1]) + 3
    ours = LinearHeadClassifier(C=C).fit(X, data.Y)
    theirs = make_pipeline(StandardScaler(), MultiOutputClassifier(LogisticRegression(C=C, tol=1e-8, max_iter=1000)))
    expected = np.stack([column[:, 1] for column in theirs.fit(X, data.Y).predict_proba(X)], axis=1)
    np.testing.assert_allclose(ours.predict_proba(X), expected, atol=2e-3)


@pytest.mark.parametrize("estimator", BOTH)
def test_head_classifiers_work_in_a_pipeline_with_grouped_folds(estimator: Any) -> None:
    data = make_clips(sessions=6)
    model = make_pipeline(FunctionTransformer(np.tanh), estimator)
    accuracy = cross_val_score(clone(model), data.X, data.Y[:, 0], groups=data.sessions, cv=GroupKFold(3))
    assert accuracy.mean() > 0.75
    macro = cross_val_score(model, data.X, data.Y, groups=data.sessions, cv=GroupKFold(3), scoring="f1_macro")
    assert macro.mean() > 0.5


def test_linear_head_classifier_works_in_a_grid_search() -> None:
    data = make_clips(sessions=6)
    grid = {"C": [1e-3, 0.1], "positive_weight_exponent": [0.0, 0.5]}
    search = GridSearchCV(LinearHeadClassifier(), grid, cv=GroupKFold(3), scoring="f1_macro")
    search.fit(data.X, data.Y, groups=data.sessions)
    assert search.best_params_["positive_weight_exponent"] == 0.5
    assert len(search.cv_results_["params"]) == 4


@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_head_classifiers_take_torch_tensors(estimator: Any, dtype: torch.dtype) -> None:
    data = make_clips(sessions=2)
    X, Y = torch.from_numpy(data.X).to(dtype), torch.from_numpy(data.Y)
    model = clone(estimator).set_params(random_state=0)
    of_tensors = clone(model).fit(X.requires_grad_(), Y).predict_proba(X)
    array = X.detach().float().numpy() if dtype == torch.bfloat16 else X.detach().numpy()
    np.testing.assert_array_equal(of_tensors, clone(model).fit(array, data.Y).predict_proba(array))


def test_head_classifiers_take_torch_tensors_in_cross_validation() -> None:
    data = make_clips(sessions=4)
    X, y = torch.from_numpy(data.X), torch.from_numpy(data.Y[:, 0])
    options = {"groups": data.sessions, "cv": GroupKFold(2)}
    ours = cross_val_score(LinearHeadClassifier(), X, y, **options)
    np.testing.assert_array_equal(ours, cross_val_score(LinearHeadClassifier(), data.X, data.Y[:, 0], **options))


def test_linear_head_classifier_has_the_same_optimum_whatever_the_random_state() -> None:
    data = make_clips(sessions=2)
    one, other = (LinearHeadClassifier(random_state=seed).fit(data.X, data.Y) for seed in (0, 1))
    np.testing.assert_array_equal(one.coef_, other.coef_)


def test_head_classifiers_refuse_what_they_cannot_learn() -> None:
    data = make_clips(sessions=2)
    with pytest.raises(SettingsError, match="epochs must be"):
        MLPHeadClassifier(epochs=0).fit(data.X, data.Y)
    with pytest.raises(SettingsError, match="C must be above 0, but it is 0"):
        LinearHeadClassifier(C=0).fit(data.X, data.Y)
    with pytest.raises(SettingsError, match="convex solver must have a linear head without dropout"):
        LinearHeadClassifier(dropout=0.5).fit(data.X, data.Y)
    never = data.Y * np.array([1, 1, 0], np.int8)
    with pytest.raises(TrainingDataError, match="some training clips"):
        LinearHeadClassifier().fit(data.X, never)


# --- features of a cache --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A cache with final/mean and layer_3/mean of 60 clips, their ids, and targets that final/mean tells."""
    root, rows = tmp_path_factory.mktemp("cache") / "features.zarr", make_rows(60)
    write(root, rows)
    write(root, rows, of=space(tap="layer_3"))
    return root, np.array(names(rows)), (values(rows)[:, :2] > 0).astype(int)


def test_cached_features_are_those_of_the_cache(cached: tuple[Path, np.ndarray, np.ndarray]) -> None:
    root, clip_ids, _ = cached
    cache = FeatureCache.open(root)
    np.testing.assert_array_equal(CachedFeatures(root).fit_transform(clip_ids), cache.load(clip_ids.tolist()))
    side_by_side = CachedFeatures(cache, inputs="final/mean+layer_3/mean").transform(clip_ids[::-1])
    assert side_by_side.shape == (60, 48)
    np.testing.assert_array_equal(side_by_side[:, :24], cache.load(clip_ids[::-1].tolist()))
    with pytest.raises(MissingFeaturesError):
        CachedFeatures(root).transform(["f" * 16 + "-0-3000000"])
    with pytest.raises(SettingsError, match=r"'final' is not"):
        CachedFeatures(root, inputs="final").transform(clip_ids)


def test_cached_features_let_a_grid_search_choose_the_inputs(cached: tuple[Path, np.ndarray, np.ndarray]) -> None:
    root, clip_ids, Y = cached
    for cache in (root, FeatureCache.open(root)):
        model = make_pipeline(CachedFeatures(cache), LinearHeadClassifier())
        grid = {"cachedfeatures__inputs": ["final/mean", "final/mean+layer_3/mean"]}
        search = GridSearchCV(model, grid, cv=3, scoring="f1_macro").fit(clip_ids, Y)
        assert search.best_score_ > 0.6
        assert search.predict(clip_ids[:4]).shape == (4, 2)


@pytest.mark.parametrize(
    ("rows", "width", "scale", "noise", "C"),
    [
        pytest.param(300, 20, 30, 1.0, 1000, id="wide scale"),
        pytest.param(300, 20, 1000, 1.0, 1000, id="wider scale"),
        pytest.param(1000, 50, 100, 0.5, 1000, id="nearly separable"),
        pytest.param(100, 20, 30, 0.02, 1000, id="separable"),
        pytest.param(200, 400, 30, 1.0, 1000, id="more features than rows"),
    ],
)
def test_a_weak_penalty_reaches_scikit_learns_optimum_whatever_the_features_scale(
    rows: int, width: int, scale: float, noise: float, C: float
) -> None:
    random = np.random.default_rng(rows)
    X = (scale * random.standard_normal((rows, width))).astype(np.float32).astype(np.float64)
    y = (X @ random.standard_normal(width) / scale + noise * random.standard_normal(rows) > 0).astype(int)

    def objective(model: Any) -> float:
        z = X @ model.coef_[0] + model.intercept_[0]
        return float((np.logaddexp(0, z) - y * z).mean() + (model.coef_**2).sum() / (2 * C * rows))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # where classes are separable, it ends in L-BFGS
        reference = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=10_000).fit(X, y)
    ours = LinearHeadClassifier(C=C, standardize=False).fit(X, y)
    assert objective(ours) < objective(reference) * (1 + 1e-6)
