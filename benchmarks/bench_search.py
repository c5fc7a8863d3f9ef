"""A search of 200 trials: by the loop that everybody writes, by scikit-learn, and by both engines here.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/bench_search.py [--quick] [--power-law]
        [--draw N] [--draws N]

Synthetic features (15,912 x 4096 float16, 60 sessions: 42 train, 9 validate, 9 unseen; rank 256 plus noise, or
variances that fall off as a power law), 4 labels. The objective is validation macro-F1 at 0.5. CPU time, one thread.

(a) The own loop: DataLoader, nn.Linear, Adam, a SQLite study told the score of each epoch. An epoch, its scoring and
    the storage are measured on a few trials and multiplied by the epochs of (c)'s study: those that it trained (equal
    pruning), and all that its trials asked for (no pruning, as such a loop is mostly run). Its best score is that of
    (c)'s study of AdamW, whose best trial the loop trains again; `loop_best` is the better of the two heads.
(b) scikit-learn: one-vs-rest LogisticRegression on standardised features, a few values of C with and without balanced
    classes; time per fit times 200.
(c) `search_heads`, all included (checks, digest, storage, the final fit, documents): AdamW with TPE, 16 trials side by
    side, over the loop's settings; the convex solver on all features (a plain penalty, and one that follows their
    variances), chosen by validation, which is the loop's objective; the same chosen by five session folds, as by
    default; with the plain penalty alone; and on 128, 256 and 512 principal components, plain penalty.

A best validation score says how well a head does and how kindly it was chosen. So each best head's score on unseen
sessions stands beside it, both at 0.5 and at thresholds tuned on validation as bundles do. `apart` compares heads with
the loop's best: the paired 95% interval of the difference over validation and over unseen sessions, and how much of
the loop's lead stays on validation alone (`lead_lost`: its validation minus unseen score, less that of the head here;
what makes one part harder than the other is in both). One draw of the data is luck, of a hundredth or two: the targets
for scores are those of `--draws`, which compares means over several.

Floors, measured in the same run: the products of a stack of 16 heads and nothing else; those of each step of the
convex solver, at that step's number of columns; reading the features once.
"""

import argparse
import csv
import json
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import torch
from sklearn.linear_model import LogisticRegression
from targets import Target, judged
from torch.utils.data import DataLoader, TensorDataset

from featurecache.spec import FeatureSpace
from heads import HeadSettings, SearchSpace, load_bundle, search_heads
from heads.data import KeptSplit, LabelledFeatures, LearningData
from heads.engines.basis import Basis
from heads.engines.convex import grid_points, solve_grid
from heads.engines.training import StackedTrainer
from heads.engines.training_clips import TrainingClips, View
from heads.scoring.metrics import macro_f1, session_counts
from heads.scoring.statistics import paired_comparison
from heads.scoring.thresholds import tuned_thresholds
from heads.search import results as results_module
from heads.search import search as search_module
from heads.search.search import STACKED_TRIALS

LABELS = ("a", "b", "c", "d")
KEPT = "final/mean"
SPACE = FeatureSpace({"tap": "final", "pooling": "mean", "stored_dtype": "float16"})
TRIALS = 200
WIDTHS = (128, 256, 512)
TURNS = 3
"""Of the AdamW study and its floor, one after the other; their medians count."""
OPTUNA_AND_EVALUATION: tuple[tuple[Any, str], ...] = (
    (search_module._Search, "_ask"),
    (search_module._Search, "_is_pruned"),
    (search_module._Search, "_end_steps"),
    (results_module, "importances"),
    (StackedTrainer, "_reports"),
)
REPORTS = 30
"""Epochs that a trial of the loop reports, where its storage is measured."""


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def make_data(N: int, D: int, *, power_law: bool, draw: int, sessions: int = 60) -> tuple[LearningData, KeptSplit]:
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

    def part(rows: np.ndarray) -> KeptSplit:
        return KeptSplit({KEPT: X[rows]}, Y[rows], names[rows])

    data = LearningData(part(of_clip < 42), part((of_clip >= 42) & (of_clip < 51)), LABELS, {KEPT: SPACE})
    return data, part(of_clip >= 51)


