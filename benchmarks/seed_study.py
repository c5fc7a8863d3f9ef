"""Whether searching many trials at once costs quality, and how the search does on real multi-label sets.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/seed_study.py [--quick]

Real trainings on the training parts of emotions and scene (../shared/data/multilabel), for which rows are dealt to 50
made-up sessions, ten of which validate; another deal for each seed. The best validation macro-F1 after 200 trials of
AdamW, univariate TPE and median pruning: 16 and 32 side by side with refill, minus one by one on the same deal. The
interval is Student's, over seeds and sets. Then the default search (convex first, AdamW after), over the same.

On their own test parts: macro-F1 of the default search's bundles at their thresholds, mean over seeds, beside one-vs-
rest LogisticRegression of scikit-learn, C and class weights tuned by shuffled five-fold cross-validation for macro-F1
and fitted on the whole training part, where the search's heads see four fifths of it.
"""

import argparse
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
SESSIONS, VALIDATE = 50, 10


def dealt(name: str, seed: int) -> LearningData:
    """A set's training part, divided by made-up sessions."""
    X, Y, labels = read_set(name, "train")
    session = np.random.default_rng(seed).integers(0, SESSIONS, len(X))

    def part(rows: np.ndarray) -> KeptSplit:
        return KeptSplit({"final/mean": X[rows]}, Y[rows], session[rows].astype(str))

    return LearningData(part(session >= VALIDATE), part(session < VALIDATE), tuple(labels), {"final/mean": SPACE})


def study(data: LearningData, test: tuple[np.ndarray, np.ndarray], trials: int, **options: Any) -> dict[str, float]:
    """A search's best validation score, CPU seconds, and its bundle's macro-F1 on the test part."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        best = search_heads(data, trials=trials, folder=Path(folder), **options)
        seconds = time.process_time() - start
        bundle = load_bundle(Path(folder) / "bundle")
    scores = bundle.scores(test[0], fingerprint=SPACE.fingerprint)
    return {"value": best["highest_value"], "cpu_s": seconds, "test": macro_f1(test[1], scores, bundle.thresholds)}


def scikit_learn(name: str, test: tuple[np.ndarray, np.ndarray], quick: bool) -> float:
    """Macro-F1 on the test part of tuned one-vs-rest logistic regression."""
    X, Y, _ = read_set(name, "train")
    pipeline = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=1000)))
    prefix = "onevsrestclassifier__estimator__"
    grid = {f"{prefix}C": np.logspace(-4, 2, 3 if quick else 7), f"{prefix}class_weight": [None, "balanced"]}
    folds = KFold(5, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = GridSearchCV(pipeline, grid, scoring="f1_macro", cv=folds).fit(X, Y)
    return macro_f1(test[1], np.asarray(tuned.predict(test[0]), float))


def lower_bound(differences: np.ndarray) -> float:
    """The lower end of Student's 95% interval of the mean."""
    count = len(differences)
    spread = differences.std(ddof=1) / np.sqrt(count)
    return float(differences.mean() - student.ppf(0.975, count - 1) * spread)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="emotions alone, 2 seeds, 32 trials, under 50 s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sets, seeds, trials = (SETS[:1], 2, 32) if options.quick else (SETS, 8, 200)
    by_steps = SearchSpace(solver=("adamw",))
    variants: dict[str, dict[str, Any]] = {
        "one by one": {"search_space": by_steps, "stacked_trials": 1},
        "16 at once": {"search_space": by_steps, "stacked_trials": 16},
        "32 at once": {"search_space": by_steps, "stacked_trials": 32},
        "default": {"search_space": SearchSpace(normalization=("standardize", "l2", "none"))},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    figures: dict[str, Any] = {}
    for name in sets:
        X, Y, _ = read_set(name, "test")
        for seed in range(seeds):
            data = dealt(name, seed)
            for variant, chosen in variants.items():
                outcome = study(data, (X, Y), trials, seed=seed, **chosen)
                found[variant].append({"set": name, **outcome})
        figures[f"{name}, scikit-learn"] = {"test": scikit_learn(name, (X, Y), options.quick)}
        for variant, outcomes in found.items():
            own = [outcome for outcome in outcomes if outcome["set"] == name]
            figures[f"{name}, {variant}"] = {
                key: float(np.mean([outcome[key] for outcome in own])) for key in ("value", "test", "cpu_s")
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
        targets.append((f"{variant}: lower 95% bound of the difference", lower_bound(differences), -0.005))
    gaps = [figures[f"{name}, default"]["test"] - figures[f"{name}, scikit-learn"]["test"] for name in sets]
    targets.append(("macro-F1 on test minus scikit-learn's, worst set", min(gaps), -0.01))
    targets.append(("macro-F1 on test minus scikit-learn's, mean of sets", float(np.mean(gaps)), 0.0))
    print(
        json.dumps(
            {
                "benchmark": "seed study",
                "machine": {
                    "cpu": platform.processor() or platform.machine(),
                    "cores": os.cpu_count(),
                    "load": os.getloadavg()[0],
                },
                "figures": {
                    group: {name: round(value, 4) for name, value in values.items()}
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
