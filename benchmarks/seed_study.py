"""Whether searching many trials at once costs quality, and how the search does on real multi-label sets.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.seed_study [--fresh] [--quick]

Real trainings on the training parts of emotions and scene (../shared/data/multilabel), for which rows are dealt to 50
made-up sessions, ten of which validate; another deal for each seed. The best validation macro-F1 after 200 trials of
AdamW, univariate TPE and median pruning: 16 (as the search does) and 32 side by side with refill, minus one by one on
the same deal. The interval is Student's, over seeds and sets. Then the default search (convex first, AdamW after), over
the same.

`--fresh` compares with scikit-learn on fixed splits that were never used to choose anything, though other splits of the
same rows were (for the rule of `heads/search/grid_choice.py`): the whole of yeast (as `river` has it:
`pip install --no-deps river`; left out where it is not installed), emotions and scene, each dealt ten times, a third
of the rows to a test part. The default search has the rest as above, so its heads are fitted on four fifths of it;
one-vs-rest LogisticRegression, C and class weights tuned by shuffled five-fold cross-validation for macro-F1, is
fitted on all of it. Macro-F1 on the test part at the bundle's thresholds, and at 0.5. Splits of one set share rows, so
their spread tells how much one split can mislead, and no interval is drawn from it. (The sets' own test parts are not
read apart: the rule that chooses a run's trial was changed after a look at them.)
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
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featurecache.spec import FeatureSpace
from heads import SearchSpace, load_bundle, search_heads
from heads.data import KeptSplit, LearningData
from heads.scoring.metrics import macro_f1
from tests.multilabel_sets import read_set

SPACE = FeatureSpace({"tap": "final", "pooling": "mean", "stored_dtype": "float32"})
SETS = ("emotions", "scene")
FRESH_SETS, FRESH_SPLITS = ("yeast", "emotions", "scene"), 10
FRESH = 20_261_122
"""Begins the seeds of fresh splits; written down before any was looked at."""
DEFAULT = SearchSpace(normalization=("standardize", "l2", "none"))
SESSIONS, VALIDATE = 50, 10
Clips = tuple[np.ndarray, np.ndarray]
"""Features (N, D) and targets (N, C)."""


def dealt(clips: Clips, seed: int) -> LearningData:
    """Clips divided by made-up sessions."""
    X, Y = clips
    session = np.random.default_rng(seed).integers(0, SESSIONS, len(X))
    labels = [f"label {number}" for number in range(Y.shape[1])]

    def part(rows: np.ndarray) -> KeptSplit:
        return KeptSplit({"final/mean": X[rows]}, Y[rows], session[rows].astype(str))

    return LearningData(part(session >= VALIDATE), part(session < VALIDATE), tuple(labels), {"final/mean": SPACE})


def study(data: LearningData, trials: int, **options: Any) -> dict[str, float]:
    """A search's best validation score and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        best = search_heads(data, trials=trials, folder=Path(folder), **options)
    return {"value": best["highest_value"], "cpu_s": time.process_time() - start}


def read_whole(name: str) -> Clips | None:
    """All clips of a set; None where it is not installed."""
    if name != "yeast":
        parts = [read_set(name, part) for part in ("train", "test")]
        return np.concatenate([X for X, _, _ in parts]), np.concatenate([Y for _, Y, _ in parts])
    found = importlib.util.find_spec("river")
    if found is None or found.origin is None:
        return None
    with gzip.open(Path(found.origin).parent / "datasets/yeast.csv.gz", "rt", newline="") as file:
        names, *rows = csv.reader(file)
    is_label = np.array([column.startswith("Class") for column in names])
    table = np.array(rows, np.float32)
    return table[:, ~is_label], table[:, is_label].astype(np.int8)


