"""Few positives per label: words, words and cached clips, a head drawn towards the words, and plain FT-LC.

    OMP_NUM_THREADS=1 python -m benchmarks.few_shot [--draws N] [--quick]

An image-text space is drawn, 256 wide: pictures lie in a narrow cone (mean cosine about 0.7), texts in another;
variances fall off as a power law, sessions have offsets of their own, and a label shifts a clip along a direction of
its own. A text's vector points along its label's direction with a cosine `rho`, at the model's scale of 100: words that
know nothing (0), little (0.2), something (0.4) or much (0.7). Eight labels, on in 5% to 25% of clips. Trained on are
1, 4 or 16 positives of each label, and as many clips again at random, of 20 sessions; scored are 1,200 of 20 others.

- `zero-shot`: the words alone.
- `FT-LC`: logistic regression with an L2 penalty.
- `Tip-Adapter`: the words' logit + a * (mean affinity to the label's positives - that to its negatives), affinity
  exp(-b (1 - cosine)); Zhang et al., https://arxiv.org/abs/2207.09519, for labels that are not exclusive.
- `prior`: logistic regression that starts at the words' weights, with the L2 penalty on the distance to them.

Every setting (a and b, the penalty) is chosen by macro average precision out of four session folds of the training
clips, as the product chooses. A figure is macro average precision on the unseen sessions, averaged over draws; "wins"
are paired differences with 95% intervals over draws.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import t
from sklearn.metrics import average_precision_score

from benchmarks.targets import Target, print_document

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WIDTH, LABELS, SESSIONS, CLIPS = 256, 8, 20, 60
SCALE = 100.0
SHOTS, RHOS = (1, 4, 16), (0.0, 0.2, 0.4, 0.7)
PENALTIES = tuple(10.0**power for power in range(-6, 2))
TIP = tuple(itertools.product((0.3, 1.0, 3.0, 10.0, 30.0), (2.0, 6.0, 20.0, 60.0)))
METHODS = ("zero-shot", "FT-LC", "Tip-Adapter", "prior")


class Space:
    """A drawn image-text space.

    Args:
        rho: Cosine of a text's direction and its label's.
        seed: Of everything.
    """

    def __init__(self, rho: float, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.draw = draw
        self.spread = np.arange(1, WIDTH + 1) ** -0.5  # standard deviations along the axes: variances fall as 1 / k
        self.spread *= 0.65 / np.linalg.norm(self.spread)
        self.cone = _unit(draw.standard_normal(WIDTH))
        self.directions = _unit(draw.standard_normal((LABELS, WIDTH)) * self.spread**0.5)
        astray = _unit(draw.standard_normal((LABELS, WIDTH)) * self.spread**0.5)
        words = rho * self.directions + np.sqrt(1 - rho**2) * astray
        middle = _unit(draw.standard_normal(WIDTH))
        self.weights = SCALE * (_unit(middle + 0.3 * words) - _unit(middle + 0.3 * words.mean(axis=0)))  # (C, D)
        self.often = np.linspace(0.05, 0.25, LABELS)

    def clips(self) -> tuple[Floats, Ints, Ints]:
        """Unit vectors (N, D), targets (N, C) and sessions (N,) of `SESSIONS` new sessions."""
        sessions = np.repeat(np.arange(SESSIONS), CLIPS)
        Y = (self.draw.random((len(sessions), LABELS)) < self.often).astype(np.int64)
        own = self.draw.standard_normal((SESSIONS, WIDTH))[sessions]
        noise = np.sqrt(0.3) * own + np.sqrt(0.7) * self.draw.standard_normal((len(sessions), WIDTH))
        X = self.cone + noise * self.spread + 0.1 * Y @ self.directions
        return _unit(X), Y, sessions


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def few(Y: Ints, shots: int, draw: np.random.Generator) -> Ints:
    """Rows of `shots` positives of each label, and as many again at random."""
    chosen = {int(row) for c in range(LABELS) for row in draw.choice(np.flatnonzero(Y[:, c]), shots, replace=False)}
    others = draw.choice(len(Y), 2 * LABELS * shots, replace=False)
    return np.array(sorted(chosen) + [row for row in others.tolist() if row not in chosen][: LABELS * shots])


def macro_ap(Y: Ints, scores: Floats) -> float:
    """Mean average precision of the labels that are on somewhere."""
    on = Y.any(axis=0)
    return float(np.mean([average_precision_score(Y[:, c], scores[:, c]) for c in np.flatnonzero(on)]))


def logistic(X: Floats, Y: Ints, start: Floats, l2: float) -> Callable[[Floats], Floats]:
    """Logits by weights that minimise mean log loss + l2 / 2 |w - start|^2 in features of mean square 1; bias free.

    Args:
        X: Clips, (n, D).
        Y: Targets, (n, C); a label that is never or always on keeps its start.
        start: Weights, (C, D); zeros for a plain head.
        l2: The penalty.
    """
    center = X.mean(axis=0)
    size = np.sqrt(((X - center) ** 2).sum(axis=1).mean())
    _, values, axes = np.linalg.svd((X - center) / size, full_matrices=False)
    axes = axes[values > 1e-8 * values[0]]  # the optimum differs from the start in the span of the clips alone
    Z = np.concatenate([np.ones((len(X), 1)), (X - center) / size @ axes.T], axis=1)
    penalty = np.full(Z.shape[1], l2)
    penalty[0] = 1e-9
    moved = np.zeros((len(start), Z.shape[1]))
    for c in np.flatnonzero(Y.any(axis=0) & ~Y.all(axis=0)):
        moved[c] = _newton(Z, Y[:, c], X @ start[c], penalty)
    return lambda new: new @ start.T + moved[:, 0] + (new - center) / size @ axes.T @ moved[:, 1:].T


def _newton(Z: Floats, y: Ints, offset: Floats, penalty: Floats) -> Floats:
    """Damped Newton steps on one label's convex loss."""

    def loss(w: Floats) -> float:
        z = Z @ w + offset
        return float(np.mean(np.logaddexp(0, z) - y * z) + 0.5 * (penalty * w**2).sum())

    w = np.zeros(Z.shape[1])
    w[0] = np.log(y.mean() / (1 - y.mean())) - offset.mean()
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(Z @ w + offset, -40, 40)))
        gradient = Z.T @ (p - y) / len(y) + penalty * w
        curvature = (Z * (p * (1 - p) + 1e-9)[:, None]).T @ Z / len(y) + np.diag(penalty)
        step, length, now = np.linalg.solve(curvature, gradient), 1.0, loss(w)
        while loss(w - length * step) > now - 1e-4 * length * gradient @ step and length > 1e-6:
            length /= 2
        w = w - length * step
        if gradient @ step < 1e-9:
            break
    return w


