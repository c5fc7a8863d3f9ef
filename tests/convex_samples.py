"""Problems for the convex engine, and their objective and solution by the definition and by scikit-learn."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from heads.engines.basis import Basis
from heads.engines.convex import ConvexGrid, GridPoint, solve_grid
from heads.engines.training_clips import TrainingClips, View


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
