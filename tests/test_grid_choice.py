"""The choice in a convex grid: by plateaus, one penalty for all labels, exponents of their own where clips tell."""

import itertools

import numpy as np
import pytest

from featurecache.errors import TrainingDataError
from heads.engines.convex import GridPoint, grid_points
from heads.search.grid_choice import choose_points

MANY = 1_000_000


def many(C: int) -> np.ndarray:
    return np.full(C, MANY)


def test_choose_points_prefers_a_plateau_to_a_lone_peak() -> None:
    points = grid_points(l2=[1, 2, 3, 4, 5, 6, 7], positive_weight_exponent=[0.5])
    f1 = np.array([0.1, 0.85, 0.1, 0.1, 0.7, 0.8, 0.7])[:, None]
    assert choose_points(f1, many(1), points).tolist() == [5]


def test_choose_points_takes_the_stronger_penalty_when_points_are_alike() -> None:
    points = grid_points(l2=[0.1, 10.0, 1.0], positive_weight_exponent=[0.0, 1.0])
    assert [point.l2 for point in points] == [10, 10, 1, 1, 0.1, 0.1]
    assert choose_points(np.full((6, 1), 0.5), many(1), points).tolist() == [0]


def apart(*f1: list[float]) -> tuple[list[GridPoint], np.ndarray]:
    """Points of one penalty, and between each two one that scores nothing, so that they are no neighbours."""
    points = [GridPoint(1.0, 0.2 * at) for at in range(2 * len(f1) - 1)]
    values = np.zeros((len(points), len(f1[0])))
    values[::2] = f1
    return points, values


def test_a_label_has_an_exponent_of_its_own_where_its_positives_are_many() -> None:
    points, f1 = apart([0.5, 0.2, 0.9], [0.2, 0.6, 0.1])
    assert choose_points(f1, many(3), points).tolist() == [0, 2, 0]
    assert choose_points(f1, np.array([MANY, 1, MANY]), points).tolist() == [0, 0, 0], "a rare label follows"
    # Its own F1 differs by .4, the mean by .23: its own decides from a share of .37 on, which is 12 positives.
    assert choose_points(f1, np.array([MANY, 11, MANY]), points).tolist() == [0, 0, 0]
    assert choose_points(f1, np.array([MANY, 12, MANY]), points).tolist() == [0, 2, 0]


def test_a_label_without_a_score_follows_the_others() -> None:
    points, f1 = apart([0.5, np.nan, 0.9], [0.2, 0.6, 0.1])
    assert choose_points(f1, many(3), points).tolist() == [0, 0, 0]
    assert choose_points(np.full_like(f1, np.nan), many(3), points).tolist() == [0, 0, 0], "and with none the first"


def test_what_did_not_converge_is_not_chosen() -> None:
    points, f1 = apart([0.5, 0.5], [0.6, 0.6])
    allowed = np.ones(f1.shape, bool)
    allowed[2, 1] = False
    assert choose_points(f1, many(2), points, allowed=allowed).tolist() == [2, 0]
    weak = [*points, *(GridPoint(0.1, point.positive_weight_exponent) for point in points)]
    twice = np.concatenate([f1, f1])
    allowed = np.concatenate([np.ones(f1.shape, bool), np.zeros(f1.shape, bool)])
    assert {weak[at].l2 for at in choose_points(twice, many(2), weak, allowed=allowed)} == {1.0}
    with pytest.raises(TrainingDataError, match="each of the 2 labels"):
        choose_points(f1, many(2), points, allowed=np.array([[True, False]] * 3))


def test_choose_points_is_what_brute_force_finds_for_any_number_of_choices_at_once() -> None:
    random = np.random.default_rng(0)
    points = grid_points(l2=[0.1, 1.0, 10.0], positive_weight_exponent=[0.0, 0.5, 1.0])
    f1, positives = random.random((2, 5, len(points), 3)), np.array([5, 40, 300])
    index = [np.array([(10.0, 1.0, 0.1).index(p.l2), p.positive_weight_exponent * 2]) for p in points]
    choices = choose_points(f1, positives, points)
    assert choices.shape == (2, 5, 3)
    for at in itertools.product(range(2), range(5)):
        averaged = np.empty_like(f1[at])
        for g, here in enumerate(index):
            near = {other: int(np.abs(here - there).sum()) for other, there in enumerate(index)}
            weight = {other: {0: 2, 1: 1}.get(steps, 0) for other, steps in near.items()}
            averaged[g] = sum(w * f1[at][other] for other, w in weight.items()) / sum(weight.values())
        own = positives / (positives + 20)
        merit = own * averaged + (1 - own) * averaged.mean(axis=1, keepdims=True)
        best, found = -1.0, None
        for l2 in (10.0, 1.0, 0.1):
            rows = [g for g, p in enumerate(points) if p.l2 == l2]
            if merit[rows].max(axis=0).sum() > best:
                best, found = merit[rows].max(axis=0).sum(), np.array(rows)[merit[rows].argmax(axis=0)]
        assert choices[at].tolist() == found.tolist()