def tip_adapter(X: Floats, Y: Ints, words: Floats, a: float, b: float) -> Callable[[Floats], Floats]:
    """The words' logits and the affinity to cached clips."""
    shares = Y / np.maximum(Y.sum(axis=0), 1) - (1 - Y) / np.maximum((1 - Y).sum(axis=0), 1)  # (n, C)
    shares = shares * (Y.any(axis=0) & ~Y.all(axis=0))
    return lambda new: new @ words.T + a * SCALE * np.exp(-b * (1 - new @ X.T)) @ shares


def chosen(
    fit: Callable[..., Callable[[Floats], Floats]],
    settings: Sequence[tuple[float, ...]],
    X: Floats,
    Y: Ints,
    start: Floats,
    fold_of: Ints,
) -> Callable[[Floats], Floats]:
    """The method with the settings of the best macro average precision out of the folds, fitted on all clips."""
    best, value = settings[0], -1.0
    for one in settings:
        scores = np.empty(Y.shape)
        for fold in np.unique(fold_of):
            out = fold_of == fold
            scores[out] = fit(X[~out], Y[~out], start, *one)(X[out])
        if (found := macro_ap(Y, scores)) > value:
            best, value = one, found
    return fit(X, Y, start, *best)


def scored(rho: float, shots: int, seed: int) -> dict[str, float]:
    """Macro average precision of each method on unseen sessions."""
    space = Space(rho, seed)
    X, Y, sessions = space.clips()
    new, targets, _ = space.clips()
    rows = few(Y, shots, space.draw)
    X, Y, fold_of = X[rows], Y[rows], sessions[rows] % 4
    penalties = [(one,) for one in reversed(PENALTIES)]
    ways = {
        "FT-LC": chosen(logistic, penalties, X, Y, np.zeros_like(space.weights), fold_of),
        "Tip-Adapter": chosen(tip_adapter, TIP, X, Y, space.weights, fold_of),
        "prior": chosen(logistic, penalties, X, Y, space.weights, fold_of),
    }
    return {"zero-shot": macro_ap(targets, new @ space.weights.T)} | {
        name: macro_ap(targets, way(new)) for name, way in ways.items()
    }


def main() -> None:
    """Draws, prints the curves and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    draws = 3 if asked.quick else asked.draws
    figures: dict[str, dict[str, float]] = {}
    gains = []
    print(f"{'rho':>4} {'shots':>5}  " + "  ".join(f"{name:>12}" for name in METHODS) + "   prior - best other")
    for rho, shots in itertools.product(RHOS, SHOTS if not asked.quick else SHOTS[:2]):
        each = [scored(rho, shots, seed) for seed in range(draws)]
        table = np.array([[one[name] for name in METHODS] for one in each])  # (draws, methods)
        means = table.mean(axis=0)
        gap = table[:, 3] - table[:, int(np.argmax(means[:3]))]
        reach = t.ppf(0.975, draws - 1) * gap.std(ddof=1) / np.sqrt(draws)
        gains.append(float(gap.mean()))
        figures[f"rho {rho}, {shots} positives"] = dict(zip(METHODS, means.tolist(), strict=True)) | {
            "prior - best other": float(gap.mean()),
            "95%": float(reach),
        }
        print(
            f"{rho:4} {shots:5}  " + "  ".join(f"{one:12.3f}" for one in means) + f"   {gap.mean():+.3f} +- {reach:.3f}"
        )
    targets: list[Target] = [
        ("prior minus the best other, the least of all cells", min(gains), -0.02, -0.05, "higher"),
    ]
    print_document("few_shot", figures, targets, quick=asked.quick)


if __name__ == "__main__":
    main()
