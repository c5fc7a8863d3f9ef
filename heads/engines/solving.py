"""The convex solver's answer to one head's settings, with what it scores out of fold.

What this is not: a grid of settings (`convex.py`), or a choice among them.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from featurecache.errors import SettingsError
from heads.engines.axes import AXES_AT_ONCE
from heads.engines.basis import Basis
from heads.engines.convex import grid_points, solve_grid
from heads.engines.training_clips import TrainingClips, View
from heads.models import LinearHead
from heads.prior import NO_WORDS
from heads.scoring.cross_fitting import CrossFolds, Targets
from heads.settings import HeadSettings

OutOfFold = npt.NDArray[np.floating]

TOLERANCE = 3e-7
"""Of the objective, as a Newton step predicts it; the true distance was up to 2.1 times that, and 1e-6 is stated.
A search is content with 1e-4, by the quasi-Newton model."""
MAX_ITERATIONS = 1000


def basis_of(
    X: npt.NDArray[np.floating],
    Y: Targets,
    normalization: str,
    *,
    components: int = 0,
    part_widths: Sequence[int] | None = None,
    device: str = "cpu",
) -> Basis:
    """The convex engine's basis of features, for heads that read so many components or fewer.

    Args:
        X: As `fit_head`.
        Y: As `fit_head`.
        normalization: As in `HeadSettings`.
        components: Principal components that a head may read.
        part_widths: As `fit_head`.
        device: Where its copy of the features lives and fits run.

    Raises:
        TrainingDataError: If a label is never or always on.
    """
    front = TrainingClips(X, Y, seed=0, part_widths=part_widths, shuffle=False).front(View(normalization, 0))
    return Basis.fit(X, front, components=max(components, AXES_AT_ONCE), device=device)


def solve_head(
    basis: Basis,
    Y: Targets,
    settings: HeadSettings,
    folds: CrossFolds | None = None,
    *,
    prior: npt.NDArray[np.floating] | None = None,
) -> tuple[LinearHead, OutOfFold]:
    """The optimum of the convex solver's settings on the clips of a basis; `components` are its leading axes.

    Args:
        basis: Basis of the training clips' features, with the settings' normalisation.
        Y: Their targets, shape (N, C), 0 or 1.
        settings: Settings of the head.
        folds: Folds of the clips, to solve without each fold too.
        prior: As `fit_head`.

    Returns:
        The head, and the out-of-fold scores of each of R assignments, shape (R, N, C); NaN for a label that cannot be
        learned without some fold. Without folds, R is 0.

    Raises:
        SettingsError: If it does not converge, or the settings have a prior that is not given.
    """
    if (settings.prior == "none") != (prior is None):
        raise SettingsError(NO_WORDS)
    exponents = settings.exponents(Y.shape[1])
    points = grid_points(
        l2=[settings.l2],
        positive_weight_exponent=sorted(set(exponents)),
    )
    of_exponent = {point.positive_weight_exponent: at for at, point in enumerate(points)}
    components = min(settings.components, basis.axes.shape[1])  # fewer clips may have a lower rank
    choice, labels = np.array([of_exponent[exponent] for exponent in exponents]), np.arange(Y.shape[1])

    solve = partial(
        solve_grid,
        Y=Y,
        points=points,
        components=components,
        variance_exponent=settings.variance_exponent,
        prior=prior,
        wanted=choice == np.arange(len(points))[:, None],
        max_iterations=MAX_ITERATIONS,
    )
    grid = solve(basis, tolerance=TOLERANCE)
    if not grid.converged[choice, labels].all():  # separable classes and a weak penalty: the loss itself is tiny
        grid = solve(basis.in_double(), tolerance=TOLERANCE)
    if folds is None:
        return grid.head(choice), np.empty((0, *Y.shape))
    without = solve(basis, fold_of=folds.of, excluded=folds.excluded, folds_alone=True)  # as exact as those that chose
    return grid.head(choice), np.moveaxis(without.out_of_fold[:, choice, :, labels], 0, -1)
