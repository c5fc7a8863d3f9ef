"""The convex engine: parity with scikit-learn, problems that share nothing, folds that see nothing, true flags."""

import dataclasses
import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from featurecache.errors import SettingsError, TrainingDataError
from heads.engines import descent
from heads.engines.basis import Basis
from heads.engines.convex import GridPoint, grid_points, solve_grid
from heads.engines.training_clips import TrainingClips, View
from heads.models import head_scores
from heads.scoring.metrics import confusion_counts, f1_scores, macro_f1
from heads.search.grid_choice import choose_points
from tests.convex_samples import (
    PROBLEMS,
    by_scikit_learn,
    features,
    make_basis,
    make_clips,
    objective,
    point_of,
    solve_exactly,
)
from tests.multilabel_sets import read_set

# --- parity with references -----------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["standardize", "none", "l2"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_solve_grid_equals_scikit_learn_for_every_problem_of_the_grid(name: str, normalization: str) -> None:
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


@pytest.mark.parametrize(
    ("normalization", "components", "exponent"), [("standardize", 0, 0.0), ("none", 0, 1.0), ("l2", 5, 0.0)]
)
def test_heads_with_a_prior_minimise_the_loss_and_the_penalty_on_the_distance_to_it(
    normalization: str, components: int, exponent: float
) -> None:
    X, Y = make_clips()
    prior = np.random.default_rng(3).standard_normal((2, 12))
    basis, fold_of = make_basis(X, Y, normalization=normalization), np.arange(len(X)) % 3
    grid = solve_exactly(
        basis,
        Y,
        [GridPoint(1e-2, 0.5), GridPoint(1e4, 0.5)],
        prior=prior,
        components=components,
        variance_exponent=exponent,
        fold_of=fold_of,
    )
    assert grid.converged.all()
    x, front = features(basis, components), basis.front
    start = prior * front.scale.numpy() / (12**0.5 if normalization == "l2" else 1)
    start = start @ basis.axes[:, :components].numpy() if components else start
    for c in range(2):
        plain = GridPoint(1e-2, 0.5)
        theta = point_of(grid, 0, c)
        gradient = objective(x, Y[:, c], plain, theta)[1]
        own = basis.scaling(-exponent, components)(torch.from_numpy(theta[None, 1:])).numpy()[0]
        away = basis.scaling(-exponent, components)(torch.from_numpy(theta[None, 1:] - start[c])).numpy()[0]
        gradient[1:] += plain.l2 * (away - theta[1:])  # `objective` has the penalty on the distance to zero
        assert np.abs(gradient).max() <= 1e-6
        assert not np.allclose(own, away)
        np.testing.assert_allclose(point_of(grid, 1, c)[1:], start[c], atol=1e-3)  # nothing pulls against 1e4
    if not exponent and not components:  # without a fold's clips, as if they had never been there
        held_out = fold_of == 1
        alone = solve_exactly(
            dataclasses.replace(basis, X=basis.X[~torch.from_numpy(held_out)]), Y[~held_out], grid.points, prior=prior
        )
        z = features(basis)[held_out] @ alone.weights[0].numpy().T + alone.bias[0].numpy()
        np.testing.assert_allclose(grid.out_of_fold[0, 0, held_out], 1 / (1 + np.exp(-z)), atol=1e-5)
    scores = head_scores(grid.head(np.zeros(2, np.int64)), X)
    np.testing.assert_allclose(scores, grid.scores(X)[0], atol=1e-5)


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


# --- problems share nothing -----------------------------------------------------------------------


def test_a_problem_solved_among_others_equals_the_same_problem_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = make_clips()
    basis = make_basis(X, Y)
    points = grid_points(l2=[1, 1e-2, 1e-4], positive_weight_exponent=[0.0, 0.5, 1.0])
    together = solve_grid(basis, Y, points)
    monkeypatch.setattr(descent, "PROBLEMS_AT_ONCE", 4)  # problems wait and take the places of others
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
    excluded = np.zeros((3, len(X)), bool)
    excluded[0, 50:55] = True
    grid = solve_exactly(basis, Y, [point], fold_of=fold_of, excluded=excluded)
    assert grid.folds_converged.shape == (3, 1, 2)
    assert grid.folds_converged.all()
    x = features(basis)
    for fold, c in itertools.product(range(3), range(2)):
        train = (fold_of != fold) & ~excluded[fold]
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
