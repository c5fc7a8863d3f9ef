"""What `featurecache tune` costs as a user types it, against the loop that everybody writes; and its engines alone.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.bench_search [--quick] [--power-law] [--draw N]

Synthetic features (15,912 x 4096 float16, 60 sessions: 42 train, 9 validate, 9 unseen; rank 256 plus noise, or
variances that fall off as a power law), 4 labels. CPU time, one thread.

(a) The own loop: DataLoader, nn.Linear, Adam, a SQLite study told the score of each epoch. An epoch, its scoring and
    the storage are measured on a few trials and multiplied by 200 times the mean of the range of epochs, which is
    log-uniform (no pruning, as such a loop is mostly run), and by the epochs that (b) trained (equal pruning). What (b)
    asks for is no measure of such a loop: its pruning teaches the sampler to ask for fewer epochs.
(b) `featurecache tune --trials 200` with its defaults, in a process of its own on a project whose cache has the
    features: imports, reading, search, refit, timeline settings and writing included. Where its time goes is counted
    inside.
(c) The engines alone: a study of AdamW over the products of its stacks, and the convex solver over the products of its
    steps.
"""

import argparse
import csv
import json
import logging
import math
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.targets import Target, judged
from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.csv_file import write_table
from featurecache.spec import FeatureSpace
from featurecache.store.exchange import import_features
from heads import HeadSettings, SearchSpace, load_bundle
from heads.data import LabelledSplit, LearningData
from heads.engines.basis import Basis
from heads.engines.convex import ConvexGrid, grid_points, solve_grid
from heads.engines.training_clips import TrainingClips, View
from heads.scoring.metrics import macro_f1
from heads.search.search import STACKED_TRIALS

