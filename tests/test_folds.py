"""Inner folds: no session cut, every training part learnable where brute force finds a way, the same in any order."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.errors import SettingsError
from heads.folds import repeated_folds, session_folds


@st.composite
def labelled_sessions(draw: st.DrawFn, most: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Targets (N, C) with labels that only some sessions have, and sessions (N,)."""
    labels = draw(st.integers(1, 3))
    blocks, names = [], []
    for session in range(draw(st.integers(2, most))):
        clips = draw(st.integers(1, 6))
        on = [draw(st.integers(0, clips)) * draw(st.booleans()) for _ in range(labels)]
        blocks.append(np.array([[row < count for count in on] for row in range(clips)], np.int8))
        names += [f"S{session}"] * clips
    return np.concatenate(blocks), np.array(names)


def unlearnable(Y: np.ndarray, fold_of: np.ndarray) -> int:
    """Pairs of a fold and a label whose training part lacks positives or negatives that exist elsewhere."""
    lacking = 0
    for fold in np.unique(fold_of):
        rest = Y[fold_of != fold]
        lacking += int(((rest.sum(0) == 0) & (Y.sum(0) > 0)).sum() + ((rest.min(0) == 1) & (Y.min(0) == 0)).sum())
    return lacking


@settings(max_examples=60)
@given(labelled_sessions(), st.integers(2, 4), st.integers(0, 3))
def test_session_folds_cut_no_session_and_are_as_learnable_as_any(
    data: tuple[np.ndarray, np.ndarray], count: int, seed: int
) -> None:
    Y, sessions = data
    names, of_clip = np.unique(sessions, return_inverse=True)
    count = min(count, len(names))
    fold_of = session_folds(Y, sessions, count=count, seed=seed)
    assert set(fold_of) == set(range(count))
    assert all(len(set(fold_of[sessions == name])) == 1 for name in names)
    possible = (np.array(choice)[of_clip] for choice in itertools.product(range(count), repeat=len(names)))
    assert unlearnable(Y, fold_of) == min(
        unlearnable(Y, choice) for choice in possible if len(set(choice.tolist())) == count
    )


def test_session_folds_are_alike_in_size_and_labels_when_sessions_are_many() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(50, 300, 40)
    sessions = np.repeat([f"S{number:02d}" for number in range(40)], sizes)
    rate = np.repeat(random.uniform(0, 0.5, (40, 3)), sizes, axis=0)
    Y = (random.random(rate.shape) < rate).astype(np.int8)
    fold_of = session_folds(Y, sessions, count=5)
    shares = np.array([[*Y[fold_of == fold].sum(0) / Y.sum(0), (fold_of == fold).mean()] for fold in range(5)])
    assert np.abs(shares - 0.2).max() < 0.02


@pytest.mark.parametrize("rare", [1, 0])
def test_session_folds_put_two_sessions_apart_when_they_alone_have_a_label_on_or_off(rare: int) -> None:
    sessions = np.repeat([f"S{number}" for number in range(9)], 20)
    Y = np.full((180, 2), 1 - rare, np.int8)
    Y[::3, 0] = rare
    Y[[25, 26, 150], 1] = rare  # in S1 and S7 alone
    for seed in range(5):
        fold_of = session_folds(Y, sessions, count=3, seed=seed)
        assert fold_of[25] == fold_of[26] != fold_of[150]


@given(labelled_sessions(), st.randoms(use_true_random=False))
def test_session_folds_are_the_same_when_the_order_of_clips_differs(data, shuffle) -> None:  # type: ignore[no-untyped-def]
    Y, sessions = data
    order = list(range(len(Y)))
    shuffle.shuffle(order)
    fold_of = session_folds(Y, sessions, count=2, seed=1)
    assert (session_folds(Y[order], sessions[order], count=2, seed=1) == fold_of[order]).all()


def test_session_folds_never_change_between_versions() -> None:
    sessions = np.repeat([f"S{number:02d}" for number in range(12)], np.arange(10, 34, 2))
    Y = (np.arange(len(sessions))[:, None] % np.array([3, 7]) == 0).astype(np.int8)
    fold_of = session_folds(Y, sessions, count=4, seed=7)
    assert "".join(str(fold_of[sessions == name][0]) for name in np.unique(sessions)) == GOLDEN


GOLDEN = "310201232301"


def test_session_folds_leave_out_one_session_each_when_no_count_is_given() -> None:
    sessions = np.array(["b", "a", "c", "a"])
    assert session_folds(np.ones((4, 1), np.int8), sessions).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(("count", "sessions"), [(1, 3), (4, 3), (0, 3), (None, 1)])
def test_session_folds_are_refused_when_a_fold_would_have_no_session(count: int | None, sessions: int) -> None:
    names = np.array([f"S{number}" for number in range(sessions)])
    with pytest.raises(SettingsError, match=f"asked of {sessions} sessions"):
        session_folds(np.ones((sessions, 1), np.int8), names, count=count)


def test_repeated_folds_are_different_and_as_learnable_as_the_most_even_ones() -> None:
    sessions = np.repeat([f"S{number}" for number in range(8)], 4)
    Y = np.stack([np.arange(32) % 2, np.isin(sessions, ["S0", "S1"]) & (np.arange(32) % 4 == 0)], axis=1).astype(
        np.int8
    )
    of = repeated_folds(Y, sessions, count=5, repeats=12)
    assert np.array_equal(of[0], session_folds(Y, sessions, count=5))
    assert len(np.unique(of, axis=0)) > 6
    for fold_of in of:
        assert set(fold_of) == set(range(5))
        assert unlearnable(Y, fold_of) == 0
        assert all(len(set(fold_of[sessions == name])) == 1 for name in sessions)
    assert len(repeated_folds(Y, sessions, count=9, repeats=3)) == 1, "each session is a fold of its own"
