"""The convex engine: parity with scikit-learn, columns that share nothing, folds that see nothing, true flags."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from featurecache.errors import SettingsError, TrainingDataError
from heads.engines import axes as axes_module
from heads.engines import descent
from heads.engines.axes import leading_axes
from heads.engines.basis import Basis
from heads.engines.convex import ConvexGrid, GridPoint, grid_points, solve_grid
from heads.engines.descent import minimise_columns
from heads.engines.training_clips import TrainingClips, View
from heads.models import head_scores
from heads.scoring.metrics import confusion_counts, f1_scores, macro_f1
from heads.search.grid_choice import choose_points
from tests.multilabel_sets import read_set


def make_clips(N: int = 150, D: int = 12, C: int = 2, *, seed: int = 0, noise: float = 1.0) -> tuple[Any, Any]:
    """Off-centre features of different scales, and labels of 30% and 15% positives that they tell with noise."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((N, D))
    logits = 2 * z @ random.standard_normal((D, C)) / D**0.5 + noise * random.standard_normal((N, C))
    Y = (logits > [np.quantile(logits[:, c], (0.7, 0.85)[c]) for c in range(C)]).astype(np.int8)
    return (z * np.linspace(0.5, 2, D) + np.linspace(-1, 1, D)).astype(np.float32), Y


def make_basis(X: Any, Y: Any, *, normalization: str = "standardize", precision: Any = "float64", **more: Any) -> Basis:
    front = TrainingClips(X, Y, seed=0, shuffle=False).front(View(normalization, 0))
    return Basis.fit(X, front, precision=precision, **more)


def solve_exactly(basis: Basis, Y: Any, points: Any, **more: Any) -> ConvexGrid:
    return solve_grid(basis, Y, points, **{"tolerance": 1e-13, "max_iterations": 2000, **more})


def features(basis: Basis, components: int = 0) -> np.ndarray:
    return (basis.projected[:, :components] if components else basis.X).numpy()


def positive_weight(y: np.ndarray, point: GridPoint) -> float:
    return ((y == 0).sum() / (y == 1).sum()) ** point.positive_weight_exponent


