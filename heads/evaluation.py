"""The one place that scores a bundle on a held-out split, and keeps count of the looks.

Each look is a line of a log: when, which bundle, which data, what came out. The line is on disk before the scores
are given away, so a look cannot be taken back. A second look is allowed, and counted. Held-out data is told by its
sessions: neither other features nor corrected labels make it unseen again.
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

from featurecache.errors import TrainingDataError
from featurecache.files import private_folder
from heads.bundle import Bundle
from heads.data import LabelledFeatures, check_labelled
from heads.metrics import metrics_document


@dataclass(frozen=True)
class Evaluation:
    """Scores of one look.

    Attributes:
        metrics: The document of `*_metrics.json`.
        looks: How many looks these sessions have had, this one included.
    """

    metrics: Mapping[str, Any]
    looks: int


def evaluate_bundle(
    bundle: Bundle, data: LabelledFeatures, *, split: str, fingerprint: str, log: Path, seed: int = 0
) -> Evaluation:
    """Scores a bundle on a split and logs the look.

    Args:
        bundle: The bundle.
        data: The split's labelled clips.
        split: The split's name.
        fingerprint: Of the feature space that the features come from.
        log: The look log, JSON lines; made if absent.
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
    look = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": bundle.digest,
        "split": split,
        "sessions_sha256": hashlib.sha256("\0".join(np.unique(data.sessions).tolist()).encode()).hexdigest(),
        "macro_f1": metrics["macro_f1"],
    }
    private_folder(log.parent)
    _append_line(log, json.dumps(look))
    return Evaluation(metrics, count_looks(log, str(look["sessions_sha256"])))


def always_yes(data: LabelledFeatures, labels: Sequence[str], split: str) -> dict[str, Any]:
    """The floor that any head must beat: every label on in every clip. Looks at no feature, so it is not logged."""
    scores = np.ones(data.Y.shape)
    return metrics_document(data.Y, scores, np.full(len(labels), 0.5), data.sessions, labels=labels, split=split)


def count_looks(log: Path, sessions_sha256: str) -> int:
    """How many lines of a look log are of these sessions; a line that cannot be read counts, whatever it was of."""
    count = 0
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            count += json.loads(line)["sessions_sha256"] == sessions_sha256
        except (ValueError, KeyError, TypeError):
            count += 1
    return count


def _append_line(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        file.write(b"\n" * is_torn + line.encode() + b"\n")
        os.fsync(descriptor)
