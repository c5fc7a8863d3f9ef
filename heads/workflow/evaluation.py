"""The one place that scores a bundle on held-out sessions, and counts the test-set evaluations.

A test-set evaluation is one call that returns scores: of one bundle, or of several that are compared, none of which can
have been chosen by another's score. It is on disk (`evaluation_log.py`) before the scores are returned, so that none
goes uncounted. A second evaluation is allowed, counted, and stated in the document under the key `looks`; bundles that
were all scored on the same clips before are no second one. Leave-one-session-out reads the test sessions' labels too,
so it counts as an evaluation of its bundle.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.clip import Clip
from featurecache.clips.samples import Sample
from featurecache.errors import BundleError, TrainingDataError
from heads.bundle import Bundle
from heads.data import LabelledFeatures, check_labelled
from heads.evaluation_log import Scored, content_of, log_evaluation
from heads.scoring.calibration import calibration_document
from heads.scoring.cross_fitting import LEAVE_ONE_SESSION_OUT, FitScores, leave_one_session_out
from heads.scoring.curves import curves
from heads.scoring.decision import decision_curves, prevalence_shift
from heads.scoring.intervals import holm
from heads.scoring.metrics import metrics_document, session_counts
from heads.scoring.statistics import paired_comparison

REPEATED_EVALUATION = (
    "settings chosen after an earlier evaluation on these test sessions make the score optimistically biased"
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one bundle in one test-set evaluation.

    Attributes:
        metrics: The document of `*_metrics.json`.
        looks: Number of test-set evaluations of these sessions, including this one.
        sessions: Names of the M sessions, sorted.
        labels: Names of the C labels.
        counts: Confusion counts of each session (true positives, false positives, false negatives), shape (M, 3, C).
        predicted: What is predicted of the N clips, shape (N, C).
    """

    metrics: Mapping[str, Any]
    looks: int
    sessions: tuple[str, ...]
    labels: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.bool_]


