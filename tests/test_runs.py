"""Runs on disk: what is fitted on which sessions, and what a run says of itself."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurecache.errors import SettingsError
from heads.bundle import load_bundle
from heads.data import LabelledSplit, LearningData
from heads.engines.fitting import fit_head
from heads.models import head_scores
from heads.runs import train_bundle
from heads.settings import HeadSettings
from tests.learning_samples import LABELS, make_clips
from tests.studies import (
    CONVEX,
    QUICK,
    SPACE,
    kept,
    learning,
    noisy,
    search,
    side_by_side,
)


def test_no_small_validation_split_decides_anything(tmp_path: Path) -> None:
    """The same sessions, whichever of them are called validation, give the same choice, thresholds and head."""
    every = LabelledSplit(
        {"final/mean": np.concatenate([make_clips(seed=seed).X for seed in range(3)])},
        np.concatenate([make_clips(seed=seed).Y for seed in range(3)]),
        np.concatenate([make_clips(seed=seed).sessions for seed in range(3)]),
    )

    def part(rows: slice) -> LabelledSplit:
        return LabelledSplit({"final/mean": every.features["final/mean"][rows]}, every.Y[rows], every.sessions[rows])

    bundles = []
    for cut in (400, 550):  # of 600 clips in 12 sessions of 50
        data = LearningData(part(slice(cut)), part(slice(cut, None)), LABELS, {"final/mean": SPACE})
        search(tmp_path / str(cut), trials=2, data=data, search_space=CONVEX)
        bundles.append(tmp_path / str(cut) / "bundle")
    for name in ("bundle.json", "head.safetensors"):
        assert (bundles[0] / name).read_bytes() == (bundles[1] / name).read_bytes()


def test_the_head_is_fitted_on_every_session_that_is_not_test(tmp_path: Path) -> None:
    for name, run in (("convex", CONVEX), ("steps", QUICK)):
        best = search(tmp_path / name, trials=4, search_space=run)
        data, settings = noisy(), HeadSettings.from_mapping(best["settings"])
        both = data.fitting.of("final/mean")
        expected = fit_head(both.X, both.Y, settings)
        head = load_bundle(tmp_path / name / "bundle").head
        np.testing.assert_allclose(head_scores(head, both.X), head_scores(expected, both.X), atol=1e-5)
        assert best["train_clips"] == len(both.Y)


def test_a_label_that_one_session_alone_has_keeps_its_default_threshold(tmp_path: Path) -> None:
    data = noisy()
    first = data.train.sessions == data.train.sessions[0]
    for split in (data.train, data.validation):
        split.Y[(split.sessions != data.train.sessions[0]), 2] = 0
    assert data.train.Y[first, 2].any()
    best = search(tmp_path / "tune", trials=4, data=data, search_space=CONVEX)
    bundle = load_bundle(tmp_path / "tune/bundle")
    metrics = json.loads((tmp_path / "tune/out_of_fold_metrics.json").read_text())
    assert bundle.thresholds[2] == 0.5
    assert (bundle.calibration.temperatures[2], bundle.calibration.offsets[2]) == (1, 0)
    assert metrics["undefined"] == [LABELS[2]]
    assert (metrics["calibration"]["before"]["per_class"][LABELS[2]]["ece"], metrics["curves"][LABELS[2]]) == (
        None,
        None,
    )
    assert best["value"] > 0.5


def test_a_run_says_what_its_splits_are(tmp_path: Path) -> None:
    leakage = {"split_level": "clip", "purged_clips": {"train": 3}, "split_warning": "optimistically biased"}
    train(tmp_path / "run", noisy(1.0, leakage=leakage))
    for name in ("best.json", "out_of_fold_metrics.json"):
        assert json.loads((tmp_path / "run" / name).read_text()).items() >= leakage.items()


def test_a_run_has_calibration_and_curves_of_out_of_fold_scores(tmp_path: Path) -> None:
    train(tmp_path / "run")
    metrics = json.loads((tmp_path / "run/out_of_fold_metrics.json").read_text())
    assert metrics["calibration"]["after"]["brier"] < metrics["calibration"]["before"]["brier"] + 0.01
    assert list(metrics["curves"]) == list(LABELS)
    assert load_bundle(tmp_path / "run/bundle").calibration is not None


def train(folder: Path, data: LearningData | None = None, **settings: Any) -> dict[str, Any]:
    chosen = HeadSettings(**{"learning_rate": 0.01, **settings})
    return train_bundle(data or noisy(1.0), settings=chosen, seed=0, folder=folder)


def test_train_bundle_writes_a_run_with_the_settings_given(tmp_path: Path) -> None:
    best = train(tmp_path / "runs/train")
    assert json.loads((tmp_path / "runs/train/best.json").read_text()) == best
    assert HeadSettings.from_mapping(best["settings"]) == HeadSettings(learning_rate=0.01)
    assert best["value"] > 0.6
    assert load_bundle(tmp_path / "runs/train/bundle").labels == LABELS
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("runs/train/*.json")} == {0o600}


def test_train_bundle_fits_with_the_convex_solver_and_with_patience(tmp_path: Path) -> None:
    convex = train(tmp_path / "convex", solver="convex", l2=0.01, components=9)
    assert convex["value"] > 0.6
    assert load_bundle(tmp_path / "convex/bundle").head.front.output_width == 9
    patient = train(tmp_path / "patient", patience=2, epochs=200)
    assert patient["epochs_kept"] < 200
    with pytest.raises(SettingsError, match="one feature vector"):
        train(tmp_path / "frames", side_by_side(), inputs="final/frames", solver="convex")


def test_train_bundle_writes_a_head_that_loads_when_features_do_not_vary(tmp_path: Path) -> None:
    still = [dataclasses.replace(clips, X=np.ones_like(clips.X)) for clips in (make_clips(), make_clips(seed=1))]
    for solver in ("convex", "adamw"):
        train(tmp_path / solver, learning(*still), solver=solver, components=3)
        assert load_bundle(tmp_path / solver / "bundle").head.front.axes is None


def test_train_bundle_writes_nothing_when_training_diverges(tmp_path: Path) -> None:
    data = make_clips()
    huge = dataclasses.replace(data, X=np.sign(data.X) * np.float32(3e38))
    with pytest.raises(SettingsError, match=r"diverged in epoch 1 with learning_rate 0\.01"):
        train(
            tmp_path / "run", noisy(train=kept(huge)), normalization="none", positive_weight_exponent=2.0, batch_size=16
        )
    assert not (tmp_path / "run").exists()
