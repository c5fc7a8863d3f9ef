"""Whether deeper heads overfit: linear heads and heads of one to three hidden layers, on sessions seen and unseen.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.deeper_heads [--data FOLDER] [--draws N] [--quick]

Sets as in `small_studies`, at 15 sessions, a quarter of them unseen. Each head has a search of its own: the default one
for the linear head, 16 trials by AdamW (widths of 16 to 256 units, dropout to .5) for each number of layers, the best
three of them compared out of fold and the winner refitted. Macro-F1 at the bundle's own thresholds on the clips it was
fitted on and on the unseen sessions. Guerriero et al. report that deeper heads overfit.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
from pathlib import Path

import numpy as np
import optuna
import torch

from benchmarks.small_studies import SPACE, Clips, all_sets
from heads import SearchSpace, load_bundle, search_heads
from heads.data import LabelledSplit, LearningData
from heads.scoring.metrics import macro_f1

SESSIONS = 15
HEADS = {
    "linear": SearchSpace(),
    **{
        f"{layers} hidden": SearchSpace(kind=("mlp",), solver=("adamw",), hidden_layers=(layers,))
        for layers in (1, 2, 3)
    },
}


def study(clips: Clips, draw: int, trials: int) -> dict[str, tuple[float, float]] | None:
    """Macro-F1 of each head on clips it was fitted on and on unseen sessions; None where a label cannot be trained."""
    X, Y, sessions = clips
    names = np.random.default_rng((1, draw)).permutation(np.unique(sessions))
    unseen, validates = (np.isin(sessions, some) for some in (names[:4], names[4:6]))
    if not Y[~unseen & ~validates].any(axis=0).all():
        return None

    def part(rows: np.ndarray) -> LabelledSplit:
        return LabelledSplit({"final/mean": X[rows]}, Y[rows], sessions[rows])

    labels = tuple(f"label {at}" for at in range(Y.shape[1]))
    data = LearningData(part(~unseen & ~validates), part(validates), labels, {"final/mean": SPACE})
    found = {}
    for name, space in HEADS.items():
        with tempfile.TemporaryDirectory() as folder:
            search_heads(
                data, search_space=space, trials=trials if name != "linear" else 4, seed=draw, folder=Path(folder)
            )
            bundle = load_bundle(Path(folder) / "bundle")
        scores = bundle.scores(X, fingerprint=SPACE.fingerprint)
        found[name] = tuple(macro_f1(Y[rows], scores[rows], bundle.thresholds) for rows in (~unseen, unseen))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of <name>-train.arff.gz, <name>-test.arff.gz, <name>.xml")
    parser.add_argument("--draws", type=int, default=8, help="of each set")
    parser.add_argument("--quick", action="store_true", help="two draws of the drawn set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    figures = {}
    for set_name, make in all_sets(None if options.quick else options.data).items():
        draws = range(2 if options.quick else options.draws)
        found = [
            one for draw in draws if (one := study(make(SESSIONS, draw), draw, 4 if options.quick else 16)) is not None
        ]
        for name in HEADS if len(found) > 1 else ():
            ahead = np.array([one[name][1] - one["linear"][1] for one in found])
            figures[f"{set_name}, {name}"] = {
                "seen": round(float(np.mean([one[name][0] for one in found])), 4),
                "unseen": round(float(np.mean([one[name][1] for one in found])), 4),
                "unseen minus linear": round(float(ahead.mean()), 4),
                "standard error": round(float(ahead.std(ddof=1) / np.sqrt(len(ahead))), 4),
                "draws": len(found),
            }
            print(f"{set_name}, {name}: {figures[f'{set_name}, {name}']}", flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "deeper heads", "machine": machine, "figures": figures, "targets": []}))


if __name__ == "__main__":
    main()
