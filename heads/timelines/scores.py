"""Scores of timelines against annotations, and agreement of two annotators: pure functions, exact in microseconds.

- Segment F1: a predicted event is right when it can be matched one to one to an annotated event of its label with at
  least the given intersection over union. Source: Lea et al., *Temporal Convolutional Networks for Action Segmentation
  and Detection*, CVPR 2017 (F1@{10, 25, 50}). There each prediction takes its best partner in the order of time; here
  the best pair of all goes first, so that the order does not matter and two annotators score alike either way round.
- Cohen's kappa of a label: agreement on whether it is on, beyond chance, over all compared time (Cohen 1960). Summed
  from exact durations, which is the limit of a fine time grid.
- Total duration and number of events of each side; onset and offset errors (predicted - annotated, seconds) of the
  events matched at the lowest IoU.

Events of one label that touch or overlap count as one. Only time inside `within` is compared: what was scored and
annotated. A border that `within` cuts is no border, and has no error. A label without an annotated event has no segment
F1: it is None and left out of the macro average, never counted as 0 or 1. Kappa is None where both sides are constant
and alike: nothing could have disagreed.

`scores_document` gives, JSON-ready (this is also what a report draws its table from):

    {"segment_f1": {"0.10": .., "0.25": .., "0.50": ..},          macro over the defined labels
     "segment_f1_ci95": {"0.10": [lo, hi], ...} or null (then with "segment_f1_ci95_reason"),
     "per_class": {label: {"segment_f1": {"0.10": .., ...}, "kappa": ..,
                           "events_annotated", "events_predicted", "events_matched",
                           "duration_annotated_s", "duration_predicted_s", "duration_error_s",
                           "onset_error_s": {"median": .., "mean_absolute": ..}, "offset_error_s": {...}}},
     "undefined": [labels without an annotated event], "n_recordings", "n_sessions", "compared_s"}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featurecache.annotations import Interval
from featurecache.clips.clip import covered_us, union_of
from featurecache.errors import TimelineError
from heads.scoring.intervals import MIN_SESSIONS, macro_f1_interval
from heads.scoring.metrics import f1_scores, macro_over_labels
from heads.timelines.timeline import Spans

IOUS = (0.1, 0.25, 0.5)
"""Least intersection over union of a match, in ascending order."""

SpanRows = Spans | npt.NDArray[np.int64]

_FOREVER_US = 2**62


@dataclass(frozen=True, eq=False)
class Comparison:
    """What one recording adds to the scores.

    Attributes:
        counts: Matched, predicted only and annotated only events: (IoUs, 3, C).
        agreement_us: Time with the label on both sides, predicted only, annotated only, neither: (4, C).
        onset_errors_us: For each label, those of matched events: predicted - annotated.
        offset_errors_us: The same for ends.
    """

    counts: npt.NDArray[np.int64]
    agreement_us: npt.NDArray[np.int64]
    onset_errors_us: tuple[tuple[int, ...], ...]
    offset_errors_us: tuple[tuple[int, ...], ...]


def compare_timelines(
    annotated: Sequence[Interval],
    predicted: Sequence[Interval],
    *,
    labels: Sequence[str],
    within: Sequence[tuple[int, int]],
) -> Comparison:
    """Compares two timelines of one recording.

    Args:
        annotated: The reference, intervals of any label in any order.
        predicted: What is scored.
        labels: The C labels to compare.
        within: Time that is compared, `[start_us, end_us)`.
    """
    scope = union_of(within)
    total = sum(end - start for start, end in scope)
    counts = np.zeros((len(IOUS), 3, len(labels)), np.int64)
    agreement = np.zeros((4, len(labels)), np.int64)
    onsets, offsets = [], []
    for at, label in enumerate(labels):
        ours, theirs = events(predicted, label, scope), events(annotated, label, scope)
        pairs = match_events(theirs, ours)
        counts[:, :, at] = event_counts(pairs, len(theirs), len(ours))
        both = int(covered_us(theirs, ours).sum())
        ours_us, theirs_us = (sum(end - start for start, end in side) for side in (ours, theirs))
        agreement[:, at] = both, ours_us - both, theirs_us - both, total - ours_us - theirs_us + both
        onsets.append(_border_errors(theirs, ours, pairs, 0, {start for start, _ in scope}))
        offsets.append(_border_errors(theirs, ours, pairs, 1, {end for _, end in scope}))
    return Comparison(counts, agreement, tuple(onsets), tuple(offsets))


def events(intervals: Sequence[Interval], label: str, scope: Spans) -> Spans:
    """A label's events inside the scope: disjoint spans in order, those that touch joined."""
    own = union_of([(one.start_us, one.end_us) for one in intervals if one.label == label])
    return intersection(own, scope)


