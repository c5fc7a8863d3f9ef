"""Few positives per label: words, words and cached clips, and what `tune` makes of clips without and with words.

    OMP_NUM_THREADS=1 python -m benchmarks.few_shot [--draws N] [--rho 0.4 ...] [--positives 4 ...] [--quick]

An image-text space is drawn, 256 wide: pictures lie in a narrow cone (mean cosine about 0.7), texts in another;
variances fall off as a power law, sessions have offsets of their own, and a label shifts a clip along a direction of
its own. A text's vector points along its label's direction with a cosine `rho`, at the model's scale of 100: words that
know nothing (0), little (0.2), something (0.4) or much (0.7). Eight labels, on in 5% to 25% of clips. Trained on are
1, 4 or 16 positives of each label, and as many clips again at random, of 20 sessions; scored are 1,200 of 20 others.

- `zero-shot`: the words alone.
- `Tip-Adapter`: the words' logit + a * (mean affinity to the label's positives - that to its negatives), affinity
  exp(-b (1 - cosine)); Zhang et al., https://arxiv.org/abs/2207.09519, for labels that are not exclusive. Both numbers
  are chosen by macro average precision out of four session folds of the training clips.
- `none`, `words`, `both`: `featurecache tune` with the convex solver and these priors; `both` chooses out of fold.

A figure is macro average precision on the unseen sessions, and for the three of `tune` macro-F1 at the thresholds of
their bundles, averaged over draws; the last column has paired differences with 95% intervals over draws.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import t
from sklearn.metrics import average_precision_score

from benchmarks.targets import Target, print_document
from featurecache.extraction.words import JOINT_FEATURE
from featurecache.spec import FeatureSpace
from heads.bundle import Bundle, load_bundle
from heads.data import LabelledSplit, LearningData
from heads.models import head_scores
from heads.prior import Prior
from heads.scoring.metrics import confusion_counts, f1_scores, macro_over_labels
from heads.search.search import search_heads
from heads.settings import HeadPrior, SearchSpace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WIDTH, LABELS, SESSIONS, CLIPS = 256, 8, 20, 60
SCALE = 100.0
SHOTS, RHOS = (1, 4, 16), (0.0, 0.2, 0.4, 0.7)
TIP = tuple(itertools.product((0.3, 1.0, 3.0, 10.0, 30.0), (2.0, 6.0, 20.0, 60.0)))
PRIORS: dict[str, tuple[HeadPrior, ...]] = {"none": ("none",), "words": ("words",), "both": ("none", "words")}
METHODS = ("zero-shot", "Tip-Adapter", *PRIORS, *(f"{name} F1" for name in PRIORS))


class Space:
    """A drawn image-text space; its principal axes are no coordinates.

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
        self.turn = np.linalg.qr(draw.standard_normal((WIDTH, WIDTH)))[0]
        self.weights = self.weights @ self.turn
        self.often = np.linspace(0.05, 0.25, LABELS)

    def clips(self) -> tuple[Floats, Ints, Ints]:
        """Unit vectors (N, D), targets (N, C) and sessions (N,) of `SESSIONS` new sessions."""
        sessions = np.repeat(np.arange(SESSIONS), CLIPS)
        Y = (self.draw.random((len(sessions), LABELS)) < self.often).astype(np.int64)
        own = self.draw.standard_normal((SESSIONS, WIDTH))[sessions]
        noise = np.sqrt(0.3) * own + np.sqrt(0.7) * self.draw.standard_normal((len(sessions), WIDTH))
        X = self.cone + noise * self.spread + 0.1 * Y @ self.directions
        return _unit(X) @ self.turn, Y, sessions


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


def tuned(X: Floats, Y: Ints, sessions: Ints, words: Floats, priors: tuple[HeadPrior, ...]) -> Bundle:
    """What `featurecache tune` makes of clips with the convex solver, words being among its priors or not."""
    names = np.array([f"s{one}" for one in sessions])
    validates = np.zeros(len(Y), bool)
    for one in np.unique(sessions):  # a quarter of the sessions, so that each label is on in a training clip
        more = validates | (sessions == one)
        if Y[~more].any(axis=0).all() and len(np.unique(sessions[more])) <= SESSIONS // 4:
            validates = more
    parts = [
        LabelledSplit({JOINT_FEATURE: X[rows].astype(np.float32)}, Y[rows].astype(np.int8), names[rows])
        for rows in (~validates, validates)
    ]
    space = FeatureSpace({"model": "drawn", "tap": "joint", "pooling": "mean", "stored_dtype": "float32"})
    prior = Prior(words.astype(np.float32), {})
    data = LearningData(*parts, tuple("abcdefgh"), {JOINT_FEATURE: space}, prior=prior)
    asked = SearchSpace(inputs=(JOINT_FEATURE,), solver=("convex",), prior=priors)
    with tempfile.TemporaryDirectory() as folder:
        search_heads(data, search_space=asked, trials=8, seed=0, folder=Path(folder))
        return load_bundle(Path(folder) / "bundle")


