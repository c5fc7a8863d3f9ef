"""A run: one head fitted with given settings, and the folder that keeps it.

`train` makes a run with the settings it is given, `tune` with the best it found: the same code fits both, on all clips
that are not test. Thresholds, calibration and timeline settings come from out-of-fold scores of the same clips; of a
fine-tuned backbone, which is trained once, from scores of the validation split. Layout of a run's folder:

    bundle/                    what predicts
    out_of_fold_metrics.json   those scores at thresholds tuned on them: optimistically biased; of a fine-tuned
                               backbone validation_metrics.json
    best.json                  settings, feature spaces, seed and versions; written last
"""

import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from featurecache.clips.leakage import spans_of
from featurecache.errors import TrainingDataError
from featurecache.files import private_folder, write_private
from heads.bundle import Bundle, save_bundle, tool_versions
from heads.data import LearningData
from heads.samples.joining import selected
from heads.scoring.calibration import calibration_document, choose_calibration
from heads.scoring.curves import curves
from heads.scoring.exclusive import choose_exclusive
from heads.scoring.metrics import DEFAULT_THRESHOLD, macro_f1, metrics_document
from heads.scoring.thresholds import tuned_thresholds
from heads.settings import HeadSettings
from heads.timelines.tuning import TunedTimeline

if TYPE_CHECKING:
    from heads.engines.prepared import Prepared

METRICS_NAMES = {"out-of-fold": "out_of_fold_metrics.json", "validation": "validation_metrics.json"}
"""The file of a run's folder that tells how held-out clips were scored, by the way that was done."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Clips with scores of heads that did not train on their sessions.

    Attributes:
        name: How they were made: `out-of-fold`, by cross-validation over sessions; or `validation`, one split.
        scores: Probabilities, shape (N, C); NaN for a label that could not be scored so.
        Y: Targets, shape (N, C), 0 or 1.
        sessions: The session of each clip, shape (N,).
        clip_ids: Ids of the N clips; None where unknown.
    """

    name: Literal["out-of-fold", "validation"]
    scores: npt.NDArray[np.floating]
    Y: npt.NDArray[np.integer]
    sessions: npt.NDArray[np.str_]
    clip_ids: tuple[str, ...] | None = None

    @property
    def is_scored(self) -> npt.NDArray[np.bool_]:
        """Labels that have scores, (C,)."""
        return np.asarray(~np.isnan(self.scores).any(axis=0))

    def without(self, seen: Collection[str]) -> "HeldOut":
        """The clips that others labelled than who saw the predictions: the independent ones.

        Args:
            seen: Ids of clips that are labelled by a review with predictions in sight.

        Raises:
            TrainingDataError: If no clip is left.
        """
        if self.clip_ids is None or not seen:
            return self
        rows = np.array([clip_id not in seen for clip_id in self.clip_ids], bool)
        if not rows.any():
            raise TrainingDataError(
                "scores need clips that were labelled without sight of predictions, but all are of reviews with them. "
                "Annotate some sessions, or review them blind."
            )
        ids = tuple(itertools.compress(self.clip_ids, rows))
        return HeldOut(self.name, self.scores[rows], self.Y[rows], self.sessions[rows], ids)


ChooseTimeline = Callable[[Bundle, HeldOut], TunedTimeline | None]
"""Chooses timeline settings for a bundle that is about to be saved, by held-out scores; None leaves the defaults."""


