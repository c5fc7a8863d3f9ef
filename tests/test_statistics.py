"""Statistics over sessions: right error rates on simulated data, and exact where brute force can tell."""

import numpy as np
import pytest

from heads.scoring.metrics import f1_scores, macro_over_labels, session_counts
from heads.scoring.statistics import Candidates, paired_comparison, seed_fold_spread, selection_optimism


def simulated(
    random: np.random.Generator, *, sessions: int, skills: np.ndarray, clips: int = 40
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (N, C), predictions (T, N, C) of trials with skills (T, C), and sessions (N,) of unlike hardness."""
    label_count = skills.shape[1]
    of_clip = np.repeat(np.arange(sessions), clips)
    rate = random.uniform(0.15, 0.5, (sessions, label_count))[of_clip]
    Y = (random.random(rate.shape) < rate).astype(np.int8)
    hardness = random.normal(0, 0.4, (sessions, label_count))[of_clip]
    own = random.normal(0, 0.4, (len(skills), sessions, label_count))[:, of_clip]
    right = random.random((len(skills), *Y.shape)) < 1 / (1 + np.exp(-(skills[:, None] + hardness + own)))
    return Y, np.where(right, Y, 1 - Y).astype(bool), np.array([f"s{number:03d}" for number in of_clip])


def macro(counts: np.ndarray) -> np.ndarray:
    return macro_over_labels(f1_scores(counts))


# --- two sets of predictions ----------------------------------------------------------------------


def pair(random: np.random.Generator, *, sessions: int, better: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    Y, predicted, names = simulated(random, sessions=sessions, skills=np.array([[1.0 + better] * 3, [1.0] * 3]))
    ours, theirs = session_counts(Y, predicted, names)
    return ours, theirs


@pytest.mark.parametrize("sessions", [8, 16])
def test_paired_comparison_finds_a_difference_in_one_of_twenty_when_there_is_none(sessions: int) -> None:
    random = np.random.default_rng(sessions)
    found = [paired_comparison(*pair(random, sessions=sessions))["p_value"] for _ in range(200)]
    for level in (0.05, 0.2):
        share = np.mean(np.array(found) <= level)
        assert abs(share - level) < 2.6 * (level * (1 - level) / len(found)) ** 0.5 + 0.01


def test_paired_comparison_finds_a_difference_when_there_is_one() -> None:
    result = paired_comparison(*pair(np.random.default_rng(0), sessions=12, better=1.0))
    low, high = result["difference_ci95"]
    assert 0 < low < result["difference"] < high
    assert result["p_value"] < 0.01
    assert result["n_sessions"] == 12


def test_paired_comparison_is_the_same_with_the_other_sign_when_exchanged() -> None:
    ours, theirs = pair(np.random.default_rng(3), sessions=9, better=0.3)
    one, other = paired_comparison(ours, theirs), paired_comparison(theirs, ours)
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["difference_ci95"] == pytest.approx([-x for x in reversed(other["difference_ci95"])])
    assert one["p_value"] == pytest.approx(other["p_value"])


def test_paired_comparison_has_a_high_p_value_when_predictions_are_equal() -> None:
    ours, _ = pair(np.random.default_rng(5), sessions=20)
    result = paired_comparison(ours, ours)
    assert (result["difference"], result["difference_ci95"], result["p_value"]) == (0, [0, 0], 1)


def test_paired_comparison_gives_a_reason_when_sessions_are_few_or_nothing_is_on() -> None:
    ours, theirs = pair(np.random.default_rng(6), sessions=4)
    result = paired_comparison(ours, theirs)
    assert result["difference"] is not None
    assert (result["difference_ci95"], result["p_value"]) == (None, None)
    assert "at least 5 sessions" in result["reason"]
    nothing = np.zeros((8, 3, 2), int)
    assert paired_comparison(nothing, nothing)["difference"] is None


def test_paired_comparison_is_refused_when_clips_differ() -> None:
    ours, theirs = pair(np.random.default_rng(7), sessions=6)
    for other in (theirs[:5], theirs + np.array([1, 0, 0])[:, None]):
        with pytest.raises(ValueError, match="of the same clips"):
            paired_comparison(ours, other)


# --- the price of choosing ------------------------------------------------------------------------


def best_of_each_label(f1: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(f1), -1, f1).argmax(axis=-2)


@pytest.mark.parametrize("per_label", [False, True])
@pytest.mark.parametrize(("spread", "share_missed"), [(0.0, 0.2), (0.4, 1.0)])
def test_selection_optimism_is_nearer_to_the_truth_than_the_best_score(
    spread: float, share_missed: float, per_label: bool
) -> None:
    """Trials that are alike: almost exact. Trials that differ: cautious, since fewer sessions choose less well."""
    random = np.random.default_rng(1)
    best, corrected, truth = [], [], []
    for _ in range(40):
        skills = 1 + spread * random.normal(size=(30, 3))
        Y, predicted, names = simulated(random, sessions=10, skills=skills)
        counts = session_counts(Y, predicted, names)
        trials = [Candidates(counts, best_of_each_label)] if per_label else [Candidates.alone(one) for one in counts]
        result = selection_optimism(trials, resamples=100)
        Y, predicted, names = simulated(random, sessions=200, skills=skills)
        elsewhere = f1_scores(session_counts(Y, predicted, names).sum(axis=1))  # (T, C)
        f1 = f1_scores(counts.sum(axis=1))
        chosen = elsewhere[f1.argmax(0), range(3)] if per_label else elsewhere[f1.mean(1).argmax()]
        best.append(result["best"])
        corrected.append(result["corrected"])
        truth.append(chosen.mean())
        assert result["optimism"] == pytest.approx(result["best"] - result["corrected"])
    optimism = np.mean(best) - np.mean(truth)
    assert optimism > 0.01
    assert abs(np.mean(corrected) - np.mean(truth)) < share_missed * optimism
    assert np.mean(corrected) < np.mean(truth) + 0.2 * optimism


def test_selection_optimism_is_small_when_one_trial_is_far_better() -> None:
    skills = np.array([[2.5] * 3] + [[0.0] * 3] * 20)
    Y, predicted, names = simulated(np.random.default_rng(2), sessions=12, skills=skills)
    result = selection_optimism([Candidates.alone(one) for one in session_counts(Y, predicted, names)])
    assert abs(result["optimism"]) < 0.01
    assert (result["n_candidates"], result["n_sessions"]) == (21, 12)


def test_selection_optimism_gives_a_reason_when_sessions_are_few() -> None:
    Y, predicted, names = simulated(np.random.default_rng(2), sessions=4, skills=np.ones((5, 3)))
    result = selection_optimism([Candidates.alone(one) for one in session_counts(Y, predicted, names)])
    assert result["best"] is not None
    assert (result["corrected"], result["optimism"]) == (None, None)
    assert "there are 4" in result["reason"]


def test_selection_optimism_knows_a_label_that_one_session_alone_has() -> None:
    Y, predicted, names = simulated(np.random.default_rng(2), sessions=8, skills=np.ones((5, 3)))
    Y[:, 2] &= names == "s003"
    result = selection_optimism([Candidates.alone(one) for one in session_counts(Y, predicted, names)])
    assert 0 < result["corrected"] <= 1


def test_selection_optimism_counts_what_was_chosen_inside_a_trial_and_among_trials() -> None:
    """Two trials that each choose by label among the halves of what one trial chooses among, and one without choice."""
    Y, predicted, names = simulated(np.random.default_rng(4), sessions=20, skills=np.ones((30, 3)))
    counts = session_counts(Y, predicted, names)
    alone, every = Candidates.alone(counts[0]), Candidates(counts, best_of_each_label)
    halves = [Candidates(half, best_of_each_label) for half in (counts[:15], counts[15:])]
    none, two, one = (selection_optimism(trials) for trials in ([alone], halves, [every]))
    assert abs(none["optimism"]) < 0.01 < two["optimism"] < one["optimism"]
    assert none["best"] < two["best"] < one["best"]
    assert (none["n_candidates"], two["n_candidates"], one["n_candidates"]) == (1, 30, 30)


# --- seeds and folds ------------------------------------------------------------------------------


def test_seed_fold_spread_tells_seeds_from_folds() -> None:
    values = np.array([0.5, 0.6, 0.7])[:, None] + np.array([0.0, 0.02])
    spread = seed_fold_spread(values)
    assert spread["mean"] == pytest.approx(0.61)
    assert spread["sd_over_seeds"] == pytest.approx(0.1)
    assert spread["sd_over_folds"] == pytest.approx(np.std([0.6, 0.62], ddof=1))
    assert (spread["lowest"], spread["highest"], spread["undefined"]) == (0.5, pytest.approx(0.72), 0)


def test_seed_fold_spread_leaves_out_what_is_undefined() -> None:
    spread = seed_fold_spread(np.array([[0.5, np.nan], [0.7, np.nan]]))
    assert (spread["sd_over_folds"], spread["undefined"]) == (None, 2)
    assert spread["sd_over_seeds"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert seed_fold_spread(np.full((1, 1), np.nan))["mean"] is None