def objective(x: np.ndarray, y: np.ndarray, point: GridPoint, theta: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and gradient of one column in double precision, written from the definition; theta is (bias, weights)."""
    z = theta[0] + x @ theta[1:]
    p = positive_weight(y, point)
    value = (p * y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)).mean() + point.l2 / 2 * theta[1:] @ theta[1:]
    score = 1 / (1 + np.exp(-z))
    residual = (p * y * (score - 1) + (1 - y) * score) / len(y)
    return float(value), np.append(residual.sum(), x.T @ residual + point.l2 * theta[1:])


def by_scikit_learn(x: np.ndarray, y: np.ndarray, point: GridPoint) -> np.ndarray:
    """(bias, weights) of the same problem."""
    weights = np.where(y == 1, positive_weight(y, point), 1)
    model = LogisticRegression(C=1 / (len(y) * point.l2), solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(x, y, sample_weight=weights)
    return np.append(model.intercept_, model.coef_)


def point_of(grid: ConvexGrid, g: int, c: int) -> np.ndarray:
    return np.append(grid.bias[g, c].item(), grid.weights[g, c].double().numpy())


PROBLEMS = {
    "ordinary": make_clips(),
    "separable": make_clips(N=60, D=20, noise=0.0),
    "wide": make_clips(N=50, D=120),
    "rank_deficient": (np.repeat(make_clips(D=6)[0], 3, axis=1), make_clips(D=6)[1]),
    "constant_features": (np.where(np.arange(12) % 4 == 0, np.float32(3), make_clips()[0]), make_clips()[1]),
}


# --- parity with references -----------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["standardize", "none", "l2"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_solve_grid_equals_scikit_learn_when_every_column_is_compared(name: str, normalization: str) -> None:
    X, Y = PROBLEMS[name]
    basis = make_basis(X, Y, normalization=normalization)
    points = [
        GridPoint(1.0, 0.5),
        GridPoint(1e-2, 1.2),
        GridPoint(1e-4, 0.0),
        GridPoint(1e-2, 2.0),
        GridPoint(1e-6, 1.0),
    ]
    grid = solve_exactly(basis, Y, points)
    assert grid.converged.all()
    x = features(basis)
    for (g, point), c in itertools.product(enumerate(points), range(2)):
        theirs = by_scikit_learn(x, Y[:, c], point)
        ours = point_of(grid, g, c)
        # Each solver stops where the objective is flat to its tolerance; under l2 = 1e-6 weights may still lie apart.
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs), (point, c)
        assert grid.objective[g, c] == pytest.approx(objective(x, Y[:, c], point, theirs)[0], rel=1e-6)


def test_solve_grid_equals_scikit_learn_when_features_are_principal_components() -> None:
    X, Y = make_clips(D=20)
    basis = make_basis(X, Y)
    point = GridPoint(1e-2, 1.0)
    grid = solve_exactly(basis, Y, [point], components=5)
    x = PCA(5, svd_solver="full").fit_transform(features(basis))
    theirs = by_scikit_learn(x, Y[:, 0], point)
    np.testing.assert_allclose(np.abs(features(basis, 5)), np.abs(x), atol=1e-8)
    np.testing.assert_allclose(np.abs(point_of(grid, 0, 0)), np.abs(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(150, 12), (50, 120)])
def test_solve_grid_finds_one_optimum_when_all_components_are_kept(shape: tuple[int, int]) -> None:
    X, Y = make_clips(*shape)
    basis = make_basis(X, Y)
    points = grid_points(l2=[1e-1, 1e-3], positive_weight_exponent=[0.0, 1.0])
    full = solve_exactly(basis, Y, points)
    rotated = solve_exactly(basis, Y, points, components=basis.axes.shape[1])
    back = rotated.weights @ basis.axes.T
    torch.testing.assert_close(back, full.weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rotated.objective, full.objective, rtol=1e-8)


def test_solve_grid_finds_one_optimum_when_few_axes_guide_it() -> None:
    X, Y = make_clips(N=300, D=60)
    points = grid_points(l2=[1e-1, 1e-3], positive_weight_exponent=[0.0, 1.0])
    guided, complete = (solve_exactly(make_basis(X, Y, components=m), Y, points) for m in (3, 60))
    torch.testing.assert_close(guided.weights, complete.weights, rtol=1e-4, atol=1e-6)


# --- penalties that follow the variances ------------------------------------------------------------


def scales(x: np.ndarray, exponent: float, known: int) -> np.ndarray:
    """S from the definition, (D, D), by a full decomposition of which `known` directions are told apart."""
    variances, vectors = np.linalg.eigh(x.T @ x / len(x))
    variances, vectors = variances[::-1].copy(), vectors[:, ::-1]
    mean = variances.mean()
    variances[known:] = variances[known:].mean() if known < len(variances) else 0
    return (vectors * np.maximum(variances / mean, 1e-2) ** (exponent / 2)) @ vectors.T


@pytest.mark.parametrize(("components", "known"), [(0, 12), (0, 4), (5, 12)])
@pytest.mark.parametrize("exponent", [0.3, 1.0])
@pytest.mark.parametrize("name", ["ordinary", "rank_deficient", "constant_features"])
def test_solve_grid_equals_scikit_learn_on_stretched_features_when_penalties_follow_variances(
    name: str, exponent: float, components: int, known: int
) -> None:
    X, Y = PROBLEMS[name]
    basis = make_basis(X, Y, normalization="none", components=known)
    points = [GridPoint(1e-1, 0.5), GridPoint(1e-3, 1.3)]
    grid = solve_exactly(basis, Y, points, components=components, variance_exponent=exponent)
    S = scales(features(basis), exponent, basis.axes.shape[1])
    if components:
        axes = basis.axes[:, :components].numpy()
        S = axes.T @ S @ axes
    for (g, point), c in itertools.product(enumerate(points), range(2)):
        x = features(basis, components)
        stretched = by_scikit_learn(x @ S, Y[:, c], point)
        ours, theirs = point_of(grid, g, c), np.append(stretched[0], S @ stretched[1:])
        np.testing.assert_allclose(x @ ours[1:] + ours[0], x @ theirs[1:] + theirs[0], rtol=1e-3, atol=1e-4)
        assert grid.objective[g, c] == pytest.approx(objective(x @ S, Y[:, c], point, stretched)[0], rel=1e-6)


def test_a_penalty_that_follows_variances_finds_what_leading_directions_tell() -> None:
    random = np.random.default_rng(2)
    signal, noise = random.standard_normal((600, 20)), 1.5 * random.standard_normal((600, 400))
    X = (signal @ random.standard_normal((20, 400)) / 20**0.5 + noise).astype(np.float32)
    logits = 2 * signal @ random.standard_normal((20, 2)) / 20**0.5 + random.standard_normal((600, 2))
    Y = (logits > 0.5).astype(np.int8)
    basis = make_basis(X[:150], Y[:150], precision="float32")
    points = grid_points(l2=np.logspace(-3, 1, 9).tolist(), positive_weight_exponent=[0.5])
    best = {
        exponent: max(
            macro_f1(Y[150:], scores)
            for scores in solve_grid(basis, Y[:150], points, variance_exponent=exponent).scores(X[150:])
        )
        for exponent in (0.0, 1.0)
    }
    assert best[1.0] > best[0.0] + 0.01


@pytest.mark.parametrize(("N", "components"), [(50, 0), (50, 3), (15, 0)])  # 15 clips vary in 14 directions
def test_scaling_by_a_power_is_undone_by_its_opposite(N: int, components: int) -> None:
    X, Y = make_clips(N=N, D=120)
    basis = make_basis(X, Y, components=20)
    rows = torch.randn(4, components or 120, dtype=torch.float64)
    there = basis.scaling(0.7, components)(rows)
    assert not torch.allclose(there, rows)
    torch.testing.assert_close(basis.scaling(-0.7, components)(there), rows)
    assert basis.scaling(0, components)(rows) is rows


# --- columns share nothing ------------------------------------------------------------------------


def test_a_column_is_the_same_alone_and_in_company(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = make_clips()
    basis = make_basis(X, Y)
    points = grid_points(l2=[1, 1e-2, 1e-4], positive_weight_exponent=[0.0, 0.5, 1.0])
    together = solve_grid(basis, Y, points)
    monkeypatch.setattr(descent, "COLUMNS_AT_ONCE", 4)  # columns wait and take the places of others
    queued = solve_grid(basis, Y, points)
    alone = solve_grid(basis, Y[:, 1:], points[4:5])
    torch.testing.assert_close(queued.weights, together.weights, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(alone.weights[0, 0], together.weights[4, 1], rtol=1e-7, atol=1e-10)
    assert (queued.iterations == together.iterations).all()
    assert alone.iterations[0, 0] == together.iterations[4, 1]


def test_solve_grid_gives_the_same_bits_when_run_twice() -> None:
    X, Y = make_clips(N=400, D=40)
    points = grid_points(l2=[1, 1e-3], positive_weight_exponent=[0.0, 1.0])
    fold_of = np.arange(400) % 3
    first, again = (
        solve_grid(make_basis(X, Y, precision="float32", components=8), Y, points, fold_of=fold_of) for _ in range(2)
    )
    assert torch.equal(first.weights, again.weights)
    assert np.array_equal(first.out_of_fold, again.out_of_fold)


def test_a_fold_equals_a_fit_on_its_clips_alone() -> None:
    X, Y = make_clips()
    basis = make_basis(X, Y)
    point = GridPoint(1e-2, 0.7)
    fold_of = np.arange(len(X)) // 50
    beside = np.zeros((3, len(X)), bool)
    beside[0, 50:55] = True
    grid = solve_exactly(basis, Y, [point], fold_of=fold_of, beside=beside)
    assert grid.folds_converged.shape == (3, 1, 2)
    assert grid.folds_converged.all()
    x = features(basis)
    for fold, c in itertools.product(range(3), range(2)):
        train = (fold_of != fold) & ~beside[fold]
        theta = by_scikit_learn(x[train], Y[train, c], point)
        expected = 1 / (1 + np.exp(-(theta[0] + x[fold_of == fold] @ theta[1:])))
        np.testing.assert_allclose(grid.out_of_fold[0, 0, fold_of == fold, c], expected, atol=1e-5)
    without_folds = solve_exactly(basis, Y, [point])
    torch.testing.assert_close(grid.weights, without_folds.weights, rtol=1e-7, atol=1e-10)
    assert without_folds.out_of_fold.shape == (0, 1, len(X), 2)


@pytest.mark.parametrize(("variance_exponent", "components"), [(1.0, 0), (0.0, 5), (0.5, 5)])
def test_of_few_sessions_a_fold_knows_no_axis_that_held_out_clips_made(
    variance_exponent: float, components: int
) -> None:
    X, Y = make_clips(N=60, D=80)
    front = TrainingClips(X, Y, seed=0, shuffle=False).front(View("standardize", 0))
    folds = np.stack([np.arange(60) // 20, np.arange(60) % 3])
    solve = partial(
        solve_exactly, points=[GridPoint(1e-2, 0.7)], components=components, variance_exponent=variance_exponent
    )
    found = solve(Basis.fit(X, front, precision="float64"), Y, fold_of=folds).out_of_fold
    for repeat, fold in itertools.product(range(2), range(3)):
        train = folds[repeat] != fold
        alone = solve(Basis.fit(X[train], front, precision="float64"), Y[train])
        np.testing.assert_allclose(found[repeat][:, ~train], alone.scores(X[~train]), atol=1e-5)


def test_out_of_fold_scores_do_not_depend_on_held_out_targets() -> None:
    X, Y = make_clips()
    basis = make_basis(X, Y)
    fold_of = np.arange(len(X)) % 2
    other = Y.copy()
    other[fold_of == 1] = other[fold_of == 1][::-1]  # as many positives, on other clips
    point = [GridPoint(1e-4, 1.0)]
    ours, theirs = (solve_grid(basis, y, point, fold_of=fold_of, max_iterations=3).out_of_fold for y in (Y, other))
    assert np.array_equal(ours[:, :, fold_of == 1], theirs[:, :, fold_of == 1])
    assert not np.allclose(ours[:, :, fold_of == 0], theirs[:, :, fold_of == 0])


def test_out_of_fold_scores_are_undefined_when_one_fold_has_all_positives() -> None:
    X, Y = make_clips()
    Y[50:, 1] = 0
    grid = solve_grid(make_basis(X, Y), Y, [GridPoint(1e-2, 1.0)], fold_of=np.arange(len(X)) // 50)
    assert np.isnan(grid.out_of_fold[..., 1]).all()
    assert np.isfinite(grid.out_of_fold[..., 0]).all()
    assert grid.converged.all()
    assert grid.folds_converged.all()


# --- what is said of a column is true -------------------------------------------------------------


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


def test_each_column_begins_with_its_own_gradient() -> None:
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


def test_columns_whose_steps_would_climb_are_not_called_converged() -> None:
    X, Y = make_clips()
    x, y = torch.from_numpy(X), torch.from_numpy(Y.T.astype(np.float32))
    found = minimise_columns(
        x,
        l2=torch.tensor([1.0, 0.1]),
        start_bias=torch.zeros(2),
        alike=torch.arange(2),
        loss_weights=lambda ids: (torch.ones(len(ids), len(x)) / len(x), y[ids] / len(x)),
        precondition=lambda gradient, curvature, l2: -gradient,
        penalise=lambda rows: rows,
        tolerance=1e-4,
        max_iterations=20,
    )
    assert not found.converged.any()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_converged_columns_are_near_their_optimum_and_gradients_are_as_stated(name: str, precision: str) -> None:
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


def test_columns_are_refused_when_they_have_not_converged() -> None:
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


def test_columns_end_unconverged_when_precision_cannot_reach_the_tolerance() -> None:
    X, Y = make_clips(N=400, D=30)
    grid = solve_grid(make_basis(X, Y, precision="float32"), Y, [GridPoint(1e-5, 1.0)], tolerance=1e-20)
    assert not grid.converged.any()
    assert (grid.iterations < 200).all()
    assert (grid.decrement < 1e-6 * grid.objective).all()


def test_solve_grid_never_raises_the_objective_when_it_goes_on() -> None:
    X, Y = PROBLEMS["separable"]
    basis = make_basis(X, Y)
    points = [GridPoint(1e-5, 6.0), GridPoint(1e-1, 0.0)]
    values = np.stack([solve_grid(basis, Y, points, max_iterations=n, tolerance=1e-12).objective for n in range(12)])
    assert (np.diff(values, axis=0) <= 1e-15).all()
    assert (values[-1] < 0.6 * values[0]).all()


# --- heads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("components", [0, 5])
@pytest.mark.parametrize("normalization", ["standardize", "none", "l2"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_head_scores_stored_features_as_the_grid_does(normalization: str, components: int, dtype: Any) -> None:
    X, Y = make_clips()
    X = X.astype(dtype)
    clips = TrainingClips(X, Y, seed=0, part_widths=[4, 8])
    basis = Basis.fit(X, clips.front(View(normalization, 0)))
    points = grid_points(l2=[1e-1, 1e-3], positive_weight_exponent=[0.0, 1.0])
    grid = solve_grid(basis, Y, points, components=components)
    scores = grid.scores(X)
    choice = np.array([1, 2])
    head = grid.head(choice)
    expected = np.stack([scores[choice[c], :, c] for c in range(2)], axis=1)
    np.testing.assert_allclose(head_scores(head, X), expected, atol=2e-5)
    z = features(basis, components) @ grid.weights[1, 0].numpy() + grid.bias[1, 0].item()
    np.testing.assert_allclose(scores[1, :, 0], 1 / (1 + np.exp(-z)), atol=2e-5)


def test_bfloat16_features_equal_their_float32_copies() -> None:
    X, Y = make_clips()
    stored = torch.from_numpy(X).bfloat16()
    front = TrainingClips(stored, Y, seed=0).front(View("standardize", 0))
    points = [GridPoint(1e-2, 0.5)]
    ours, theirs = (solve_grid(Basis.fit(of, front), Y, points) for of in (stored, stored.float()))
    assert torch.equal(ours.weights, theirs.weights)
    assert np.array_equal(ours.scores(stored), theirs.scores(stored.float().numpy()))


# --- the basis ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 30), (30, 200)])
def test_leading_axes_equal_the_pca_of_scikit_learn(shape: tuple[int, int]) -> None:
    X = np.random.default_rng(0).standard_normal(shape) * np.linspace(0.1, 3, shape[1])
    X -= X.mean(axis=0)
    axes, variances = leading_axes(lambda: torch.from_numpy(X).split(23), shape, 10)
    pca = PCA(10, svd_solver="full").fit(X)
    np.testing.assert_allclose(np.abs(axes.numpy().T @ pca.components_.T), np.eye(10), atol=1e-8)
    np.testing.assert_allclose(variances.numpy(), pca.explained_variance_ * (len(X) - 1) / len(X), rtol=1e-8)
    assert (axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_leading_axes_hold_the_most_variance_when_found_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    X = torch.from_numpy(random.standard_normal((500, 400)) @ np.diag(np.arange(1, 401) ** -0.7)).float()
    X -= X.mean(dim=0)
    exact, exact_variances = leading_axes(lambda: [X], X.shape, 20)
    monkeypatch.setattr(axes_module, "EXACT_UP_TO", 0)
    projections: list[torch.Tensor] = []
    axes, variances = leading_axes(lambda: X.split(64), X.shape, 20, projections=projections)
    torch.testing.assert_close(torch.cat(projections), X @ axes.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(axes.T @ axes, torch.eye(20, dtype=torch.float64), atol=1e-5, rtol=0)
    assert variances.sum() >= 0.999 * exact_variances.sum()
    cosines = (axes[:, :5].T @ exact[:, :5]).abs()
    torch.testing.assert_close(cosines, torch.eye(5, dtype=torch.float64), atol=1e-2, rtol=0)


def test_leading_axes_are_as_many_as_the_rank_when_more_are_asked_for() -> None:
    X, Y = PROBLEMS["rank_deficient"]
    assert make_basis(X, Y).axes.shape == (18, 6)
    constant = np.ones_like(X)
    basis = make_basis(constant, Y)
    assert basis.axes.shape == (18, 0)
    grid = solve_grid(basis, Y, [GridPoint(1e-2, 0.0)])
    assert grid.converged.all()
    np.testing.assert_allclose(grid.scores(constant)[0, 0], Y.mean(axis=0), atol=1e-6)


def test_rest_variance_is_the_mean_variance_beyond_the_axes() -> None:
    X, Y = make_clips(D=20)
    some, every = make_basis(X, Y, components=5), make_basis(X, Y)
    assert some.rest_variance == pytest.approx(float(every.variances[5:].mean()), rel=1e-9)
    assert every.rest_variance == 0


# --- what is refused ------------------------------------------------------------------------------


def test_solve_grid_refuses_what_has_no_optimum() -> None:
    X, Y = make_clips()
    basis = make_basis(X, Y, components=4)
    with pytest.raises(SettingsError, match="positive l2"):
        solve_grid(basis, Y, [GridPoint(0.0, 0.0)])
    with pytest.raises(SettingsError, match="basis' 4, but it is 5"):
        solve_grid(basis, Y, [GridPoint(1.0, 0.0)], components=5)
    with pytest.raises(TrainingDataError, match="have shape"):
        solve_grid(basis, Y[1:], [GridPoint(1.0, 0.0)])
    Y[:, 0] = 0
    with pytest.raises(TrainingDataError, match=r"\[0, 2"):
        solve_grid(basis, Y, [GridPoint(1.0, 0.0)])


def test_a_basis_refuses_features_that_are_rotated_already() -> None:
    X, Y = make_clips()
    front = TrainingClips(X, Y, seed=0).front(View("standardize", 3))
    with pytest.raises(SettingsError, match="not rotated"):
        Basis.fit(X, front)


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("emotions", 0.663), ("scene", 0.683)])
def test_a_grid_chosen_out_of_fold_is_no_worse_than_tuned_logistic_regression(name: str, least: float) -> None:
    """`least` is 0.01 below one-vs-rest logistic regression of scikit-learn, balanced (../shared/data/README.md)."""
    X, Y, _ = read_set(name, "train")
    X_test, Y_test, _ = read_set(name, "test")
    basis = make_basis(X, Y, precision="float32", components=128)
    points = grid_points(l2=np.logspace(-3, 1, 5).tolist(), positive_weight_exponent=[0.0, 0.5, 1.0])
    grid = solve_grid(basis, Y, points, fold_of=np.arange(len(X)) % 4)
    f1 = f1_scores(np.stack([confusion_counts(Y, scores >= 0.5) for scores in grid.out_of_fold[0]]))
    choice = choose_points(f1, Y.sum(axis=0), points, allowed=grid.converged)
    assert macro_f1(Y_test, head_scores(grid.head(choice), X_test)) >= least
