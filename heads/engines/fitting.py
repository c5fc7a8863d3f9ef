"""One head fitted with given settings, by the solver they name.

What this is not: many heads at once (`training.py`, `convex.py`), a search, or anything that writes files.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from heads.data import LabelledFeatures
from heads.engines.fallback import on_device_or_cpu
from heads.engines.fusion import fit_fused
from heads.engines.solving import basis_of, solve_head
from heads.engines.training import fit_heads
from heads.engines.training_clips import TrainingClips
from heads.models import Head, head_scores
from heads.prior import Weights
from heads.scoring.cross_fitting import FitScores, Labels, Rows, Scores, Targets
from heads.settings import HeadSettings


def fit_head(
    X: npt.NDArray[np.floating],
    Y: Targets,
    settings: HeadSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    part_widths: Sequence[int] | None = None,
    teacher: npt.NDArray[np.float32] | None = None,
    prior: Weights | None = None,
) -> Head:
    """Fits one head.

    Args:
        X: Features, shape (N, D), or (N, T, D) of frames, float16 or float32.
        Y: Targets, shape (N, C), 0 or 1.
        settings: Settings of the head.
        seed: Seed of data order, initial weights and dropout; the convex solver draws nothing.
        device: Where to train: `cpu`, `cuda`, ...; the CPU follows, with a warning, where a GPU's memory is not enough.
        part_widths: Widths of the selected features that stand side by side in X; None for one.
        teacher: Weights of parts (N, P) that a head with a `teacher_weight` is taught.
        prior: Weights that the settings' prior stands for, of features as given here, shape (C, D).

    Returns:
        The head, on the CPU; takes features as they are given here.

    Raises:
        TrainingDataError: If a label is never or always on.
        SettingsError: If training diverges, or the convex solver does not converge.
    """

    def fit(device: str) -> Head:
        if settings.input_weights == "learned":
            return fit_fused(X, Y, settings, widths=part_widths or [X.shape[1]], device=device).head
        if settings.solver == "convex":
            basis = basis_of(
                X, Y, settings.normalization, components=settings.components, part_widths=part_widths, device=device
            )
            return solve_head(basis, Y, settings, prior=prior)[0]
        clips = TrainingClips(X, Y, seed=seed, device=device, part_widths=part_widths, teacher=teacher)
        (fitted,) = fit_heads(clips, [settings])
        if fitted.head is None:
            raise fitted.diverged_error()
        return fitted.head

    return on_device_or_cpu(fit, device)


class FitHead(Protocol):
    """Fits a head on some clips; holds the features itself."""

    def __call__(self, train: Rows, Y_train: Targets, learnable: Labels) -> Head:
        """Fits on rows (n,) with targets (n, C) a head of the labels that the mask (C,) names, in their order."""


def fitting_some(
    data: LabelledFeatures,
    settings: HeadSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    prior: Weights | None = None,
) -> FitHead:
    """What fits a head of these settings on some rows.

    Args:
        data: All clips.
        settings: Settings of the heads.
        seed: As `fit_head`.
        device: As `fit_head`.
        prior: As `fit_head`.
    """

    def fit(train: Rows, Y_train: Targets, learnable: Labels) -> Head:
        X, Y, of_labels = data.X[train], Y_train[:, learnable], settings.of_labels(learnable.tolist())
        teacher = None if data.teacher is None else data.teacher[train]
        start = None if prior is None else prior[learnable]
        own: dict[str, Any] = {"part_widths": data.part_widths, "teacher": teacher, "prior": start}
        return fit_head(X, Y, of_labels, seed=seed, device=device, **own)

    return fit


def refitting(data: LabelledFeatures, settings: HeadSettings, **options: Any) -> FitScores:
    """What cross-fitting and the permutation check call: as `fitting_some`, and scores other rows."""
    fit = fitting_some(data, settings, **options)

    def fit_scores(train: Rows, Y_train: Targets, learnable: Labels, held_out: Rows) -> Scores:
        return head_scores(fit(train, Y_train, learnable), data.X[held_out])

    return fit_scores
