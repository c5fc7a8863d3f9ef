"""A head refitted with chosen settings on all clips that are not test, and what its settings score out of fold.

Notable choices: the out-of-fold scores are of heads with the same settings that never saw a clip's session, so they are
what thresholds, calibration and timeline settings are chosen by; the head itself has then seen every session but those
of the test split. A head with an early stop is trained on the training split first, to find out for how many epochs.

What this is not: the choice of settings (`search/choosing.py`), or anything that writes files.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from featurecache.errors import SettingsError
from heads.data import LabelledFeatures
from heads.engines.fitting import refitting
from heads.engines.fusion import fit_fused
from heads.engines.prepared import Prepared
from heads.engines.solving import OutOfFold, solve_head
from heads.engines.training import FittedHead, fit_heads
from heads.engines.training_clips import TrainingClips
from heads.models import Head
from heads.samples.joining import selected
from heads.scoring.cross_fitting import FitScores, out_of_fold_counts, out_of_fold_scores
from heads.scoring.metrics import f1_scores, macro_f1, macro_over_labels
from heads.settings import HeadSettings


@dataclass(frozen=True, eq=False)
class Refitted:
    """A head that was fitted on training and validation clips together.

    Attributes:
        head: The head.
        settings: Its settings; of one with an early stop, the epochs that it found, and no patience.
        scores: Out-of-fold scores of the N clips, mean over the assignments to folds, shape (N, C); NaN for a label
            that cannot be learned without some fold.
        train_loss: Mean loss over the last epoch; None where the solver takes no steps.
        input_weights: The weight of each input, where these were learned.
    """

    head: Head
    settings: HeadSettings
    scores: npt.NDArray[np.float64]
    value: float
    train_loss: float | None
    input_weights: Mapping[str, float] = field(default_factory=dict)


def refit(prepared: Prepared, settings: HeadSettings) -> Refitted:
    """Fits a head on all clips that are not test, and once more without each fold of them.

    Args:
        prepared: The clips; their seed is that of data order, initial weights and dropout.
        settings: Settings of the head.

    Raises:
        SettingsError: If training diverges, does not converge, or the settings do not fit the features.
    """
    clips = prepared.fitting(settings.inputs)
    if settings.solver == "convex":
        if prepared.data.train.are_frames(settings.inputs):
            raise SettingsError(
                "the convex solver must have one feature vector per clip, but "
                f'{settings.inputs} are features of frames. Choose other inputs, or kind = "attention".'
            )
        if settings.input_weights == "learned":
            widths = clips.part_widths or [clips.X.shape[1]]
            fused = fit_fused(clips.X, clips.Y, settings, widths=widths, device=prepared.device)
            weights = dict(zip(selected(settings.inputs), fused.weights.tolist(), strict=True))
            without = scores_without_each_fold(prepared, settings)
            return Refitted(fused.head, settings, without.mean(axis=0), _value(clips, without), None, weights)
        basis = prepared.basis(settings.inputs, settings.normalization, settings.components)
        head, scores = solve_head(basis, clips.Y, settings, prepared.folds, prior=prepared.prior(settings))
        return Refitted(head, settings, scores.mean(axis=0, dtype=np.float64), _value(clips, scores), None)
    if settings.patience:
        settings = dataclasses.replace(settings, patience=0, epochs=_early_stopped(prepared, settings).epochs)
    scores = scores_without_each_fold(prepared, settings)
    (fitted,) = fit_heads(TrainingClips.of(clips, seed=prepared.seed, device=prepared.device), [settings])
    return Refitted(_finished(fitted), settings, scores.mean(axis=0), _value(clips, scores), fitted.train_loss)


def _value(clips: LabelledFeatures, scores: OutOfFold) -> float:
    counts = out_of_fold_counts(clips.Y, scores, clips.sessions)
    return float(macro_over_labels(f1_scores(counts.sum(axis=0))))


def scores_without_each_fold(prepared: Prepared, settings: HeadSettings) -> npt.NDArray[np.float64]:
    """Out-of-fold scores by a fit without each fold, for each of R assignments to folds, shape (R, N, C).

    Raises:
        SettingsError: If training diverges.
    """
    clips, fit = prepared.data.fitting, refitting_prepared(prepared, settings, prepared.seed)
    return out_of_fold_scores(fit, clips.Y, prepared.folds, clip_ids=clips.clip_ids)


def refitting_prepared(prepared: Prepared, settings: HeadSettings, seed: int) -> FitScores:
    """`refitting` of all clips that are not test."""
    prior = prepared.prior(settings)
    return refitting(prepared.fitting(settings.inputs), settings, seed=seed, device=prepared.device, prior=prior)


def _early_stopped(prepared: Prepared, settings: HeadSettings) -> FittedHead:
    """A head trained on the training split until its validation score no longer rises."""
    validation = prepared.validation(settings.inputs)
    (fitted,) = fit_heads(
        prepared.clips(settings.inputs),
        [settings],
        X_validation=validation.X,
        score=lambda scores: macro_f1(validation.Y, scores),
    )
    _finished(fitted)
    return fitted


def _finished(fitted: FittedHead) -> Head:
    if fitted.head is None:
        raise fitted.diverged_error()
    return fitted.head
