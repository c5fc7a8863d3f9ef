"""What an evaluation tells of samples of several clips besides: scores of slices, and which clips a head looks at.

Weights are told of test samples, which the head has not seen. Where clips.csv says which clips a label is on in, the
area under the ROC curve (AUROC) tells whether a sample's weights find them: over the clips of all samples in which the
label is on, each clip's weight times the number of its sample's clips.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.clip import Clip
from featurecache.clips.samples import Sample
from featurecache.csv_fields import csv_bytes, guard_cell
from featurecache.files import write_private
from heads.bundle import Bundle
from heads.data import LabelledFeatures
from heads.samples.joining import present
from heads.scoring.metrics import metrics_document
from heads.settings import WEIGHING
from heads.workflow.data import ScoringData

WEIGHTS_NAME = "part_weights.csv"
_SHOWN = 40
"""Samples of a label whose weights go into the report's picture."""


def sample_details(
    bundle: Bundle, data: LabelledFeatures, predicted: npt.NDArray[np.bool_], source: ScoringData, run: Path
) -> dict[str, Any]:
    """Fields for `test_metrics.json`; writes the weights of every part into the run. Nothing where samples are clips.

    Args:
        bundle: The bundle.
        data: What it was scored on.
        predicted: What it predicts there, (N, C).
        source: The clip table, which may know of each clip what is on.
        run: The run's folder.

    Raises:
        OSError: If the weights cannot be written.
    """
    if data.samples is None:
        return {}
    found: dict[str, Any] = {}
    scores = bundle.scores(data.X, fingerprint=bundle.fingerprint)
    columns = data.samples[0].columns
    if columns:
        found["slices"] = {column: _slices(bundle, data, scores, predicted, column) for column in columns}
    if bundle.settings.kind in WEIGHING:
        from heads.models import part_weights

        weights = part_weights(bundle.head, data.X)  # (N, P, C)
        clips = {clip.clip_id: clip for clip in source.table.clips}
        write_private(run / WEIGHTS_NAME, weights_table(data.samples, weights, bundle.labels))
        found["part_weights"] = {
            label: _found_clips(data, weights[..., at], at, clips, source.table.labels, label)
            for at, label in enumerate(bundle.labels)
        }
    return found


def _slices(
    bundle: Bundle,
    data: LabelledFeatures,
    scores: npt.NDArray[np.float32],
    predicted: npt.NDArray[np.bool_],
    column: str,
) -> dict[str, Any]:
    """Scores of the samples of each value of a column."""
    values = np.array([sample.columns[column] for sample in data.samples or ()])
    found = {}
    for value in np.unique(values).tolist():
        rows = values == value
        document = metrics_document(
            data.Y[rows],
            scores[rows],
            bundle.thresholds,
            data.sessions[rows],
            labels=bundle.labels,
            split="test",
            predicted=predicted[rows],
            unit=data.unit,
        )
        kept = ("macro_f1", "macro_f1_ci95", "macro_f1_ci95_reason", "undefined", "n_clips", "n_sessions")
        found[value] = {name: document[name] for name in kept if name in document}
    return found


def _found_clips(
    data: LabelledFeatures,
    weights: npt.NDArray[np.float32],
    at: int,
    clips: Mapping[str, Clip],
    labels: Sequence[str],
    label: str,
) -> dict[str, Any]:
    """How well weights (N, P) tell the clips in which a label is on, among those of the samples in which it is."""
    there = present(data.X)  # (N, P)
    is_on: list[int] = []
    sure: list[float] = []
    shown: list[dict[str, Any]] = []
    for row in np.flatnonzero(data.Y[:, at]).tolist():
        sample = (data.samples or ())[row]
        parts = [(place, clips[part]) for place, part in enumerate(sample.parts) if part in clips]
        known = [clip.targets[labels.index(label)] if label in labels else None for _, clip in parts]
        for (place, _), target in zip(parts, known, strict=True):
            if target is not None and there[row, place]:
                is_on.append(target)
                sure.append(float(weights[row, place]) * len(parts))
        if len(shown) < _SHOWN:
            own = [float(weights[row, place]) for place, _ in parts]
            shown.append({"session": sample.session, "weights": own, "on": known})
    from sklearn.metrics import roc_auc_score  # scikit-learn takes a second to load

    found = {"clips": len(is_on), "clips_on": sum(is_on), "samples": shown}
    if 0 < sum(is_on) < len(is_on):
        return {"auroc": float(roc_auc_score(is_on, sure)), **found}
    if label not in labels:
        reason = "clips.csv has no label of that name"
    elif not is_on:
        reason = "none of them says whether it is on"
    else:
        reason = f"it is {'on' if any(is_on) else 'off'} in all {len(is_on)} of them"
    return {"auroc": None, "reason": reason, **found}


def weights_table(samples: Sequence[Sample], weights: npt.NDArray[np.float32], labels: Sequence[str]) -> bytes:
    """`part_weights.csv`: a line for each part of N samples, with its weight (N, P, C) for each label."""
    rows = [
        [guard_cell(sample.name), part, *(f"{weight:.4f}" for weight in weights[row, place])]
        for row, sample in enumerate(samples)
        for place, part in enumerate(sample.parts)
        if part
    ]
    return csv_bytes([["sample", "part", *map(guard_cell, labels)], *rows])
