"""Whether suggested stretches teach more than random ones: macro-F1 on unseen sessions against annotated minutes.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_suggest [--demo FOLDER] [--quick]

Sets: the features and annotations of a demo that `featurecache demo FOLDER` made (20 sessions of 28 clips), and two
that are drawn here (30 sessions of 40 clips, 256 features of rank 64, sessions with offsets of their own, bouts of
about four clips): one with four labels of which the rarest is on in 4% of the clips, one with labels that are all on in
25%.

Of each, 30% of the sessions are unseen and two of the others are annotated from the start. Then stretches of four clips
are annotated, in five rounds: at random; by doubt alone; as `featurecache suggest --order suggested` chooses. After
each round a head is fitted on all that is annotated, with thresholds and calibration from its out-of-fold scores. The
same sessions are unseen and annotated at first for all three, eight times with others. Macro-F1 is over all labels; one
that cannot be learned yet counts with the F1 of predicting it nowhere, 0. How `suggested` spreads over
sessions was chosen among three ways on seeds 0 to 7; the seeds here are 100 to 107.
"""

import argparse
import statistics
import warnings
from pathlib import Path

import numpy as np

from benchmarks.targets import print_document
from featurecache import FeatureCache
from featurecache.clips.csv_file import read_table
from featurecache.errors import FeatureCacheError
from heads.estimator import LinearHeadClassifier
from heads.scoring.acquisition import label_doubt, suggested_order
from heads.scoring.calibration import fit_calibration
from heads.scoring.cross_fitting import CrossFolds, cross_fitted_scores
from heads.scoring.metrics import DEFAULT_THRESHOLD, confusion_counts, f1_scores
from heads.scoring.thresholds import tuned_thresholds

