"""Which point of a convex grid each label's head is taken from.

Notable choices:

- The penalty is the same for all labels; the exponent of the positive weights is each label's own. It decides how
  readily a label is predicted, and rare and common labels need different ones for the same F1.
- A label's own F1, which rests on n positive clips, counts n / (n + 20), the mean over labels the rest: shrinkage to
  the shared score. So a rare label follows the others, as its threshold stays near 0.5 (`thresholds.tuned_thresholds`).
- F1 of a point is averaged with that of its neighbours in the grid, itself counting twice: a lone peak is luck.

Macro-F1 gained over one point for all labels, on clips that nothing was chosen on, in 20 splits of each set (standard
errors .001; .003 where validation chose):

    chosen by                                          at    emotions  scene  yeast
    out-of-fold scores, as here                        0.5      +.000  -.000  +.024
    out-of-fold scores, as here                        tuned    -.001  +.000  +.008
    out-of-fold scores, without shrinkage              0.5      -.000  -.001  +.024
    out-of-fold scores, without shrinkage              tuned    -.001  +.001  +.008
    the same, with a penalty for each label            0.5      -.005  -.001  +.023
    validation, which has fewer clips                  0.5      -.002  -.003  +.018
    validation, without shrinkage                      0.5      -.006  -.004  +.017
    validation, the best point without its neighbours  0.5      -.012  -.011  +.015

What this is not: a solver (`engines/convex.py`), or what choosing costs (`scoring/statistics.py`).
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import numpy.typing as npt

from featurecache.errors import TrainingDataError
from heads.engines.convex import Choice, GridPoint, Mask
from heads.scoring.metrics import macro_over_labels
from heads.scoring.thresholds import SHRINKAGE_POSITIVES

F1 = npt.NDArray[np.float64]


def grid_steps(points: Sequence[GridPoint]) -> npt.NDArray[np.int64]:
    """Place of each point among the penalties, the weakest first, and the exponents: (G, 2)."""
    names = [field.name for field in fields(GridPoint)]
    return np.stack([np.unique([getattr(p, name) for p in points], return_inverse=True)[1] for name in names], axis=1)


def choose_points(
    f1: F1, positives: npt.NDArray[np.integer], points: Sequence[GridPoint], *, allowed: Mask | None = None
) -> Choice:
    """The point of each label: equal in all but the exponent of the positive weights.

    Args:
        f1: F1 at 0.5 of each point and label, shape (..., G, C): any number of choices at once. A label with a NaN is
            excluded from the vote and follows the others.
        positives: Positive clips of each label that its own F1 rests on, shape (C,).
        points: The G points, from `convex.grid_points`; of those that score alike, the first is chosen.
        allowed: What may be chosen, shape (G, C): `grid.converged`.

    Returns:
        Index of a point for each label, shape (..., C).

    Raises:
        TrainingDataError: If no penalty has an allowed point for every label.
    """
    steps = grid_steps(points)
    distance = np.abs(steps[:, None] - steps[None]).sum(axis=-1)  # (G, G)
    nearness = 2.0 * (distance == 0) + (distance == 1)
    averaged = nearness / nearness.sum(axis=1, keepdims=True) @ f1
    votes = ~np.isnan(averaged).any(axis=-2, keepdims=True)  # (..., 1, C)
    together = macro_over_labels(np.where(votes, averaged, np.nan))[..., None]  # (..., G, 1)
    together = np.nan_to_num(together)  # every label is excluded
    own_share = positives / (positives + SHRINKAGE_POSITIVES)
    score = np.where(votes, own_share * averaged + (1 - own_share) * together, together)
    if allowed is not None:
        score = np.where(allowed, score, -np.inf)
    shared: dict[float, list[int]] = {}  # points by their penalty, which all labels have in common
    for at, point in enumerate(points):
        shared.setdefault(point.l2, []).append(at)
    rows = np.array(list(shared.values()))  # (groups, exponents)
    of_group = score[..., rows, :]  # (..., groups, exponents, C)
    total = of_group.max(axis=-2).sum(axis=-1)  # (..., groups)
    if not np.isfinite(total.max(axis=-1)).all():
        raise TrainingDataError(
            f"some penalty must have a point that converged for each of the {f1.shape[-1]} labels, but none of the "
            f"{len(points)} points' penalties has. Leave the smallest ones out."
        )
    best = total.argmax(axis=-1)
    exponents = np.take_along_axis(of_group, best[..., None, None, None], axis=-3)[..., 0, :, :].argmax(axis=-2)
    return np.asarray(rows[best[..., None], exponents], np.int64)
