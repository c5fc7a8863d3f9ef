"""Statistics over sessions: two sets of predictions compared, the spread over seeds and folds, and selection bias.

Notable choices: the session is the unit throughout, because clips of one session are correlated, and all three work on
confusion counts per session (`metrics.session_counts`). The score of the best trial has a selection bias, which is
estimated by choosing on resampled sessions and scoring on those left out (bootstrap bias-corrected cross-validation,
Tsamardinos et al. 2018, https://doi.org/10.1007/s10994-018-5714-4), with the counts of all resamples pooled, since F1
of few clips is biased.

What this is not: a training of anything; `permutation.py` and `cross_fitting.py` fit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heads.scoring.intervals import MIN_SESSIONS, macro_f1_difference
from heads.scoring.metrics import f1_scores, macro_over_labels

Counts = npt.NDArray[np.integer]

_AT_ONCE = 100  # resamples in memory at once


def paired_comparison(ours: Counts, theirs: Counts) -> dict[str, Any]:
    """Whether one set of predictions has a higher macro-F1 than another on the same clips (`macro_f1_difference`).

    Args:
        ours: Confusion counts of the first predictions per session, shape (M, 3, C).
        theirs: Confusion counts of the second predictions on the same clips, shape (M, 3, C).

    Returns:
        JSON-ready: `difference` (ours minus theirs), `difference_ci95`, `p_value`, `n_sessions`; with fewer than five
        sessions interval and p value are None, and `reason` says so; without a positive clip the difference is None
        too.

    Raises:
        ValueError: If the two are not of the same clips.
    """
    _check_paired(ours, theirs)
    difference, interval, p_value = macro_f1_difference(ours, theirs)
    is_known = not np.isnan(p_value)
    document: dict[str, Any] = {
        "difference": None if np.isnan(difference) else float(difference),
        "difference_ci95": interval.tolist() if is_known else None,
        "p_value": float(p_value) if is_known else None,
        "n_sessions": len(ours),
    }
    if not is_known:
        found = f"there are {len(ours)}" if len(ours) < MIN_SESSIONS else "no label is on in any of them"
        document["reason"] = f"a comparison needs at least {MIN_SESSIONS} sessions with positives, but {found}"
    return document


def seed_fold_spread(values: npt.NDArray[np.floating]) -> dict[str, Any]:
    """How much a score varies over seeds and over folds.

    Args:
        values: Scores, shape (seeds, folds); NaN where undefined.

    Returns:
        JSON-ready: `mean` of the defined ones; `sd_over_seeds` and `sd_over_folds`, each the standard deviation of the
        means over the other; `lowest`, `highest`; `undefined`, how many are. None where fewer than two are defined
        (for a spread) or none is.
    """
    defined = values[~np.isnan(values)]
    return {
        "mean": float(defined.mean()) if len(defined) else None,
        "sd_over_seeds": _deviation(values),
        "sd_over_folds": _deviation(values.T),
        "lowest": float(defined.min()) if len(defined) else None,
        "highest": float(defined.max()) if len(defined) else None,
        "undefined": int(np.isnan(values).sum()),
    }


def _deviation(values: npt.NDArray[np.floating]) -> float | None:
    """Standard deviation of the rows' means; a row without a defined value is left out."""
    means = macro_over_labels(values.astype(np.float64))
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if len(means) > 1 else None


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a trial's head was chosen among.

    Attributes:
        counts: Confusion counts of G heads in M sessions that none of them trained on, shape (G, M, 3, C), from
            out-of-fold or validation predictions.
        choose: Which of the G heads each label takes, by their F1 over sessions: (..., G, C) -> (..., C).
    """

    counts: Counts
    choose: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.int64]]

    @classmethod
    def alone(cls, counts: Counts) -> "Candidates":
        """One head with counts (M, 3, C), so that nothing was chosen."""
        return cls(counts[None], lambda f1: np.zeros((*f1.shape[:-2], f1.shape[-1]), np.int64))

    def chosen(self, inside: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """The heads chosen on resampled sessions: counts (resamples, G, 3, C) -> their F1 and index, (resamples, C)."""
        f1 = f1_scores(inside)
        choice = self.choose(f1)
        return np.take_along_axis(f1, choice[:, None], axis=1)[:, 0], choice


def selection_optimism(trials: Sequence[Candidates], *, seed: int = 0, resamples: int = 500) -> dict[str, Any]:
    """Selection bias of the best trial's score (bootstrap bias-corrected cross-validation).

    Measured on simulated trials (30 trials, 10 sessions, best / corrected / truth): alike .668 / .622 / .622, unlike
    .728 / .703 / .712. So it errs on the cautious side: resampled sessions are fewer, and choose less well. It does not
    see that a search made sets of leading inputs from the same sessions' scores: with them, `corrected` exceeded the
    truth by .010 more than without, for eight useless inputs (standard error .007).

    Args:
        trials: The trials, scored in the same M sessions.
        seed: Seed of the resampling.
        resamples: Number of resamples in which heads and trials are chosen again.

    Returns:
        JSON-ready: `best` (the chosen trial's macro-F1), `corrected` (the bias-corrected score, to expect in other
        sessions), `optimism` (the difference), `n_candidates` (heads), `n_sessions`. With fewer than five sessions or
        no positive, `corrected` and `optimism` are None and `reason` says so.
    """
    session_count = trials[0].counts.shape[1]
    found = [trial.chosen(trial.counts.sum(axis=1)[None])[0][0] for trial in trials]
    best = float(macro_over_labels(np.stack(found)[_best(np.stack(found))]))
    document: dict[str, Any] = {
        "best": None if math.isnan(best) else best,
        "corrected": None,
        "optimism": None,
        "n_candidates": sum(len(trial.counts) for trial in trials),
        "n_sessions": session_count,
    }
    if session_count < MIN_SESSIONS or math.isnan(best):
        found_instead = (
            f"there are {session_count}" if session_count < MIN_SESSIONS else "no label is on in any of them"
        )
        return document | {
            "reason": f"optimism needs at least {MIN_SESSIONS} sessions with positives, but {found_instead}"
        }
    each = np.full(session_count, 1 / session_count)
    drawn = np.random.default_rng(seed).multinomial(session_count, each, size=resamples)  # (resamples, M)
    pooled = np.zeros(trials[0].counts.shape[2:], np.int64)  # (3, C)
    for part in np.array_split(drawn, -(-resamples // _AT_ONCE)):
        of_trials = [trial.chosen(np.tensordot(part, trial.counts, axes=(1, 1))) for trial in trials]
        taken = _best(np.stack([f1 for f1, _ in of_trials], axis=1))  # (resamples,)
        for at in np.unique(taken).tolist():
            its = taken == at
            outside = np.tensordot(part[its] == 0, trials[at].counts, axes=(1, 1))  # (r, G, 3, C)
            choice = of_trials[at][1][its]  # (r, C)
            pooled += np.take_along_axis(outside, choice[:, None, None], axis=1)[:, 0].sum(axis=0)
    corrected = float(_macro(pooled))
    return document | {"corrected": corrected, "optimism": best - corrected}


def _best(f1: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Index of the first trial of highest macro-F1, (..., trials, C) -> (...); all have the same labels defined."""
    macro = macro_over_labels(f1)
    return np.asarray(np.where(np.isnan(macro), -1, macro).argmax(axis=-1), np.int64)


def _macro(counts: Counts) -> npt.NDArray[np.float64]:
    return macro_over_labels(f1_scores(counts))


def _check_paired(ours: Counts, theirs: Counts) -> None:
    same_shape = ours.shape == theirs.shape
    if not same_shape or not (ours[:, 0] + ours[:, 2] == theirs[:, 0] + theirs[:, 2]).all():
        raise ValueError(
            "two sets of predictions must be of the same clips or samples, but their sessions have different positives "
            f"(shapes {ours.shape} and {theirs.shape}). Score both on one table."
        )
