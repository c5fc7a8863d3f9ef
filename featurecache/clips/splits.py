"""Sessions to train, validation and test.

The split is searched, not drawn: each label present in each split comes first, then each split's share
of every label and of the clips near its fraction. Up to ten free sessions are searched exhaustively,
more by seeded descent from several starts. The result depends on the names, the counts and the seed
alone: not on any order, and on no library's random stream. What must not cross them is `leakage.py`.
"""

import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from featurecache.clips.local_search import Change, Integers, descend
from featurecache.errors import SplitError
from featurecache.spelling import did_you_mean

SPLITS = ("train", "validation", "test")

_EXHAUSTIVE_SESSIONS = 10  # 3 ** 10 = 59,049 assignments
_STARTS = 8
_SWAPS = 2000
_EQUALLY_GOOD = 0.01  # in the units of `_cost`; among these the seed chooses
_EMPTY_SPLIT = 1e6
_MISSING_LABEL = np.array([1002.0, 1000.0, 1001.0])  # where it can't be in all: train first, then test


def split_sessions(
    clips: Mapping[str, int],
    positives: Mapping[str, Sequence[int]],
    *,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assigns every session to a split.

    Args:
        clips: Session -> its labelled clips. A session without any gets no split ("") unless it is fixed.
        positives: Session -> its positive clips for each of C labels.
        fractions: Shares of the labelled clips for train, validation and test, above 0 with the sum 1.
        seed: Chooses among equally good assignments.
        fixed: Session -> split, as the user decided; the others are arranged around them.

    Returns:
        Session -> "train", "validation", "test" or "", in order of the session's name. Each split has a session; of
        two labelled sessions one trains and one validates, and one alone trains.

    Raises:
        SplitError: If no session is labelled, `fixed` names an unknown session or leaves a split without a session.
    """
    fixed = dict(fixed or {})
    _check_fixed(fixed, clips)
    names = sorted(session for session, count in clips.items() if count > 0)
    if not names:
        raise SplitError("splits need an annotated session, but there is none. Annotate recordings.")
    filled = SPLITS[: len(names)]
    counts = np.array([[*positives[name], clips[name]] for name in names], np.int64)  # (S, C + 1)
    counts = counts[:, counts.sum(axis=0) > 0]  # a label without a positive asks for nothing
    start = np.array([SPLITS.index(fixed[name]) if name in fixed else -1 for name in names])  # (S,)
    if (start < 0).sum() <= _EXHAUSTIVE_SESSIONS:
        chosen = _search_all(counts, np.array(fractions), start, seed, len(filled))
    else:
        chosen = _search_descending(counts, np.array(fractions), start, names, seed)
    empty = [split for index, split in enumerate(filled) if index not in chosen]
    if empty:
        raise SplitError(
            f"each split must have an annotated session, but the fixed ones leave {' and '.join(empty)} without. "
            "Fix fewer sessions under [splits] sessions, or assign all anew: featurecache clips --redeal."
        )
    splits = {name: fixed.get(name, "") for name in clips}
    splits.update({name: SPLITS[index] for name, index in zip(names, chosen, strict=True)})
    return dict(sorted(splits.items()))


def _check_fixed(fixed: Mapping[str, str], sessions: Iterable[str]) -> None:
    known = set(sessions)
    for session in fixed:
        if session not in known:
            hint = did_you_mean(session, known, f"The sessions are {', '.join(sorted(known)[:10])}.")
            raise SplitError(f"a fixed session must exist, but {session!r} does not. {hint}")


def _cost(sums: NDArray[np.int64], fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is wrong with assignments: empty splits, then labels missing in splits, then shares off the fractions.

    Args:
        sums: Positive clips of each label and, last, clips, in each split: shape (..., 3, C + 1).
        fractions: Wanted shares, shape (3,).

    Returns:
        Shape (...). Shares add the mean of the labels' squared deviations and half of the clips'.
    """
    totals = sums.sum(axis=-2, keepdims=True)
    off = ((sums / totals - fractions[:, None]) ** 2).sum(axis=-2)  # (..., C + 1)
    labels = off[..., :-1].mean(axis=-1) if off.shape[-1] > 1 else 0.0
    empty = (sums[..., -1] == 0).sum(axis=-1)
    missing = ((sums[..., :-1] == 0) * _MISSING_LABEL[:, None]).sum(axis=(-1, -2))
    return np.asarray(np.round(_EMPTY_SPLIT * empty + missing + labels + 0.5 * off[..., -1], 9))


def _search_all(
    counts: NDArray[np.int64],
    fractions: NDArray[np.float64],
    start: NDArray[np.int64],
    seed: int,
    filled: int = len(SPLITS),
) -> NDArray[np.int64]:
    """One of the best assignments of all to the first `filled` splits, chosen by the seed.

    Other arguments as in `_search_descending`.
    """
    free = np.flatnonzero(start < 0)
    options = np.array(list(itertools.product(range(filled), repeat=len(free))), np.int64)  # (K, F)
    fixed_sums = np.stack([counts[start == split].sum(axis=0) for split in range(3)])  # (3, C + 1)
    costs = np.concatenate(
        [
            _cost(fixed_sums + np.stack([(part == split) @ counts[free] for split in range(3)], axis=1), fractions)
            for part in np.array_split(options, -(-len(options) // 4096))
        ]
    )
    good = np.flatnonzero(costs <= costs.min() + _EQUALLY_GOOD)
    chosen = start.copy()
    chosen[free] = options[good[int(random.Random(f"{seed}").random() * len(good))]]  # noqa: S311 - no secret
    return chosen


def _search_descending(
    counts: NDArray[np.int64],
    fractions: NDArray[np.float64],
    start: NDArray[np.int64],
    names: Sequence[str],
    seed: int,
) -> NDArray[np.int64]:
    """The best of several descents by moving one session or swapping two.

    Args:
        counts: Positive clips of each label and, last, clips, of each session: shape (S, C + 1).
        fractions: Wanted shares, shape (3,).
        start: Split of the fixed sessions, -1 of the free ones: shape (S,).
        names: The sessions' names, S of them.
        seed: Orders the sessions at the start.

    Returns:
        Split of each session, shape (S,).
    """
    free = np.flatnonzero(start < 0)
    best, best_cost = start, math.inf
    for restart in range(_STARTS):
        order = sorted(free.tolist(), key=lambda s: hashlib.sha256(f"{seed}/{restart}/{names[s]}".encode()).digest())
        assigned = start.copy()
        ends = np.round(np.cumsum(fractions) * len(order)).astype(int)
        for split, part in enumerate(np.split(np.array(order), ends[:-1])):
            assigned[part] = split
        draw = random.Random(f"{seed}/{restart}")  # noqa: S311
        changes = partial(_tried, free=free, draw=draw)
        cost = descend(counts, assigned, len(SPLITS), lambda sums: _cost(sums, fractions), changes)
        if cost < best_cost:
            best, best_cost = assigned, cost
    return best


def _tried(assigned: Integers, free: Integers, draw: random.Random) -> Iterator[Change]:
    """Each free session to either of the two other splits; if none of that helps, some swaps that are drawn."""
    moved = np.repeat(free, 2)
    yield moved, np.full_like(moved, -1), (assigned[moved] + np.tile([1, 2], len(free))) % 3
    drawn = free[np.array([int(draw.random() * len(free)) for _ in range(2 * _SWAPS)])].reshape(2, -1)
    one, other = drawn[:, assigned[drawn[0]] != assigned[drawn[1]]]
    yield one, other, assigned[other]