ORDERS = ("random", "doubt", "suggested")
STRETCH, CLIP_S, ROUNDS = 4, 3.0, 5
Clips = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features (N, D), targets (N, C) and sessions (N,), in order of time within each session."""


def drawn_set(shares: tuple[float, ...], seed: int) -> Clips:
    """Sessions that differ, with bouts."""
    draw = np.random.default_rng(seed)
    session = np.repeat(np.arange(30), 40)
    z = draw.standard_normal((len(session), 64))
    for at in range(1, len(z)):
        if session[at] == session[at - 1]:
            z[at] = 0.75 * z[at - 1] + 0.66 * z[at]
    z += 0.8 * draw.standard_normal((30, 64))[session]
    X = (z * np.linspace(3, 0.3, 64)) @ draw.standard_normal((64, 256)) / 8
    logits = z[:, :48] @ draw.standard_normal((48, len(shares))) / 4 + 0.7 * draw.standard_normal((len(z), len(shares)))
    cuts = [np.quantile(logits[:, at], 1 - share) for at, share in enumerate(shares)]
    return X.astype(np.float32), (logits > cuts).astype(np.int8), session.astype(str)


def demo_set(folder: Path) -> Clips:
    """The clips of a demo."""
    clips = read_table(folder / "clips.csv").clips
    X = FeatureCache.open(folder / "features.zarr").load([clip.clip_id for clip in clips], "final", "mean")
    return (
        X.astype(np.float32),
        np.array([clip.targets for clip in clips], np.int8),
        np.array([clip.session for clip in clips]),
    )


class Fitted:
    """A head on annotated clips, with its thresholds and calibrated probabilities of all clips."""

    def __init__(self, clips: Clips, annotated: np.ndarray) -> None:
        X, Y, sessions = clips
        self._X, own = X, Y[annotated]

        def scores(train: np.ndarray, Y_train: np.ndarray, learnable: np.ndarray, held_out: np.ndarray) -> np.ndarray:
            return self._fit(annotated[train], Y_train[:, learnable], annotated[held_out])

        try:
            folds = CrossFolds.assign(own, sessions[annotated], None)
            held_out = cross_fitted_scores(scores, own, folds.of[0], clip_ids=None)
        except FeatureCacheError:  # no label in all folds yet
            held_out = np.full(own.shape, np.nan)
        scored = ~np.isnan(held_out).any(axis=0)
        thresholds = np.full(own.shape[1], DEFAULT_THRESHOLD)
        if scored.any():
            thresholds[scored] = tuned_thresholds(own[:, scored], held_out[:, scored], sessions[annotated])
        learnable = (own.any(axis=0)) & ~(own.all(axis=0))
        raw = np.zeros((len(X), own.shape[1]))
        raw[:, learnable] = self._fit(annotated, own[:, learnable], np.arange(len(X)))
        self.predicted = raw >= thresholds
        self.probabilities = fit_calibration(own, held_out).apply(np.clip(raw, 1e-6, 1 - 1e-6))

    def _fit(self, train: np.ndarray, Y: np.ndarray, rows: np.ndarray) -> np.ndarray:
        head = LinearHeadClassifier(C=0.1)
        # Two columns or more, so that one label stays multi-label.
        doubled = np.concatenate([Y, 1 - Y], axis=1)
        return head.fit(self._X[train], doubled).predict_proba(self._X[rows])[:, : Y.shape[1]]


def curve(clips: Clips, order: str, seed: int) -> list[tuple[float, float]]:
    """Annotated minutes and macro-F1 on unseen sessions, before the first round and after each."""
    X, Y, sessions = clips
    names = np.random.default_rng(seed).permutation(np.unique(sessions))
    unseen = np.isin(sessions, names[: round(0.3 * len(names))])
    starts = np.isin(sessions, names[-2:])
    stretch = np.full(len(X), -1)
    pool = np.flatnonzero(~unseen)
    stretch[pool] = np.arange(len(pool)) // STRETCH  # sessions are a multiple of it long
    units = [np.flatnonzero(stretch == at) for at in range(stretch.max() + 1)]
    centred = X - X[pool].mean(axis=0)
    vectors = np.stack([(one := centred[own].mean(axis=0)) / np.linalg.norm(one) for own in units]).astype(np.float32)
    is_done = np.array([starts[own[0]] for own in units])
    of_unit = np.array([sessions[own[0]] for own in units])
    seconds = np.array([len(own) * CLIP_S for own in units])
    budget_s = seconds[~is_done].sum() / 2 / ROUNDS
    draw = np.random.default_rng((seed, 1))
    found = []
    for turn in range(ROUNDS + 1):
        annotated = np.concatenate([own for own, done in zip(units, is_done, strict=True) if done])
        fitted = Fitted(clips, annotated)
        f1 = f1_scores(confusion_counts(Y[unseen], fitted.predicted[unseen]))
        found.append((len(annotated) * CLIP_S / 60, float(np.nanmean(f1))))
        if turn == ROUNDS:
            break
        free = np.flatnonzero(~is_done)
        if order == "random":
            ranked = draw.permutation(len(free)).tolist()
        else:
            doubt = label_doubt(fitted.probabilities, Y[annotated].sum(axis=0).tolist())
            of_units = np.array([doubt[units[at]].mean() for at in free])
            ranked = np.argsort(-of_units).tolist()
            if order == "suggested":
                known = vectors[is_done]
                ranked = suggested_order(
                    of_units, vectors[free], known, of_unit[free], seconds[free], budget_s=budget_s
                )
        spent = np.cumsum(seconds[free[ranked]])
        is_done[free[ranked][: int(np.searchsorted(spent, budget_s)) + 1]] = True
    return found


def main() -> None:
    """Run every set and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="a folder that featurecache demo made")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two seeds of one drawn set, under 50 s")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rare, even = (0.5, 0.25, 0.1, 0.04), (0.25, 0.25, 0.25, 0.25)
    seeds = range(100, 102 if options.quick else 100 + options.seeds)
    sets = {"rare": lambda seed: drawn_set(rare, seed)}
    if not options.quick:
        sets["even"] = lambda seed: drawn_set(even, seed)
    if options.demo:
        clips = demo_set(options.demo)
        sets["demo"] = lambda _: clips
    figures: dict[str, dict[str, object]] = {}
    gains = []
    for name, make in sets.items():
        curves = {order: [curve(make(seed), order, seed) for seed in seeds] for order in ORDERS}
        areas = {order: [statistics.fmean(f1 for _, f1 in one[1:]) for one in curves[order]] for order in ORDERS}
        minutes = [round(at, 1) for at, _ in curves["random"][0]]
        figures[name] = {
            "minutes": minutes,
            **{
                order: [round(float(v), 3) for v in np.mean([[f for _, f in c] for c in curves[order]], axis=0)]
                for order in ORDERS
            },
            **{
                f"{order}_over_random": {
                    "mean": round(float(np.mean(difference)), 4),
                    "standard_error": round(float(np.std(difference, ddof=1) / len(difference) ** 0.5), 4),
                    "better_in": int((difference > 0).sum()),
                }
                for order in ORDERS[1:]
                for difference in [np.array(areas[order]) - np.array(areas["random"])]
            },
        }
        gains.append(np.mean(np.array(areas["suggested"]) - np.array(areas["random"])))
    targets = [("mean gain in macro-F1 of suggested over random", float(np.mean(gains)), 0.0, -1.0, "higher")]
    print_document("suggest", figures, targets, quick=options.quick, seeds=len(seeds))


if __name__ == "__main__":
    main()
