"""A run: one head fitted with given settings, and the folder that keeps it.

`train` makes a run with the settings it is given, `tune` with the best it found: the same code fits both, on the
training split alone; validation sets thresholds and calibration. Layout of a run's folder:

    bundle/                   what predicts
    validation_metrics.json   validation scores at thresholds tuned there: optimistically biased
    best.json                 settings, feature spaces, seed and versions; written last
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from featurecache.clips.leakage import Spans, spans_of
from featurecache.errors import SettingsError
from featurecache.files import private_folder, write_private
from featurecache.spec import FeatureSpace
from heads.bundle import Bundle, save_bundle, tool_versions
from heads.data import LabelledFeatures, LearningData
from heads.engines.fallback import on_device_or_cpu
from heads.engines.fitting import solve_head
from heads.engines.prepared import Prepared
from heads.engines.training import fit_heads
from heads.models import Head, head_scores
from heads.scoring.calibration import calibration_document, cross_calibrated, fit_calibration
from heads.scoring.curves import curves
from heads.scoring.metrics import macro_f1, metrics_document
from heads.scoring.thresholds import tuned_thresholds
from heads.settings import HeadSettings
from heads.timelines.tuning import TunedTimeline

ChooseTimeline = Callable[[Bundle], TunedTimeline | None]
"""Chooses timeline settings for a bundle that is about to be saved; None leaves the defaults."""


def no_timeline(_bundle: Bundle) -> None:
    """Leaves the defaults."""


def train_bundle(
    data: LearningData,
    *,
    settings: HeadSettings,
    seed: int,
    folder: Path,
    device: str = "cpu",
    choose_timeline: ChooseTimeline = no_timeline,
) -> dict[str, Any]:
    """Fits one head with given settings and writes its run.

    Args:
        data: Training and validation clips.
        settings: Settings of the head.
        seed: Seed of data order, initial weights and dropout.
        folder: The run's folder.
        device: Where to train: `cpu`, `cuda`, ...; the CPU follows, with a warning, where a GPU's memory is not enough.
        choose_timeline: Gives the bundle's timeline settings before it is saved.

    Returns:
        The content of `best.json`: its `value` is validation macro-F1 at a threshold of 0.5.

    Raises:
        TrainingDataError: If the splits cannot train a head.
        SettingsError: If training diverges, does not converge, or the settings do not fit the features.
    """
    data.check()
    return on_device_or_cpu(
        lambda device: write_run(
            Prepared(data, seed=seed, device=device), settings, folder=folder, choose_timeline=choose_timeline
        ),
        device,
    )


def write_run(
    prepared: Prepared,
    settings: HeadSettings,
    *,
    folder: Path,
    of_study: Mapping[str, Any] | None = None,
    choose_timeline: ChooseTimeline = no_timeline,
) -> dict[str, Any]:
    """As `train_bundle`, from clips that are checked and prepared.

    Args:
        prepared: The clips; their seed is the run's.
        settings: Settings of the head.
        folder: The run's folder.
        of_study: What a search knows about these settings; goes into `best.json`, over the same names.
        choose_timeline: Gives the bundle's timeline settings before it is saved.

    Returns:
        The content of `best.json`.

    Raises:
        SettingsError: If training diverges, does not converge, or the settings do not fit the features.
    """
    data = prepared.data
    head, epochs, train_loss = _fit(prepared, settings)
    return write_fitted(
        head,
        prepared.validation(settings.inputs),
        settings,
        labels=data.labels,
        spaces={name: data.spaces[name] for name in settings.inputs.split("+")},
        seed=prepared.seed,
        folder=folder,
        leakage=data.leakage,
        fitted_on=spans_of([*(data.train.clip_ids or ()), *(data.validation.clip_ids or ())]),
        of_run={
            "epochs_kept": epochs,
            "train_clips": len(data.train.Y),
            "train_loss": train_loss,
            **(of_study or {}),
        },
        choose_timeline=choose_timeline,
    )


def write_fitted(
    head: Head,
    validation: LabelledFeatures,
    settings: HeadSettings,
    *,
    labels: tuple[str, ...],
    spaces: Mapping[str, FeatureSpace],
    seed: int,
    folder: Path,
    leakage: Mapping[str, Any],
    fitted_on: Spans,
    of_run: Mapping[str, Any],
    adapter: Path | None = None,
    backbone: Path | None = None,
    choose_timeline: ChooseTimeline = no_timeline,
) -> dict[str, Any]:
    """Writes the run of a head that is fitted, however that was done.

    Args:
        head: The head.
        validation: The validation split, which sets thresholds and calibration.
        settings: Settings of the head.
        labels: Names of the C labels.
        spaces: The feature spaces that the head reads, by name, in order.
        seed: Seed of the run.
        folder: The run's folder.
        leakage: What `featurecache.clips.leakage.leakage_record` says of the splits; goes into every document.
        fitted_on: Stretches of the recordings that trained, chose or tuned the head.
        of_run: What else is known of the run; goes into `best.json`, over the same names.
        adapter: The folder of the adapter that the backbone is run with; the bundle gets a copy.
        backbone: The folder of the model itself, where it is not the project's; the bundle gets a copy.
        choose_timeline: Gives the bundle's timeline settings before it is saved.

    Returns:
        The content of `best.json`.
    """
    Y, sessions = validation.Y, validation.sessions
    scores = head_scores(head, validation.X)
    thresholds = tuned_thresholds(Y, scores, sessions)
    first = next(iter(spaces.values()))
    metrics = {
        **metrics_document(Y, scores, thresholds, sessions, labels=labels, split="validation", seed=seed),
        **leakage,
        "calibration": calibration_document(Y, scores, cross_calibrated(Y, scores, sessions), labels=labels),
        "curves": curves(Y, scores, labels=labels),
    }
    best = {
        "value": macro_f1(Y, scores),
        "settings": settings.to_mapping(),
        "inputs": settings.inputs,
        "tap": first.tap,
        "pooling": first.pooling,
        "fingerprint": first.fingerprint,
        "fingerprints": {name: space.fingerprint for name, space in spaces.items()},
        "seed": seed,
        "versions": tool_versions(),
        "labels": list(labels),
        **leakage,
        **of_run,
    }
    private_folder(folder)
    bundle = Bundle(
        head,
        labels,
        thresholds,
        settings,
        tuple(spaces.values()),
        tool_versions(),
        fit_calibration(Y, scores),
        adapter,
        backbone,
        fitted_on,
    )
    save_bundle(bundle, folder / "bundle", timeline=choose_timeline(bundle))
    write_document(folder / "validation_metrics.json", metrics)
    write_document(folder / "best.json", best)
    return best


def _fit(prepared: Prepared, settings: HeadSettings) -> tuple[Head, int | None, float | None]:
    """The head; for `adamw` also the epochs behind it and its mean loss over the last of them."""
    if settings.solver == "convex":
        if prepared.data.train.are_frames(settings.inputs):
            raise SettingsError(
                "the convex solver must have one feature vector per clip, but "
                f'{settings.inputs} are features of frames. Choose other inputs, or kind = "attention".'
            )
        basis = prepared.basis(settings.inputs, settings.normalization, settings.components)
        return solve_head(basis, prepared.data.train.Y, settings), None, None
    validation = prepared.validation(settings.inputs)
    (fitted,) = fit_heads(
        prepared.clips(settings.inputs),
        [settings],
        X_validation=validation.X,
        score=lambda scores: macro_f1(validation.Y, scores),
    )
    if fitted.head is None:
        raise fitted.diverged_error()
    return fitted.head, fitted.epochs, fitted.train_loss


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON document for people and scripts, whole or not at all."""
    write_private(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
