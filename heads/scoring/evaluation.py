"""The one place that scores a bundle on held-out sessions, and keeps count of the looks.

Each look is a line of a log: when, which bundle, which data, what came out. The line is on disk before the scores
are given away, so a look cannot be taken back. A second look is allowed, counted, and said in the document. Held-out
data is told by its sessions: neither other features nor corrected labels make it unseen again. Leaving one session
out at a time reads the test sessions' labels too, so it counts as a look at them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.errors import BundleError, TrainingDataError
from featurecache.files import private_folder
from heads.bundle import Bundle
from heads.data import LabelledFeatures, check_labelled
from heads.scoring.calibration import calibration_document
from heads.scoring.cross_fitting import LEAVE_ONE_SESSION_OUT, FitScores, leave_one_session_out
from heads.scoring.curves import curves
from heads.scoring.metrics import metrics_document, session_counts
from heads.scoring.statistics import paired_comparison

MANY_LOOKS = "settings chosen after a look at these test sessions make the score too kind"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one look.

    Attributes:
        metrics: The document of `*_metrics.json`.
        looks: How many looks these sessions have had, this one included.
        sessions: Names of the S sessions, sorted.
        labels: Names of the C labels.
        counts: Confusion counts of each session, shape (S, 3, C).
    """

    metrics: Mapping[str, Any]
    looks: int
    sessions: tuple[str, ...]
    labels: tuple[str, ...]
    counts: npt.NDArray[np.int64]


def evaluate_bundle(
    bundle: Bundle,
    data: LabelledFeatures,
    *,
    split: str,
    fingerprint: str,
    log: Path,
    leakage: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Scores a bundle on a split and logs the look.

    Args:
        bundle: The bundle.
        data: The split's labelled clips.
        split: The split's name.
        fingerprint: Of the feature spaces that the features come from, as `bundle.fingerprint`.
        log: The look log, JSON lines; made if absent.
        leakage: What `featurecache.leakage.leakage_record` says of the table; goes into the document.
        seed: Of the confidence interval.

    Returns:
        The scores, and how many looks there have been at the same sessions.

    Raises:
        TrainingDataError: If the split is empty or its arrays are unusable, or no label is on in it.
        FingerprintMismatchError: If the features are not of the bundle's feature space.
        OSError: If the log cannot be written; nothing is scored then.
    """
    check_labelled(data, bundle.labels, split)
    if not data.Y.any():
        raise TrainingDataError(
            f"at least one label must be on in the {split} split, but none of {', '.join(bundle.labels)} is. "
            f"Move a session with annotated activity into {split}."
        )
    scores = bundle.scores(data.X, fingerprint=fingerprint)
    metrics = metrics_document(
        data.Y, scores, bundle.thresholds, data.sessions, labels=bundle.labels, split=split, seed=seed
    )
    looks = log_look(log, bundle, split=split, sessions=data.sessions.tolist(), macro_f1=metrics["macro_f1"])
    calibrated = None if bundle.calibration is None else bundle.calibration.apply(scores)
    metrics |= {
        **(leakage or {}),
        **_looks(looks),
        "calibration": calibration_document(data.Y, scores, calibrated, labels=bundle.labels),
        "curves": curves(data.Y, scores, labels=bundle.labels),
    }
    counts = session_counts(data.Y, scores >= bundle.thresholds, data.sessions)
    return Evaluation(metrics, looks, tuple(np.unique(data.sessions).tolist()), bundle.labels, counts)


def compare_evaluations(ours: Evaluation, theirs: Evaluation, *, seed: int = 0) -> dict[str, Any]:
    """Two bundles on the same clips: difference of macro-F1 with its interval and p value (`paired_comparison`).

    Args:
        ours: One bundle's evaluation.
        theirs: The other's.
        seed: Of resampling.

    Raises:
        BundleError: If they were not scored on the same labels and clips.
    """
    if (ours.labels, ours.sessions) != (theirs.labels, theirs.sessions):
        raise BundleError(
            "bundles must be compared on the same labels and sessions, but one has "
            f"{', '.join(ours.labels)} in {len(ours.sessions)} sessions and the other {', '.join(theirs.labels)} in "
            f"{len(theirs.sessions)}. Train both on one clip table."
        )
    return paired_comparison(ours.counts, theirs.counts, seed=seed)


def evaluate_without_each_session(
    fit_scores: FitScores,
    data: LabelledFeatures,
    bundle: Bundle,
    *,
    test_sessions: Sequence[str],
    log: Path,
    clip_ids: Sequence[str] | None = None,
    leakage: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Refits a bundle's settings once for each session without it, scores that session, and logs the look.

    Args:
        fit_scores: Fits a head with the bundle's settings and scores clips.
        data: All labelled clips of all splits.
        bundle: Whose settings they are.
        test_sessions: The session of each test clip, for the log.
        log: The look log.
        clip_ids: N clip ids; training clips that touch held-out ones are left out.
        leakage: As `evaluate_bundle`.
        seed: Of the confidence interval.

    Returns:
        The document of `leave_one_session_out`, with `looks`.

    Raises:
        TrainingDataError: If the arrays are unusable, or no label can be learned without some session.
        SettingsError: If there is one session only.
        OSError: If the log cannot be written; no scores are given then.
    """
    check_labelled(data, bundle.labels, "labelled")
    metrics = leave_one_session_out(
        fit_scores, data.Y, data.sessions, labels=bundle.labels, clip_ids=clip_ids, seed=seed
    )
    looks = log_look(log, bundle, split=LEAVE_ONE_SESSION_OUT, sessions=test_sessions, macro_f1=metrics["macro_f1"])
    return {**metrics, **(leakage or {}), **_looks(looks)}


def always_yes(data: LabelledFeatures, labels: Sequence[str], split: str) -> dict[str, Any]:
    """The floor that any head must beat: every label on in every clip. Looks at no feature, so it is not logged."""
    scores = np.ones(data.Y.shape)
    return metrics_document(data.Y, scores, np.full(len(labels), 0.5), data.sessions, labels=labels, split=split)


def log_look(log: Path, bundle: Bundle, *, split: str, sessions: Sequence[str], macro_f1: float | None) -> int:
    """Appends a look to the log and forces it onto the disk.

    Args:
        log: The look log, JSON lines; made if absent.
        bundle: Whose scores were seen.
        split: The split's name, or what else was done.
        sessions: The session of each clip looked at.
        macro_f1: What came out.

    Returns:
        How many looks these sessions have had, this one included.

    Raises:
        OSError: If it cannot be written.
    """
    sessions_sha256 = hashlib.sha256("\0".join(sorted(set(sessions))).encode()).hexdigest()
    look = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": bundle.digest,
        "split": split,
        "sessions_sha256": sessions_sha256,
        "macro_f1": macro_f1,
    }
    private_folder(log.parent)
    _append_line(log, json.dumps(look))
    return count_looks(log, sessions_sha256)


def count_looks(log: Path, sessions_sha256: str) -> int:
    """How many lines of a look log are of these sessions; a line that cannot be read counts, whatever it was of."""
    count = 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            count += json.loads(line)["sessions_sha256"] == sessions_sha256
        except (ValueError, KeyError, TypeError):
            count += 1
    return count


def _looks(looks: int) -> dict[str, Any]:
    return {"looks": looks, **({"looks_warning": MANY_LOOKS} if looks > 1 else {})}


def _append_line(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        file.write(b"\n" * is_torn + line.encode() + b"\n")
        os.fsync(descriptor)