ROOT = Path(__file__).parents[1]
LABELS = ("a", "b", "c", "d")
KEPT = "final/mean"
SPACE = FeatureSpace({"tap": "final", "pooling": "mean", "stored_dtype": "float16"})
TRIALS = 200
PARTS = (
    ("reading the features", "heads.workflow.training", "learning_data"),
    ("principal axes", "heads.engines.prepared", "basis_of"),
    ("convex trials", "heads.search.search", "solve_trial"),
    ("asking for, scoring and pruning AdamW trials", "heads.search.search._Search", "_train_epoch"),
    ("AdamW steps", "heads.engines.training.StackedTrainer", "_train_epoch"),
    ("refit and its folds", "heads.engines.refit", "refit"),
    ("timeline settings", "heads.workflow.training", "tune_on_held_out"),
)
"""Of the command: what is counted, and where it is called."""
REPORTS = 30
"""Epochs that a trial of the loop reports, where its storage is measured."""


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def make_data(N: int, D: int, *, power_law: bool, draw: int, sessions: int = 60) -> tuple[LearningData, LabelledSplit]:
    """Training and validation clips, and those of unseen sessions."""
    random = np.random.default_rng(draw)
    rank = D if power_law else min(256, D // 4)
    scale = 20 * np.arange(1, rank + 1) ** -0.7 if power_law else np.linspace(3, 0.3, rank)
    of_clip = np.repeat(np.arange(sessions), -(-N // sessions))[:N]
    z = random.standard_normal((N, rank), dtype=np.float32)
    z += 0.6 * random.standard_normal((sessions, rank), dtype=np.float32)[of_clip]
    X = (z * scale.astype(np.float32)) @ (random.standard_normal((rank, D), dtype=np.float32) / np.sqrt(rank))
    if not power_law:
        X += 0.5 * X.std() * random.standard_normal((N, D), dtype=np.float32)
    told = min(rank, 200)
    logits = 2 * z[:, :told] @ random.standard_normal((told, len(LABELS)), dtype=np.float32) / np.sqrt(told)
    logits += 1.5 * random.standard_normal((N, len(LABELS)), dtype=np.float32)
    cuts = [np.quantile(logits[:, c], share) for c, share in enumerate((0.55, 0.8, 0.9, 0.96))]
    X, Y = X.astype(np.float16), (logits > cuts).astype(np.int8)
    names = np.array([f"session {number}" for number in of_clip])

    def part(rows: np.ndarray) -> LabelledSplit:
        return LabelledSplit({KEPT: X[rows]}, Y[rows], names[rows])

    data = LearningData(part(of_clip < 42), part((of_clip >= 42) & (of_clip < 51)), LABELS, {KEPT: SPACE})
    return data, part(of_clip >= 51)


# --- (a) the own loop -----------------------------------------------------------------------------


class OwnLoop:
    """Trains and scores one head as everybody does."""

    def __init__(self, data: LearningData) -> None:
        X = data.train.features[KEPT].astype(np.float32)
        self.mean, self.scale = X.mean(0), X.std(0)
        self.train = TensorDataset(self.ready(X), torch.from_numpy(data.train.Y.astype(np.float32)))
        self.X = self.ready(data.validation.features[KEPT])
        self.Y = data.validation.Y

    def ready(self, X: np.ndarray) -> torch.Tensor:
        """Standardised features."""
        return torch.from_numpy((X.astype(np.float32) - self.mean) / self.scale)

    def run(self, settings: HeadSettings, told: Callable[[float, int], None], epochs: int) -> torch.nn.Module:
        """A head after so many epochs, scored after each."""
        torch.manual_seed(0)
        Y = self.train.tensors[1]
        head = torch.nn.Linear(self.X.shape[1], Y.shape[1])
        torch.nn.init.zeros_(head.weight)
        positives = Y.sum(0)
        with torch.no_grad():
            head.bias.copy_((positives / (len(Y) - positives)).log())
        loss = torch.nn.BCEWithLogitsLoss(
            pos_weight=((len(Y) - positives) / positives) ** settings.positive_weight_exponent
        )
        optimizer = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        dropout = torch.nn.Dropout(settings.dropout)
        for epoch in range(1, epochs + 1):
            for x, y in DataLoader(self.train, batch_size=settings.batch_size, shuffle=True):
                optimizer.zero_grad()
                loss(head(dropout(x)), y).backward()
                optimizer.step()
            told(self.score(head), epoch)
        return head

    @torch.no_grad()
    def score(self, head: torch.nn.Module) -> float:
        """Validation macro-F1."""
        return macro_f1(self.Y, torch.sigmoid(head(self.X)).numpy())


def measure_loop(data: LearningData, epochs: int) -> dict[str, float]:
    """CPU seconds of an epoch of batch 256 with its scoring, and of a trial's storage."""
    loop = OwnLoop(data)
    for_time = HeadSettings(batch_size=256, dropout=0.2)
    loop.run(for_time, lambda *_: None, 1)
    epoch_s = cpu_s(lambda: loop.run(for_time, lambda *_: None, epochs)) / epochs
    with tempfile.TemporaryDirectory() as folder:
        study = optuna.create_study(storage=f"sqlite:///{folder}/study.db", direction="maximize")

        def objective(trial: optuna.Trial) -> float:
            trial.suggest_float("learning_rate", 3e-6, 3e-2, log=True)
            trial.suggest_float("weight_decay", 1e-5, 1.0, log=True)
            trial.suggest_float("exponent", 0, 1)
            trial.suggest_float("dropout", 0, 0.5)
            trial.suggest_categorical("batch_size", [128, 256, 512])
            for epoch in range(REPORTS):
                trial.report(epoch / 100, epoch)
            return 0.5

        storage_s = cpu_s(lambda: study.optimize(objective, n_trials=4)) / 4
    return {"epoch_s": epoch_s, "storage_s_per_trial": storage_s}


# --- (b) the command ------------------------------------------------------------------------------


def make_project(root: Path, data: LearningData, unseen: LabelledSplit) -> None:
    """A project whose cache has the features, imported under the name `made`."""
    (root / "videos").mkdir(parents=True)
    clips, contents, rows = [], {}, ["recording,start_s,end_s,label"]
    for split, part in (("train", data.train), ("validation", data.validation), ("test", unseen)):
        for session in dict.fromkeys(part.sessions.tolist()):
            content = f"{len(contents):016x}"
            contents[content] = content * 4
            own = part.Y[part.sessions == session]
            spans = [(3_000_000 * at, 3_000_000 * (at + 1)) for at in range(len(own))]
            rows += [
                f"{session}.mp4,{start / 1e6},{end / 1e6},{label}"
                for at, label in enumerate(LABELS)
                for (start, end), on in zip(spans, own[:, at], strict=True)
                if on
            ]
            clips += [
                Clip(f"{content}-{start}-{end}", f"{session}.mp4", session, split, start, end, tuple(map(int, target)))
                for (start, end), target in zip(spans, own, strict=True)
            ]
    (root / "labels.csv").write_text("\n".join(rows))
    write_table(ClipTable(LABELS, tuple(clips)), root / "clips.csv", state_path=root / ".featurecache/clips.json")
    parts = [part.features[KEPT] for part in (data.train, data.validation, unseen)]
    ids = np.array([clip.clip_id for clip in clips], "S")
    np.savez(root / "made.npz", features=np.concatenate(parts), clip_id=ids)
    (root / "featurecache.toml").write_text(
        '[data]\nvideos = "videos"\nannotations = "labels.csv"\n'
        f'labels = {json.dumps(LABELS)}\n[features]\nmodel = "none"\n'
    )
    import_features(root / "features.zarr", root / "made.npz", name="made", recordings=contents)


def command(root: Path, *words: str) -> dict[str, float]:
    """CPU seconds of a command in a process of its own: all of it, and its parts by name."""
    code = "from benchmarks.bench_search import counted_command; counted_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--config", str(root)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"featurecache {' '.join(words)} must end with 0, but ended so: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return found


def counted_command() -> None:
    """What that process runs: the command, and on stderr what it and its parts took."""
    spent = {name: 0.0 for name, _, _ in PARTS}

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return work(*arguments, **named)
            finally:
                spent[name] += time.process_time() - start

        return run

    import cli

    for name, owner, attribute in PARTS:
        place = pkgutil.resolve_name(owner)
        setattr(place, attribute, counted(name, getattr(place, attribute)))
    loaded = time.process_time()
    try:
        cli.main()
    except SystemExit as ended:
        spent["convex trials"] -= spent["principal axes"]  # which the first of them finds
        spent["asking for, scoring and pruning AdamW trials"] -= spent["AdamW steps"]
        whole = time.process_time()
        rest = whole - loaded - sum(spent.values())
        print(json.dumps({"whole": whole, "imports": loaded, **spent, "the rest": rest}), file=sys.stderr)
        raise SystemExit(ended.code) from None


# --- (c) the engines ------------------------------------------------------------------------------


def stack_floor_s(N: int, D: int) -> float:
    """CPU seconds of a trial-epoch's products in a stack of 16 heads, batches of 256, and nothing else."""
    X, W = torch.randn(N, D), torch.randn(STACKED_TRIALS * len(LABELS), D)
    G, gradient = torch.randn(256, len(W)), torch.zeros_like(W)

    def epoch() -> None:
        for rows in torch.split(X, 256):
            torch.mm(rows, W.T)
            gradient.addmm_(G[: len(rows)].T, rows)

    epoch()
    return float(np.median([cpu_s(epoch) for _ in range(3)])) / STACKED_TRIALS


def measure_solver(data: LearningData) -> dict[str, float]:
    """Two solves of the default grid, without folds, and the products of their steps."""
    X, Y = data.train.features[KEPT], data.train.Y
    basis = Basis.fit(X, TrainingClips(X, Y, seed=0, shuffle=False).front(View("standardize", 0)))
    points = grid_points(l2=np.geomspace(1e-3, 10, 8).tolist(), positive_weight_exponent=np.linspace(0, 1, 6).tolist())
    solve_s = floor_s = 0.0
    grids: list[ConvexGrid] = []
    for exponent in SearchSpace().variance_exponent:
        solve = partial(solve_grid, basis, Y, points, variance_exponent=exponent)
        solve_s += cpu_s(lambda solve=solve: grids.append(solve()))
        steps = grids[-1].iterations
        floor_s += products_s(basis.X, [int((steps >= step).sum()) for step in range(1, int(steps.max()) + 1)])
    return {
        "solve_s": solve_s,
        "solve_over_floor": solve_s / floor_s,
        "steps_mean": float(np.mean([grid.iterations.mean() for grid in grids])),
        "converged": min(float(grid.converged.mean()) for grid in grids),
    }


def products_s(X: torch.Tensor, widths: list[int]) -> float:
    """CPU seconds of one product forward and one back for each number of columns."""
    points, residuals = torch.randn(max(widths), X.shape[1]), torch.randn(max(widths), len(X))

    def work() -> None:
        for width in widths:
            torch.mm(points[:width], X.T)
            torch.mm(residuals[:width], X)

    return cpu_s(work)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4,000 x 1,024 and 24 trials, under 50 s")
    parser.add_argument("--power-law", action="store_true", help="variances that fall off as a power law")
    parser.add_argument("--draw", type=int, default=0, help="other data of the same kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    N, D, trials = (4000, 1024, 24) if options.quick else (15_912, 4096, TRIALS)
    data, unseen = make_data(N, D, power_law=options.power_law, draw=options.draw)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_project(root, data, unseen)
        tune = command(root, "tune", "--trials", str(trials), "--features", "made")
        with (root / "runs/tune-made/trials.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["solver"] == "adamw"]
        bundle = load_bundle(root / "runs/tune-made/bundle")
    clips = unseen.of(KEPT)
    scores = bundle.scores(clips.X, fingerprint=bundle.fingerprint)
    epochs = sum(int(row["epochs_seen"] or row["diverged_in_epoch"]) for row in rows)
    asked = sum(int(row["epochs"]) for row in rows)
    low, high = SearchSpace().epochs
    unpruned = trials * (high - low) / math.log(high / low)
    states = Counter(row["state"] for row in rows)
    loop = measure_loop(data, 2 if options.quick else 3)
    storage_s = trials * loop["storage_s_per_trial"]
    loop_s, pruned_s = unpruned * loop["epoch_s"] + storage_s, epochs * loop["epoch_s"] + storage_s
    adamw_s = tune["AdamW steps"] + tune["asking for, scoring and pruning AdamW trials"]
    solver, floor_s = measure_solver(data), stack_floor_s(len(data.train.Y), D)
    figures = {
        "tune, CPU seconds": tune,
        "tune": {
            "trial_epochs": epochs,
            "trial_epochs_asked": asked,
            "adamw_completed": states["complete"],
            "adamw_pruned": states["pruned"],
            "unseen": macro_f1(clips.Y, scores, bundle.thresholds),
            "unseen_at_half": macro_f1(clips.Y, scores),
        },
        "own_loop": {**loop, "epochs": unpruned, "study_s": loop_s, "study_pruned_s": pruned_s},
        "solver, all features": solver,
    }
    targets: list[Target] = [
        ("own loop without pruning over the command", loop_s / tune["whole"], 60, 1, "higher"),
        ("the command, CPU seconds", tune["whole"], 35, 60, "lower"),
        ("own loop over AdamW trials, equal pruning", pruned_s / adamw_s, 20, 5, "higher"),
        ("AdamW steps over their products", tune["AdamW steps"] / (epochs * floor_s), 1.8, 12, "lower"),
        ("convex solver over the products of its steps", solver["solve_over_floor"], 1.3, 5, "lower"),
        ("share of problems that converged", solver["converged"], 1.0, 0.9, "higher"),
    ]
    print(document("search", figures, targets, quick=options.quick))


def document(name: str, figures: dict[str, dict[str, Any]], targets: list[Target], *, quick: bool) -> str:
    """What the script prints."""
    return json.dumps(
        {
            "benchmark": name,
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
            },
            "figures": {
                group: {name: round(float(value), 5) for name, value in values.items() if value is not None}
                for group, values in figures.items()
            },
            "targets": judged([(what, round(float(value), 4), *rest) for what, value, *rest in targets], quick=quick),
        }
    )


if __name__ == "__main__":
    main()
