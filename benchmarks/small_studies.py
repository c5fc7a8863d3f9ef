"""Few sessions: the default search against what a careful user of scikit-learn does, sets of 8 to 25 sessions.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.small_studies
        [--data FOLDER] [--sets NAME ...] [--sessions N ...] [--draws N] [--quick]

Sets: each `<name>-train.arff.gz`, `<name>-test.arff.gz` and `<name>.xml` of FOLDER, which is Mulan's format; with it
yeast, where `river` is installed (`pip install --no-deps river`); and one that is drawn here, so that the script runs
without any of them: sessions of 40 clips with offsets of their own, 256 features of rank 64, four labels of which the
rarest is on in 5% of the clips.

Rows of a real set are put in order along a random direction plus noise, and cut into sessions of unequal size, so that
sessions differ in their features and in how often labels are on. A quarter of the sessions is unseen; the drawn set
has 60 unseen sessions instead, since two or three of them tell nothing. Of the others a fifth is called validation,
which only the search is told. All others learn from both alike:

- the default search (its convex trials and as many by AdamW, which choose nothing here), at its own thresholds;
- one-vs-rest logistic regression, C and class weights chosen by GroupKFold for macro-F1, refitted;
- the same with ridge regression;
- the all-positive baseline.

Macro-F1 on the unseen sessions. A cell is a set at a number of sessions; its rival is whichever of the last three has
the highest mean there.
"""

import argparse
import csv
import gzip
import importlib.util
import json
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.targets import judged
from featurecache.spec import FeatureSpace
from heads import SearchSpace, load_bundle, search_heads
from heads.data import LabelledSplit, LearningData
from heads.scoring.metrics import macro_f1
from tests.multilabel_sets import read_set

SPACE = FeatureSpace({"tap": "final", "pooling": "mean", "stored_dtype": "float32"})
SESSIONS = (8, 10, 15, 25)
UNSEEN_DRAWN = 60
OURS = "default search"
Clips = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features (N, D), targets (N, C) and sessions (N,)."""


def learned_from(sessions: int) -> int:
    """Sessions that are not unseen."""
    return sessions - max(2, round(sessions / 4))


def drawn_set(sessions: int, draw: int) -> Clips:
    """Clips of sessions that differ, as many to learn from as a real set has and 60 more."""
    random = np.random.default_rng((draw, sessions))
    sessions = learned_from(sessions) + UNSEEN_DRAWN
    session = np.repeat(np.arange(sessions), 40)
    z = random.standard_normal((len(session), 64)) + 0.6 * random.standard_normal((sessions, 64))[session]
    X = (z * np.linspace(3, 0.3, 64)) @ random.standard_normal((64, 256)) / 8
    logits = z[:, :48] @ random.standard_normal((48, 4)) / 4 + random.standard_normal((len(z), 4))
    cuts = [np.quantile(logits[:, at], share) for at, share in enumerate((0.5, 0.75, 0.88, 0.95))]
    return X.astype(np.float32), (logits > cuts).astype(np.int8), session.astype(str)


def with_sessions(X: np.ndarray, Y: np.ndarray, sessions: int, draw: int) -> Clips:
    """The rows of a set, assigned to sessions of unequal size that differ in features and labels."""
    random = np.random.default_rng((draw, sessions))
    along = ((X - X.mean(0)) / (X.std(0) + 1e-9)) @ random.standard_normal(X.shape[1])
    order = np.argsort(along / along.std() + 2 * random.standard_normal(len(X)))
    sizes = random.uniform(0.5, 1.5, sessions)
    session = np.empty(len(X), np.int64)
    session[order] = np.searchsorted(np.cumsum(sizes) / sizes.sum(), (np.arange(len(X)) + 0.5) / len(X))
    return X, Y, session.astype(str)


def read_yeast() -> tuple[np.ndarray, np.ndarray] | None:
    """All rows of yeast; None where `river` is not installed."""
    found = importlib.util.find_spec("river")
    if found is None or found.origin is None:
        return None
    with gzip.open(Path(found.origin).parent / "datasets/yeast.csv.gz", "rt", newline="") as file:
        names, *rows = csv.reader(file)
    is_label = np.array([column.startswith("Class") for column in names])
    table = np.array(rows, np.float32)
    return table[:, ~is_label], table[:, is_label].astype(np.int8)


def all_sets(folder: Path | None) -> dict[str, Callable[[int, int], Clips]]:
    """By name, what makes a set's clips of a number of sessions and a draw."""
    sets: dict[str, Callable[[int, int], Clips]] = {"drawn": drawn_set}
    for path in [] if folder is None else sorted(folder.glob("*.xml")):
        parts = [read_set(path.stem, part, folder)[:2] for part in ("train", "test")]
        sets[path.stem] = partial(with_sessions, *(np.concatenate(of) for of in zip(*parts, strict=True)))
    if folder is not None and (yeast := read_yeast()) is not None:
        sets["yeast"] = partial(with_sessions, *yeast)
    return sets


