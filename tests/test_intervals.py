"""Intervals over sessions: how often they hold the truth, one estimand, and the p value that belongs to them."""

import numpy as np
import pytest
from scipy.special import expit, logit

from heads.scoring.intervals import f1_intervals, holm, macro_f1_difference, macro_f1_interval
from heads.scoring.metrics import f1_scores, macro_over_labels

PREVALENCE = np.array([0.5, 0.2, 0.1])


def studies(
    random: np.random.Generator, count: int, sessions: int, *, spread: float, absent: float = 0.0, heads: int = 1
) -> list[np.ndarray]:
    """Counts (count, M, 3, C) of heads of the same law; sessions differ by `spread`, some lack the last label."""
    shape = (count, sessions, len(PREVALENCE))
    rate = expit(logit(PREVALENCE) + spread * random.normal(size=shape))
    rate[..., -1] *= random.random(shape[:2]) >= absent
    positives = random.binomial(60, rate)
    common, found = random.normal(size=(*shape[:2], 1)), []
    for _ in range(heads):
        hard, loud = (spread * (common + random.normal(size=shape)) for _ in range(2))
        right = random.binomial(positives, expit(1 - hard))
        found.append(np.stack([right, random.binomial(60 - positives, expit(loud - 2.7)), positives - right], axis=-2))
    return found


@pytest.mark.parametrize("absent", [0.0, 0.6])
@pytest.mark.parametrize("sessions", [6, 12])
@pytest.mark.parametrize("spread", [0.2, 0.8])
def test_interval_holds_the_truth_in_at_least_93_of_100_studies(spread: float, sessions: int, absent: float) -> None:
    random = np.random.default_rng(1)
    (population,) = studies(random, 1, 100_000, spread=spread, absent=absent)
    (counts,) = studies(random, 4000, sessions, spread=spread, absent=absent)
    found = f1_scores(counts.sum(axis=1))
    truth = macro_over_labels(np.where(np.isnan(found), np.nan, f1_scores(population[0].sum(axis=0))))
    low, high = macro_f1_interval(counts).T
    assert 1 - (truth < low).mean() - (truth > high).mean() >= 0.93 - 0.008  # two standard errors
    assert max((truth < low).mean(), (truth > high).mean()) < 0.06  # neither tail has nearly all of the misses
    spread_of_estimates = np.sqrt(((macro_over_labels(found) - truth) ** 2).mean())
    widest = 1.3 if not absent else 1.4  # a label of one or two sessions is known to be little known
    assert (high - low).mean() < widest * 2 * 1.96 * spread_of_estimates


def test_interval_of_a_perfect_score_still_has_a_width_and_holds_the_score() -> None:
    perfect = np.zeros((6, 3, 2), int)
    perfect[:, 0] = 10
    nothing_found = perfect[:, [2, 1, 0]]
    low, high = macro_f1_interval(perfect)
    assert 0.5 < low < high == 1
    assert macro_f1_interval(nothing_found)[0] == 0 < macro_f1_interval(nothing_found)[1] < 0.5


def test_a_label_that_one_session_alone_has_stays_in_the_average_and_widens_the_interval() -> None:
    (counts,) = studies(np.random.default_rng(0), 1, 6, spread=0.3)
    once = counts[0].copy()
    once[1:, 2, -1] += once[1:, 0, -1]  # its positives elsewhere are taken away
    once[1:, [0, 2], -1] = 0
    score = macro_over_labels(f1_scores(once.sum(axis=0)))
    low, high = macro_f1_interval(once)
    assert low < score < high
    of_labels = f1_intervals(once)
    assert of_labels[-1, 1] - of_labels[-1, 0] > 2 * (of_labels[0, 1] - of_labels[0, 0])


def test_interval_is_undefined_with_four_sessions_or_without_a_positive() -> None:
    (counts,) = studies(np.random.default_rng(0), 1, 4, spread=0.3)
    assert np.isnan(macro_f1_interval(counts[0])).all()
    assert np.isnan(macro_f1_interval(np.zeros((6, 3, 2), int))).all()


def test_p_value_is_below_a_twentieth_exactly_where_the_interval_excludes_zero() -> None:
    random = np.random.default_rng(2)
    for sessions in (5, 6, 12):
        ours, theirs = studies(random, 1000, sessions, spread=0.6, absent=0.6, heads=2)
        _, ends, p_value = macro_f1_difference(ours, theirs)
        excludes = (ends[:, 0] > 0) | (ends[:, 1] < 0)
        assert (excludes == (p_value < 0.05)).all()
        assert 0.03 < excludes.mean() < 0.075  # the two are alike in truth


def test_difference_of_one_session_alone_is_no_evidence() -> None:
    (counts,) = studies(np.random.default_rng(0), 1, 6, spread=0.3)
    other = counts[0].copy()
    other[0, :, 0] = other[0, [2, 1, 0], 0]  # found and missed change places
    _, (low, high), p_value = macro_f1_difference(counts[0], other)
    assert low < 0 < high
    assert p_value > 0.2


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
