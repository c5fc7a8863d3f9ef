"""Seconds, bouts and starts of an activity, and the limits of agreement of two readings."""

import numpy as np
import pytest

from heads.timelines.activity import activity_of, limits_of_agreement, together

S = 1_000_000


def test_bouts_that_touch_are_one_and_time_outside_does_not_count() -> None:
    spans = [(20 * S, 24 * S), (0, 4 * S), (4 * S, 6 * S), (50 * S, 60 * S)]
    found = activity_of(spans, [(2 * S, 22 * S), (30 * S, 40 * S)])
    assert (found.seconds, found.bouts, found.first_s) == (6, 2, 2)
    assert found.between_starts_s == (18,)
    assert found.median_between_starts_s == 18


def test_an_activity_that_never_occurs_has_no_first_start() -> None:
    found = activity_of([], [(0, 10 * S)])
    assert (found.seconds, found.bouts, found.first_s, found.median_between_starts_s) == (0, 0, None, None)


def test_recordings_of_a_session_add_up_and_have_no_common_first_start() -> None:
    parts = [activity_of([(at * S, (at + 1) * S), (9 * S, 10 * S)], [(0, 10 * S)]) for at in (0, 3)]
    found = together(parts)
    assert (found.seconds, found.bouts, found.first_s) == (4, 4, None)
    assert found.median_between_starts_s == 7.5
    assert together(parts[:1]) is parts[0]


def test_limits_of_agreement_hold_95_of_100_new_sessions_when_there_are_many() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(10, 60, 4000)
    seen = truth + random.normal(3, 5, 4000)
    found = limits_of_agreement(truth[:2000].tolist(), seen[:2000].tolist())
    assert found is not None
    differences = (seen - truth)[2000:]
    assert np.mean((found.limits[0] < differences) & (differences < found.limits[1])) == pytest.approx(0.95, abs=0.015)
    assert found.mean_ci95[0] < 3 < found.mean_ci95[1]
    assert limits_of_agreement([1, 2], [2, 3]) is None


def test_each_limit_is_known_as_well_as_its_own_interval_says() -> None:
    random, within = np.random.default_rng(0), []
    for differences in random.normal(3, 5, (2000, 8)):
        found = limits_of_agreement([0.0] * 8, differences.tolist())
        assert found is not None
        within.append(abs(found.limits[1] - (3 + 1.96 * 5)) < found.limit_error)
    assert 0.92 < np.mean(within) < 0.97
