"""Calibration: recovers a known distortion, keeps order, parity with scikit-learn; and the curves' points."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve

from heads.scoring.calibration import (
    brier_scores,
    calibration_document,
    calibration_errors,
    choose_calibration,
    cross_calibrated,
    fit_calibration,
    reliability,
)
from heads.scoring.curves import curves
from heads.scoring.metrics import metrics_document

LABELS = ("a", "b", "c")


def drawn(clips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Targets (N, 3) that are on with probabilities (N, 3)."""
    random = np.random.default_rng(seed)
    probabilities = 1 / (1 + np.exp(-random.normal([-2, 0, 1], 1.5, (clips, 3))))
    return (random.random(probabilities.shape) < probabilities).astype(np.int8), probabilities


def distorted(probabilities: np.ndarray) -> np.ndarray:
    """Too sure by a factor of 2, and moved up as positive weights do."""
    log_odds = np.log(probabilities / (1 - probabilities))
    return (1 / (1 + np.exp(-2 * (log_odds + np.array([2.0, 0.0, 1.0]))))).astype(np.float32)


def test_fit_calibration_undoes_a_known_distortion() -> None:
    Y, probabilities = drawn(40_000)
    found = fit_calibration(Y, distorted(probabilities))
    assert found.temperatures == pytest.approx([2, 2, 2], rel=0.06)
    assert found.offsets == pytest.approx([-2, 0, -1], abs=0.12)
    other, truth = drawn(40_000, seed=1)
    assert np.abs(found.apply(distorted(truth)) - truth).max() < 0.03
    assert calibration_errors(other, found.apply(distorted(truth))).max() < 0.02
    assert calibration_errors(other, distorted(truth)).min() > 0.05


def test_fit_calibration_equals_scikit_learns_optimum_when_the_prior_is_weak() -> None:
    Y, probabilities = drawn(20_000)
    scores = np.clip(distorted(probabilities).astype(np.float64), 1e-6, 1 - 1e-6)
    log_odds = np.log(scores / (1 - scores))
    found = fit_calibration(Y, scores)
    for label in range(3):
        theirs = LogisticRegression(C=1e6, tol=1e-9).fit(log_odds[:, [label]], Y[:, label])
        assert 1 / found.temperatures[label] == pytest.approx(theirs.coef_[0, 0], abs=2e-3)
        assert found.offsets[label] == pytest.approx(theirs.intercept_[0], abs=2e-3)


def test_fit_calibration_changes_little_when_clips_are_few() -> None:
    Y, probabilities = drawn(6)
    Y[:, 1] = [0, 1, 0, 1, 0, 1]
    found = fit_calibration(Y, probabilities)
    assert np.abs(1 / found.temperatures - 1).max() < 1
    assert np.abs(found.offsets).max() < 1.5


def test_fit_calibration_keeps_scores_when_a_label_is_never_or_always_on() -> None:
    Y, probabilities = drawn(100)
    Y[:, 0], Y[:, 2] = 0, 1
    found = fit_calibration(Y, probabilities)
    assert found.temperatures[[0, 2]].tolist() == [1, 1]
    assert found.offsets[[0, 2]].tolist() == [0, 0]
    np.testing.assert_allclose(found.apply(probabilities)[:, [0, 2]], probabilities[:, [0, 2]])


