"""How far to go along a direction of each of k weighted logistic losses, without a product with the features.

Logits are linear in the step a, so the search works on z + a * (X d). It accepts only ends at which the line still
falls, with at most a fifth of the slope at its beginning: by convexity that proves the objective went down, which
single precision could not show by comparing two values.
"""

import torch
from torch import Tensor

FLATTEST = 0.2
"""Share of the slope at the start at which the search may end."""

STEPS = 20
"""Steps after which it gives up."""


def line_search(
    logits: Tensor,
    direction_logits: Tensor,
    weight: Tensor,
    weighted_target: Tensor,
    penalty_slope: Tensor,
    penalty_curvature: Tensor,
    slope: Tensor,
    residual: Tensor,
    curvature: Tensor,
) -> Tensor:
    """Step lengths (k,), by Newton's method on the slope, kept between what is too short and what is too long.

    Args:
        logits: z, shape (k, N).
        direction_logits: The change of logits along the whole direction, X d, shape (k, N).
        weight: As `descent.py` defines it, shape (k, N).
        weighted_target: As `descent.py` defines it, shape (k, N).
        penalty_slope: Directional derivative of the penalty at the start, shape (k,).
        penalty_curvature: Its second derivative along the direction, shape (k,).
        slope: Slope of the objective at the start, shape (k,).
        residual: Takes d loss / d z at the end, shape (k, N).
        curvature: Takes its total curvature there, shape (k,).

    Returns:
        Shape (k,); 0 where no end was found, with residual and curvature of the beginning.
    """
    length, at = torch.zeros_like(slope), torch.arange(len(slope), device=slope.device)
    a, short, long = torch.ones_like(slope), torch.zeros_like(slope), torch.full_like(slope, torch.inf)
    for _ in range(STEPS):
        scores = torch.addcmul(logits, a[:, None], direction_logits).sigmoid_()
        curved = torch.addcmul(scores, scores, scores, value=-1).mul_(weight)
        here = scores.mul_(weight).sub_(weighted_target)
        slope_here = torch.linalg.vecdot(here, direction_logits) + penalty_slope + a * penalty_curvature
        ends = (slope_here <= 0) & (slope_here >= FLATTEST * slope)
        residual[at[ends]], curvature[at[ends]], length[at[ends]] = here[ends], curved[ends].sum(dim=1), a[ends]
        if ends.all():
            return length
        second = torch.linalg.vecdot(curved.mul_(direction_logits), direction_logits) + penalty_curvature
        short, long = torch.where(slope_here < 0, a, short), torch.where(slope_here > 0, a, long)
        aimed = a - (slope_here - FLATTEST / 2 * slope) / second
        between = torch.where(long.isinf(), 4 * a, (short + long) / 2)
        aimed = torch.where(long.isinf(), torch.minimum(aimed, 10 * a), aimed)
        a = torch.where((aimed > short) & (aimed < long), aimed, between)
        on = ~ends
        logits, direction_logits, weight, weighted_target = (
            one[on] for one in (logits, direction_logits, weight, weighted_target)
        )
        at, a, short, long, penalty_slope, penalty_curvature, slope = (
            one[on] for one in (at, a, short, long, penalty_slope, penalty_curvature, slope)
        )
    scores = torch.sigmoid(logits)
    residual[at], curvature[at] = scores * weight - weighted_target, (scores * (1 - scores) * weight).sum(dim=1)
    return length