def searched(learn: Clips, validates: np.ndarray, X: np.ndarray) -> np.ndarray:
    """What the default search predicts of unseen clips."""

    def part(rows: np.ndarray) -> LabelledSplit:
        features, Y, sessions = (of[rows] for of in learn)
        return LabelledSplit({"final/mean": features}, Y, sessions)

    labels = tuple(f"label {at}" for at in range(learn[1].shape[1]))
    data = LearningData(part(~validates), part(validates), labels, {"final/mean": SPACE})
    with tempfile.TemporaryDirectory() as folder:
        search_heads(data, search_space=SearchSpace(), trials=4, seed=0, folder=Path(folder))
        bundle = load_bundle(Path(folder) / "bundle")
    return np.asarray(bundle.scores(X, fingerprint=SPACE.fingerprint) >= bundle.thresholds)


def by_scikit_learn(learn: Clips, X: np.ndarray, estimator: Any, grid: dict[str, Any]) -> np.ndarray:
    """What a scikit-learn classifier predicts of unseen clips, its settings chosen by grouped cross-validation."""
    features, Y, sessions = learn
    pipeline = make_pipeline(StandardScaler(), OneVsRestClassifier(estimator))
    named = {f"onevsrestclassifier__estimator__{name}": values for name, values in grid.items()}
    folds = GroupKFold(min(5, len(np.unique(sessions))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(
            GridSearchCV(pipeline, named, scoring="f1_macro", cv=folds).fit(features, Y, groups=sessions).predict(X)
        )


def study(clips: Clips, learned: int, draw: int) -> dict[str, float] | None:
    """Macro-F1 on unseen sessions by way; None where a label is never on in what the search calls training."""
    X, Y, sessions = clips
    names = np.random.default_rng((1, draw)).permutation(np.unique(sessions))
    unseen, rest = np.isin(sessions, names[:-learned]), names[-learned:]
    learn = X[~unseen], Y[~unseen], sessions[~unseen]
    validates = np.isin(learn[2], rest[: max(1, round(len(rest) / 5))])
    if not Y[~unseen][~validates].any(axis=0).all():
        return None
    weights = [None, "balanced"]
    predicted = {
        OURS: searched(learn, validates, X[unseen]),
        "logistic regression": by_scikit_learn(
            learn, X[unseen], LogisticRegression(max_iter=500), {"C": np.logspace(-3, 0, 4), "class_weight": weights}
        ),
        "ridge": by_scikit_learn(
            learn, X[unseen], RidgeClassifier(), {"alpha": np.logspace(0, 4, 5), "class_weight": weights}
        ),
        "all positive": np.ones(Y[unseen].shape),
    }
    return {name: macro_f1(Y[unseen], of.astype(np.float64)) for name, of in predicted.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of <name>-train.arff.gz, <name>-test.arff.gz, <name>.xml")
    parser.add_argument("--sets", nargs="+", help="names of sets; all by default")
    parser.add_argument("--sessions", type=int, nargs="+", default=SESSIONS, help="numbers of sessions")
    parser.add_argument("--draws", type=int, default=10, help="of each set and number of sessions")
    parser.add_argument("--quick", action="store_true", help="the drawn set at 8 sessions, two draws")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    draws, counts = (2, SESSIONS[:1]) if options.quick else (options.draws, options.sessions)
    figures: dict[str, dict[str, float]] = {}
    for name, make in all_sets(options.data).items():
        for count in counts if options.sets is None or name in options.sets else ():
            studies = (study(make(count, draw), learned_from(count), draw) for draw in range(draws))
            found = [one for one in studies if one is not None]
            if len(found) < 2:
                continue
            means = {way: float(np.mean([one[way] for one in found])) for way in found[0]}
            rival = max((way for way in means if way != OURS), key=means.__getitem__)
            ahead = np.array([one[OURS] - one[rival] for one in found])
            error = float(ahead.std(ddof=1) / np.sqrt(len(ahead)))
            figures[f"{name}, {count} sessions"] = {
                **means,
                "ahead of the best": float(ahead.mean()),
                "standard_error": error,
                "draws": len(ahead),
            }
            print(f"{name}, {count} sessions: {ahead.mean():+.4f} (se {error:.4f}) against {rival}", flush=True)
    of_cells = [cell["ahead of the best"] for cell in figures.values()]
    document = {
        "benchmark": "small studies",
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "figures": {cell: {key: round(value, 4) for key, value in of.items()} for cell, of in figures.items()},
        "targets": judged(
            [
                ("lowest cell, ahead of the best", round(min(of_cells), 4), -0.005, -0.1, "higher"),
                ("mean over cells, ahead of the best", round(float(np.mean(of_cells)), 4), 0.005, -0.1, "higher"),
            ],
            quick=options.quick,
        ),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