@pytest.mark.parametrize("scores", [[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
def test_fit_calibration_stays_finite_and_keeps_order_when_scores_are_extreme(scores: list[float]) -> None:
    Y = np.array([0, 1, 1, 0] * 30)[:, None]
    column = np.array(scores * 30, np.float32)[:, None]
    found = fit_calibration(Y, column)
    assert np.isfinite(found.apply(column)).all()
    assert (np.diff(found.apply(np.linspace(0, 1, 11)[:, None])[:, 0]) > 0).all()


def test_cross_calibrated_scores_do_not_know_their_own_session() -> None:
    Y, probabilities = drawn(400)
    sessions = np.repeat([f"s{number}" for number in range(4)], 100)
    scores = distorted(probabilities)
    crossed = cross_calibrated(Y, scores, sessions)
    assert crossed is not None
    here = sessions == "s2"
    np.testing.assert_allclose(crossed[here], fit_calibration(Y[~here], scores[~here]).apply(scores[here]))
    assert cross_calibrated(Y, scores, np.full(400, "s")) is None


def test_a_label_that_calibration_makes_worse_keeps_its_scores() -> None:
    Y, probabilities = drawn(400)
    scores, sessions = distorted(probabilities), np.repeat([f"s{number}" for number in range(8)], 50)
    random = np.random.default_rng(1)
    right = np.where(random.random(400) < 0.98, Y[:, 1], 1 - Y[:, 1])
    scores[:, 1] = np.where(right == 1, 0.9, 0.1)
    scores[np.flatnonzero(right != Y[:, 1]), 1] = (1 - Y[:, 1])[right != Y[:, 1]]  # the few wrong ones are quite sure
    fitted, (found, calibrated) = fit_calibration(Y, scores), choose_calibration(Y, scores, sessions)
    assert brier_scores(Y, fitted.apply(scores))[1] > brier_scores(Y, scores)[1]
    assert (found.temperatures[1], found.offsets[1]) == (1, 0)
    assert found.temperatures[[0, 2]].tolist() == fitted.temperatures[[0, 2]].tolist()
    assert calibrated is not None
    assert (calibrated[:, 1] == scores[:, 1]).all()
    np.testing.assert_allclose(found.apply(scores)[:, 1], scores[:, 1], atol=1e-6)
    alone, nothing = choose_calibration(Y, scores, np.full(400, "s"))
    assert nothing is None
    assert alone.temperatures.tolist() == fitted.temperatures.tolist()


def test_brier_scores_equal_scikit_learn() -> None:
    Y, probabilities = drawn(200)
    expected = [brier_score_loss(Y[:, label], probabilities[:, label]) for label in range(3)]
    assert brier_scores(Y, probabilities) == pytest.approx(expected)


def test_reliability_bins_hold_like_many_clips_and_keep_equal_scores_together() -> None:
    Y, probabilities = drawn(1000)
    score, observed, clips = reliability(Y[:, 0], probabilities[:, 0])
    assert clips.tolist() == [100] * 10
    assert (np.diff(score) > 0).all()
    assert (clips * observed).sum() == pytest.approx(Y[:, 0].sum())
    score, observed, clips = reliability(np.array([0, 1, 1, 0]), np.array([0.2, 0.2, 0.2, 0.9]))
    assert score == pytest.approx([0.2, 0.9])
    assert (observed.tolist(), clips.tolist()) == ([pytest.approx(2 / 3), 0], [3, 1])


def test_calibration_document_has_means_of_what_is_defined() -> None:
    Y, probabilities = drawn(300)
    Y[:, 1] = 0
    document = calibration_document(Y, distorted(probabilities), probabilities, labels=LABELS)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["before"]["per_class"]["b"] == {"ece": None, "brier": None}
    assert document["after"]["brier"] < document["before"]["brier"]
    both = [document["after"]["per_class"][label]["ece"] for label in ("a", "c")]
    assert document["after"]["ece"] == pytest.approx(np.mean(both))
    nothing = calibration_document(np.zeros_like(Y), probabilities, None, labels=LABELS)
    assert (nothing["before"]["ece"], nothing["after"]) == (None, None)


def test_curves_are_points_of_scikit_learns_curve_ready_for_json() -> None:
    Y, probabilities = drawn(700)
    Y[:, 2] = 0
    found = curves(Y, probabilities, labels=LABELS)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["c"] is None
    points = found["a"]["precision_recall"]  # type: ignore[index]
    precision, recall, thresholds = precision_recall_curve(Y[:, 0], probabilities[:, 0])
    theirs = {t: (p, r) for t, p, r in zip(thresholds, precision, recall, strict=False)}
    assert len(points["recall"]) == 101
    for t, p, r in zip(points["threshold"], points["precision"], points["recall"], strict=True):
        assert (p, r) == pytest.approx(theirs[t])
    assert points["recall"][-1] == 1
    area = np.sum(np.diff(points["recall"], prepend=0) * points["precision"])
    assert area == pytest.approx(average_precision_score(Y[:, 0], probabilities[:, 0]), abs=0.02)


def test_thresholds_chosen_on_scores_as_trained_decide_the_same_when_both_are_calibrated() -> None:
    Y, probabilities = drawn(300)
    scores, sessions = distorted(probabilities), np.full(300, "s")
    found = fit_calibration(Y, scores)
    thresholds = np.array([0.6, 0.4, 0.7])
    moved = found.apply(thresholds[None])[0]
    plain = metrics_document(Y, scores, thresholds, sessions, labels=LABELS, split="test")
    after = metrics_document(Y, found.apply(scores), moved, sessions, labels=LABELS, split="test")
    assert plain["macro_f1"] == after["macro_f1"]
