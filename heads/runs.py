"""A run: one head fitted with given settings, and the folder that keeps it.

`train` makes a run with the settings it is given, `tune` with the best it found: the same code fits both, on the
training split alone; validation sets the thresholds. Layout of a run's folder:

    bundle/                   what predicts
    validation_metrics.json   scores on validation, at thresholds tuned on it: too kind by nature
    best.json                 settings, feature space, seed and versions: what LoRA takes over; written last
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.files import private_folder, write_private
from featurecache.spec import FeatureSpace
from heads.bundle import Bundle, save_bundle, tool_versions
from heads.data import LabelledFeatures, check_training
from heads.metrics import macro_f1, metrics_document, tuned_thresholds
from heads.models import head_scores
from heads.settings import HeadSettings
from heads.training import TrainingClips, fit_heads


def train_bundle(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    *,
    labels: Sequence[str],
    space: FeatureSpace,
    settings: HeadSettings,
    seed: int,
    folder: Path,
    device: str = "cpu",
) -> dict[str, Any]:
    """Fits one head with given settings and writes its run.

    Args:
        train: The training split.
        validation: The validation split; sets thresholds.
        labels: Names of the C labels.
        space: The feature space of both splits.
        settings: Of the head.
        seed: Of data order, initial weights and dropout.
        folder: The run's folder.
        device: Where to train: `cpu`, `cuda`, ...

    Returns:
        The content of `best.json`: its `value` is validation macro-F1 at a threshold of 0.5.

    Raises:
        TrainingDataError: If the splits cannot train a head.
        SettingsError: If training diverges.
    """
    check_training(train, validation, labels)
    clips = TrainingClips(train.X, train.Y, seed=seed, device=device)
    return write_run(clips, validation, labels=labels, space=space, settings=settings, folder=folder)


def write_run(
    clips: TrainingClips,
    validation: LabelledFeatures,
    *,
    labels: Sequence[str],
    space: FeatureSpace,
    settings: HeadSettings,
    folder: Path,
    of_study: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As `train_bundle`, from clips that are checked and ready.

    Args:
        clips: The training clips; their seed is the run's.
        validation: The validation split.
        labels: Names of the C labels.
        space: The feature space.
        settings: Of the head.
        folder: The run's folder.
        of_study: What a search knows about these settings; goes into `best.json`, over the same names.

    Returns:
        The content of `best.json`.

    Raises:
        SettingsError: If training diverges.
    """
    (fitted,) = fit_heads(clips, [settings])
    if fitted.head is None:
        raise fitted.diverged_error()
    scores = head_scores(fitted.head, validation.X)
    thresholds = tuned_thresholds(validation.Y, scores)
    metrics = metrics_document(
        validation.Y, scores, thresholds, validation.sessions, labels=labels, split="validation", seed=clips.seed
    )
    best = {
        "value": macro_f1(validation.Y, scores),
        "settings": settings.to_mapping(),
        "tap": space.tap,
        "pooling": space.pooling,
        "fingerprint": space.fingerprint,
        "seed": clips.seed,
        "versions": tool_versions(),
        "labels": list(labels),
        "train_clips": len(clips),
        "train_loss": fitted.train_loss,
        **(of_study or {}),
    }
    private_folder(folder)
    save_bundle(Bundle(fitted.head, tuple(labels), thresholds, settings, space, tool_versions()), folder / "bundle")
    write_document(folder / "validation_metrics.json", metrics)
    write_document(folder / "best.json", best)
    return best


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON document for people and scripts, whole or not at all."""
    write_private(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
