"""What scored clips say under other rules for targets, from the recordings of `test_timelines.json`.

Targets are made anew from the annotations with other shares of a clip that a label must cover; features and scores
stay. A result that depends on that share says as much about the rule as about the model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.annotations import Interval
from featurecache.clips.clip import clip_targets
from heads.scoring.intervals import macro_f1_interval
from heads.scoring.metrics import f1_scores, macro_over_labels, session_counts

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of a clip that a label must cover to be on; 0 stands for any time of it."""


def overlap_sensitivity(
    recordings: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    predict: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]],
    own_us: int,
) -> list[dict[str, Any]]:
    """Macro-F1 of the same predictions, with targets by other shares.

    Args:
        recordings: Documents of `evaluate_timelines`, with a session, clips, scores and annotations.
        labels: Names of the C labels.
        predict: What the bundle predicts of clips with these scores: (N, C) -> (N, C).
        own_us: Time of a clip that a label must cover by the bundle's own rule (`min_overlap`).

    Returns:
        For each of SHARES and the bundle's own share: `share`, whether it is its `own`, `macro_f1`, `macro_f1_ci95`
        (null as in `metrics_document`) and `support`: the positive clips of each label.
    """
    scores = [np.stack([one["clips"]["scores"][label] for label in labels], axis=1) for one in recordings]
    predicted = predict(np.concatenate(scores))
    sessions = np.repeat([one["session"] for one in recordings], [len(own) for own in scores])
    found = []
    length_us = max((one["clips"]["length_us"] for one in recordings), default=own_us)
    own = next((share for share in SHARES if _needed_us(share, length_us) == own_us), own_us / length_us)
    for share in sorted({*SHARES, own}):
        Y = np.concatenate([_targets(one, labels, share) for one in recordings])
        counts = session_counts(Y, predicted, sessions)
        macro, ends = float(macro_over_labels(f1_scores(counts.sum(axis=0)))), macro_f1_interval(counts)
        found.append(
            {
                "share": share,
                "own": share == own,
                "macro_f1": None if np.isnan(macro) else macro,
                "macro_f1_ci95": None if np.isnan(ends).any() else ends.tolist(),
                "support": dict(zip(labels, Y.sum(axis=0).tolist(), strict=True)),
            }
        )
    return found


def _targets(recording: Mapping[str, Any], labels: Sequence[str], share: float) -> npt.NDArray[np.int64]:
    """Targets of a recording's clips, (N, C)."""
    intervals = [
        Interval(start, end, label) for label in labels for start, end in recording["annotated"].get(label, ())
    ]
    windows = [(start, end) for start, end in recording["clips"]["spans_us"]]
    needed_us = _needed_us(share, recording["clips"]["length_us"])
    return np.array(clip_targets(windows, intervals, labels, None, needed_us), np.int64)


def _needed_us(share: float, length_us: int) -> int:
    return max(1, round(share * length_us))
