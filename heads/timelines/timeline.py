"""Clip scores to timelines: when each label is on, in pure numpy.

A clip's target is on when the label covers at least half of the clip, so it flips as a border passes the clip's
centre. That is why a score stands for its clip's centre here, and why a border lies where the scores cross the
threshold, interpolated between two centres:

    score   .1    .2    .8    .9    .9    .3        threshold .5
    centre  1.5   3.0   4.5   6.0   7.5   9.0 s     on from 3.75 s to 8.5 s

1. Clips that touch or overlap make a run. Between runs nothing was scored, so nothing is predicted there, and no
   gap across it is closed. At the ends of a run the first and the last score hold to the end of their clips.
2. Smoothing: each score becomes the mean or the median of those whose centres lie within a window about it. A mean
   over one clip length is the average of the clips that cover the instant.
3. Hysteresis: a label is on where it exceeds `(1 - hysteresis) * threshold`, if it reaches the threshold somewhere in
   that stretch. 0 is a plain threshold, which is the bundle's.
4. Gaps up to `max_gap_us` are closed, then what is shorter than `min_duration_us` is dropped.
5. Labels that exclude each other: where two are on, the one further above its threshold (in log-odds) stays, and
   what gets too short by that is dropped.

Scores as trained decide, since thresholds were tuned on them. An interval's confidence is for its reader: the mean of
its smoothed calibrated probability where there is one, else of its smoothed score. It may lie below the threshold (of a
rare label, whose scores training lifts), and is no probability that the interval is right.
Settings are tuned in `tuning`, on validation recordings. This is not a model of durations or of order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from featurecache.annotations import Interval
from featurecache.clips.clip import union_of
from featurecache.errors import TimelineError

Smoothing = Literal["none", "mean", "median"]
Spans = list[tuple[int, int]]
"""Disjoint `[start_us, end_us)` in order."""

_LEAST_PROBABILITY = 1e-6


@dataclass(frozen=True)
class TimelineSettings:
    """How clip scores become intervals.

    Attributes:
        smoothing: What a score is replaced by, over a window about its centre.
        smoothing_us: Width of that window.
        hysteresis: Share of the threshold that a score may fall below it before the label ends, from 0 to below 1.
        min_duration_us: Shorter intervals are dropped.
        max_gap_us: Gaps up to this are closed.
    """

    smoothing: Smoothing
    smoothing_us: int
    hysteresis: float
    min_duration_us: int
    max_gap_us: int

    def __post_init__(self) -> None:
        lowest = min(self.smoothing_us, self.min_duration_us, self.max_gap_us)
        if self.smoothing not in ("none", "mean", "median") or lowest < 0 or not 0 <= self.hysteresis < 1:
            raise TimelineError(
                "a timeline needs smoothing none, mean or median, times from 0 and hysteresis from 0 to below 1, "
                f"but found {self}. Correct them."
            )


@dataclass(frozen=True)
class PredictedInterval:
    """`[start_us, end_us)` during which `label` is predicted, with the mean of its smoothed probability."""

    start_us: int
    end_us: int
    label: str
    confidence: float

    @property
    def interval(self) -> Interval:
        """The same without its confidence."""
        return Interval(self.start_us, self.end_us, self.label)


@dataclass(frozen=True, eq=False)
class Run:
    """Scores of clips that touch or overlap.

    Attributes:
        start_us: Start of the first clip.
        end_us: End of the last one.
        centres_us: Centres of the clips, ascending, shape (N,), float64.
        scores: Shape (N, C), float64.
    """

    start_us: int
    end_us: int
    centres_us: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]


def default_settings(length_us: int) -> TimelineSettings:
    """Settings for clips of this length where none were tuned.

    The average of the clips that cover an instant; an interval of half a clip is the shortest that a clip's target
    can show, so shorter ones are dropped and shorter gaps closed.
    """
    return TimelineSettings("mean", length_us, 0.0, length_us // 2, length_us // 2)


def predict_intervals(
    spans_us: npt.NDArray[np.int64],
    scores: npt.NDArray[np.floating],
    settings: TimelineSettings,
    *,
    labels: Sequence[str],
    thresholds: npt.NDArray[np.floating],
    exclusive: Sequence[Sequence[str]] = (),
    calibrated: npt.NDArray[np.floating] | None = None,
) -> list[PredictedInterval]:
    """The timeline of one recording.

    Args:
        spans_us: The scored clips, `[start_us, end_us)`, shape (N, 2), any order.
        scores: Their scores as trained, which decide, shape (N, C).
        settings: How intervals are made of scores.
        labels: Names of the C labels.
        thresholds: Shape (C,).
        exclusive: Groups of labels of which one at most may be on at a time.
        calibrated: Calibrated probabilities, for the confidence alone, shape (N, C); None: the scores.

    Returns:
        Intervals by start; those of one label do not overlap.

    Raises:
        TimelineError: If shapes do not fit, two clips share a centre, or a rule names an unknown label.
    """
    groups = exclusive_groups(exclusive, labels)
    margins_at = np.log(_odds(thresholds))  # (C,)
    found: list[PredictedInterval] = []
    smoothing, shortest = (settings.smoothing, settings.smoothing_us), settings.min_duration_us
    runs = smoothed_runs(spans_us, scores, *smoothing)
    of_readers = runs if calibrated is None else smoothed_runs(spans_us, calibrated, *smoothing)
    for run, of_reader in zip(runs, of_readers, strict=True):
        on = [on_spans(run, label, thresholds[label], settings.hysteresis) for label in range(len(labels))]
        by_label = [drop_short(close_gaps(spans, settings.max_gap_us), shortest) for spans in on]
        for group in groups:
            margins = np.log(_odds(run.scores)) - margins_at
            kept = _exclude(run.centres_us, margins, group, by_label)
            for label in group:
                by_label[label] = drop_short(kept[label], shortest)
        for label, own in enumerate(by_label):
            track = of_reader.scores[:, label]
            found += [
                PredictedInterval(start, end, labels[label], _mean_between(run.centres_us, track, start, end))
                for start, end in own
            ]
    return sorted(found, key=lambda one: (one.start_us, one.end_us, one.label))


def smoothed_runs(
    spans_us: npt.NDArray[np.int64], scores: npt.NDArray[np.floating], smoothing: Smoothing, smoothing_us: int
) -> list[Run]:
    """The runs of a recording's clips, their scores smoothed within each run.

    Args:
        spans_us: Shape (N, 2), any order.
        scores: Shape (N, C).
        smoothing: What replaces a score.
        smoothing_us: Width of the window; centres on its edges are inside, so that it favours no side.

    Raises:
        TimelineError: If shapes do not fit, or two clips share a centre.
    """
    if spans_us.ndim != 2 or spans_us.shape[1:] != (2,) or scores.ndim != 2 or len(spans_us) != len(scores):
        raise TimelineError(
            f"a timeline needs spans (N, 2) and scores (N, C), but their shapes are {spans_us.shape} and "
            f"{scores.shape}. Give each clip one row of both."
        )
    twice_centre = spans_us.sum(axis=1)
    order = np.argsort(twice_centre, kind="stable")
    spans, ordered = spans_us[order], scores[order].astype(np.float64)
    same = np.flatnonzero(np.diff(twice_centre[order]) == 0)
    if len(same):
        raise TimelineError(
            f"clips of a timeline must have centres of their own, but {spans[same[0]].tolist()} and "
            f"{spans[same[0] + 1].tolist()} share one. Give each clip once."
        )
    if not len(spans):
        return []
    reach = np.maximum.accumulate(spans[:, 1])
    breaks = np.flatnonzero(spans[1:, 0] > reach[:-1]) + 1
    edges = [0, *breaks.tolist(), len(spans)]
    return [
        Run(
            int(spans[first:end, 0].min()),
            int(reach[end - 1]),
            spans[first:end].mean(axis=1),
            _smooth(spans[first:end].mean(axis=1), ordered[first:end], smoothing, smoothing_us),
        )
        for first, end in pairwise(edges)
    ]


def _smooth(
    centres_us: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], smoothing: Smoothing, window_us: int
) -> npt.NDArray[np.float64]:
    """Mean or median of the scores within the window about each centre: (N,), (N, C) -> (N, C)."""
    if smoothing == "none":
        return scores
    first = np.searchsorted(centres_us, centres_us - window_us / 2, side="left")
    counts = np.searchsorted(centres_us, centres_us + window_us / 2, side="right") - first
    smoothed = np.empty_like(scores)
    for count in np.unique(counts):  # few: all windows of a regular run but those at its ends are equal
        here = np.flatnonzero(counts == count)
        windows = scores[first[here][:, None] + np.arange(count)]  # (here, count, C)
        smoothed[here] = windows.mean(axis=1) if smoothing == "mean" else np.median(windows, axis=1)
    return smoothed


def on_spans(run: Run, label: int, threshold: float, hysteresis: float) -> Spans:
    """Where a label of a run is on, its borders interpolated."""
    track, centres = run.scores[:, label], run.centres_us
    low = (1 - hysteresis) * threshold
    is_on = np.concatenate([[False], track >= low, [False]])
    firsts, ends = np.flatnonzero(is_on[1:] & ~is_on[:-1]), np.flatnonzero(~is_on[1:] & is_on[:-1])
    if not len(firsts):
        return []
    reaches = np.maximum.reduceat(track, firsts) >= threshold  # what lies behind an end is below `low`
    firsts, ends = firsts[reaches], ends[reaches]
    starts_us = np.where(firsts == 0, run.start_us, _crossing(centres, track, np.maximum(firsts - 1, 0), low))
    ends_us = np.where(ends == len(track), run.end_us, _crossing(centres, track, ends - 1, low))
    return [(start, end) for start, end in zip(starts_us.tolist(), ends_us.tolist(), strict=True) if start < end]


def _crossing(
    centres: npt.NDArray[np.float64], track: npt.NDArray[np.float64], left: npt.NDArray[np.int64], level: float
) -> npt.NDArray[np.int64]:
    """Where the lines from scores `left` to the next ones pass a level, in whole microseconds; any place at the end."""
    right = np.minimum(left + 1, len(track) - 1)
    rise = track[right] - track[left]
    share = (level - track[left]) / np.where(rise == 0, 1, rise)
    return np.rint(centres[left] + share * (centres[right] - centres[left])).astype(np.int64)


def close_gaps(spans: Spans, max_gap_us: int) -> Spans:
    """Spans with the gaps of up to `max_gap_us` between them filled."""
    closed: Spans = []
    for start, end in spans:
        if closed and start - closed[-1][1] <= max_gap_us:
            closed[-1] = (closed[-1][0], end)
        else:
            closed.append((start, end))
    return closed


def drop_short(spans: Spans, min_duration_us: int) -> Spans:
    """Spans that last at least `min_duration_us`."""
    return [span for span in spans if span[1] - span[0] >= min_duration_us]


def exclusive_groups(exclusive: Sequence[Sequence[str]], labels: Sequence[str]) -> list[list[int]]:
    """Rules of names as positions in `labels`.

    Raises:
        TimelineError: If a rule names an unknown label, one label twice, or fewer than two.
    """
    for group in exclusive:
        unknown = [name for name in group if name not in labels]
        if unknown or len(set(group)) < max(2, len(group)):
            found = f"{unknown[0]!r} is none of {', '.join(labels)}" if unknown else f"one has {list(group)}"
            raise TimelineError(
                "a rule of labels that exclude each other must name two or more different labels, but "
                f"{found}. Correct exclusive under [timeline]."
            )
    return [[list(labels).index(name) for name in group] for group in exclusive]


def _exclude(
    centres: npt.NDArray[np.float64], margins: npt.NDArray[np.float64], group: Sequence[int], by_label: Sequence[Spans]
) -> dict[int, Spans]:
    """The group's spans with every overlap given to the label of the larger margin."""
    borders = {border for label in group for span in by_label[label] for border in span}
    for one, other in combinations(group, 2):
        lead = margins[:, one] - margins[:, other]
        borders.update(_crossing(centres, lead, np.flatnonzero(lead[:-1] * lead[1:] < 0), 0.0).tolist())
    kept: dict[int, Spans] = {label: [] for label in group}
    for start, end in pairwise(sorted(borders)):
        on = [label for label in group if any(a <= start and end <= b for a, b in by_label[label])]
        if on:
            middle = (start + end) / 2
            kept[max(on, key=lambda label: np.interp(middle, centres, margins[:, label]))].append((start, end))
    return {label: union_of(spans) for label, spans in kept.items()}


def _mean_between(centres: npt.NDArray[np.float64], track: npt.NDArray[np.float64], start: int, end: int) -> float:
    """Mean of the interpolated track over `[start, end)`."""
    inside = centres[(centres > start) & (centres < end)]
    times = np.concatenate([[start], inside, [end]])
    values = np.interp(times, centres, track)
    return float((np.diff(times) * (values[1:] + values[:-1])).sum() / (2 * (end - start)))


def _odds(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    bounded = np.clip(probabilities.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    odds: npt.NDArray[np.float64] = bounded / (1 - bounded)
    return odds
