"""Which recordings deserve a person's time first: those that differ from their annotation, and those in doubt.

*Disagreement* is the share of compared time in which annotation and prediction differ in at least one label. *Doubt* is
the mean over clips of how near the least certain label's score is to its threshold, in log-odds: 1 on the threshold,
0 far from it. Both read the document of a timeline (`heads.timelines.files`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.annotations import Interval
from featurecache.clips.clip import covered_us, union_of
from heads.scoring.exclusive import log_odds
from heads.timelines.scores import Disagreement, disagreements, intersection
from heads.timelines.timeline import Spans

Document = Mapping[str, Any]

_CLIPS_OF_A_STRETCH = 10


def differing(timeline: Document) -> list[dict[str, Any]]:
    """Stretches in which only one of annotation and prediction has a label; none where nobody annotated."""
    return [asdict(one) for one in _disagreements(timeline)]


def disagreement(timeline: Document) -> float | None:
    """Share of the compared time that differs; None where nothing can be compared."""
    total = _length(_compared(timeline))
    if timeline["annotated"] is None or not total:
        return None
    return _length(union_of([(one.start_us, one.end_us) for one in _disagreements(timeline)])) / total


def doubt(timeline: Document) -> float:
    """Mean over clips of the least certain label's nearness to its threshold, from 0 to 1; 0 without a clip."""
    nearness = clip_doubt(timeline)
    return float(nearness.mean()) if len(nearness) else 0.0


def clip_doubt(timeline: Document) -> npt.NDArray[np.float64]:
    """Doubt of each clip, shape (N,)."""
    scores = np.array([timeline["clips"]["scores"][label] for label in timeline["labels"]], np.float64)  # (C, N)
    thresholds = np.array([timeline["thresholds"][label] for label in timeline["labels"]], np.float64)
    margins = log_odds(scores) - log_odds(thresholds)[:, None]
    nearness: npt.NDArray[np.float64] = (1 - np.abs(np.tanh(margins / 2))).max(axis=0)
    return nearness


def blind_candidates(timeline: Document, reviewed_us: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of ten clips that nobody annotated or reviewed blind: a random one of them favours no activity.

    Args:
        timeline: The document of a timeline.
        reviewed_us: What was reviewed blind.
    """
    length, duration = _CLIPS_OF_A_STRETCH * timeline["clips"]["length_us"], timeline["recording"]["duration_us"]
    every = [(start, min(start + length, duration)) for start in range(0, duration, length)]
    taken = [*((start, end) for start, end in timeline["annotated_us"] or ()), *reviewed_us]
    return [span for span, us in zip(every, covered_us(every, taken).tolist(), strict=True) if not us]


def _disagreements(timeline: Document) -> list[Disagreement]:
    if timeline["annotated"] is None:
        return []
    sides = [
        [Interval(start, end, label) for label, own in timeline[side].items() for start, end, *_ in own]
        for side in ("annotated", "predicted")
    ]
    return disagreements(*sides, labels=timeline["labels"], within=_compared(timeline))


def _compared(timeline: Document) -> Spans:
    scored, annotated = (
        union_of([(start, end) for start, end in timeline[key] or ()]) for key in ("scored_us", "annotated_us")
    )
    return intersection(scored, annotated)


def _length(spans: Spans) -> int:
    return sum(end - start for start, end in spans)
