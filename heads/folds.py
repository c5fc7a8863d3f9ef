"""Inner folds: sessions assigned to folds of like size and like labels, a session never cut.

Notable choices: what counts first is that every fold's training part (all other folds) has a positive and a negative
of every label, wherever two sessions have them; then that every fold has a positive to score; then equal shares of
every label and of the clips. The folds depend on the sessions' names, their counts and the seed alone: not on the
order of rows, and on no library's random stream.

What this is not: the outer split into train, validation and test (`featurecache.clips.splits`).
"""

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from featurecache.clips.local_search import Change, descend
from featurecache.errors import SettingsError

Folds = npt.NDArray[np.int64]

_STARTS = 4
_SWAPS_UP_TO = 100  # sessions; with more of them single moves balance well enough
_UNLEARNABLE, _UNSCORABLE = 1e3, 1.0


def session_folds(
    Y: npt.NDArray[np.integer], sessions: npt.NDArray[np.str_], *, count: int | None = None, seed: int = 0
) -> Folds:
    """Assigns every clip the fold that its session is in.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        sessions: The session of each clip, shape (N,).
        count: Folds; None for one per session (leave one session out), in order of their names.
        seed: Chooses among assignments that are alike.

    Returns:
        Fold of each clip, shape (N,), 0 to count - 1; each has a session.

    Raises:
        SettingsError: If there are fewer than two folds, or fewer sessions than folds.
    """
    names, of_clip = np.unique(sessions, return_inverse=True)
    folds = len(names) if count is None else count
    if not 2 <= folds <= len(names):
        raise SettingsError(
            f"folds must be at least 2 and have a session each, but {folds} folds are asked of {len(names)} sessions. "
            "Ask for fewer folds, or annotate more sessions."
        )
    if folds == len(names):
        return np.asarray(of_clip, np.int64)
    counts = np.zeros((len(names), 2 * Y.shape[1] + 1), np.int64)  # (S, 2C + 1): positives, negatives, clips
    np.add.at(counts, of_clip, np.concatenate([Y, 1 - Y, np.ones((len(Y), 1))], axis=1).astype(np.int64))
    starts = [_assigned(names, folds, f"{seed}/{start}") for start in range(_STARTS)]
    best = min((_descended(counts, start, folds) for start in starts), key=lambda found: found[0])[1]
    return np.asarray(best[of_clip], np.int64)


def repeated_folds(
    Y: npt.NDArray[np.integer], sessions: npt.NDArray[np.str_], *, count: int, repeats: int, seed: int = 0
) -> Folds:
    """Several assignments of sessions to folds, for repeated cross-validation.

    The first is `session_folds`, the most even one. The others are drawn, and even only in the number of sessions: of
    few sessions there is one most even assignment, and repeating it would tell nothing new. Where an assignment leaves
    some label without a positive or a negative to learn from, though the first does not, it is the first.

    Args:
        Y: Targets, shape (N, C), 0 or 1.
        sessions: The session of each clip, shape (N,).
        count: Folds; fewer where there are fewer sessions.
        repeats: R, assignments; one where each session is a fold of its own.
        seed: Chooses among assignments.

    Returns:
        Fold of each clip, shape (R, N).

    Raises:
        SettingsError: As `session_folds`.
    """
    names, of_clip = np.unique(sessions, return_inverse=True)
    count = min(count, len(names))
    first = session_folds(Y, sessions, count=count, seed=seed)
    if count == len(names):
        return first[None]
    drawn = [_assigned(names, count, f"{seed}/repeat {number}")[of_clip] for number in range(1, repeats)]
    least = _learnable(Y, first, count)
    return np.stack([first, *(of if (_learnable(Y, of, count) >= least).all() else first for of in drawn)])


def _learnable(Y: npt.NDArray[np.integer], fold_of: Folds, folds: int) -> npt.NDArray[np.bool_]:
    """Labels that are on and off in every training part: (C,)."""
    parts = [Y[fold_of != fold] for fold in range(folds)]
    return np.asarray(np.all([part.any(axis=0) & ~part.all(axis=0) for part in parts], axis=0))


def _assigned(names: npt.NDArray[np.str_], folds: int, salt: str) -> Folds:
    """Sessions in an order that the salt gives, assigned to the folds in turn: (S,)."""
    order = sorted(range(len(names)), key=lambda s: hashlib.sha256(f"{salt}/{names[s]}".encode()).digest())
    assigned = np.empty(len(names), np.int64)
    assigned[order] = np.arange(len(names)) % folds
    return assigned


def _descended(counts: Folds, start: Folds, folds: int) -> tuple[float, Folds]:
    """Moves one session or swaps two as long as that helps; the cost reached, and the assignment (M,)."""
    assigned, session_count = start.copy(), len(start)
    moves = [(s, -1, goal) for s in range(session_count) for goal in range(folds)]
    swaps = itertools.combinations(range(session_count), 2) if session_count <= _SWAPS_UP_TO else ()
    one, other, to = np.array([*moves, *((a, b, -1) for a, b in swaps)], np.int64).T

    def changes(assigned: Folds) -> Iterator[Change]:
        goal = np.where(to >= 0, to, assigned[other])
        useful = np.flatnonzero(goal != assigned[one])
        yield one[useful], other[useful], goal[useful]

    label_count = counts.shape[1] // 2
    return descend(counts, assigned, folds, lambda sums: _cost(sums, label_count), changes), assigned


def _cost(sums: npt.NDArray[np.int64], label_count: int) -> npt.NDArray[np.float64]:
    """What is wrong with M assignments, from their sums (M, F, 2C + 1): shape (M,). Shares leave no fold empty."""
    totals = sums.sum(axis=1, keepdims=True)
    classes, folds = slice(0, 2 * label_count), sums.shape[1]
    present = totals > 0
    unlearnable = ((sums == totals) & present)[..., classes].sum(axis=(1, 2))
    unscorable = ((sums == 0) & present)[..., :label_count].sum(axis=(1, 2))
    off = ((sums / np.maximum(totals, 1) - 1 / folds) ** 2).sum(axis=1)
    shares = off[:, :label_count].sum(axis=1) / max(label_count, 1) + 0.5 * off[:, -1]
    return np.asarray(np.round(_UNLEARNABLE * unlearnable + _UNSCORABLE * unscorable + shares, 9), np.float64)
