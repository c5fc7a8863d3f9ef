"""Which of several zero-shot scores of the same clips to use: by sessions that are not the test's, never by their own.

Zero-shot scores learn nothing, but choosing a wording does. So the choice is made in each session fold's absence,
thresholds and calibration are set on the scores that these choices give (out-of-fold), and the choice that is kept is
made on all of these sessions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heads.folds import session_folds
from heads.scoring.metrics import confusion_counts, f1_scores, macro_over_labels
from heads.scoring.thresholds import tuned_thresholds

Scores = npt.NDArray[np.float64]
Targets = npt.NDArray[np.integer]

_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Choice:
    """The scores that are used.

    Attributes:
        of_label: Which of the K candidates each label takes, shape (C,).
        f1: F1 of each candidate at its own tuned thresholds on these sessions, shape (K, C); NaN without a positive.
        out_of_fold: Scores by choices that did not see the clip's session, shape (N, C).
    """

    of_label: npt.NDArray[np.int64]
    f1: Scores
    out_of_fold: Scores


def choose(Y: Targets, candidates: Scores, sessions: npt.NDArray[np.str_], *, jointly: bool) -> Choice:
    """Chooses among K candidate scores by F1 at tuned thresholds.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        candidates: Scores in [0, 1], shape (K, N, C); NaN throughout a label where a candidate does not score it.
        sessions: The session of each clip, shape (N,).
        jointly: One candidate for all labels, by macro-F1; otherwise each label takes its own.
    """
    count = min(_FOLDS, len(np.unique(sessions)))
    fold_of = session_folds(Y, sessions, count=count) if count > 1 else np.zeros(len(Y), np.int64)
    out_of_fold = np.empty(Y.shape)
    for fold in range(int(fold_of.max()) + 1):
        held_out = fold_of == fold
        seen = ~held_out if count > 1 else held_out
        chosen = _best(_f1(Y[seen], candidates[:, seen], sessions[seen]), jointly=jointly)
        out_of_fold[held_out] = taken(candidates[:, held_out], chosen)
    f1 = _f1(Y, candidates, sessions)
    return Choice(_best(f1, jointly=jointly), f1, out_of_fold)


def taken(candidates: Scores, of_label: npt.NDArray[np.int64]) -> Scores:
    """The chosen scores: candidates (K, N, C), choice (C,) -> (N, C)."""
    return np.asarray(np.take_along_axis(candidates, of_label[None, None], axis=0)[0])


def _f1(Y: Targets, candidates: Scores, sessions: npt.NDArray[np.str_]) -> Scores:
    """F1 of each candidate at thresholds tuned on these clips, (K, C)."""
    scored = ~np.isnan(candidates).any(axis=1)  # (K, C)
    thresholds = tuned_thresholds(Y, np.nan_to_num(candidates), sessions)
    f1 = np.stack([f1_scores(confusion_counts(Y, one >= own)) for one, own in zip(candidates, thresholds, strict=True)])
    return np.where(scored, f1, np.nan)


def _best(f1: Scores, *, jointly: bool) -> npt.NDArray[np.int64]:
    """The first candidate of highest F1, for each label or for all: (K, C) -> (C,)."""
    value = np.repeat(macro_over_labels(f1)[:, None], f1.shape[1], axis=1) if jointly else f1
    return np.asarray(np.where(np.isnan(value), -1.0, value).argmax(axis=0), np.int64)
