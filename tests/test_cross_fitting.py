"""Cross-fitting and the permutation check: no head sees its session, and shuffled labels score at chance."""

from typing import Any

import numpy as np
import pytest

from featurecache.errors import SettingsError, TrainingDataError
from heads.folds import session_folds
from heads.scoring.cross_fitting import cross_fitted_scores, fold_scores, leave_one_session_out
from heads.scoring.metrics import macro_f1
from heads.scoring.permutation import permutation_check, shuffled_by_session
from tests.learning_samples import LABELS, make_clips


class Fitter:
    """Ridge regression on the targets, remembering what it was shown."""

    def __init__(self, X: np.ndarray) -> None:
        self.X = np.hstack([X, np.ones((len(X), 1))]).astype(np.float64)
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(
        self, train: np.ndarray, Y_train: np.ndarray, learnable: np.ndarray, held_out: np.ndarray
    ) -> np.ndarray:
        self.seen.append((train, held_out))
        X = self.X[train]
        weights = np.linalg.solve(X.T @ X + 5 * np.eye(X.shape[1]), X.T @ Y_train[:, learnable].astype(np.float64))
        return np.clip(self.X[held_out] @ weights, 0, 1)


def test_cross_fitted_scores_come_from_heads_that_never_saw_the_fold() -> None:
    data = make_clips(sessions=6)
    fitter = Fitter(data.X)
    fold_of = session_folds(data.Y, data.sessions, count=3)
    scores = cross_fitted_scores(fitter, data.Y, fold_of)
    assert len(fitter.seen) == 3
    for train, held_out in fitter.seen:
        assert not set(data.sessions[train]) & set(data.sessions[held_out])
        np.testing.assert_array_equal(
            scores[held_out], Fitter(data.X)(train, data.Y[train], np.ones(3, bool), held_out)
        )
    assert sorted(np.concatenate([held_out for _, held_out in fitter.seen])) == list(range(300))


def test_cross_fitted_scores_leave_out_training_clips_that_touch_held_out_ones() -> None:
    data = make_clips(sessions=2)
    ids = [f"{'a' * 16}-{3 * row}-{3 * row + 3}" for row in range(100)]  # one recording holds both sessions
    fitter = Fitter(data.X)
    cross_fitted_scores(fitter, data.Y, session_folds(data.Y, data.sessions), clip_ids=ids)
    (first, held), (second, _) = fitter.seen
    assert held.tolist() == list(range(50))
    assert first.tolist() == list(range(51, 100))
    assert second.tolist() == list(range(49))


def test_cross_fitted_scores_are_undefined_for_a_label_that_one_session_alone_has() -> None:
    data = make_clips(sessions=4)
    Y = data.Y.copy()
    Y[:, 1] &= data.sessions == "s0-2"
    scores = cross_fitted_scores(Fitter(data.X), Y, session_folds(Y, data.sessions))
    assert np.isnan(scores).all(axis=0).tolist() == [False, True, False]
    with pytest.raises(TrainingDataError, match="Annotate more sessions with these labels"):
        cross_fitted_scores(Fitter(data.X), Y[:, [1]], session_folds(Y, data.sessions))


def left_out(Y: np.ndarray, data: Any) -> dict[str, Any]:
    return leave_one_session_out(Fitter(data.X), Y, data.sessions, labels=LABELS)


def test_leave_one_session_out_pools_all_sessions_and_says_what_it_is_not() -> None:
    data = make_clips(sessions=6)
    document = left_out(data.Y, data)
    assert (document["n_clips"], document["n_sessions"], document["split"]) == (300, 6, "leave-one-session-out")
    assert document["macro_f1_ci95"][0] < document["macro_f1"] < document["macro_f1_ci95"][1]
    assert document["macro_f1"] > 0.6
    assert "chosen on some of these sessions" in document["caveat"]
    assert (document["not_learnable"], document["undefined"]) == ([], [])