def fresh_split(clips: Clips, seed: int) -> tuple[Clips, Clips]:
    """Two thirds and a third of the rows."""
    X, Y = clips
    order = np.random.default_rng((FRESH, seed)).permutation(len(X))
    test, train = np.split(order, [len(X) // 3])
    return (X[train], Y[train]), (X[test], Y[test])


def searched(train: Clips, test: Clips, trials: int, seed: int) -> dict[str, float]:
    """Macro-F1 on a test part of what the default search leaves."""
    with tempfile.TemporaryDirectory() as folder:
        search_heads(dealt(train, seed), search_space=DEFAULT, trials=trials, seed=seed, folder=Path(folder))
        bundle = load_bundle(Path(folder) / "bundle")
    scores = bundle.scores(test[0], fingerprint=SPACE.fingerprint)
    return {"test": macro_f1(test[1], scores, bundle.thresholds), "test_at_half": macro_f1(test[1], scores)}


def scikit_learn(train: Clips, test: Clips, quick: bool) -> float:
    """Macro-F1 on a test part of tuned one-vs-rest logistic regression."""
    pipeline = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))
    prefix = "onevsrestclassifier__estimator__"
    grid = {f"{prefix}C": np.logspace(-4, 2, 3 if quick else 7), f"{prefix}class_weight": [None, "balanced"]}
    folds = KFold(5, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = GridSearchCV(pipeline, grid, scoring="f1_macro", cv=folds).fit(*train)
    return macro_f1(test[1], np.asarray(tuned.predict(test[0]), float))


def lower_bound(differences: np.ndarray) -> float:
    """The lower end of Student's 95% interval of the mean."""
    count = len(differences)
    spread = differences.std(ddof=1) / np.sqrt(count)
    return float(differences.mean() - student.ppf(0.975, count - 1) * spread)


Document = tuple[dict[str, Any], list[tuple[str, float, float]]]
"""Figures by group, and targets: what, its value, and the least that it must be."""


def compare_ways(quick: bool) -> Document:
    """Trials side by side, and the default search, against one by one."""
    sets, seeds, trials = (SETS[:1], 2, 32) if quick else (SETS, 8, 200)
    by_steps = SearchSpace(solver=("adamw",))
    variants: dict[str, dict[str, Any]] = {
        "one by one": {"search_space": by_steps, "stacked_trials": 1},
        "16 at once": {"search_space": by_steps, "stacked_trials": 16},
        "32 at once": {"search_space": by_steps, "stacked_trials": 32},
        "default": {"search_space": DEFAULT},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    figures: dict[str, Any] = {}
    for name in sets:
        X, Y, _ = read_set(name, "train")
        for seed in range(seeds):
            data = dealt((X, Y), seed)
            for variant, chosen in variants.items():
                found[variant].append({"set": name, **study(data, trials, seed=seed, **chosen)})
        for variant, outcomes in found.items():
            own = [outcome for outcome in outcomes if outcome["set"] == name]
            figures[f"{name}, {variant}"] = {
                key: float(np.mean([outcome[key] for outcome in own])) for key in ("value", "cpu_s")
            }
    targets = []
    alone = np.array([outcome["value"] for outcome in found["one by one"]])
    for variant in list(variants)[1:]:
        differences = np.array([outcome["value"] for outcome in found[variant]]) - alone
        figures[f"{variant}, minus one by one"] = {
            "mean": float(differences.mean()),
            "lower_bound_95": lower_bound(differences),
            "pairs": len(differences),
        }
        if variant != "32 at once":  # what a search of one set of inputs does
            targets.append(
                (f"{variant}: lower 95% bound of the difference", lower_bound(differences), -0.1 if quick else -0.005)
            )
    return figures, targets


def compare_with_scikit_learn(quick: bool) -> Document:
    """The default search against tuned scikit-learn on fresh splits of whole sets."""
    splits, trials = (2, 32) if quick else (FRESH_SPLITS, 200)
    figures: dict[str, Any] = {}
    gaps = {}
    for name in FRESH_SETS[1:2] if quick else FRESH_SETS:
        clips = read_whole(name)
        if clips is None:
            continue
        ours, theirs = [], []
        for seed in range(splits):
            train, test = fresh_split(clips, seed)
            ours.append(searched(train, test, trials, seed))
            theirs.append(scikit_learn(train, test, quick))
        differences = np.array([own["test"] for own in ours]) - theirs
        gaps[name] = float(differences.mean())
        figures[name] = {
            "test": np.mean([own["test"] for own in ours]),
            "test_at_half": np.mean([own["test_at_half"] for own in ours]),
            "scikit_learn": np.mean(theirs),
            "difference": gaps[name],
            "difference_sd": differences.std(ddof=1),
            "difference_lowest": differences.min(),
            "difference_highest": differences.max(),
            "ahead": int((differences > 0).sum()),
            "splits": splits,
        }
    targets = [(f"{name}: mean of test minus scikit-learn's", gap, -0.01) for name, gap in gaps.items()]
    return figures, [
        *targets,
        ("mean over sets of test minus scikit-learn's", float(np.mean(list(gaps.values()))), 0.0),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="against scikit-learn on fresh splits")
    parser.add_argument("--quick", action="store_true", help="emotions alone, 2 seeds, 32 trials, under 50 s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    figures, targets = (compare_with_scikit_learn if options.fresh else compare_ways)(options.quick)
    print(
        json.dumps(
            {
                "benchmark": "fresh splits" if options.fresh else "seed study",
                "machine": {
                    "cpu": platform.processor() or platform.machine(),
                    "cores": os.cpu_count(),
                    "load": os.getloadavg()[0],
                },
                "figures": {
                    group: {name: round(float(value), 4) for name, value in values.items()}
                    for group, values in figures.items()
                },
                "targets": [
                    {"what": what, "value": round(value, 4), "bound": bound, "better": "higher", "met": value >= bound}
                    for what, value, bound in targets
                ],
            }
        )
    )


if __name__ == "__main__":
    main()
