"""Local search for assignments of sessions: one session moves or two swap, as long as that lowers a cost.

The cost is of what each part holds together, so a change costs one subtraction and one addition. What changes are
tried, and in which order, is the caller's: it decides how thorough the search is, and of equally good ones the first is
taken.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Cost = Callable[[Integers], npt.NDArray[np.float64]]
"""What is wrong with K assignments, from what their parts hold: (K, parts, Q) to (K,)."""

Change = tuple[Integers, Integers, Integers]
"""K changes: the session that moves, the one that takes its place (-1: none), and the part it moves to, (K,) each."""

_AT_ONCE = 1024


def descend(
    counts: Integers, assigned: Integers, parts: int, cost: Cost, changes: Callable[[Integers], Iterable[Change]]
) -> float:
    """Improves an assignment in place until no change lowers its cost; returns the cost reached.

    Args:
        counts: What each of M sessions holds, shape (M, Q).
        assigned: The part of each session, shape (M,).
        parts: Number of parts.
        cost: What is wrong with assignments.
        changes: Called with the assignment in each round; of the first batch that holds an improvement, the best
            change is made, and later batches are not asked for.
    """
    sums = np.zeros((parts, counts.shape[1]), np.int64)
    np.add.at(sums, assigned, counts)
    reached = float(cost(sums[None])[0])
    while True:
        for one, other, goal in changes(assigned):
            amount = counts[one] - np.where((other >= 0)[:, None], counts[other], 0)  # (K, Q), to the goal
            costs = np.concatenate(
                [
                    cost(_transferred(sums, amount[part], assigned[one[part]], goal[part]))
                    for part in np.array_split(np.arange(len(one)), math.ceil(len(one) / _AT_ONCE) or 1)
                ]
            )
            if len(costs) and costs.min() < reached:
                at = int(costs.argmin())
                break
        else:
            return reached
        sums = _transferred(sums, amount[[at]], assigned[one[[at]]], goal[[at]])[0]
        reached = float(costs[at])
        if other[at] >= 0:
            assigned[other[at]] = assigned[one[at]]
        assigned[one[at]] = goal[at]


def _transferred(sums: Integers, amount: Integers, origin: Integers, goal: Integers) -> Integers:
    """What parts hold (parts, Q) after each of K transfers to another part: (K, parts, Q)."""
    changed = np.repeat(sums[None], len(amount), axis=0)
    every = np.arange(len(amount))
    changed[every, origin] -= amount
    changed[every, goal] += amount
    return changed
