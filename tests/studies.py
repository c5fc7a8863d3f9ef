"""Small searches for tests: their data, and what they leave in a folder."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from featurecache.spec import FeatureSpace
from heads.data import LabelledFeatures, LabelledSplit, LearningData
from heads.search.search import search_heads
from heads.settings import SearchSpace
from tests.learning_samples import LABELS, make_clips, make_frames

SPACE = FeatureSpace({"model": "tiny", "tap": "final", "pooling": "mean", "stored_dtype": "float32"})


QUICK = SearchSpace(epochs=(2, 12), batch_size=(64,), solver=("adamw",))


CONVEX = SearchSpace(solver=("convex",))


def kept(split: LabelledFeatures, **more: np.ndarray) -> LabelledSplit:
    return LabelledSplit({"final/mean": split.X, **more}, split.Y, split.sessions)


def learning(train: LabelledFeatures, validation: LabelledFeatures, labels: tuple[str, ...] = LABELS) -> LearningData:
    return LearningData(kept(train), kept(validation), labels, {"final/mean": SPACE})


def noisy(noise: float = 2.0, **changes: Any) -> LearningData:
    return dataclasses.replace(learning(make_clips(noise=noise), make_clips(noise=noise, seed=1)), **changes)


def search(folder: Path, *, trials: int, data: LearningData | None = None, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"search_space": QUICK, "seed": 0, "stacked_trials": 8, **changes}
    return search_heads(noisy() if data is None else data, trials=trials, folder=folder, **arguments)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials as Optuna itself reads the journal."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name="tune", storage=storage).trials


def ended(folder: Path) -> dict[int, str]:
    """How finished trials ended: number -> state, value and settings."""
    finished = [trial for trial in stored(folder) if trial.state.name in ("COMPLETE", "PRUNED")]
    return {trial.number: f"{trial.state.name} {trial.value} {trial.params}" for trial in finished}


def side_by_side() -> LearningData:
    """Two selected features, of which the second tells the labels and the first is noise; and one of frames."""
    frames = [make_frames(seed=seed) for seed in (0, 1)]
    splits = []
    for seed, of_frames in enumerate(frames):
        told = of_frames.X.sum(axis=1)
        noise = np.random.default_rng(seed).standard_normal((len(told), 7)).astype(np.float16)
        features = {"layer_2/mean": noise, "final/mean": told, "final/frames": of_frames.X}
        splits.append(LabelledSplit(features, of_frames.Y, of_frames.sessions))
    spaces = {
        name: FeatureSpace({**SPACE.inputs, "tap": name.split("/")[0], "pooling": name.split("/")[1]})
        for name in ("layer_2/mean", "final/mean", "final/frames")
    }
    return LearningData(*splits, LABELS, spaces)


INPUTS = ("layer_2/mean", "final/mean", "layer_2/mean+final/mean")


def by_place(folder: Path) -> dict[int, list[optuna.trial.FrozenTrial]]:
    """The tries of each trial in the order in which trials were first begun; the last try is the one that counts."""
    tries: dict[int, list[optuna.trial.FrozenTrial]] = {}
    for trial in stored(folder):
        tries.setdefault(trial.user_attrs.get("again", trial.number), []).append(trial)
    return dict(enumerate(tries.values()))


COMBINATIONS = dataclasses.replace(
    QUICK,
    solver=("convex", "adamw"),
    normalization=("standardize", "l2"),
    components=(0, 8),
    variance_exponent=(1.0,),
)


def sessions_of(count: int, seed: int) -> LabelledFeatures:
    return make_clips(noise=2.0, sessions=count, clips_each=200 // count, seed=seed)