# --- what a head is worth ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Worth:
    """A head's probabilities, and what they score on validation and on unseen sessions."""

    validation: LabelledFeatures
    unseen: LabelledFeatures
    validation_scores: np.ndarray
    unseen_scores: np.ndarray

    def figures(self) -> dict[str, float]:
        """Macro-F1 at 0.5 and at thresholds tuned on validation."""
        V, U = self.validation, self.unseen
        thresholds = tuned_thresholds(V.Y, self.validation_scores, V.sessions)
        value, on_unseen = macro_f1(V.Y, self.validation_scores), macro_f1(U.Y, self.unseen_scores)
        return {
            "value": value,
            "unseen": on_unseen,
            "validation_minus_unseen": value - on_unseen,
            "tuned_value": macro_f1(V.Y, self.validation_scores, thresholds),
            "tuned_unseen": macro_f1(U.Y, self.unseen_scores, thresholds),
        }

    def apart(self, other: "Worth") -> dict[str, float]:
        """This head minus another, with the ends of the paired intervals over sessions."""
        ours, theirs = self.figures(), other.figures()
        found = {name: ours[name] - theirs[name] for name in ours if name != "validation_minus_unseen"}
        found["lead_lost"] = theirs["validation_minus_unseen"] - ours["validation_minus_unseen"]
        for name, clips, mine, its in (
            ("value", self.validation, self.validation_scores, other.validation_scores),
            ("unseen", self.unseen, self.unseen_scores, other.unseen_scores),
        ):
            counts = [session_counts(clips.Y, scores >= 0.5, clips.sessions) for scores in (mine, its)]
            found[f"{name}_low"], found[f"{name}_high"] = paired_comparison(*counts)["difference_ci95"]
        return found


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


def measure_loop(
    data: LearningData, unseen: KeptSplit, epochs: int, best: dict[str, Any]
) -> tuple[dict[str, float], OwnLoop, Worth]:
    """CPU seconds of an epoch of batch 256 with its scoring, and of a trial's storage; the best trial trained there."""
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
    settings = HeadSettings.from_mapping(best["settings"])
    head = loop.run(settings, lambda *_: None, settings.epochs)
    with torch.no_grad():
        scores = [torch.sigmoid(head(X)).numpy() for X in (loop.X, loop.ready(unseen.features[KEPT]))]
    worth = Worth(data.validation.of(KEPT), unseen.of(KEPT), *scores)
    return {"epoch_s": epoch_s, "storage_s_per_trial": storage_s}, loop, worth


# --- (b) scikit-learn -----------------------------------------------------------------------------


def measure_scikit_learn(loop: OwnLoop, unseen: KeptSplit, quick: bool) -> dict[str, float]:
    """Seconds per fit of all labels, and the best scores."""
    X, Y = loop.train.tensors[0].numpy(), loop.train.tensors[1].numpy().astype(int)
    X_unseen = loop.ready(unseen.features[KEPT]).numpy()
    seconds, found = [], []
    for C in (1e-3, 1e-2) if quick else (1e-4, 1e-3, 1e-2):
        for weight in (None, "balanced"):
            heads = [LogisticRegression(C=C, class_weight=weight, max_iter=200) for _ in LABELS]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seconds.append(cpu_s(lambda heads=heads: [head.fit(X, Y[:, c]) for c, head in enumerate(heads)]))

            def score(X: np.ndarray, Y: np.ndarray, heads: list[LogisticRegression] = heads) -> float:
                return macro_f1(Y, np.stack([head.predict_proba(X)[:, 1] for head in heads], axis=1))

            found.append((score(loop.X.numpy(), loop.Y), score(X_unseen, unseen.Y)))
    value, on_unseen = max(found)
    return {"s_per_trial": float(np.median(seconds)), "fits": len(seconds), "value": value, "unseen": on_unseen}


# --- (c) here -------------------------------------------------------------------------------------