def intersection(one: Spans, other: Spans) -> Spans:
    """The time that lies in both; each is disjoint and in order."""
    shared: Spans = []
    a = b = 0
    while a < len(one) and b < len(other):
        start, end = max(one[a][0], other[b][0]), min(one[a][1], other[b][1])
        if start < end:
            shared.append((start, end))
        if one[a][1] < other[b][1]:
            a += 1
        else:
            b += 1
    return shared


def match_events(annotated: SpanRows, predicted: SpanRows) -> list[tuple[int, int, float]]:
    """Pairs of events one to one, of the highest intersection over union first, down to the lowest of IOUS.

    Args:
        annotated: Disjoint spans in order, as a list or of shape (n, 2).
        predicted: The same.

    Returns:
        (position in annotated, position in predicted, IoU); those of at least x are the matching at x.
    """
    if not len(annotated) or not len(predicted):
        return []
    theirs, ours = np.asarray(annotated, np.int64), np.asarray(predicted, np.int64)
    i, j = overlapping(theirs, ours)
    shared = np.minimum(theirs[i, 1], ours[j, 1]) - np.maximum(theirs[i, 0], ours[j, 0])
    iou = shared / (np.diff(theirs)[i, 0] + np.diff(ours)[j, 0] - shared)
    near = np.flatnonzero(iou >= IOUS[0])
    near = near[np.argsort(-iou[near], kind="stable")]
    pairs: list[tuple[int, int, float]] = []
    taken_theirs: set[int] = set()
    taken_ours: set[int] = set()
    for pair in zip(i[near].tolist(), j[near].tolist(), iou[near].tolist(), strict=True):
        if pair[0] not in taken_theirs and pair[1] not in taken_ours:
            taken_theirs.add(pair[0])
            taken_ours.add(pair[1])
            pairs.append(pair)
    return pairs


