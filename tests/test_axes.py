"""Principal axes: those of a full decomposition, also when found by iteration, and the variance beyond them."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from featurecache.errors import SettingsError
from heads.engines import axes as axes_module
from heads.engines.axes import leading_axes
from heads.engines.basis import Basis
from heads.engines.convex import GridPoint, solve_grid
from heads.engines.training_clips import TrainingClips, View
from tests.convex_samples import PROBLEMS, make_basis, make_clips


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


def test_a_basis_refuses_features_that_are_rotated_already() -> None:
    X, Y = make_clips()
    front = TrainingClips(X, Y, seed=0).front(View("standardize", 3))
    with pytest.raises(SettingsError, match="not rotated"):
        Basis.fit(X, front)