def search(data: LearningData, unseen: KeptSplit, space: SearchSpace, trials: int, folder: Path) -> dict[str, Any]:
    """A study's CPU seconds, best scores, and its trials."""
    best: dict[str, Any] = {}
    with counting_cpu_s(*OPTUNA_AND_EVALUATION) as beside:
        seconds = cpu_s(
            lambda: best.update(search_heads(data, search_space=space, trials=trials, seed=0, folder=folder))
        )
    bundle = load_bundle(folder / "bundle")
    with (folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = data.validation.of(KEPT), unseen.of(KEPT)
    worth = Worth(*parts, *(bundle.scores(part.X, fingerprint=SPACE.fingerprint) for part in parts))
    return {
        "cpu_s": seconds,
        "beside_training": beside[0] / seconds,
        **worth.figures(),
        "corrected_value": best["optimism"]["corrected"],
        "worth": worth,
        "best": best,
        "rows": rows,
    }


@contextmanager
def counting_cpu_s(*methods: tuple[Any, str]) -> Iterator[list[float]]:
    """Adds up the CPU seconds inside some methods, none of which calls another of them."""
    spent = [0.0]

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return method(*arguments, **named)
            finally:
                spent[0] += time.process_time() - start

        return run

    with ExitStack() as stack:
        for owner, name in methods:
            stack.enter_context(patch.object(owner, name, counted(getattr(owner, name))))
        yield spent


def over_draws(
    makers: list[Callable[[], tuple[LearningData, KeptSplit]]], spaces: dict[str, SearchSpace], trials: int
) -> dict[str, dict[str, float]]:
    """How far best scores lie apart, over draws: mean, its standard error, and draws that are not below."""
    found: dict[str, list[list[float]]] = {}  # (draws, 2): value, unseen
    for make in makers:
        data, unseen = make()
        with tempfile.TemporaryDirectory() as folder:
            studies = {name: search(data, unseen, of, trials, Path(folder) / name) for name, of in spaces.items()}
        studies["scikit_learn"] = measure_scikit_learn(OwnLoop(data), unseen, quick=False)
        for name, study in studies.items():
            found.setdefault(name, []).append([study["value"], study["unseen"]])
    apart = {}
    for other in ("adamw", "scikit_learn"):
        for name in [name for name in spaces if name != other]:
            differences = np.array(found[name]) - np.array(found[other])
            for score, of in zip(("validation", "unseen"), differences.T, strict=True):
                apart[f"{name} minus {other}, {score}"] = {
                    "mean": round(float(of.mean()), 4),
                    "standard_error": round(float(of.std(ddof=1) / np.sqrt(len(of))), 4),
                    "not_below": int((of >= 0).sum()),
                    "draws": len(of),
                }
    return apart


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
    """The default study's two solves of the grid beside their steps' products; `peak` is at the rate of all columns."""
    X, Y = data.train.features[KEPT], data.train.Y
    clips = TrainingClips(X, Y, seed=0, shuffle=False)
    made: list[Basis] = []
    basis_s = cpu_s(lambda: made.append(Basis.fit(X, clips.front(View("standardize", 0)))))
    (basis,) = made
    points = grid_points(l2=np.geomspace(1e-3, 10, 8).tolist(), positive_weight_exponent=np.linspace(0, 1, 6).tolist())
    columns = len(points) * len(LABELS)
    found: dict[str, float] = {"basis_s": basis_s}
    total = np.zeros(3)  # solve, floor, peak
    converged = []
    for exponent in SearchSpace().spectral_exponent:
        solve = partial(solve_grid, basis, Y, points, spectral_exponent=exponent)
        grid = solve()
        widths = [int((grid.iterations >= step).sum()) for step in range(1, int(grid.iterations.max()) + 1)]
        turns = [
            (
                cpu_s(solve),
                products_s(basis.X, widths),
                products_s(basis.X, [columns]) * sum(widths) / columns,
            )
            for _ in range(3)
        ]
        seconds = np.median(turns, axis=0)
        total += seconds
        converged.append(float(grid.converged.mean()))
        found |= {
            f"exponent {exponent:g}: solve_s": float(seconds[0]),
            f"exponent {exponent:g}: solve_over_floor": float(seconds[0] / seconds[1]),
            f"exponent {exponent:g}: steps_mean": float(grid.iterations.mean()),
        }
    return found | {
        "solve_over_floor": float(total[0] / total[1]),
        "solve_over_peak": float(total[0] / total[2]),
        "s_per_trial_equivalent": float(total[0] / len(points) / len(converged)),
        "converged": min(converged),
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
    parser.add_argument("--draws", type=int, help="nothing but the best scores, over so many draws; 3 min each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    N, D, trials, widths = (4000, 1024, 24, (64, 128, 256)) if options.quick else (15_912, 4096, TRIALS, WIDTHS)
    steps = SearchSpace(solver=("adamw",))
    convex = SearchSpace(solver=("convex",), folds=0)
    plain = replace(convex, spectral_exponent=(0.0,))
    spaces = {
        "adamw": steps,
        "convex": convex,
        "convex, five folds": replace(convex, folds=5),
        "convex, plain penalty": plain,
        "convex, principal components": replace(plain, components=widths),
    }
    if options.draws:
        makers = [partial(make_data, N, D, power_law=options.power_law, draw=draw) for draw in range(options.draws)]
        figures = over_draws(makers, spaces, trials)
        rows = [
            (f"{name} minus {other}, {score}, mean over draws", figures[f"{name} minus {other}, {score}"]["mean"])
            for name in ("convex", "convex, principal components")
            for other in ("adamw", "scikit_learn")
            for score in ("validation", "unseen")
        ]
        targets: list[Target] = [(what, value, 0, -0.05, "higher") for what, value in rows]
        print(document("search, best scores", figures, targets, quick=options.quick))
        return
    data, unseen = make_data(N, D, power_law=options.power_law, draw=options.draw)
    train_X = data.train.features[KEPT]
    read_s = cpu_s(lambda: train_X.copy())
    with tempfile.TemporaryDirectory() as folder:
        ours = {name: search(data, unseen, space, trials, Path(folder) / name) for name, space in spaces.items()}
    rows = ours["adamw"].pop("rows")
    epochs = sum(int(row["epochs_seen"] or row["diverged_in_epoch"]) for row in rows)
    asked = sum(int(row["epochs"]) for row in rows)
    turns = [(ours["adamw"]["cpu_s"], stack_floor_s(len(train_X), D), ours["adamw"]["beside_training"])]
    for _ in range(0 if options.quick else TURNS - 1):
        with tempfile.TemporaryDirectory() as folder:
            again = search(data, unseen, steps, trials, Path(folder))
        turns.append((again["cpu_s"], stack_floor_s(len(train_X), D), again["beside_training"]))
    ours["adamw"]["cpu_s"], floor_s, beside_training = (float(np.median(of)) for of in zip(*turns, strict=True))
    solver = measure_solver(data)
    loop_figures, loop, retrained = measure_loop(data, unseen, 2 if options.quick else 3, ours["adamw"]["best"])
    loop_best = max(retrained, ours["adamw"]["worth"], key=lambda worth: worth.figures()["value"])
    sklearn = measure_scikit_learn(loop, unseen, options.quick)
    loop_pruned_s = epochs * loop_figures["epoch_s"] + trials * loop_figures["storage_s_per_trial"]
    loop_s = asked * loop_figures["epoch_s"] + trials * loop_figures["storage_s_per_trial"]
    scale = TRIALS / trials  # the convex studies do not grow with trials, the loops do
    figures: dict[str, Any] = {
        "floors": {
            "trial_epoch_s": floor_s,
            "gflops": 4 * len(train_X) * D * len(LABELS) / floor_s / 1e9,
            "read_gb_per_s": 2 * train_X.nbytes / read_s / 1e9,
        },
        "loop_best": loop_best.figures(),
        "own_loop": {**loop_figures, "study_s": loop_s * scale, "study_pruned_s": loop_pruned_s * scale},
        "scikit_learn": {**sklearn, "study_s": sklearn["s_per_trial"] * TRIALS},
        "adamw": {
            **_scores(ours["adamw"]),
            "trials": trials,
            "trial_epochs": epochs,
            "trial_epochs_asked": asked,
            "s_per_trial": ours["adamw"]["cpu_s"] / trials,
        },
        "solver, all features": solver,
        **{name: _scores(ours[name]) for name in spaces if name != "adamw"},
        **{f"{name}, apart from loop_best": ours[name]["worth"].apart(loop_best) for name in spaces if name != "adamw"},
    }
    over_loop = [
        (f"own loop without pruning over {name} study", loop_s * scale / ours[name]["cpu_s"], bound, bound / 2)
        for name, bound in (("convex", 60), ("convex, principal components", 150))
    ]
    targets = [
        ("own loop over AdamW study, equal pruning", loop_pruned_s / ours["adamw"]["cpu_s"], 20, 10, "higher"),
        ("AdamW study over its products", ours["adamw"]["cpu_s"] / (epochs * floor_s), 1.8, 8, "lower"),
        ("Optuna and evaluation, share of the AdamW study", beside_training, 0.25, 0.6, "lower"),
        *((*target, "higher") for target in over_loop),
        ("convex solver over the products of its steps", solver["solve_over_floor"], 1.3, 5, "lower"),
        ("share of columns that converged", solver["converged"], 1.0, 0.9, "higher"),
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


def _scores(study: dict[str, Any]) -> dict[str, Any]:
    return {name: study[name] for name in ("cpu_s", "corrected_value", *study["worth"].figures())}


if __name__ == "__main__":
    main()
