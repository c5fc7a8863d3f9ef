"""Fusion of several inputs with a learned weight for each.

The logits of such a linear head are

    alpha_1 P_1(z_1) + alpha_2 P_2(z_2) + ... + b,    alpha_i >= 0, their sum 1,

of inputs z_i that are normalised each on its own, and projections P_i to the C labels. Source: equation 2 of
LLaVA-Ultra (a vision language model for ultrasound), with more than two inputs allowed.

Notable choices: each projection is penalised in proportion to its weight, l2 / 2 * alpha_i |P_i|^2. Without that a
weight says nothing, since a projection could make up for it. With it the problem is convex in the weights and in
alpha_i P_i together (multiple kernel learning: Rakotomamonjy et al., 2008), so alpha is a property of the data, and an
input that does not help ends at 0. Solved in turns: given alpha, the convex engine on inputs scaled by its root; given
the projections, alpha_i is the share of |alpha_i P_i|. The scales go into the head's front, so a fused head is a linear
head to whoever reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from heads.engines.basis import Basis
from heads.engines.solving import solve_head
from heads.engines.training_clips import Targets, TrainingClips, View
from heads.models import LinearHead
from heads.settings import HeadSettings

TURNS, TOLERANCE = 40, 2e-3
"""Turns at most, and the change of every weight below which they end."""

_LEAST = 1e-8


@dataclass(frozen=True, eq=False)
class Fused:
    """A fused head.

    Attributes:
        head: The head.
        weights: alpha, a weight for each input, which sum to 1.
    """

    head: LinearHead
    weights: npt.NDArray[np.float64]


def fit_fused(
    X: npt.NDArray[np.floating], Y: Targets, settings: HeadSettings, *, widths: Sequence[int], device: str = "cpu"
) -> Fused:
    """Fits a linear head on inputs side by side, with a learned weight for each.

    Args:
        X: Features, shape (N, D), float16 or float32.
        Y: Targets, shape (N, C), 0 or 1.
        settings: Settings of the head; `input_weights` is "learned".
        widths: Widths of the inputs, which sum to D.
        device: Where to fit.

    Raises:
        TrainingDataError: If a label is never or always on.
        SettingsError: If the convex solver does not converge.
    """
    front = TrainingClips(X, Y, seed=0, part_widths=widths, shuffle=False).front(View(settings.normalization, 0))
    scale, sizes = front.scale.clone(), torch.tensor(widths)
    weights = torch.full((len(widths),), 1 / len(widths), dtype=torch.float64)
    for _ in range(TURNS):
        roots = weights.clamp(min=_LEAST).sqrt()
        front.scale.copy_(scale / torch.repeat_interleave(roots, sizes))
        head, _ = solve_head(Basis.fit(X, front, device=device), Y, settings)
        parts = torch.split(head.output.weight.detach().double(), list(widths), dim=1)
        norms = torch.stack([part.norm() for part in parts]) * roots  # of alpha_i P_i
        found = norms / norms.sum().clamp(min=_LEAST)
        change, weights = float((found - weights).abs().max()), found
        if change < TOLERANCE:
            break
    return Fused(head, weights.numpy())
