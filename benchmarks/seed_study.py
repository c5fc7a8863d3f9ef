"""Whether searching many trials at once costs quality: AdamW trials on real multi-label sets.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.seed_study [--quick]

Real trainings on the training parts of emotions and scene (../shared/data/multilabel), rows assigned to 50 made-up
sessions, ten of which validate; another assignment for each seed. The best validation macro-F1 after 200 trials of
AdamW, univariate TPE and median pruning: 16 (as the search does) and 32 side by side with refill, minus one by one on
the same assignment. The interval is Student's, over seeds and sets.

How the default search compares with scikit-learn is `small_studies.py`.
"""

import argparse
import csv
import json
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from scipy.stats import t as student

from featurecache.spec import FeatureSpace
from heads import SearchSpace, search_heads
from heads.data import LabelledSplit, LearningData
from tests.multilabel_sets import read_set

SPACE = FeatureSpace({"tap": "final", "pooling": "mean", "stored_dtype": "float32"})
SETS = ("emotions", "scene")
SESSIONS, VALIDATE = 50, 10
Clips = tuple[np.ndarray, np.ndarray]
"""Features (N, D) and targets (N, C)."""


def with_sessions(clips: Clips, seed: int) -> LearningData:
    """Clips divided by made-up sessions."""
    X, Y = clips
    session = np.random.default_rng(seed).integers(0, SESSIONS, len(X))
    labels = [f"label {number}" for number in range(Y.shape[1])]

    def part(rows: np.ndarray) -> LabelledSplit:
        return LabelledSplit({"final/mean": X[rows]}, Y[rows], session[rows].astype(str))

    return LearningData(part(session >= VALIDATE), part(session < VALIDATE), tuple(labels), {"final/mean": SPACE})


def study(data: LearningData, trials: int, **options: Any) -> dict[str, float]:
    """A search's best validation score and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        search_heads(data, trials=trials, folder=Path(folder), **options)
        cpu_s = time.process_time() - start
        with (Path(folder) / "trials.csv").open(newline="") as file:
            values = [float(row["value"]) for row in csv.DictReader(file) if row["value"]]
    return {"value": max(values), "cpu_s": cpu_s}


def lower_bound(differences: np.ndarray) -> float:
    """The lower end of Student's 95% interval of the mean."""
    count = len(differences)
    spread = differences.std(ddof=1) / np.sqrt(count)
    return float(differences.mean() - student.ppf(0.975, count - 1) * spread)


Document = tuple[dict[str, Any], list[tuple[str, float, float]]]
"""Figures by group, and targets: what, its value, and the least that it must be."""


def compare_ways(quick: bool) -> Document:
    """Trials side by side against one by one."""
    sets, seeds, trials = (SETS[:1], 2, 32) if quick else (SETS, 8, 200)
    by_adamw = SearchSpace(solver=("adamw",))
    variants: dict[str, dict[str, Any]] = {
        "one by one": {"search_space": by_adamw, "stacked_trials": 1},
        "16 at once": {"search_space": by_adamw, "stacked_trials": 16},
        "32 at once": {"search_space": by_adamw, "stacked_trials": 32},
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    figures: dict[str, Any] = {}
    for name in sets:
        X, Y, _ = read_set(name, "train")
        for seed in range(seeds):
            data = with_sessions((X, Y), seed)
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="emotions alone, 2 seeds, 32 trials, under 50 s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    figures, targets = compare_ways(options.quick)
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
