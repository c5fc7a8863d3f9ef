"""What samples of several clips gain: fusion of inputs, absent parts, pairs, and the clips that carry a group's label.

    OMP_NUM_THREADS=1 python -m benchmarks.groups [--demo FOLDER] [--quick]

Drawn data, 8 seeds, scores on 2,000 samples that nothing saw; each method's penalty is chosen on samples of its own.
Fusion: two inputs (16 and 64 wide) whose projections have weights alpha and 1 - alpha; learned weights against the
inputs side by side, and against the mean of the scores of a head for each; and what a choice by validation gains where
learned weights, or averaged scores, are offered beside each input alone and both side by side. Absent parts: 30% of the
parts of pairs; leaving such samples out of training, the mean with a column that tells absence, and the same with each
part left out once more (part dropout). Pairs: a change of one direction; [a, b, b - a], side by side, and the mean.
Groups of six parts of which one in half of the groups carries the label: AUROC of the weights, trained with group
labels alone, and the scores of the head, of FT-LC on the mean and on all parts side by side. Findings: fewer groups,
harder to tell, whose text relevance knows the part up to noise, with and without.

With --demo, a copy of an extracted demo (`make demo`): groups of five clips with group labels alone, the weights of the
best attention head of 32 trials against the clips' labels on the test sessions; and learned weights of three inputs.
"""

import argparse
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.targets import Target, print_document
from heads.engines.fitting import fit_head
from heads.engines.fusion import fit_fused
from heads.models import head_scores, part_weights
from heads.samples.joining import joined, present
from heads.settings import HeadSettings

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
CONVEX = HeadSettings(solver="convex", positive_weight_exponent=0.0)
FUSES = dataclasses.replace(CONVEX, inputs="a/mean+b/mean", input_weights="learned")
TEST = 2000

Drawn = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Part, "train", "validation" or "test" -> X and Y."""
Method = Callable[[float, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Penalty, X, Y, other X -> scores of the others."""


def score(Y: np.ndarray, scores: np.ndarray) -> float:
    """Mean average precision of the labels, which needs no threshold."""
    return float(average_precision_score(Y, scores, average="macro"))


def held_out(method: Method, drawn: Drawn) -> tuple[float, float, float]:
    """The score on the test part at the penalty that is best on validation, that penalty, and its validation score."""
    X, Y = drawn["train"]
    by_penalty = {l2: score(drawn["validation"][1], method(l2, X, Y, drawn["validation"][0])) for l2 in PENALTIES}
    best = max(by_penalty, key=lambda l2: by_penalty[l2])
    return score(drawn["test"][1], method(best, X, Y, drawn["test"][0])), best, by_penalty[best]


def chosen(among: Sequence[tuple[float, float, float]]) -> float:
    """The score on the test part of the method that is best on validation."""
    return max(among, key=lambda one: one[2])[0]


