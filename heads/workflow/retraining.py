"""A head fitted again on what was reviewed: what *Retrain* on the review page calls.

The settings are those of the head that is there; nothing is searched. Its out-of-fold score is compared with the one
that the same settings reach without the reviews, on the clips that somebody labelled without sight of predictions: what
was merely accepted would otherwise score the head that proposed it. The test split is not read.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.annotations.reviews import FOLDER
from featurecache.errors import BundleError, TrainingDataError
from featurecache.project.settings import Project
from featurecache.workflow.clips import make_clips
from heads.bundle import Bundle, load_bundle
from heads.data import LearningData
from heads.runs import HeldOut, train_bundle
from heads.scoring.metrics import metrics_document, session_counts
from heads.scoring.statistics import paired_comparison
from heads.scoring.thresholds import tuned_thresholds
from heads.settings import HeadSettings
from heads.workflow.data import data_of_head, refuse_samples, training_device
from heads.workflow.training import TimelineChoice


@dataclass(frozen=True, eq=False)
class Retrained:
    """A head fitted again.

    Attributes:
        bundle: Its folder.
        held_out: Its out-of-fold scores of clips that were labelled without sight of predictions.
        result: JSON-ready: `before` and `after`, each with `macro_f1` and `macro_f1_ci95`; `comparison`, as
            `paired_comparison`; `clips` and `sessions` that are scored, `reviewed_clips` that train and do not score.
    """

    bundle: Path
    held_out: HeldOut
    result: Mapping[str, Any]


def retrain(project: Project, bundle: Path) -> Retrained:
    """Makes the clip table with the reviews, fits a bundle's settings again, and compares out-of-fold scores.

    Args:
        project: The project; its table then holds the reviews, and `runs/review/` the new head.
        bundle: The bundle's folder.

    Raises:
        BundleError: If the bundle has a fine-tuned backbone, or fits no head.
        TrainingDataError: If nothing was reviewed that trains, or too little is labelled.
        EditedTableError: If `clips.csv` was edited by hand.
        MissingFeaturesError: If a reviewed clip has no feature yet.
    """
    head = load_bundle(bundle)
    refuse_samples(head, bundle)
    if why := head.why_not_refitted:
        raise BundleError(
            f"training again fits a head on cached features by its settings, but {bundle} {why}. "
            "Review with the bundle of tune or train."
        )
    if not any((project.root / FOLDER).rglob("*.eaf")):
        raise TrainingDataError(
            "training again needs reviewed stretches, but nothing was reviewed yet. Mark a stretch as reviewed (Enter)."
        )
    # The table without reviews first: what the same settings know without them.
    make_clips(project)
    device, cache = training_device(project), FeatureCache.open(project.cache)
    before = held_out_scores(data_of_head(project, head, cache), head.settings, device=device)
    make_clips(project, with_reviewed=True)
    data = data_of_head(project, head, cache)
    folder, choice = project.runs / "review", TimelineChoice(project)
    train_bundle(data, settings=head.settings, seed=0, folder=folder, device=device, choose_timeline=choice)
    result = {**compared(before, choice.held_out, head), "reviewed_clips": len(data.seen)}
    return Retrained(folder / "bundle", choice.held_out, result)


def held_out_scores(data: LearningData, settings: HeadSettings, *, device: str) -> HeldOut:
    """Out-of-fold scores of training and validation clips by heads with these settings.

    Raises:
        TrainingDataError: If the splits cannot train a head.
        SettingsError: If training diverges, does not converge, or the settings do not fit the features.
    """
    from heads.engines.prepared import Prepared
    from heads.engines.refit import refit

    data.check()
    fitted = refit(Prepared(data, seed=0, device=device), settings)
    clips = data.fitting
    return HeldOut("out-of-fold", fitted.scores, clips.Y, clips.sessions, clips.clip_ids)


def compared(before: HeldOut, after: HeldOut, head: Bundle) -> dict[str, Any]:
    """Both on the clips that are labelled alike, and without sight of predictions, in both tables.

    Raises:
        TrainingDataError: If there is no such clip.
    """
    rows = {clip_id: at for at, clip_id in enumerate(before.clip_ids or ())}
    pairs = [
        (rows[clip_id], at)
        for at, clip_id in enumerate(after.clip_ids or ())
        if clip_id in rows and np.array_equal(before.Y[rows[clip_id]], after.Y[at])
    ]
    if not pairs:
        raise TrainingDataError(
            "before and after must be scored on clips that were labelled without sight of predictions, but there is "
            "none. Annotate some sessions, or review them blind."
        )
    scored = before.is_scored & after.is_scored
    documents, counts = zip(
        *(_scored(one, rows, scored, head) for one, rows in zip((before, after), np.array(pairs).T, strict=True)),
        strict=True,
    )
    shown = ("macro_f1", "macro_f1_ci95")
    return {
        **{name: {key: own[key] for key in shown} for name, own in zip(("before", "after"), documents, strict=True)},
        "comparison": paired_comparison(counts[1], counts[0]),
        "clips": documents[0]["n_clips"],
        "sessions": documents[0]["n_sessions"],
    }


def _scored(
    held_out: HeldOut, rows: npt.NDArray[np.int64], scored: npt.NDArray[np.bool_], head: Bundle
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Metrics of some clips at thresholds tuned on them, and their confusion counts per session."""
    Y, scores, sessions = held_out.Y[rows][:, scored], held_out.scores[rows][:, scored], held_out.sessions[rows]
    labels = list(itertools.compress(head.labels, scored))
    thresholds = tuned_thresholds(Y, scores, sessions)
    document = metrics_document(Y, scores, thresholds, sessions, labels=labels, split=held_out.name)
    return document, session_counts(Y, scores >= thresholds, sessions)
