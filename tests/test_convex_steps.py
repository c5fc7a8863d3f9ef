"""The convex engine's steps: which problems it calls converged, and what it never does on the way."""

import itertools

import numpy as np
import pytest
import torch

from featurecache.errors import SettingsError
from heads.engines.convex import GridPoint, grid_points, solve_grid
from heads.engines.descent import solve_problems
from tests.convex_samples import PROBLEMS, features, make_basis, make_clips, objective, point_of, solve_exactly


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_single_precision_finds_the_optimum_when_one_direction_has_most_of_the_variance(exponent: float) -> None:
    random = np.random.default_rng(0)
    z = random.standard_normal((300, 64))
    X = (z * [60, *[8] * 63]) @ random.standard_normal((64, 2048)) / 45 + 0.1 * random.standard_normal((300, 2048))
    Y = (z[:, :8] @ random.standard_normal((8, 2)) + random.standard_normal((300, 2)) > 1).astype(np.int8)
    single, double = (make_basis(X.astype(np.float32), Y, precision=p) for p in ("float32", "float64"))
    points = grid_points(l2=np.geomspace(1e-3, 10, 8).tolist(), positive_weight_exponent=[0.5])
    ours = solve_grid(single, Y, points, variance_exponent=exponent)
    exact = solve_grid(double, Y, points, variance_exponent=exponent, tolerance=1e-9, max_iterations=1000)
    assert ours.converged.all()
    assert (ours.decrement >= 0).all()
    np.testing.assert_allclose(ours.objective, exact.objective, rtol=3e-3)


def test_each_problem_starts_with_its_own_gradient() -> None:
    X, Y = make_clips()
    basis = make_basis(X, Y)
    points = grid_points(
        l2=[1, 1e-2],
        positive_weight_exponent=[0.0, 1.0],
    )
    begun = solve_grid(basis, Y, points, max_iterations=0)
    assert not begun.iterations.any()
    for (g, point), c in itertools.product(enumerate(points), range(2)):
        _, gradient = objective(features(basis), Y[:, c], point, point_of(begun, g, c))
        assert begun.gradient_norm[g, c] == pytest.approx(np.linalg.norm(gradient)), (point, c)


def test_a_problem_with_a_negative_newton_decrement_is_not_reported_as_converged() -> None:
    X, Y = make_clips()
    x, y = torch.from_numpy(X), torch.from_numpy(Y.T.astype(np.float32))
    found = solve_problems(
        x,
        l2=torch.tensor([1.0, 0.1]),
        start_bias=torch.zeros(2),
        same_loss=torch.arange(2),
        loss_weights=lambda ids: (torch.ones(len(ids), len(x)) / len(x), y[ids] / len(x), torch.zeros(1, 1)),
        precondition=lambda gradient, curvature, l2: -gradient,
        penalise=lambda rows: rows,
        tolerance=1e-4,
        max_iterations=20,
    )
    assert not found.converged.any()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_converged_problems_are_near_their_optimum_and_gradients_are_as_stated(name: str, precision: str) -> None:
    X, Y = PROBLEMS[name]
    basis, exact = (make_basis(X, Y, precision=p) for p in (precision, "float64"))
    points = grid_points(l2=[1, 1e-2, 1e-4], positive_weight_exponent=[0.0, 1.0])
    tolerance = 1e-4
    grid, best = solve_grid(basis, Y, points, tolerance=tolerance), solve_exactly(exact, Y, points)
    assert grid.converged.all()
    x = features(basis).astype(np.float64)
    for (g, point), c in itertools.product(enumerate(points), range(2)):
        value, gradient = objective(x, Y[:, c], point, point_of(grid, g, c))
        assert value - best.objective[g, c] <= 3 * tolerance * value, (point, c)
        assert grid.objective[g, c] == pytest.approx(value, rel=1e-4)
        assert grid.gradient_norm[g, c] == pytest.approx(np.linalg.norm(gradient), rel=2e-2, abs=1e-6)


def test_a_head_is_refused_of_problems_that_have_not_converged() -> None:
    X, Y = make_clips()
    grid = solve_grid(
        make_basis(X, Y),
        Y,
        [GridPoint(1.0, 0.0), GridPoint(1e-6, 0.0)],
        max_iterations=3,
        fold_of=np.arange(len(X)) % 2,
    )
    assert grid.converged.tolist() == [[True, True], [False, False]]
    assert (grid.iterations[1] == 3).all()
    assert not grid.folds_converged[:, 1].any()
    grid.head(np.array([0, 0]))
    with pytest.raises(SettingsError, match="label 1 at GridPoint"):
        grid.head(np.array([0, 1]))


def test_problems_end_unconverged_when_precision_cannot_reach_the_tolerance() -> None:
    X, Y = make_clips(N=400, D=30)
    grid = solve_grid(make_basis(X, Y, precision="float32"), Y, [GridPoint(1e-5, 1.0)], tolerance=1e-20)
    assert not grid.converged.any()
    assert (grid.iterations < 200).all()
    assert (grid.decrement < 1e-6 * grid.objective).all()


def test_solve_grid_never_raises_the_objective_when_it_continues() -> None:
    X, Y = PROBLEMS["separable"]
    basis = make_basis(X, Y)
    points = [GridPoint(1e-5, 6.0), GridPoint(1e-1, 0.0)]
    values = np.stack([solve_grid(basis, Y, points, max_iterations=n, tolerance=1e-12).objective for n in range(12)])
    assert (np.diff(values, axis=0) <= 1e-15).all()
    assert (values[-1] < 0.6 * values[0]).all()