def test_leave_one_session_out_leaves_undefined_what_cannot_be_learned_without_a_session() -> None:
    data = make_clips(sessions=4)
    Y = data.Y.copy()
    Y[:, 1] &= data.sessions == "s0-2"
    Y[:, 2] = 0
    document = left_out(Y, data)
    assert document["not_learnable"] == list(LABELS[1:])
    assert document["undefined"] == list(LABELS[1:])
    assert document["per_class"][LABELS[1]]["support"] == Y[:, 1].sum()
    assert "annotate at least 1 more session:" in document["macro_f1_ci95_reason"]
    assert "featurecache evaluate" not in document["macro_f1_ci95_reason"]
    assert document["macro_f1"] == document["per_class"][LABELS[0]]["f1"]
    assert document["macro_f1_ci95"] is None


def test_leave_one_session_out_is_refused_when_there_is_one_session() -> None:
    data = make_clips(sessions=1)
    with pytest.raises(SettingsError, match="of 1 sessions"):
        left_out(data.Y, data)


# --- the permutation check ------------------------------------------------------------------------


def test_shuffled_by_session_moves_blocks_and_changes_no_count() -> None:
    sessions = np.array(["b", "a", "b", "c", "c", "c", "a", "b"])
    Y = np.arange(8)[:, None]
    blocks = {tuple(Y[sessions == name, 0]) for name in "abc"}
    orders = set()
    for seed in range(20):
        laid = shuffled_by_session(Y, sessions, seed=seed)[np.argsort(sessions, kind="stable"), 0].tolist()
        assert sorted(laid) == list(range(8))
        found = []
        while laid:
            block = next(block for block in blocks if tuple(laid[: len(block)]) == block)
            found.append(block)
            laid = laid[len(block) :]
        orders.add(tuple(found))
    assert len(orders) == 6


def test_fold_scores_are_the_macro_f1_of_each_fold_that_was_left_out() -> None:
    data = make_clips(sessions=6)
    fold_of = session_folds(data.Y, data.sessions, count=3, seed=0)
    data.Y[fold_of == 1] = 0
    fit = Fitter(data.X)
    values, scores = fold_scores(fit, data.Y, fold_of), cross_fitted_scores(fit, data.Y, fold_of)
    assert np.isnan(values[1])
    for fold in (0, 2):
        assert values[fold] == macro_f1(data.Y[fold_of == fold], scores[fold_of == fold])


def test_permutation_check_is_at_chance_when_labels_have_nothing_to_do_with_features() -> None:
    values = []
    for seed in range(30):
        random = np.random.default_rng(seed)
        X, sessions = random.standard_normal((120, 4)), np.repeat([f"s{number}" for number in range(8)], 15)
        Y = (random.random((120, 1)) < 0.5).astype(np.int8)
        fold_of = session_folds(Y, sessions, count=2)
        values.append(permutation_check(Fitter(X), Y, sessions, fold_of, permutations=19)["p_value"])
    assert abs(np.mean(values) - 0.525) < 3 * 0.29 / 30**0.5
    assert 0 <= np.mean(np.array(values) <= 0.1) <= 0.27


def test_permutation_check_stands_out_when_there_is_something_to_learn() -> None:
    data = make_clips(sessions=6)
    fold_of = session_folds(data.Y, data.sessions, count=3)
    result = permutation_check(Fitter(data.X), data.Y, data.sessions, fold_of, permutations=39)
    assert result["p_value"] == 1 / 40
    assert result["observed"] > max(result["permuted"]) + 0.1
    assert result["permuted_mean"] == pytest.approx(np.mean(result["permuted"]))


def test_permutation_check_finds_a_pipeline_that_leaks() -> None:
    data = make_clips(sessions=6)
    fold_of = session_folds(data.Y, data.sessions, count=3)
    current = data.Y

    def peeks(train: np.ndarray, Y_train: np.ndarray, learnable: np.ndarray, held_out: np.ndarray) -> np.ndarray:
        return np.asarray(current[held_out][:, learnable].astype(float))

    result = permutation_check(peeks, data.Y, data.sessions, fold_of, permutations=5)
    assert result["observed"] == 1
    assert result["permuted_mean"] < 0.6
