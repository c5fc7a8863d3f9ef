"""What scored clips say under other rules, from the recordings of `test_timelines.json`: nothing is scored again.

- `overlap_sensitivity`: targets are made anew from the annotations with other shares of a clip that a label must cover.
  A result that depends on that share says as much about the rule as about the model.
- `exclusive_violations`: clips whose predictions have two labels of which one at most is on at a time. Timelines obey
  that rule (`timeline.py`); predictions of single clips, which the scores are of, do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.annotations import Interval
from featurecache.clips.clip import clip_targets
from heads.scoring.intervals import macro_f1_interval
from heads.scoring.metrics import f1_scores, macro_over_labels, session_counts

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a clip that a label must cover to be on; 0 stands for any time of it."""


def overlap_sensitivity(recordings: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Macro-F1 of the same scores and thresholds, with targets by other shares.

    Args:
        recordings: Documents of `evaluate_timelines`, with a session, clips, scores, thresholds and annotations.
        labels: Names of the C labels.

    Returns:
        For each of SHARES `share`, `macro_f1`, `macro_f1_ci95` (null as in `metrics_document`) and `support`: the
        positive clips of each label.
    """
    predicted, sessions = _predicted(recordings, labels)
    found = []
    for share in SHARES:
        Y = np.concatenate([_targets(one, labels, share) for one in recordings])
        counts = session_counts(Y, predicted, sessions)
        macro, ends = float(macro_over_labels(f1_scores(counts.sum(axis=0)))), macro_f1_interval(counts)
        found.append(
            {
                "share": share,
                "macro_f1": None if np.isnan(macro) else macro,
                "macro_f1_ci95": None if np.isnan(ends).any() else ends.tolist(),
                "support": dict(zip(labels, Y.sum(axis=0).tolist(), strict=True)),
            }
        )
    return found


def exclusive_violations(
    recordings: Sequence[Mapping[str, Any]], labels: Sequence[str], groups: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """For each group of exclusive labels, `labels` and the number of `clips` that are predicted to have two of them."""
    predicted, _ = _predicted(recordings, labels)
    columns = [[labels.index(label) for label in group] for group in groups]
    return [
        {"labels": list(group), "clips": int((predicted[:, own].sum(axis=1) > 1).sum()), "of": len(predicted)}
        for group, own in zip(groups, columns, strict=True)
    ]


def _predicted(
    recordings: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.str_]]:
    """Predictions of all clips, (N, C), and the session of each, (N,)."""
    parts = [
        np.stack([np.array(one["clips"]["scores"][label]) >= one["thresholds"][label] for label in labels], axis=1)
        for one in recordings
    ]
    sessions = [
        session for one, part in zip(recordings, parts, strict=True) for session in [one["session"]] * len(part)
    ]
    return np.concatenate(parts), np.array(sessions)


def _targets(recording: Mapping[str, Any], labels: Sequence[str], share: float) -> npt.NDArray[np.int64]:
    """Targets of a recording's clips, (N, C)."""
    intervals = [
        Interval(start, end, label) for label in labels for start, end in recording["annotated"].get(label, ())
    ]
    windows = [(start, end) for start, end in recording["clips"]["spans_us"]]
    needed_us = max(1, round(share * recording["clips"]["length_us"]))
    return np.array(clip_targets(windows, intervals, labels, None, needed_us), np.int64)
