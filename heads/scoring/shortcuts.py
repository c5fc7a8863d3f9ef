"""Which clusters of tokens a head tells a label by in training sessions, and not in validation sessions.

A shortcut, or spurious cue, is found by where it fails, as in RaVL (Varma et al. 2024, https://arxiv.org/abs/2411.04097):
clips with the label but without the cluster are missed, clips with the cluster but without the label are false
positives. Both shrink what the cluster does for the label, here exact, since a linear head's log odds are a sum over
tokens. The definition:

- A cluster's *separation* of a label in a session is what its tokens add to the log odds of the session's clips with
  the label, on average, less what they add to the others. A session's own look cancels.
- Its *gap* is the mean separation over training sessions less that over validation sessions.
- The null hypothesis: sessions are exchangeable between the two splits. They are exchanged whole, so clips of a session
  may depend on each other, and a thing that looks like the label in all sessions, a tube that lies there, is no
  shortcut. The hypothesis says nothing of splits that differ by design; splits are searched so that counts balance,
  not drawn at random, and the test takes sessions as if they were.
- What tokens add is to be by heads that never saw the session: a head separates even noise in sessions that it was
  fitted on, better where they have more clips, so pure noise would have a gap where training sessions have more.
- Test: sessions are permuted between the splits (all ways, where they are few). A cluster's p value is the share of
  permutations in which the largest gap of *any* cluster reaches its own (Westfall and Young's maxT), so it is right for
  each cluster of the label however many there are.
- Labels are families: Benjamini and Hochberg over each label's smallest p value selects R of C labels, and a cluster of
  one of these is listed where its p value is at most R / C times the rate (Benjamini and Bogomolov 2014). Labels that
  cannot reach the rate with so few sessions are not tested.

What this is not: a test of cues that training and validation share. Sessions of another hospital or camera in
validation show what they lack, where they have as many clips with the label.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control, permutation_test

PERMUTATIONS = 9999
LEAST_SESSIONS = 2
"""Sessions of each split that tell a label, below which it is not tested."""
_ROUNDING = 1e-6
"""Part of a gap by which equal gaps may differ, since sums are taken in another order."""


@dataclass(frozen=True, eq=False)
class LabelGaps:
    """What clusters do for one label in the two splits.

    Attributes:
        train_sessions: Training sessions with clips that have the label and clips that have not.
        validation_sessions: Validation sessions of that kind.
        training: Mean separation over these training sessions, shape (K,), in log odds; NaN without any.
        validation: The same over validation sessions, shape (K,).
        p: Probability under the null that the largest gap of any cluster is as large, shape (K,); 1 where not tested.
    """

    train_sessions: int
    validation_sessions: int
    training: npt.NDArray[np.float64]
    validation: npt.NDArray[np.float64]
    p: npt.NDArray[np.float64]

    @property
    def gap(self) -> npt.NDArray[np.float64]:
        """By how much a cluster separates training sessions better, shape (K,)."""
        return self.training - self.validation

    @property
    def least_p(self) -> float:
        """The smallest p value that so few sessions can give."""
        count = math.comb(self.train_sessions + self.validation_sessions, self.validation_sessions)
        return (
            1.0
            if min(self.train_sessions, self.validation_sessions) < LEAST_SESSIONS
            else 1 / min(count, PERMUTATIONS + 1)
        )

    def why_untested(self, rate: float) -> str | None:
        """Why the label is not tested at a false-discovery rate, as the rest of a sentence; None where it is."""
        if self.least_p > rate:
            return (
                f"too few sessions have clips with it and without it, {self.train_sessions} in training and "
                f"{self.validation_sessions} in validation; no p value could be below {self.least_p:.2g}."
            )
        if np.isnan(self.gap).any():
            return "all clips with it, or without it, are in sessions that one fold holds out. Annotate more sessions."
        return None


def label_gaps(
    parts: npt.NDArray[np.floating],
    y: npt.NDArray[np.integer],
    sessions: npt.NDArray[np.str_],
    is_validation: npt.NDArray[np.bool_],
    *,
    seed: int = 0,
) -> LabelGaps:
    """The gaps of K clusters for one label, and how likely the null makes them.

    Args:
        parts: What each cluster's tokens add to the label's log odds in each clip by heads that never saw its session,
            shape (N, K); NaN for a label that cannot be learned without some of them.
        y: Whether the label is on, shape (N,), 0 or 1.
        sessions: The session of each clip, shape (N,).
        is_validation: Whether the clip is of the validation split, shape (N,); the same for all clips of a session.
        seed: Of permutations, where there are too many to take all.
    """
    separations: dict[bool, list[npt.NDArray[np.float64]]] = {False: [], True: []}
    for session in np.unique(sessions):
        own = sessions == session
        on, off = own & (y == 1), own & (y == 0)
        if on.any() and off.any():
            separation = parts[on].mean(axis=0, dtype=np.float64) - parts[off].mean(axis=0, dtype=np.float64)
            separations[bool(is_validation[own][0])].append(separation)
    nothing = np.full((0, parts.shape[1]), np.nan)
    train, validation = (np.array(separations[split]) if separations[split] else nothing for split in (False, True))
    if min(len(train), len(validation)) < LEAST_SESSIONS or np.isnan(parts).any():
        unknown = np.full(parts.shape[1], np.nan)
        training, validated = (one.mean(axis=0) if len(one) else unknown for one in (train, validation))
        return LabelGaps(len(train), len(validation), training, validated, np.ones(parts.shape[1]))
    tested = permutation_test(
        (train, validation),
        lambda one, other, axis: one.mean(axis=axis) - other.mean(axis=axis),
        vectorized=True,
        n_resamples=PERMUTATIONS,
        alternative="greater",
        axis=0,
        rng=np.random.default_rng(seed),
    )
    largest = tested.null_distribution.max(axis=1)  # (permutations,)
    reached = (largest[:, None] >= tested.statistic - _ROUNDING * np.abs(tested.statistic)).sum(axis=0)
    is_exact = math.comb(len(train) + len(validation), len(train)) <= PERMUTATIONS
    p = reached / len(largest) if is_exact else (reached + 1) / (len(largest) + 1)
    return LabelGaps(len(train), len(validation), train.mean(axis=0), validation.mean(axis=0), p)


def listed(labels: list[LabelGaps], rate: float) -> npt.NDArray[np.bool_]:
    """Which clusters are shortcuts of which labels at a false-discovery rate.

    Args:
        labels: The gaps of each of C labels.
        rate: The expected share of wrong ones among listed, averaged over the labels that have any.

    Returns:
        Shape (C, K).
    """
    p = np.array([one.p for one in labels])
    is_tested = np.array([one.why_untested(rate) is None for one in labels])
    found = np.zeros(p.shape, bool)
    if is_tested.any():
        selected = false_discovery_control(p[is_tested].min(axis=1)) <= rate
        found[is_tested] = (p[is_tested] <= rate * selected.sum() / is_tested.sum()) & selected[:, None]
    return np.asarray(found & [one.gap > 0 for one in labels], bool)


def needed_together(labels: list[LabelGaps], rate: float) -> list[int | None]:
    """How many labels must be selected together, at least, before each can be; None where it is not tested.

    Of m tested labels one alone is selected at a p value of rate / m, which few sessions may not give.
    """
    is_tested = [one.why_untested(rate) is None for one in labels]
    return [
        max(1, math.ceil(one.least_p * sum(is_tested) / rate * (1 - _ROUNDING))) if tested else None
        for one, tested in zip(labels, is_tested, strict=True)
    ]
