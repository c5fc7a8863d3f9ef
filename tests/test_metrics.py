"""Metrics: parity with scikit-learn, exact thresholds, undefined labels, intervals over sessions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from heads.metrics import (
    average_precision,
    best_f1_threshold,
    confusion_counts,
    f1_scores,
    macro_f1,
    macro_f1_interval,
    metrics_document,
    tuned_thresholds,
)

LABELS = ("ventilation", "suction", "stimulation")


@st.composite
def targets_and_scores(draw: st.DrawFn, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct scores, so that ties are common; float32 as heads give them."""
    rows = draw(st.integers(1, 40))
    Y = draw(arrays.arrays(np.int8, (rows, columns), elements=st.integers(0, 1)))
    steps = draw(arrays.arrays(np.int8, (rows, columns), elements=st.integers(0, 12)))
    return Y, (steps / 12).astype(np.float32)


def random_predictions(sessions: int, clips_each: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rate = np.repeat(random.uniform(0.1, 0.6, (sessions, 3)), clips_each, axis=0)
    Y = (random.random(rate.shape) < rate).astype(np.int8)
    scores = np.clip(0.3 * Y + 0.7 * random.random(rate.shape), 0, 1).astype(np.float32)
    return Y, scores, np.repeat([f"s{number}" for number in range(sessions)], clips_each)


@given(targets_and_scores())
def test_document_equals_scikit_learn_when_scores_are_defined(data: tuple[np.ndarray, np.ndarray]) -> None:
    Y, scores = data
    thresholds = np.array([0.5, 0.25, 0.75])
    document = metrics_document(Y, scores, thresholds, np.full(len(Y), "s"), labels=LABELS, split="test")
    defined = []
    for at, label in enumerate(LABELS):
        y, predicted, ours = Y[:, at], scores[:, at] >= thresholds[at], document["per_class"][label]
        assert ours["support"] == y.sum()
        if not y.any():
            assert label in document["undefined"]
            assert {ours[name] for name in ("f1", "precision", "recall", "average_precision")} == {None}
            continue
        defined.append(f1_score(y, predicted))
        assert ours["f1"] == pytest.approx(defined[-1])
        assert ours["recall"] == pytest.approx(recall_score(y, predicted))
        assert ours["average_precision"] == pytest.approx(average_precision_score(y, scores[:, at]))
        if predicted.any():
            assert ours["precision"] == pytest.approx(precision_score(y, predicted))
        else:
            assert ours["precision"] is None
    if defined:
        assert document["macro_f1"] == pytest.approx(np.mean(defined))
        assert macro_f1(Y, scores, thresholds) == pytest.approx(np.mean(defined))
    else:
        assert document["macro_f1"] is None
        assert np.isnan(macro_f1(Y, scores, thresholds))


@given(targets_and_scores(columns=1))
def test_best_f1_threshold_is_beaten_by_no_other(data: tuple[np.ndarray, np.ndarray]) -> None:
    y, scores = data[0][:, 0], data[1][:, 0]
    every = [f1_score(y, scores >= t, zero_division=0) for t in np.append(np.unique(scores), 2)]
    always = f1_score(y, np.ones(len(y)), zero_division=0)
    found = best_f1_threshold(y, scores)
    if found is None:
        assert y.sum() in (0, len(y)) or max(every) == pytest.approx(always)
    else:
        assert f1_score(y, scores >= found) == pytest.approx(max(every))
        assert max(every) > always
        assert found not in scores


@pytest.mark.parametrize(
    ("scores", "nearest"), [([0.9, 0.6, 0.55, 0.5, 0.3, 0.1], 0.4), ([0.6, 0.5, 0.45, 0.2, 0.1, 0.0], 0.55)]
)
def test_best_f1_threshold_is_nearest_to_a_half_when_several_are_best(scores: list[float], nearest: float) -> None:
    y = np.array([1, 0, 0, 1, 0, 0])  # one predicted, TP 1: F1 2/3; four predicted, TP 2: F1 2/3
    assert best_f1_threshold(y, np.array(scores)) == pytest.approx(nearest)


def test_tuned_thresholds_move_from_a_half_the_more_positives_there_are() -> None:
    def tuned(repeats: int) -> float:
        y = np.tile([1, 1, 0, 0, 0, 0], repeats)
        scores = np.tile([0.3, 0.3, 0.1, 0.1, 0.1, 0.1], repeats)
        return float(tuned_thresholds(y[:, None], scores[:, None])[0])

    assert tuned(1) == pytest.approx(0.5 - 0.3 * 2 / 22)
    assert tuned(10) == pytest.approx(0.35)
    assert tuned(10_000) == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("positives", [0, 6])
def test_tuned_thresholds_stay_at_a_half_when_there_is_nothing_to_choose(positives: int) -> None:
    y = (np.arange(6) < positives).astype(np.int8)[:, None]
    assert tuned_thresholds(y, np.linspace(0, 1, 6)[:, None]) == [0.5]
    half = np.array([[1], [0], [1], [0], [1], [0]])
    assert tuned_thresholds(half, np.full((6, 1), 0.3)) == [0.5]


def test_f1_scores_work_on_stacks_of_counts() -> None:
    Y, scores, _ = random_predictions(4)
    counts = confusion_counts(Y, scores >= 0.5)
    np.testing.assert_allclose(f1_scores(np.stack([counts, 3 * counts])), np.tile(f1_scores(counts), (2, 1)))


def test_average_precision_is_the_prevalence_when_all_scores_are_equal() -> None:
    y = np.array([1, 0, 0, 1, 0])
    assert average_precision(y, np.full(5, 0.3)) == pytest.approx(0.4)


def test_macro_f1_interval_equals_a_plain_bootstrap_over_sessions() -> None:
    Y, scores, sessions = random_predictions(8)
    predicted = scores >= 0.5
    low, high = macro_f1_interval(Y, predicted, sessions, seed=0, resamples=4000)
    random = np.random.default_rng(1)
    values = []
    for _ in range(600):
        rows = np.concatenate([np.flatnonzero(sessions == s) for s in random.choice(np.unique(sessions), 8)])
        values.append(f1_score(Y[rows], predicted[rows], average="macro"))
    assert [low, high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.012)
    assert low < macro_f1(Y, scores) < high
    assert (low, high) == macro_f1_interval(Y, predicted, sessions, seed=0, resamples=4000)


def test_macro_f1_interval_is_wider_when_clips_of_a_session_are_alike() -> None:
    Y, scores, sessions = random_predictions(8, clips_each=5)
    low, high = macro_f1_interval(Y, scores >= 0.5, sessions, seed=0)
    copies = [np.repeat(array, 10, axis=0) for array in (Y, scores >= 0.5, sessions)]
    assert macro_f1_interval(*copies, seed=0) == pytest.approx((low, high))


def test_macro_f1_interval_leaves_a_label_out_of_resamples_without_a_positive_of_it() -> None:
    Y, _, sessions = random_predictions(6)
    Y[:, 1] = sessions == "s3"
    interval = macro_f1_interval(Y, Y.astype(bool), sessions, seed=0)
    assert interval == (1.0, 1.0)


def test_document_has_no_interval_but_a_reason_when_sessions_are_few() -> None:
    Y, scores, sessions = random_predictions(4)
    document = metrics_document(Y, scores, np.full(3, 0.5), sessions, labels=LABELS, split="test")
    assert document["macro_f1_ci95"] is None
    assert "at least 5 sessions to resample, but test has 4" in document["macro_f1_ci95_reason"]


def test_document_is_the_contract_when_written_as_json() -> None:
    Y, scores, sessions = random_predictions(6)
    Y[:, 2] = 0
    document = metrics_document(Y, scores, np.full(3, 0.5), sessions, labels=LABELS, split="validation")
    document = json.loads(json.dumps(document, allow_nan=False))
    keys = ["macro_f1", "macro_f1_ci95", "per_class", "undefined", "n_clips", "n_sessions", "split"]
    assert list(document) == keys
    assert document["undefined"] == ["stimulation"]
    assert (document["n_clips"], document["n_sessions"], document["split"]) == (240, 6, "validation")
    per_class = ["f1", "precision", "recall", "average_precision", "threshold", "support"]
    assert [list(document["per_class"][label]) for label in LABELS] == [per_class] * 3
    low, high = document["macro_f1_ci95"]
    assert 0 < low < document["macro_f1"] < high < 1
