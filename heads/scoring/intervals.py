"""How sure a macro-F1 is, and a difference of two: intervals and p values by leaving out one session at a time.

Clips of a session are correlated, so the session is the unit. Each function reads confusion counts per session, shape
(..., M, 3, C): true positives, false positives, false negatives.

Notable choices:

- The delete-one-session jackknife with Student's t of M - 1 degrees of freedom. A bootstrap of 5 to 12 sessions is too
  narrow, and each of its resamples without a positive of a rare label averages over other labels, which is another
  estimand. Here the labels stay the same throughout: those with a positive clip in all sessions together.
- The interval of a macro-F1 is made on the logit scale, where it misses about as often on either side, of counts with
  some true positives, false positives and false negatives more in every label (two pseudo-sessions, as Agresti and
  Coull add successes and failures to a proportion): .4 of each, and 1.5 times the share of sessions without a positive
  clip of the label. So a perfect score of few clips has an interval with a width, and a label that one session alone
  has stays defined without it. The interval always holds the score itself.
- The p value of a difference and its interval are of one t statistic: p < .05 exactly where the interval excludes 0.

`python -m benchmarks.interval_coverage` measures how often the intervals hold the truth, and against which
alternatives they were chosen. Source of the jackknife: Efron and Stein 1981, https://doi.org/10.1214/aos/1176345462.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy  # scipy.special loads on first use: a fifth of a second

Counts = npt.NDArray[np.number]
Floats = npt.NDArray[np.float64]

MIN_SESSIONS = 5
"""Fewer sessions than this give no confidence interval: there is too little to tell their spread from."""

_PSEUDO_COUNT, _PSEUDO_COUNT_IF_ABSENT = 0.4, 1.5
"""Less of the second covers too little of a rare label, more of the first is too wide where sessions hardly differ."""


def macro_f1_interval(counts: Counts) -> Floats:
    """The 95% confidence interval of macro-F1.

    Args:
        counts: Confusion counts per session, shape (..., M, 3, C).

    Returns:
        Lower and upper end, shape (..., 2); NaN with fewer than five sessions or without a positive clip.
    """
    session_count = counts.shape[-3]
    total = counts.sum(axis=-3)
    defined = _has_positive(total)
    score = _macro(total, defined)
    if session_count < MIN_SESSIONS:
        return np.full((*score.shape, 2), np.nan)
    found = np.zeros((*counts.shape[:-3], 1, 3, counts.shape[-1]))
    wrong = found.copy()
    share_without = 1 - _has_positive(counts).mean(axis=-2, keepdims=True)  # (..., 1, C)
    pseudo_count = _PSEUDO_COUNT + _PSEUDO_COUNT_IF_ABSENT * share_without
    found[..., 0, :], wrong[..., 1:, :] = pseudo_count, pseudo_count[..., None, :]
    with_pseudo = np.concatenate([counts, found, wrong], axis=-3)
    total = with_pseudo.sum(axis=-3)
    centre = _macro(total, defined)  # inside (0, 1)
    without_each = _macro(total[..., None, :, :] - with_pseudo, defined[..., None, :])
    error = _jackknife_error(without_each, session_count) / (centre * (1 - centre))  # of the logit, by the delta method
    half_width = _t_quantile(session_count) * error
    logit = scipy.special.logit(centre)
    low, high = scipy.special.expit(logit - half_width), scipy.special.expit(logit + half_width)
    return np.stack([np.minimum(low, score), np.maximum(high, score)], axis=-1)


def f1_intervals(counts: Counts) -> Floats:
    """The 95% confidence interval of each label's F1: (M, 3, C) -> (C, 2), as `macro_f1_interval`."""
    return macro_f1_interval(np.moveaxis(counts, -1, 0)[..., None])


def macro_f1_difference(ours: Counts, theirs: Counts) -> tuple[Floats, Floats, Floats]:
    """The difference of two macro-F1 on the same clips, its 95% confidence interval and two-sided p value.

    Args:
        ours: Confusion counts of the first predictions per session, shape (..., M, 3, C).
        theirs: Those of the second on the same clips.

    Returns:
        The difference, ours minus theirs, shape (...); its interval, shape (..., 2); its p value, shape (...), 1 where
        no session differs. Interval and p value are NaN with fewer than five sessions; all three are NaN without a
        positive clip.
    """
    session_count = ours.shape[-3]
    totals = [one.sum(axis=-3) for one in (ours, theirs)]
    defined = _has_positive(totals[0])
    difference = _macro(totals[0], defined) - _macro(totals[1], defined)
    if session_count < MIN_SESSIONS:
        return difference, np.full((*difference.shape, 2), np.nan), np.full(difference.shape, np.nan)
    first, second = (
        _macro(total[..., None, :, :] - one, defined[..., None, :])
        for total, one in zip(totals, (ours, theirs), strict=True)
    )
    error = _jackknife_error(first - second, session_count)
    half_width = _t_quantile(session_count) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(difference == 0, 0, np.abs(difference) / error)
    p_value = 2 * scipy.special.stdtr(session_count - 1, -statistic)
    return difference, np.stack([difference - half_width, difference + half_width], axis=-1), np.asarray(p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several comparisons, adjusted so that an error in any of them stays as rare as its level says.

    Source: Holm 1979, https://www.jstor.org/stable/4615733. In the order given.
    """
    ascending = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(ascending):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def _has_positive(total: Counts) -> npt.NDArray[np.bool_]:
    """Which labels have a positive clip: (..., 3, C) -> (..., C)."""
    return np.asarray(total[..., 0, :] + total[..., 2, :] > 0)


def _macro(total: Counts, defined: npt.NDArray[np.bool_]) -> Floats:
    """Macro-F1 over the same labels whatever the counts: (..., 3, C) and (..., C) -> (...).

    A label of which no session is left that has it, or predicts it, counts as 0. NaN where no label is defined.
    """
    true_positives, false_positives, false_negatives = np.moveaxis(total.astype(np.float64), -2, 0)
    denominator = 2 * true_positives + false_positives + false_negatives
    f1 = 2 * true_positives / np.where(denominator > 0, denominator, 1)
    count = defined.sum(axis=-1)
    return np.asarray(np.where(defined, f1, 0).sum(axis=-1) / np.where(count > 0, count, np.nan))


def _jackknife_error(without_each: Floats, session_count: int) -> Floats:
    """Standard error from the values without one session each (or pseudo-session): (..., M) -> (...)."""
    spread = ((without_each - without_each.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    return np.asarray(np.sqrt((session_count - 1) / session_count * spread))


def _t_quantile(session_count: int) -> float:
    return float(scipy.special.stdtrit(session_count - 1, 0.975))