def overlapping(
    one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of all pairs that share time, in order; each is disjoint spans in order, shape (n, 2)."""
    first = np.searchsorted(other[:, 1], one[:, 0], side="right")
    counts = np.maximum(np.searchsorted(other[:, 0], one[:, 1], side="left") - first, 0)
    i = np.repeat(np.arange(len(one)), counts)
    j = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return i, j


def event_counts(pairs: Sequence[tuple[int, int, float]], annotated: int, predicted: int) -> npt.NDArray[np.int64]:
    """Matched, predicted only and annotated only events at each of IOUS, from `match_events` of so many: (IoUs, 3)."""
    matched = (np.array([iou for *_, iou in pairs]) >= np.array(IOUS)[:, None]).sum(axis=1)
    return np.stack([matched, predicted - matched, annotated - matched], axis=1)


def _border_errors(
    annotated: Spans, predicted: Spans, pairs: Sequence[tuple[int, int, float]], side: int, cut: set[int]
) -> tuple[int, ...]:
    return tuple(
        predicted[j][side] - annotated[i][side]
        for i, j, _ in pairs
        if annotated[i][side] not in cut and predicted[j][side] not in cut
    )


@dataclass(frozen=True)
class Disagreement:
    """`[start_us, end_us)` during which one side has the label and the other has not."""

    start_us: int
    end_us: int
    label: str
    kind: Literal["missed", "extra"]


def disagreements(
    annotated: Sequence[Interval],
    predicted: Sequence[Interval],
    *,
    labels: Sequence[str],
    within: Sequence[tuple[int, int]],
) -> list[Disagreement]:
    """Where two timelines differ, the longest first.

    Args:
        annotated: The reference; what only it has is `missed`.
        predicted: What is scored; what only it has is `extra`.
        labels: The labels to compare.
        within: Time that is compared.
    """
    scope = union_of(within)
    found = []
    for label in labels:
        theirs, ours = events(annotated, label, scope), events(predicted, label, scope)
        found += [Disagreement(start, end, label, "missed") for start, end in _without(theirs, ours)]
        found += [Disagreement(start, end, label, "extra") for start, end in _without(ours, theirs)]
    return sorted(found, key=lambda one: (one.start_us - one.end_us, one.start_us, one.label))


def _without(one: Spans, other: Spans) -> Spans:
    """The time that lies in `one` alone; each is disjoint and in order."""
    edges = [-_FOREVER_US, *(border for span in other for border in span), _FOREVER_US]
    return intersection(one, list(zip(edges[::2], edges[1::2], strict=True)))


def kappas(agreement_us: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """Cohen's kappa from `Comparison.agreement_us`: (4, C) -> (C,), NaN where both sides are constant and alike."""
    both, ours, theirs, neither = agreement_us.astype(np.float64)
    total = np.where((total := both + ours + theirs + neither) > 0, total, np.nan)
    observed = (both + neither) / total
    on_ours, on_theirs = (both + ours) / total, (both + theirs) / total
    expected = on_ours * on_theirs + (1 - on_ours) * (1 - on_theirs)
    return np.asarray((observed - expected) / np.where(expected < 1, 1 - expected, np.nan))


def mean_segment_f1(counts: npt.NDArray[np.int64]) -> float:
    """Segment F1, averaged over IOUS and the labels with an annotated event, of counts (IoUs, 3, C); NaN if none."""
    f1 = f1_scores(counts)  # (IoUs, C)
    return float(f1[~np.isnan(f1)].mean()) if not np.isnan(f1).all() else float("nan")


def scores_document(
    comparisons: Sequence[Comparison], sessions: Sequence[str], *, labels: Sequence[str]
) -> dict[str, Any]:
    """Scores of all recordings together; the shape stands in the module's docstring.

    Args:
        comparisons: One of each recording.
        sessions: The session of each, the unit of the confidence interval.
        labels: Names of the C labels.

    Raises:
        TimelineError: If there is nothing to compare.
    """
    if not comparisons or len(comparisons) != len(sessions):
        raise TimelineError(
            f"timeline scores need recordings, each with its session, but there are {len(comparisons)} comparisons and "
            f"{len(sessions)} sessions. Compare at least one recording."
        )
    counts = np.stack([one.counts for one in comparisons])  # (R, IoUs, 3, C)
    agreement = np.sum([one.agreement_us for one in comparisons], axis=0)  # (4, C)
    f1, kappa = f1_scores(counts.sum(axis=0)), kappas(agreement)  # (IoUs, C), (C,)
    per_class: dict[str, Any] = {}
    for at, label in enumerate(labels):
        matched, ours, theirs = (int(count) for count in counts.sum(axis=0)[0, :, at])
        on_both, on_ours, on_theirs, _ = (int(time_us) for time_us in agreement[:, at])
        per_class[label] = {
            "segment_f1": _by_iou(f1[:, at]),
            "kappa": _defined(kappa[at]),
            "events_annotated": matched + theirs,
            "events_predicted": matched + ours,
            "events_matched": matched,
            "duration_annotated_s": (on_both + on_theirs) / 1e6,
            "duration_predicted_s": (on_both + on_ours) / 1e6,
            "duration_error_s": (on_ours - on_theirs) / 1e6,
            "onset_error_s": _errors([error for one in comparisons for error in one.onset_errors_us[at]]),
            "offset_error_s": _errors([error for one in comparisons for error in one.offset_errors_us[at]]),
        }
    interval, reason = _intervals(counts, sessions)
    return {
        "segment_f1": _by_iou(macro_over_labels(f1)),
        "segment_f1_ci95": interval,
        **({"segment_f1_ci95_reason": reason} if interval is None else {}),
        "per_class": per_class,
        "undefined": [label for label in labels if per_class[label]["events_annotated"] == 0],
        "n_recordings": len(comparisons),
        "n_sessions": len(set(sessions)),
        "compared_s": int(agreement[:, 0].sum()) / 1e6 if labels else 0.0,
    }


def _intervals(counts: npt.NDArray[np.int64], sessions: Sequence[str]) -> tuple[dict[str, list[float]] | None, str]:
    """95% intervals of macro segment F1 over sessions (`macro_f1_interval`); or None and the reason."""
    names, of_recording = np.unique(np.array(sessions), return_inverse=True)
    by_session = np.zeros((len(names), *counts.shape[1:]), np.int64)  # (M, IoUs, 3, C)
    np.add.at(by_session, of_recording, counts)
    found = macro_f1_interval(np.moveaxis(by_session, 0, 1))  # (IoUs, 2)
    if np.isnan(found).any():
        reason = f"an interval needs at least {MIN_SESSIONS} sessions, but there are {len(names)}"
        return None, reason if len(names) < MIN_SESSIONS else "no label has an annotated event"
    return {_name(iou): ends for iou, ends in zip(IOUS, found.tolist(), strict=True)}, ""


def _errors(errors_us: Sequence[int]) -> dict[str, float | None]:
    if not errors_us:
        return {"median": None, "mean_absolute": None}
    return {"median": float(np.median(errors_us)) / 1e6, "mean_absolute": float(np.abs(errors_us).mean()) / 1e6}


def _by_iou(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    return {_name(iou): _defined(value) for iou, value in zip(IOUS, values, strict=True)}


def _name(iou: float) -> str:
    return f"{iou:.2f}"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
