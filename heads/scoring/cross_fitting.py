"""Scores of clips by heads that never saw their session, and what is made of them.

Notable choices: the heads come from a callable, so any engine serves. A label that is missing from some training part
(all its positives lie in one session) cannot be scored out of session: its scores are NaN throughout, and it counts as
undefined. Training clips that overlap or touch held-out ones in the same recording are left out of that fit. With
few sessions one assignment to folds is a matter of luck: it is repeated, and a clip's score is the mean.

What this is not: a way to choose settings; a caller that chose them on some of these sessions must say so
(`CHOSEN_HERE`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from featurecache.clips.leakage import touching
from featurecache.errors import TrainingDataError
from heads.folds import Folds, repeated_folds, session_folds
from heads.scoring.exclusive import predicted_labels
from heads.scoring.metrics import DEFAULT_THRESHOLD, macro_f1, metrics_document, session_counts
from heads.scoring.thresholds import tuned_thresholds

Labels = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.integer]

FOLDS = 5
REPEATS = 3
FEW_SESSIONS = 20
"""With fewer sessions than this, folds are assigned several times."""

LEAVE_ONE_SESSION_OUT = "leave-one-session-out"
CHOSEN_HERE = (
    "the settings were chosen on some of these sessions, so this score is optimistically biased; it shows how "
    "they do without each session's labels, not how a search would do on new ones"
)


@dataclass(frozen=True, eq=False)
class CrossFolds:
    """Assignments of clips to folds by session, and who must not train next to whom.

    Attributes:
        of: Fold of each clip in each of R assignments, shape (R, N).
        excluded: Clips that touch held-out ones, shape (R, F, N); None where clip ids are unknown.
    """

    of: Folds
    excluded: npt.NDArray[np.bool_] | None

    @classmethod
    def assign(
        cls,
        Y: Targets,
        sessions: npt.NDArray[np.str_],
        clip_ids: Sequence[str] | None,
        *,
        count: int = FOLDS,
        seed: int = 0,
    ) -> "CrossFolds":
        """Folds of clips, assigned several times where sessions are few.

        Args:
            Y: Targets, shape (N, C), 0 or 1.
            sessions: The session of each clip, shape (N,); at least two.
            clip_ids: N clip ids; None where unknown.
            count: Folds; fewer where there are fewer sessions.
            seed: Chooses among assignments.

        Raises:
            TrainingDataError: If no label can be learned without each fold.
        """
        repeats = REPEATS if len(np.unique(sessions)) < FEW_SESSIONS else 1
        of = repeated_folds(Y, sessions, count=count, repeats=repeats, seed=seed)
        check_learnable(Y, of[0], clip_ids)
        if clip_ids is None:
            return cls(of, None)
        ids, folds = np.array(clip_ids), range(int(of.max()) + 1)
        return cls(
            of,
            np.stack([[(one != fold) & touching(clip_ids, ids[one == fold].tolist()) for fold in folds] for one in of]),
        )


class FitScores(Protocol):
    """Fits a head on some clips and scores others; holds the features itself."""

    def __call__(self, train: Rows, Y_train: Targets, learnable: Labels, held_out: Rows) -> Scores:
        """Fits on training rows (N,) with targets (N, C), for the labels that the mask (C,) names; scores other rows.

        Returns the probabilities of the held-out rows, a column for each label of the mask.
        """


def cross_fitted_scores(
    fit_scores: FitScores, Y: Targets, fold_of: Folds, *, clip_ids: Sequence[str] | None = None
) -> npt.NDArray[np.float64]:
    """Scores of each clip by a head that was fitted without its fold.

    Args:
        fit_scores: Fits a head and scores clips.
        Y: Targets, shape (N, C), 0 or 1.
        fold_of: Fold of each clip, shape (N,), from `session_folds`.
        clip_ids: N clip ids; where given, training clips that overlap or touch held-out ones are left out.

    Returns:
        Shape (N, C); NaN for a label that is never or always on in some training part.

    Raises:
        TrainingDataError: If that holds for every label.
    """
    learnable = check_learnable(Y, fold_of, clip_ids)
    scores = np.full(Y.shape, np.nan)
    for train, held_out in _parts(fold_of, clip_ids):
        scores[np.ix_(held_out, learnable)] = fit_scores(train, Y[train], learnable, held_out)
    return scores


def out_of_fold_scores(
    fit_scores: FitScores, Y: Targets, folds: CrossFolds, *, clip_ids: Sequence[str] | None = None
) -> npt.NDArray[np.float64]:
    """`cross_fitted_scores` of each assignment to folds, shape (R, N, C)."""
    return np.stack([cross_fitted_scores(fit_scores, Y, fold_of, clip_ids=clip_ids) for fold_of in folds.of])


def out_of_fold_counts(
    Y: npt.NDArray[np.integer], scores: npt.NDArray[np.floating], sessions: npt.NDArray[np.str_]
) -> npt.NDArray[np.int64]:
    """Confusion counts at 0.5 of each session, summed over the assignments to folds.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Out-of-fold scores of R assignments, shape (R, ..., N, C); a label with a NaN counts nothing.
        sessions: The session of each clip, shape (N,).

    Returns:
        Shape (..., M, 3, C).
    """
    is_scored = ~np.isnan(scores).any(axis=(0, -2))[..., None, None, :]
    counts = sum(session_counts(Y, of >= DEFAULT_THRESHOLD, sessions) for of in scores)
    return np.asarray(np.where(is_scored, counts, 0))


def fold_scores(fit_scores: FitScores, Y: Targets, fold_of: Folds) -> npt.NDArray[np.float64]:
    """Macro-F1 of each held-out fold at a threshold of 0.5, shape (F,); NaN for a fold without a positive.

    Args:
        fit_scores: Fits a head and scores clips.
        Y: Targets, shape (N, C), 0 or 1.
        fold_of: Fold of each clip, shape (N,), from `session_folds`.

    Raises:
        TrainingDataError: As `cross_fitted_scores`.
    """
    scores = cross_fitted_scores(fit_scores, Y, fold_of)
    own = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    return np.array([macro_f1(Y[rows], scores[rows]) for rows in own])


def learnable_labels(Y: Targets, fold_of: Folds, *, clip_ids: Sequence[str] | None = None) -> npt.NDArray[np.bool_]:
    """Labels that are on in some and off in other clips of every training part; arguments as above: (C,)."""
    positives = [(Y[train].sum(axis=0), len(train)) for train, _ in _parts(fold_of, clip_ids)]
    return np.asarray(np.all([(count > 0) & (count < size) for count, size in positives], axis=0))


def check_learnable(Y: Targets, fold_of: Folds, clip_ids: Sequence[str] | None) -> npt.NDArray[np.bool_]:
    """`learnable_labels`, refused where there is none.

    Raises:
        TrainingDataError: Saying so.
    """
    learnable = learnable_labels(Y, fold_of, clip_ids=clip_ids)
    if not learnable.any():
        raise TrainingDataError(
            f"some label must be on and off in every training part, but of {Y.shape[1]} labels each is missing in one "
            f"of the {fold_of.max() + 1} parts. Annotate more sessions with these labels."
        )
    return learnable


def _parts(fold_of: Folds, clip_ids: Sequence[str] | None) -> list[tuple[Rows, Rows]]:
    """Rows to train on and rows held out, fold by fold."""
    parts = []
    for fold in range(int(fold_of.max()) + 1):
        held_out, train = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        if clip_ids is not None:
            touches = touching(*([clip_ids[row] for row in rows.tolist()] for rows in (train, held_out)))
            train = train[~touches]
        parts.append((train, held_out))
    return parts


def leave_one_session_out(
    fit_scores: FitScores,
    Y: Targets,
    sessions: npt.NDArray[np.str_],
    *,
    labels: Sequence[str],
    clip_ids: Sequence[str] | None = None,
    exclusive: Sequence[Sequence[str]] = (),
    seen: Collection[str] = (),
    unit: str = "clip",
) -> dict[str, Any]:
    """Leave-one-session-out scores of given settings: refitted without each session, predictions pooled.

    A session's thresholds come from the other sessions' scores, as validation would give them.

    Args:
        fit_scores: Fits a head with the settings and scores clips.
        Y: Targets, shape (N, C), 0 or 1, of all labelled sessions.
        sessions: The session of each clip, shape (N,).
        labels: Names of the C labels.
        clip_ids: N clip ids; where given, training clips that overlap or touch held-out ones are left out.
        exclusive: Groups of labels of which one at most is predicted for a clip.
        seen: Ids of clips whose labels are no independent truth: they train, and are not scored.
        unit: As `metrics_document`.

    Returns:
        The document of `*_metrics.json`, whose `threshold` is the mean over sessions, with a `caveat`, and
        `not_learnable`: labels that are undefined because one session alone has all positives (or negatives).

    Raises:
        SettingsError: If there is one session only.
        TrainingDataError: If no label can be learned without some session.
    """
    fold_of = session_folds(Y, sessions)
    scores = cross_fitted_scores(fit_scores, Y, fold_of, clip_ids=clip_ids)
    if seen:
        rows = np.array([clip_id not in seen for clip_id in clip_ids or ()], bool)
        Y, scores, sessions = Y[rows], scores[rows], sessions[rows]
        fold_of = np.unique(fold_of[rows], return_inverse=True)[1]
    scored = np.asarray(~np.isnan(scores).any(axis=0))
    thresholds = np.full((fold_of.max() + 1, Y.shape[1]), np.nan)
    for session in range(len(thresholds)):
        others = fold_of != session
        thresholds[session, scored] = tuned_thresholds(
            Y[others][:, scored], scores[others][:, scored], sessions[others]
        )
    metrics = metrics_document(
        Y,
        scores,
        thresholds[fold_of],
        sessions,
        labels=labels,
        split=LEAVE_ONE_SESSION_OUT,
        annotated=int(fold_of.max()) + 1,
        predicted=predicted_labels(scores, thresholds[fold_of], labels, exclusive),
        unit=unit,
    )
    not_learnable = [label for label, has_scores in zip(labels, scored.tolist(), strict=True) if not has_scores]
    return {**metrics, "not_learnable": not_learnable, "caveat": CHOSEN_HERE}
