"""Prevalence shift against counting, and decision curves against their definition."""

import numpy as np
import pytest

from heads.scoring.decision import PROBABILITIES, at_prevalence, decision_curves, prevalence_shift, reweighted


def test_scores_at_the_seen_prevalence_are_those_that_were_counted() -> None:
    random = np.random.default_rng(0)
    Y = (random.random((400, 2)) < (0.2, 0.6)).astype(int)
    predicted = random.random(Y.shape) < 0.2 + 0.6 * Y
    found = prevalence_shift(Y, predicted, np.full(2, 0.3), labels=["a", "b"])
    for at, label in enumerate(("a", "b")):
        rows = found[label]
        assert rows is not None
        seen = rows[1]
        assert seen["prevalence"] == pytest.approx(Y[:, at].mean())
        assert seen["precision"] == pytest.approx(Y[predicted[:, at], at].mean())
        assert seen["npv"] == pytest.approx(1 - Y[~predicted[:, at], at].mean())
        assert seen["probability_at_threshold"] == pytest.approx(0.3)
    assert len(found["b"] or ()) == 2  # twice as common is more than all clips
    stated = prevalence_shift(Y, predicted, np.full(2, 0.3), labels=["a", "b"], stated={"b": Y[:, 1].mean()})
    assert stated["a"] == found["a"]
    assert stated["b"] == [*(found["b"] or ()), pytest.approx({**(found["b"] or ())[1], "stated": True})]


def test_scores_at_another_prevalence_are_those_of_a_set_with_that_many_positives() -> None:
    on = np.array([1] * 30 + [0] * 20, bool)  # of 50 positives 30 are found, of 100 negatives 10 falsely
    found = at_prevalence(0.6, 0.9, 0.2)
    positives, negatives = 200, 800
    hits, alarms = 0.6 * positives, 0.1 * negatives
    assert on.mean() == 0.6
    assert found["precision"] == pytest.approx(hits / (hits + alarms))
    assert found["npv"] == pytest.approx(0.9 * negatives / (0.9 * negatives + 0.4 * positives))
    assert found["f1"] == pytest.approx(2 * hits / (2 * hits + alarms + 0.4 * positives))


def test_reweighted_probabilities_are_calibrated_at_the_stated_prevalence() -> None:
    random = np.random.default_rng(0)
    p = random.beta(1, 3, 200_000)
    on = random.random(len(p)) < p
    keep = on | (random.random(len(p)) < 0.25)  # negatives are three quarters rarer elsewhere
    stated, moved = float(on[keep].mean()), p[keep]
    moved = reweighted(moved, seen=float(on.mean()), stated=stated)
    for low in np.arange(0, 1, 0.2):
        inside = (moved >= low) & (moved < low + 0.2)
        assert on[keep][inside].mean() == pytest.approx(moved[inside].mean(), abs=0.02)


def test_net_benefit_of_perfect_probabilities_is_the_prevalence_and_of_constant_ones_that_of_acting_always() -> None:
    Y = np.array([[1, 1, 0]] * 3 + [[0, 0, 0]] * 7)
    curves = decision_curves(Y, np.where(Y == 1, 1.0, 0.0) * [1, 0, 1] + [0, 0.99, 0], labels=["a", "b", "c"])
    perfect, constant = curves["a"], curves["b"]
    assert perfect is not None
    assert constant is not None
    assert perfect["model"] == pytest.approx([0.3] * len(PROBABILITIES))
    assert constant["model"] == pytest.approx(constant["all_positive"])
    assert constant["all_positive"][0] == pytest.approx(0.3 - 0.7 * 0.05 / 0.95)
    assert curves["c"] is None
