"""What a clinician asks of a timeline: how long each activity was on, how often it began, and when first.

A bout is one stretch with the label, those that touch joined; a bout that the compared time cuts counts as one. Two
readings of the same sessions (annotated and predicted) are compared as two instruments are: their mean difference and
the limits between which 95% of differences lie. Source: Bland and Altman 1986,
https://doi.org/10.1016/S0140-6736(86)90837-8. The session is the unit, since recordings of one session are no
independent measurements. What this is not: scores of single bouts (`scores.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # scipy.special loads on first use: a fifth of a second

from featurecache.clips.clip import union_of
from heads.timelines.scores import intersection
from heads.timelines.timeline import Spans

MIN_COMPARED = 3
"""Fewer sessions than this give no limits of agreement: nothing tells how their differences vary."""


@dataclass(frozen=True)
class Activity:
    """One label in one recording, or in the recordings of a session together.

    Attributes:
        seconds: Time with the label.
        bouts: Number of stretches with it.
        first_s: Start of the first one, from the start of the recording; None without one, or of several recordings.
        between_starts_s: Times from each start to the next, in order; those of several recordings one after another.
    """

    seconds: float
    bouts: int
    first_s: float | None
    between_starts_s: tuple[float, ...]

    @property
    def median_between_starts_s(self) -> float | None:
        """The median of them; None with fewer than two bouts."""
        return float(np.median(self.between_starts_s)) if self.between_starts_s else None


def activity_of(spans: Sequence[tuple[int, int]], within: Spans) -> Activity:
    """The activity of a label in a recording.

    Args:
        spans: `[start_us, end_us)` with the label, in any order.
        within: Time that counts: disjoint and in order.
    """
    own = intersection(union_of(spans), within)
    starts = [start / 1e6 for start, _ in own]
    return Activity(
        seconds=sum(end - start for start, end in own) / 1e6,
        bouts=len(own),
        first_s=starts[0] if starts else None,
        between_starts_s=tuple(np.diff(starts).tolist()),
    )


def together(parts: Sequence[Activity]) -> Activity:
    """The activity of several recordings; a single one stays as it is, several have no common first start."""
    if len(parts) == 1:
        return parts[0]
    return Activity(
        seconds=sum(one.seconds for one in parts),
        bouts=sum(one.bouts for one in parts),
        first_s=None,
        between_starts_s=tuple(time for one in parts for time in one.between_starts_s),
    )


@dataclass(frozen=True)
class LimitsOfAgreement:
    """How two readings of the same sessions differ: predicted minus annotated.

    Attributes:
        mean: Mean difference.
        mean_ci95: Its 95% confidence interval (Student's t).
        limits: Mean difference minus and plus 1.96 standard deviations: where 95% of differences lie.
        limit_error: Half the width of each limit's own 95% confidence interval: t sqrt(3 / n) standard deviations.
        sessions: Number of sessions.
    """

    mean: float
    mean_ci95: tuple[float, float]
    limits: tuple[float, float]
    limit_error: float
    sessions: int


def limits_of_agreement(annotated: Sequence[float], predicted: Sequence[float]) -> LimitsOfAgreement | None:
    """The limits of agreement of paired readings, one per session; None with fewer than three."""
    if len(annotated) < MIN_COMPARED:
        return None
    differences = np.asarray(predicted, float) - np.asarray(annotated, float)
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    error = float(scipy.special.stdtrit(len(differences) - 1, 0.975)) * deviation / len(differences) ** 0.5
    return LimitsOfAgreement(
        mean,
        (mean - error, mean + error),
        (mean - 1.96 * deviation, mean + 1.96 * deviation),
        3**0.5 * error,
        len(differences),
    )