def linear(l2: float, X: np.ndarray, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
    """FT-LC's scores."""
    return head_scores(fit_head(X, Y, dataclasses.replace(CONVEX, l2=l2)), others)


def parted(X: np.ndarray, Y: np.ndarray, rows: int) -> Drawn:
    """Rows of training, half as many of validation, and the test rows."""
    ends = np.cumsum([0, rows, rows // 2, TEST])
    return {name: (X[a:b], Y[a:b]) for name, a, b in zip(("train", "validation", "test"), ends, ends[1:], strict=False)}


def logistic(logits: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Targets (N, C) that are on with the logits' probability."""
    return (logits + random.logistic(size=logits.shape) > 0).astype(np.int8)


def directions(random: np.random.Generator, width: int, labels: int = 3) -> np.ndarray:
    """A projection (D, C) of length 1."""
    drawn = random.standard_normal((width, labels))
    return drawn / np.linalg.norm(drawn)


def fusion(alpha: float, seed: int, rows: int = 400) -> dict[str, float]:
    """The weight that is found, and held-out scores of three ways to read two inputs."""
    random, widths = np.random.default_rng((seed, int(100 * alpha))), (16, 64)
    z = [random.standard_normal((rows + rows // 2 + TEST, width)) for width in widths]
    parts = [share * of @ directions(random, of.shape[1]) for share, of in zip((alpha, 1 - alpha), z, strict=True)]
    X = np.concatenate([3 * z[0] + 1, z[1] / 10], axis=1).astype(np.float32)
    drawn = parted(X, logistic(8 * (parts[0] + parts[1]), random), rows)

    def fused(l2: float, X: np.ndarray, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
        return head_scores(fit_fused(X, Y, dataclasses.replace(FUSES, l2=l2), widths=widths).head, others)

    def alone(cut: slice) -> Method:
        return lambda l2, X, Y, others: linear(l2, X[:, cut], Y, others[:, cut])

    def averaged(l2: float, X: np.ndarray, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
        return np.mean([alone(cut)(l2, X, Y, others) for cut in cuts], axis=0)

    cuts = (slice(widths[0]), slice(widths[0], None))
    learned, side, mean = (held_out(method, drawn) for method in (fused, linear, averaged))
    searched = [side, *(held_out(alone(cut), drawn) for cut in cuts)]
    found, l2, _ = learned
    weights = fit_fused(*drawn["train"], dataclasses.replace(FUSES, l2=l2), widths=widths).weights
    return {
        "alpha": float(weights[0]),
        "fused": found,
        "side by side": side[0],
        "averaged scores": mean[0],
        "chosen of each alone and side by side": chosen(searched),
        "chosen of these and learned weights": chosen([*searched, learned]),
        "chosen of these and averaged scores": chosen([*searched, mean]),
    }


def pairs(seed: int, rows: int, width: int = 24) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Parts (N, 2, D) that share much, and what makes targets of a projection's logits."""
    random = np.random.default_rng(seed)
    shared = random.standard_normal((rows + rows // 2 + TEST, 1, width))
    X = (shared + random.standard_normal((len(shared), 2, width))).astype(np.float32)
    return X, lambda logits: logistic(logits, random)


def absent(seed: int, rows: int = 300) -> dict[str, float]:
    """Held-out scores where 30% of the parts are absent, one of a sample at most."""
    X, targets = pairs(seed, rows)
    random = np.random.default_rng((seed, 1))
    both = directions(random, X.shape[2]), directions(random, X.shape[2])
    Y = targets(3 * (X[:, 0] @ both[0] + X[:, 1] @ both[1]))
    without = random.random(len(X)) < 0.6  # of two parts each, so 30% of all parts
    X[without, random.integers(2, size=int(without.sum()))] = np.nan
    drawn = parted(joined(X, "concat"), Y, rows)

    def complete(l2: float, X: np.ndarray, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
        whole = ~np.isnan(X).any(axis=1)
        return linear(l2, X[whole], Y[whole], others)

    def dropped(l2: float, X: np.ndarray, Y: np.ndarray, others: np.ndarray) -> np.ndarray:
        more, width = [X], (X.shape[1] - 2) // 2
        whole = ~np.isnan(X).any(axis=1)
        for place in (0, 1):
            copy = X[whole].copy()
            copy[:, place * width : (place + 1) * width], copy[:, 2 * width + place] = np.nan, 0
            more.append(copy)
        return linear(l2, np.concatenate(more), np.concatenate([Y, Y[whole], Y[whole]]), others)

    methods: dict[str, Method] = {"left out": complete, "stand-in": linear, "stand-in and part dropout": dropped}
    return {name: held_out(method, drawn)[0] for name, method in methods.items()}


def change(seed: int, rows: int = 150) -> dict[str, float]:
    """Held-out scores of joins where a label is a change along a direction."""
    X, targets = pairs(seed, rows)
    Y = targets(4 * (X[:, 1] - X[:, 0]) @ directions(np.random.default_rng((seed, 2)), X.shape[2]))
    return {join: held_out(linear, parted(joined(X, join), Y, rows))[0] for join in ("pair", "concat", "mean")}


def carrying(seed: int, rows: int = 400, places: int = 6, width: int = 24) -> dict[str, float]:
    """AUROC of the weights of unseen positive groups against the part that carries the label; and the group's score."""
    random = np.random.default_rng((seed, 3))
    X = random.standard_normal((rows + TEST, places, width)).astype(np.float32)
    Y, at = random.integers(2, size=(len(X), 1)).astype(np.int8), random.integers(places, size=len(X))
    X[np.arange(len(X)), at] += 4 * Y * directions(random, width, 1).T
    X[random.random(X.shape[:2]) < 0.2 * (np.arange(places) != at[:, None])] = np.nan
    settings = HeadSettings(kind="weighted", epochs=100, learning_rate=0.01, batch_size=64)
    head = fit_head(X[:rows], Y[:rows], settings, seed=seed)
    weights = part_weights(head, X[rows:])[..., 0]
    there = present(X[rows:]) & (Y[rows:] == 1)
    is_it = np.arange(places) == at[rows:, None]

    def best_of(joins: np.ndarray) -> float:
        """At the penalty that is best on the very samples that score it: no less than FT-LC could reach."""
        return max(score(Y[rows:], linear(l2, joins[:rows], Y[:rows], joins[rows:])) for l2 in PENALTIES)

    return {
        "AUROC of weights": float(
            roc_auc_score(is_it[there], (weights * present(X[rows:]).sum(1, keepdims=True))[there])
        ),
        "group score": score(Y[rows:], head_scores(head, X[rows:])),
        "mean of parts": best_of(joined(X, "mean")),
        "parts side by side": best_of(joined(X, "concat")),
    }


def on_demo(folder: Path, trials: int) -> dict[str, Any]:
    """Weights of groups of five clips on unseen sessions, and learned weights of the demo's inputs."""
    from featurecache import make_clips, open_project
    from heads import evaluate, train, tune

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(shutil.copytree(folder, Path(scratch) / "demo", ignore=shutil.ignore_patterns("runs", "videos")))
        (root / "videos").symlink_to((folder / "videos").resolve())
        path = root / "featurecache.toml"
        labels = '["ventilation", "stimulation", "suction"]'  # some group of five has no baby in hardly any clip
        written = re.sub(r"^(labels|tiers) = .*", rf"\1 = {labels}", path.read_text(), flags=re.MULTILINE)
        written = re.sub(r"(?ms)^\[(samples|search|train)\].*?(?=^\[|\Z)", "", written)
        fused = 'inputs = "final/mean+final/motion+layer_2/mean"\nsolver = "convex"\nl2 = 0.1\n'
        groups = '[samples]\nrule = "recording"\nmost_clips = 5\n[search]\nkind = ["attention", "weighted"]\n'
        path.write_text(f'{written}\n{groups}inputs = ["final/mean", "final/mean+final/motion", "layer_2/mean"]\n')
        make_clips(open_project(root))
        run = tune(open_project(root), trials=trials)
        tested = evaluate(open_project(root)).metrics
        path.write_text(f"{written}\n[train]\n{fused}")
        make_clips(open_project(root))
        equal = train(open_project(root)).best
        path.write_text(f'{written}\n[train]\n{fused}input_weights = "learned"\n')
        learned = train(open_project(root)).best
        return {
            "kind": run.best["settings"]["kind"],
            "group macro-F1 out of fold": run.best["value"],
            "group macro-F1 on test": tested["macro_f1"],
            "weights": {
                label: {name: found[name] for name in ("auroc", "clips", "clips_on")}
                for label, found in tested["part_weights"].items()
            },
            "input weights": learned["input_weights"],
            "out-of-fold macro-F1, learned and equal": [learned["value"], equal["value"]],
        }


def taught(seed: int, rows: int, noise: float, places: int = 6, width: int = 24) -> dict[str, float]:
    """As `carrying`, of fewer groups that are harder to tell, with a teacher that knows the part up to noise."""
    random = np.random.default_rng((seed, 4))
    X = random.standard_normal((rows + TEST, places, width)).astype(np.float32)
    Y, at = random.integers(2, size=(len(X), 1)).astype(np.int8), random.integers(places, size=len(X))
    X[np.arange(len(X)), at] += 3 * Y * directions(random, width, 1).T
    is_it = np.arange(places) == at[:, None]
    relevance = np.exp(2 * is_it + noise * random.standard_normal(is_it.shape))
    teacher = (Y * relevance / relevance.sum(axis=1, keepdims=True)).astype(np.float32)
    found = {}
    for weight in (0.0, 1.0):
        settings = HeadSettings(kind="weighted", epochs=100, learning_rate=0.01, batch_size=64, teacher_weight=weight)
        head = fit_head(X[:rows], Y[:rows], settings, seed=seed, teacher=teacher[:rows])
        on = Y[rows:, 0] == 1
        weights = part_weights(head, X[rows:])[on, :, 0]
        found[f"AUROC of weights, {weight:g}"] = float(roc_auc_score(is_it[rows:][on].ravel(), weights.ravel()))
        found[f"group score, {weight:g}"] = score(Y[rows:], head_scores(head, X[rows:]))
    return found


def summed(found: list[dict[str, float]]) -> dict[str, list[float]]:
    """Mean, lowest and highest over the seeds."""
    return {name: [float(of([one[name] for one in found])) for of in (np.mean, np.min, np.max)] for name in found[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="an extracted demo; it is copied")
    parser.add_argument("--quick", action="store_true", help="two seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(2 if options.quick else 8)
    figures: dict[str, Any] = {
        **{f"fusion, alpha {alpha}": summed([fusion(alpha, seed) for seed in seeds]) for alpha in (1.0, 0.7, 0.5)},
        "absent parts": summed([absent(seed) for seed in seeds]),
        "change": summed([change(seed) for seed in seeds]),
        "groups": summed([carrying(seed) for seed in seeds]),
        **{
            f"findings, {rows} groups, noise {noise}": summed([taught(seed, rows, noise) for seed in seeds])
            for rows, noise in ((60, 0.5), (60, 2.0), (400, 0.5), (400, 2.0))
        },
        "demo": None if options.demo is None else on_demo(options.demo, 4 if options.quick else 32),
    }
    noise, near = figures["fusion, alpha 1.0"]["alpha"], figures["fusion, alpha 0.7"]["alpha"]
    gain = figures["absent parts"]["stand-in"][0] - figures["absent parts"]["left out"][0]
    targets: list[Target] = [
        ("weight of the input that is no noise, lowest of the seeds", noise[1], 0.9, 0.9, "higher"),
        ("distance of the mean found weight from 0.7", abs(near[0] - 0.7), 0.1, 0.1, "lower"),
        ("average precision that the stand-in gains over leaving samples out", gain, 0.0, 0.0, "higher"),
        ("AUROC of weights, lowest", figures["groups"]["AUROC of weights"][1], 0.9, 0.9, "higher"),
    ]
    print_document("groups", figures, targets, quick=options.quick)


if __name__ == "__main__":
    main()