def tip_adapter(X: Floats, Y: Ints, words: Floats, a: float, b: float) -> Callable[[Floats], Floats]:
    """The words' logits and the affinity to cached clips."""
    shares = Y / np.maximum(Y.sum(axis=0), 1) - (1 - Y) / np.maximum((1 - Y).sum(axis=0), 1)  # (n, C)
    shares = shares * (Y.any(axis=0) & ~Y.all(axis=0))
    return lambda new: new @ words.T + a * SCALE * np.exp(-b * (1 - new @ X.T)) @ shares


def tip_chosen(X: Floats, Y: Ints, words: Floats, fold_of: Ints) -> Callable[[Floats], Floats]:
    """Tip-Adapter with the numbers of the best macro average precision out of the folds."""
    best, value = TIP[0], -1.0
    for numbers in TIP:
        scores = np.empty(Y.shape)
        for fold in np.unique(fold_of):
            out = fold_of == fold
            scores[out] = tip_adapter(X[~out], Y[~out], words, *numbers)(X[out])
        if (found := macro_ap(Y, scores)) > value:
            best, value = numbers, found
    return tip_adapter(X, Y, words, *best)


def scored(rho: float, shots: int, seed: int) -> dict[str, float]:
    """Each of `METHODS` on unseen sessions."""
    space = Space(rho, seed)
    X, Y, sessions = space.clips()
    new, targets, _ = space.clips()
    rows = few(Y, shots, space.draw)
    X, Y, sessions = X[rows], Y[rows], sessions[rows]
    found = {
        "zero-shot": macro_ap(targets, new @ space.weights.T),
        "Tip-Adapter": macro_ap(targets, tip_chosen(X, Y, space.weights, sessions % 4)(new)),
    }
    for name, priors in PRIORS.items():
        bundle = tuned(X, Y, sessions, space.weights, priors)
        scores = head_scores(bundle.head, new.astype(np.float32))
        found[name] = macro_ap(targets, scores)
        found[f"{name} F1"] = float(
            macro_over_labels(f1_scores(confusion_counts(targets, scores >= bundle.thresholds)))
        )
    return found


def main() -> None:
    """Draws, prints the curves and ends with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--rho", type=float, nargs="+", choices=RHOS, default=RHOS)
    parser.add_argument("--positives", type=int, nargs="+", choices=SHOTS, default=SHOTS)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    draws = 2 if asked.quick else asked.draws
    figures: dict[str, dict[str, float]] = {}
    gains = []
    print(f"{'rho':>4} {'shots':>5}  " + "  ".join(f"{name:>11}" for name in METHODS) + "   both - none")
    for rho, shots in itertools.product(*((RHOS[::3], SHOTS[1:2]) if asked.quick else (asked.rho, asked.positives))):
        each = [scored(rho, shots, seed) for seed in range(draws)]
        means = {name: float(np.mean([one[name] for one in each])) for name in METHODS}
        gap = np.array([one["both"] - one["none"] for one in each])
        reach = t.ppf(0.975, draws - 1) * gap.std(ddof=1) / np.sqrt(draws)
        gains.append(float(gap.mean()))
        figures[f"rho {rho}, {shots} positives"] = means | {"both - none": gains[-1], "95%": float(reach)}
        columns = "  ".join(f"{means[name]:11.3f}" for name in METHODS)
        print(f"{rho:4} {shots:5}  {columns}   {gap.mean():+.3f} +- {reach:.3f}", flush=True)
    targets: list[Target] = [
        (
            "macro average precision of both minus none, the least of all cells",
            min(gains),
            -0.02,
            -0.05,
            "higher",
        ),
    ]
    print_document("few_shot", figures, targets, quick=asked.quick)


if __name__ == "__main__":
    main()
