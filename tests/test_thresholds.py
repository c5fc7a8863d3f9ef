"""Thresholds: exact by brute force, many heads as one, and restrained."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from heads.folds import session_folds
from heads.scoring.thresholds import best_f1_thresholds, tuned_thresholds
from tests.learning_samples import random_predictions, targets_and_scores


@given(targets_and_scores())
def test_best_f1_thresholds_are_beaten_by_no_other(data: tuple[np.ndarray, np.ndarray]) -> None:
    Y, scores = data
    for label, found in enumerate(best_f1_thresholds(Y, scores)):
        y, s = Y[:, label], scores[:, label]
        every = [f1_score(y, s >= t, zero_division=0) for t in np.append(np.unique(s), 2)]
        always = f1_score(y, np.ones(len(y)), zero_division=0)
        if np.isnan(found):
            assert y.sum() in (0, len(y)) or max(every) == pytest.approx(always)
        else:
            assert f1_score(y, s >= found) == pytest.approx(max(every))
            assert max(every) > always
            assert found not in s


@given(targets_and_scores(), st.integers(1, 4))
def test_best_f1_thresholds_of_many_heads_are_those_of_each(data: tuple[np.ndarray, np.ndarray], heads: int) -> None:
    Y, scores = data
    many = np.stack([np.roll(scores, shift, axis=0) for shift in range(heads)])
    alone = np.stack([best_f1_thresholds(Y, one) for one in many])
    np.testing.assert_array_equal(best_f1_thresholds(Y, many), alone)


def test_best_f1_thresholds_part_scores_that_are_one_bit_apart() -> None:
    low = np.float32(0.3)
    scores = np.array([low, np.nextafter(low, np.float32(1))], np.float32)[:, None]
    found = best_f1_thresholds(np.array([[0], [1]]), scores)
    assert (scores >= found).ravel().tolist() == [False, True]


def test_best_f1_thresholds_know_the_ends_of_the_range() -> None:
    scores = np.array([-0.0, 0.0, 1.0, 1.0], np.float32)[:, None]
    assert best_f1_thresholds(np.array([[0], [0], [1], [1]]), scores) == [0.5]


@pytest.mark.parametrize(
    ("scores", "nearest"), [([0.9, 0.6, 0.55, 0.5, 0.3, 0.1], 0.4), ([0.6, 0.5, 0.45, 0.2, 0.1, 0.0], 0.55)]
)
def test_best_f1_thresholds_are_nearest_to_a_half_when_several_are_best(scores: list[float], nearest: float) -> None:
    y = np.array([1, 0, 0, 1, 0, 0])  # one predicted, TP 1: F1 2/3; four predicted, TP 2: F1 2/3
    assert best_f1_thresholds(y[:, None], np.array(scores)[:, None]) == pytest.approx(nearest)


def test_tuned_thresholds_move_from_a_half_the_more_positives_there_are() -> None:
    def tuned(repeats: int) -> float:
        y = np.tile([1, 1, 0, 0, 0, 0], repeats)
        scores = np.tile([0.3, 0.3, 0.1, 0.1, 0.1, 0.1], repeats)
        return float(tuned_thresholds(y[:, None], scores[:, None], np.full(len(y), "s"))[0])

    assert tuned(1) == pytest.approx(0.5 - 0.3 * 2 / 22)
    assert tuned(10) == pytest.approx(0.35)
    assert tuned(10_000) == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("positives", [0, 6])
def test_tuned_thresholds_stay_at_a_half_when_there_is_nothing_to_choose(positives: int) -> None:
    y, sessions = (np.arange(6) < positives).astype(np.int8)[:, None], np.array(["a", "b", "c"] * 2)
    assert tuned_thresholds(y, np.linspace(0, 1, 6)[:, None], sessions) == [0.5]
    half = np.array([[1], [0], [1], [0], [1], [0]])
    assert tuned_thresholds(half, np.full((6, 1), 0.3), sessions) == [0.5]


def test_tuned_thresholds_are_the_mean_over_session_folds() -> None:
    Y, scores, sessions = random_predictions(12)
    heads = np.stack([scores, scores**2])
    fold_of = session_folds(Y, sessions, count=5)
    weight = Y.sum(0) / (Y.sum(0) + 20)
    for tuned, of_head in zip(tuned_thresholds(Y, heads, sessions), heads, strict=True):
        best = np.mean([best_f1_thresholds(Y[fold_of != fold], of_head[fold_of != fold]) for fold in range(5)], axis=0)
        np.testing.assert_allclose(tuned, 0.5 + weight * (best - 0.5))


def test_tuned_thresholds_depend_little_on_one_odd_session() -> None:
    y = np.tile([0, 0, 0, 1, 1], 20)
    scores = np.tile([0.1, 0.2, 0.3, 0.7, 0.8], 20)
    sessions = np.repeat([f"s{number}" for number in range(10)], 10)
    odd = np.where(sessions == "s9", scores / 3, scores)
    calm = tuned_thresholds(y[:, None], scores[:, None], sessions)
    assert abs(tuned_thresholds(y[:, None], odd[:, None], sessions) - calm) < 0.1
