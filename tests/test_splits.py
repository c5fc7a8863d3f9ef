"""Splits: never a cut session, the same for the same seed, and as much presence as brute force finds."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurecache.clips.splits import SPLITS, _search_all, _search_descending, split_sessions
from featurecache.errors import SplitError


@st.composite
def sessions(draw: st.DrawFn, most: int = 8) -> tuple[dict[str, int], dict[str, list[int]]]:
    count, labels = draw(st.integers(3, most)), draw(st.integers(0, 4))
    clips = {f"S{i}": draw(st.integers(1, 50)) for i in range(count)}
    positives = {
        name: [draw(st.integers(0, size)) * draw(st.booleans()) for _ in range(labels)] for name, size in clips.items()
    }
    return clips, positives


def presence(positives: dict[str, list[int]], splits: dict[str, str]) -> int:
    """Pairs of a label and a split in which it is positive; -1 where a split is empty."""
    groups = [[positives[name] for name in positives if splits[name] == split] for split in SPLITS]
    if not all(groups):
        return -1
    return sum(any(row[label] for row in group) for group in groups for label in range(len(group[0])))


@settings(max_examples=60, deadline=None)
@given(sessions(most=6), st.integers(0, 3))
def test_split_sessions_reaches_the_presence_of_brute_force_when_small(data, seed: int) -> None:  # type: ignore[no-untyped-def]
    clips, positives = data
    best = max(
        presence(positives, dict(zip(clips, choice, strict=True)))
        for choice in itertools.product(SPLITS, repeat=len(clips))
    )
    assert presence(positives, split_sessions(clips, positives, seed=seed)) == best


@settings(max_examples=40, deadline=None)
@given(sessions(most=8), st.integers(0, 3))
def test_search_descending_finds_the_presence_of_search_all(data, seed: int) -> None:  # type: ignore[no-untyped-def]
    clips, positives = data
    names = sorted(clips)
    counts = np.array([[*positives[name], clips[name]] for name in names])
    counts = counts[:, counts.sum(axis=0) > 0]
    found = []
    fractions, free = np.array([0.6, 0.2, 0.2]), np.full(len(names), -1)
    for chosen in (
        _search_all(counts, fractions, free, seed),
        _search_descending(counts, fractions, free, names, seed),
    ):
        found.append(presence(positives, {name: SPLITS[k] for name, k in zip(names, chosen, strict=True)}))
    assert found[1] == found[0]


@settings(max_examples=30, deadline=None)
@given(sessions(most=14), st.integers(0, 5), st.randoms(use_true_random=False))
def test_split_sessions_is_the_same_when_the_order_differs(data, seed: int, shuffle: random.Random) -> None:  # type: ignore[no-untyped-def]
    clips, positives = data
    names = list(clips)
    shuffle.shuffle(names)
    again = split_sessions({n: clips[n] for n in names}, {n: positives[n] for n in reversed(names)}, seed=seed)
    assert list(again.items()) == list(split_sessions(clips, positives, seed=seed).items())
    assert set(again.values()) == set(SPLITS)


GOLDEN = ("arrreerarr", "errerarrarrreerrerrraraerrrraa")
"""Second letters of the splits in order of the sessions: papers name a seed and rely on it."""


def test_split_sessions_never_changes_between_versions() -> None:
    clips = {f"S{i:02d}": 100 + 7 * i for i in range(10)}
    positives = {name: [i * 3, 40 - 4 * i] for i, name in enumerate(clips)}
    chosen = "".join(split[1] for split in split_sessions(clips, positives, seed=7).values())
    many = {f"S{i:02d}": 100 + 7 * (i % 9) for i in range(30)}
    more = {name: [i % 5, i % 7 == 0] for i, name in enumerate(many)}
    assert (chosen, "".join(split[1] for split in split_sessions(many, more, seed=7).values())) == GOLDEN


def test_split_sessions_follows_the_fractions_when_sessions_are_many() -> None:
    draw = random.Random(3)
    clips = {f"S{i}": draw.randrange(50, 300) for i in range(60)}
    positives = {name: [draw.randrange(size), draw.randrange(size) // 9] for name, size in clips.items()}
    splits = split_sessions(clips, positives, fractions=(0.5, 0.2, 0.3))
    for column in range(2):
        total = sum(row[column] for row in positives.values())
        shares = [sum(positives[n][column] for n in clips if splits[n] == split) / total for split in SPLITS]
        assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.02)


def test_split_sessions_differ_when_the_seed_does() -> None:
    clips = {f"S{i}": 100 for i in range(10)}
    positives = {name: [10] for name in clips}
    assert len({tuple(split_sessions(clips, positives, seed=seed).values()) for seed in range(10)}) > 5


def test_split_sessions_keeps_what_is_fixed() -> None:
    clips = {f"S{i}": 10 + i for i in range(12)} | {"unlabelled": 0, "also": 0}
    positives = {name: [1] for name in clips}
    fixed = {"S0": "test", "S11": "validation", "also": "test"}
    splits = split_sessions(clips, positives, fixed=fixed)
    assert {name: splits[name] for name in fixed} == fixed
    assert splits["unlabelled"] == ""
    every = {f"S{i}": SPLITS[i % 3] for i in range(12)}
    assert split_sessions(clips, positives, fixed=every) == dict(
        sorted((every | {"unlabelled": "", "also": ""}).items())
    )


def test_one_session_trains_and_of_two_one_validates() -> None:
    assert split_sessions({"S0": 5, "no": 0}, {"S0": [1], "no": [0]}) == {"S0": "train", "no": ""}
    two = split_sessions({"S0": 5, "S1": 15}, {"S0": [1], "S1": [3]})
    assert two == {"S0": "validation", "S1": "train"}
    third = split_sessions({"S0": 5, "S1": 15, "S2": 5}, {"S0": [1], "S1": [3], "S2": [1]}, fixed=two)
    assert third == {**two, "S2": "test"}


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "there is none"),
        (2, {"fixed": {"S0": "test"}}, "leave (train|validation) without"),
        (4, {"fixed": {"S00": "train"}}, "'S00' does not. Did you mean 'S0'"),
        (3, {"fixed": {"S0": "train", "S1": "train"}}, "leave (test|validation) without"),
        (4, {"fixed": {f"S{i}": "train" for i in range(4)}}, "leave validation and test without"),
    ],
)
def test_split_sessions_says_what_to_do_when_it_cannot_split(count, options, message) -> None:  # type: ignore[no-untyped-def]
    clips = {f"S{i}": 5 for i in range(count)}
    with pytest.raises(SplitError, match=message):
        split_sessions(clips, {name: [1] for name in clips}, **options)