def no_timeline(_bundle: Bundle, _held_out: HeldOut) -> None:
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
        The content of `best.json`: its `value` is out-of-fold macro-F1 at a threshold of 0.5.

    Raises:
        TrainingDataError: If the splits cannot train a head.
        SettingsError: If training diverges, does not converge, or the settings do not fit the features.
    """
    data.check()
    from heads.engines.fallback import on_device_or_cpu
    from heads.engines.prepared import Prepared

    return on_device_or_cpu(
        lambda device: write_run(
            Prepared(data, seed=seed, device=device), settings, folder=folder, choose_timeline=choose_timeline
        ),
        device,
    )


def write_run(
    prepared: "Prepared",
    settings: HeadSettings,
    *,
    folder: Path,
    of_study: Mapping[str, Any] | None = None,
    choose_timeline: ChooseTimeline = no_timeline,
    complete: Callable[[Bundle], Bundle] = lambda bundle: bundle,
) -> dict[str, Any]:
    """As `train_bundle`, from clips that are checked and prepared.

    Args:
        prepared: The clips; their seed is the run's.
        settings: Settings of the head.
        folder: The run's folder.
        of_study: What a search knows about these settings; goes into `best.json`, over the same names.
        choose_timeline: Gives the bundle's timeline settings before it is saved.
        complete: What becomes of the fitted bundle before thresholds, calibration and timeline settings.

    Returns:
        The content of `best.json`.

    Raises:
        SettingsError: If training diverges, does not converge, or the settings do not fit the features.
    """
    data, clips = prepared.data, prepared.data.fitting
    from heads.engines.refit import refit

    fitted = refit(prepared, settings)
    bundle = Bundle(
        fitted.head,
        data.labels,
        default_thresholds(data.labels),
        fitted.settings,
        tuple(data.spaces[name] for name in selected(settings.inputs)),
        tool_versions(),
        fitted_on=spans_of(clips.clip_ids or ()),
        clips=data.clips,
        exclusive=data.exclusive,
        prior=None if settings.prior == "none" else data.prior,
    )
    of_run = {
        "value": fitted.value,
        "epochs_kept": None if fitted.train_loss is None else fitted.settings.epochs,
        "train_clips": len(clips.Y),
        "train_loss": fitted.train_loss,
        **({"input_weights": dict(fitted.input_weights)} if fitted.input_weights else {}),
        **(of_study or {}),
    }
    held_out = HeldOut("out-of-fold", fitted.scores, clips.Y, clips.sessions, clips.clip_ids).without(data.seen)
    return write_fitted(
        complete(bundle),
        held_out,
        seed=prepared.seed,
        folder=folder,
        leakage=data.leakage,
        of_run=of_run,
        choose_timeline=choose_timeline,
    )


def default_thresholds(labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Thresholds of labels for which none were tuned, shape (C,)."""
    return np.full(len(labels), DEFAULT_THRESHOLD)


def write_fitted(
    bundle: Bundle,
    held_out: HeldOut,
    *,
    seed: int,
    folder: Path,
    leakage: Mapping[str, Any],
    of_run: Mapping[str, Any],
    choose_timeline: ChooseTimeline = no_timeline,
) -> dict[str, Any]:
    """Completes a bundle by held-out scores, and writes its run.

    Args:
        bundle: A fitted head, however that was done, without tuned thresholds and calibration. Of its exclusive groups
            it keeps to those that cost its held-out scores nothing (`heads/scoring/exclusive.py`).
        held_out: What sets thresholds, calibration and timeline settings.
        seed: Seed of the run.
        folder: The run's folder.
        leakage: What `featurecache.clips.leakage.leakage_record` says of the splits; goes into every document.
        of_run: What else is known of the run; goes into `best.json`, over the same names.
        choose_timeline: Gives the bundle's timeline settings before it is saved.

    Returns:
        The content of `best.json`.
    """
    Y, scores, sessions, scored = held_out.Y, held_out.scores, held_out.sessions, held_out.is_scored
    labels, thresholds = bundle.labels, bundle.thresholds.copy()
    thresholds[scored] = tuned_thresholds(Y[:, scored], scores[:, scored], sessions)
    rules = choose_exclusive(Y, scores, thresholds, labels=labels, exclusive=bundle.exclusive)
    kept = tuple(tuple(rule["labels"]) for rule in rules if rule["kept"])
    calibration, calibrated = choose_calibration(Y, scores, sessions)
    bundle = replace(bundle, thresholds=thresholds, calibration=calibration, exclusive=kept)
    predicted = bundle.predicted(scores)
    first, unit = bundle.spaces[0], "clip" if bundle.clips is None else bundle.clips.unit
    metrics = {
        **metrics_document(
            Y, scores, thresholds, sessions, labels=labels, split=held_out.name, predicted=predicted, unit=unit
        ),
        **leakage,
        "calibration": calibration_document(Y, scores, calibrated, labels=labels),
        "curves": curves(Y, scores, labels=labels),
    }
    best = {
        "value": macro_f1(Y, scores),
        "scored": held_out.name,
        "settings": bundle.settings.to_mapping(),
        "inputs": bundle.settings.inputs,
        "tap": first.tap,
        "pooling": first.pooling,
        "fingerprint": first.fingerprint,
        "fingerprints": {name: space.fingerprint for name, space in bundle.selected.items()},
        "seed": seed,
        "versions": dict(bundle.versions),
        "labels": list(labels),
        **leakage,
        **({"exclusive": rules} if rules else {}),
        **of_run,
    }
    private_folder(folder)
    save_bundle(bundle, folder / "bundle", timeline=choose_timeline(bundle, held_out))
    write_document(folder / METRICS_NAMES[held_out.name], metrics)
    write_document(folder / "best.json", best)
    return best


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON document for people and scripts, whole or not at all."""
    write_private(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())