def evaluate_bundle(
    bundle: Bundle,
    data: LabelledFeatures,
    *,
    split: str,
    fingerprint: str,
    log: Path,
    leakage: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Scores a bundle on a split and logs the test-set evaluation.

    Args:
        bundle: The bundle.
        data: The split's labelled clips.
        split: The split's name.
        fingerprint: Fingerprint of the feature spaces that the features come from, as `bundle.fingerprint`.
        log: The evaluation log, JSON lines; created if absent.
        leakage: What `featurecache.clips.leakage.leakage_record` says of the table; goes into the document.

    Returns:
        The scores, and the number of test-set evaluations of the same sessions.

    Raises:
        As `evaluate_bundles`.
    """
    candidates = [(bundle, data, fingerprint)]
    (evaluation,) = evaluate_bundles(candidates, split=split, log=log, leakage=leakage)
    return evaluation


def evaluate_bundles(
    candidates: Sequence[tuple[Bundle, LabelledFeatures, str]],
    *,
    split: str,
    log: Path,
    leakage: Mapping[str, Any] | None = None,
    annotated: int | None = None,
    prevalence: Mapping[str, float] | None = None,
) -> list[Evaluation]:
    """Scores bundles on the same clips of a split and logs one test-set evaluation.

    Nothing is scored unless all bundles can be.

    Args:
        candidates: Each bundle with the split's labelled clips as it reads them, and the fingerprint of these features.
        split: The split's name.
        log: The evaluation log, JSON lines; created if absent.
        leakage: As `evaluate_bundle`.
        annotated: As `metrics_document`.
        prevalence: Label -> share of clips elsewhere, at which precision and NPV are told too.

    Returns:
        The scores of each bundle; all have the same number of test-set evaluations.

    Raises:
        TrainingDataError: If the split is empty or its arrays are unusable, or no label is on in it.
        FingerprintMismatchError: If features are not of their bundle's feature space.
        BundleError: If two candidates are one bundle, or do not have the same labels and clips; if a session of the
            clips made a bundle, or the clips' ids are unknown, so that nobody can tell.
        OSError: If the log cannot be written; no scores are given then.
    """
    for bundle, data, _ in candidates:
        check_labelled(data, bundle.labels, split)
        if not data.Y.any():
            raise TrainingDataError(
                f"at least one label must be on in the {split} split, but none of {', '.join(bundle.labels)} is. "
                f"Annotate more in its sessions; or assign all anew (featurecache clips --redeal), and tune again."
            )
    _check_comparable(candidates)
    if (leakage or {}).get("split_level") != "clip":  # a split that cuts sessions by force says so in the document
        for bundle, data, _ in candidates:
            _check_unseen(bundle, data, split)
    scores = [bundle.scores(data.X, fingerprint=fingerprint) for bundle, data, fingerprint in candidates]
    predictions = [bundle.predicted(own) for (bundle, _, _), own in zip(candidates, scores, strict=True)]
    documents = [
        metrics_document(
            data.Y,
            own,
            bundle.thresholds,
            data.sessions,
            labels=bundle.labels,
            split=split,
            annotated=annotated,
            predicted=predicted,
            unit=data.unit,
        )
        for (bundle, data, _), own, predicted in zip(candidates, scores, predictions, strict=True)
    ]
    seen = [
        Scored(bundle.digest, metrics["macro_f1"], content_of(data.clip_ids, data.Y, bundle.labels))
        for (bundle, data, _), metrics in zip(candidates, documents, strict=True)
    ]
    scored = candidates[0][1]
    looks = log_evaluation(log, seen, split=split, sessions=scored.sessions.tolist(), clip_ids=scored.clip_ids)
    found = []
    for (bundle, data, _), own, predicted, metrics in zip(candidates, scores, predictions, documents, strict=True):
        calibrated = None if bundle.calibration is None else bundle.calibration.apply(own)
        counts = session_counts(data.Y, predicted, data.sessions)
        all_positive = session_counts(data.Y, np.ones(data.Y.shape, bool), data.sessions)
        metrics |= {
            "against_all_positive": paired_comparison(counts, all_positive),
            **(leakage or {}),
            **_count_fields(looks),
            "calibration": calibration_document(data.Y, own, calibrated, labels=bundle.labels),
            "curves": curves(data.Y, own, labels=bundle.labels),
            **_worth_elsewhere(bundle, data, predicted, own if calibrated is None else calibrated, prevalence),
        }
        sessions = tuple(np.unique(data.sessions).tolist())
        found.append(Evaluation(metrics, looks, sessions, bundle.labels, counts, predicted))
    return found


def compare_evaluations(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    """Two bundles on the same clips: difference of macro-F1 with its interval and p value (`paired_comparison`).

    Where one scores fewer labels than the other, both are taken on those that they share (`labels`).

    Args:
        ours: One bundle's evaluation.
        theirs: The other's.

    Raises:
        BundleError: If they share no label, or were not scored on the same clips.
    """
    shared = [label for label in ours.labels if label in theirs.labels]
    if not shared or ours.sessions != theirs.sessions:
        raise BundleError(
            "bundles must be compared on the same labels and sessions, but one has "
            f"{', '.join(ours.labels)} in {len(ours.sessions)} sessions and the other {', '.join(theirs.labels)} in "
            f"{len(theirs.sessions)}. Train both on one clip table."
        )
    counts = [one.counts[..., [one.labels.index(label) for label in shared]] for one in (ours, theirs)]
    only = {} if ours.labels == theirs.labels else {"labels": shared}
    return {**paired_comparison(*counts), **only}


def compare_with_each(ours: Evaluation, others: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """One bundle against several on the same clips: `compare_evaluations` of each.

    Where there are several, `p_holm` is each p value adjusted for all of them (`holm`); comparisons without a p value
    take no part.

    Raises:
        BundleError: If two were not scored on the same labels and clips.
    """
    found = [compare_evaluations(ours, other) for other in others]
    tested = [one for one in found if one["p_value"] is not None]
    if len(found) > 1:
        for one, adjusted in zip(tested, holm([one["p_value"] for one in tested]), strict=True):
            one["p_holm"] = adjusted
    return found


def evaluate_without_each_session(
    fit_scores: FitScores,
    data: LabelledFeatures,
    bundle: Bundle,
    *,
    test: Sequence[Clip | Sample],
    log: Path,
    leakage: Mapping[str, Any] | None = None,
    seen: Collection[str] = (),
) -> dict[str, Any]:
    """Leave-one-session-out: refits a bundle's settings without each session and scores that session.

    Logged as one test-set evaluation, the same one as the bundle's on the test split.

    Args:
        fit_scores: Fits a head with the bundle's settings and scores clips.
        data: All labelled clips of all splits; by their ids, training clips that touch held-out ones are left out.
        bundle: The bundle whose settings are refitted.
        test: The test split's labelled clips, or samples, for the log.
        log: The evaluation log.
        leakage: As `evaluate_bundle`.
        seen: Ids of clips whose labels are no independent truth: they train, and are not scored.

    Returns:
        The document of `leave_one_session_out`, with `looks`.

    Raises:
        TrainingDataError: If the arrays are unusable, or no label can be learned without some session.
        SettingsError: If there is one session only.
        OSError: If the log cannot be written; no scores are given then.
    """
    check_labelled(data, bundle.labels, "labelled")
    metrics = leave_one_session_out(
        fit_scores,
        data.Y,
        data.sessions,
        labels=bundle.labels,
        clip_ids=data.clip_ids,
        exclusive=bundle.exclusive,
        seen=seen,
        unit=data.unit,
    )
    held_out = {one.clip_id for one in test}
    rows = [row for row, clip_id in enumerate(data.clip_ids or ()) if clip_id in held_out]
    content = content_of([(data.clip_ids or ())[row] for row in rows] or None, data.Y[rows], bundle.labels)
    looks = log_evaluation(
        log,
        [Scored(bundle.digest, metrics["macro_f1"], content)],
        split=LEAVE_ONE_SESSION_OUT,
        sessions=[one.session for one in test],
        clip_ids=[one.clip_id for one in test],
    )
    return {**metrics, **(leakage or {}), **_count_fields(looks)}


def all_positive_baseline(
    data: LabelledFeatures, labels: Sequence[str], split: str, annotated: int | None = None
) -> dict[str, Any]:
    """Metrics of the all-positive baseline: every label in every clip. It reads no feature and is not logged."""
    scores, thresholds = np.ones(data.Y.shape), np.full(len(labels), 0.5)
    return metrics_document(
        data.Y, scores, thresholds, data.sessions, labels=labels, split=split, annotated=annotated, unit=data.unit
    )


def _check_comparable(candidates: Sequence[tuple[Bundle, LabelledFeatures, str]]) -> None:
    bundles = [bundle for bundle, _, _ in candidates]
    digests = [bundle.digest for bundle in bundles]
    if len(set(digests)) < len(digests):
        raise BundleError(
            f"different bundles must be compared, but two of the {len(digests)} are the same one "
            f"({digests[0][:16]}). Name another with --against."
        )
    first, data, _ = max(candidates, key=lambda one: len(one[0].labels))
    for bundle, theirs, _ in candidates:
        shared = [first.labels.index(label) for label in bundle.labels if label in first.labels]
        is_same = (
            len(shared) == len(bundle.labels)
            and np.array_equal(data.Y[:, shared], theirs.Y)
            and np.array_equal(data.sessions, theirs.sessions)
        )
        if not is_same:
            raise BundleError(
                f"bundles must be compared on the same labels and {data.unit}s, but one has "
                f"{', '.join(first.labels)} on {len(data.Y)} {data.unit}s and the other {', '.join(bundle.labels)} on "
                f"{len(theirs.Y)}. Train both on one clip table."
            )


def _check_unseen(bundle: Bundle, data: LabelledFeatures, split: str) -> None:
    if not bundle.fitted_on:
        return
    if data.clip_ids is None:
        raise BundleError(
            f"{data.unit}s that a bundle is scored on must be known by their ids, but those of the {split} split are "
            "not, so nobody can tell whether they trained it. Load them with heads.loading.load_split, or set clip_ids."
        )
    bundle.check_unseen(data.clip_ids, data.sessions.tolist(), split)


def _worth_elsewhere(
    bundle: Bundle,
    data: LabelledFeatures,
    predicted: npt.NDArray[np.bool_],
    probabilities: npt.NDArray[np.floating],
    stated: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Scores at other prevalences, and decision curves."""
    thresholds = bundle.thresholds if bundle.calibration is None else bundle.calibration.apply(bundle.thresholds)
    shift = prevalence_shift(data.Y, predicted, thresholds, labels=bundle.labels, stated=stated)
    curves_of = decision_curves(data.Y, probabilities, labels=bundle.labels)
    return {"prevalence_shift": shift, "decision_curves": curves_of}


def _count_fields(looks: int) -> dict[str, Any]:
    return {"looks": looks, **({"looks_warning": REPEATED_EVALUATION} if looks > 1 else {})}
