"""Controls that tell seeing from guessing, computed from answers that are there already.

A score says little alone: a model that answers yes to everything reaches the F1 of the all-positive baseline. So each
score is shown beside what the same answers reach on another session's video, what the answer about a black video
reaches, and whether the score rises where an annotator says that an activity begins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from heads.scoring.metrics import macro_f1

Scores = npt.NDArray[np.floating]
Targets = npt.NDArray[np.integer]

_SWAPS = 20


def controls_document(
    Y: Targets,
    scores: Scores,
    thresholds: Scores,
    sessions: npt.NDArray[np.str_],
    clip_ids: Sequence[str],
    *,
    labels: Sequence[str],
    black: Scores | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What a zero-shot score is to be held against.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Scores, shape (N, C).
        thresholds: A label is on where its score is at least this, shape (C,).
        sessions: The session of each clip, shape (N,).
        clip_ids: N clip ids, which say where in a recording a clip lies.
        labels: Names of the C labels.
        black: Scores of a black video, shape (C,); None where it was not asked about.
        seed: Of the choice of other sessions' clips.

    Returns:
        JSON-ready: macro-F1 of the `answers`, of `always_yes`, of `another_session` (the mean, lowest and highest of 20
        exchanges; None with one session) and of `black_video`; by label the mean change of the score at annotated
        onsets (`onsets`), and the labels whose predictions are the same in all clips (`constant`).
    """
    predicted = scores >= thresholds
    swapped = [
        macro_f1(Y, scores[rows], thresholds) for rows in other_sessions_clips(sessions, seed=seed, times=_SWAPS)
    ]
    return {
        "answers": macro_f1(Y, scores, thresholds),
        "always_yes": macro_f1(Y, np.ones(Y.shape), np.full(Y.shape[1], 0.5)),
        "another_session": None
        if not swapped
        else {"mean": float(np.mean(swapped)), "lowest": min(swapped), "highest": max(swapped)},
        "black_video": None if black is None else macro_f1(Y, np.broadcast_to(black, Y.shape), thresholds),
        "onsets": onsets(Y, scores, clip_ids, labels=labels),
        "constant": [label for at, label in enumerate(labels) if predicted[:, at].all() or not predicted[:, at].any()],
    }


def other_sessions_clips(sessions: npt.NDArray[np.str_], *, seed: int, times: int) -> list[npt.NDArray[np.int64]]:
    """For each clip a clip of another session, drawn `times` times; none with one session."""
    if len(np.unique(sessions)) < 2:
        return []
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(times):
        rows = np.empty(len(sessions), np.int64)
        for session in np.unique(sessions):
            own = sessions == session
            rows[own] = draw.choice(np.flatnonzero(~own), size=int(own.sum()))
        found.append(rows)
    return found


def onsets(Y: Targets, scores: Scores, clip_ids: Sequence[str], *, labels: Sequence[str]) -> dict[str, Any]:
    """Whether the score rises from the clip before an annotated onset to the clip in which the label is on.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        scores: Scores, shape (N, C).
        clip_ids: N clip ids.
        labels: Names of the C labels.

    Returns:
        By label: `onsets`, how many there are; `mean_change` of the score, `share_rising`; None without an onset.
    """
    row_of = {clip: row for row, clip in enumerate(clip_ids)}
    starts = {(clip.split("-")[0], int(clip.split("-")[1])): row_of[clip] for clip in clip_ids}
    pairs = [
        (row, starts[content, int(end)])
        for clip, row in row_of.items()
        for content, _, end in [clip.split("-")]
        if (content, int(end)) in starts
    ]
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    found: dict[str, Any] = {}
    for at, label in enumerate(labels):
        begins = (Y[first, at] == 0) & (Y[second, at] == 1)
        change = (scores[second, at] - scores[first, at])[begins]
        found[label] = {
            "onsets": len(change),
            "mean_change": float(change.mean()) if len(change) else None,
            "share_rising": float((change > 0).mean()) if len(change) else None,
        }
    return found
