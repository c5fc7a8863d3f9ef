"""Which trial a search takes: by out-of-fold scores over all sessions that are not test.

Notable choices:

- A trial of the convex solver has such a score already. A trial trained by AdamW is scored on the validation split,
  once for each of hundreds of trials, so its score is the best of many on few sessions. The few of the highest are
  fitted again without each fold, on the same folds, and then compared.
- Where the convex solver has trials, linear heads trained by AdamW do not compete: they approach the same optimum.
  Other kinds must be significantly better: ahead after the selection bias is
  subtracted from both, with a paired interval of the difference over sessions that excludes zero. With fewer than five
  sessions no difference is significant.

Measured before, where the best of 198 AdamW trials on two or three validation sessions was taken: 8 draws of 6 + 2
sessions of public sets, all below the convex optimum on unseen sessions, by .027 on average.

What this is not: the search.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial, TrialState

from featurecache.errors import SettingsError
from heads.engines.convex import GridPoint
from heads.engines.prepared import Prepared
from heads.engines.refit import scores_without_each_fold
from heads.scoring.cross_fitting import out_of_fold_counts
from heads.scoring.metrics import f1_scores, macro_over_labels
from heads.scoring.statistics import Candidates, paired_comparison, selection_optimism
from heads.search.grid_choice import choose_points
from heads.search.study import CHOSEN, COUNTS, EPOCHS, OWN, SOLVER
from heads.search.summary import best_trial, trial_settings, trial_value
from heads.search.trial_settings import Choices
from heads.settings import HeadSettings

FINALISTS = 3
"""Trials trained by AdamW that are fitted again without each fold."""


@dataclass(frozen=True, eq=False)
class Finalist:
    """A trial trained by AdamW, scored out of fold.

    Attributes:
        trial: The trial.
        settings: Its settings, with the epochs that its head was kept after.
        counts: Out-of-fold confusion counts, (M, 3, C).
    """

    trial: FrozenTrial
    settings: HeadSettings
    counts: npt.NDArray[np.int64]

    @property
    def value(self) -> float:
        """Out-of-fold macro-F1 at 0.5."""
        return float(macro_over_labels(f1_scores(self.counts.sum(axis=0))))


@dataclass(frozen=True, eq=False)
class Chosen:
    """The trial that a search takes.

    Attributes:
        trial: The trial.
        settings: Its settings.
        value: Its out-of-fold macro-F1 at a threshold of 0.5, of the confusion counts of all assignments to folds.
        optimism: Selection bias of that score (`statistics.selection_optimism`).
        finalists: The trials trained by AdamW that it was compared with, or is one of.
    """

    trial: FrozenTrial
    settings: HeadSettings
    value: float
    optimism: dict[str, Any]
    finalists: tuple[Finalist, ...]


def choose_trial(trials: Sequence[FrozenTrial], choices: Choices, prepared: Prepared) -> Chosen | None:
    """The trial of the highest out-of-fold score, by the rule at the top of this file.

    Args:
        trials: All trials of the study.
        choices: What they were drawn from.
        prepared: The clips; their seed is that of the fits and of the resampling.

    Returns:
        None if no trial completed.
    """
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    solved = [trial for trial in completed if trial.user_attrs.get(SOLVER) == "convex"]
    finalists = _finalists([trial for trial in completed if trial not in solved], bool(solved), choices, prepared)
    positives = prepared.data.fitting.Y.sum(axis=0)
    return choose_among(solved, finalists, choices.grid(), positives, seed=prepared.seed)


def choose_among(
    solved: Sequence[FrozenTrial],
    finalists: Sequence[Finalist],
    points: Sequence[GridPoint],
    positives: npt.NDArray[np.integer],
    *,
    seed: int,
) -> Chosen | None:
    """The choice among trials that are scored out of fold.

    Args:
        solved: Completed trials of the convex solver.
        finalists: Trials trained by AdamW.
        points: The grid of the convex trials.
        positives: Positive clips of each label, shape (C,).
        seed: Seed of the resampling.

    Returns:
        None if there is no trial.
    """
    found: list[tuple[Chosen, npt.NDArray[np.int64]]] = []
    if (best := best_trial(solved)) is not None:
        its_counts = np.array(best.user_attrs[OWN], np.int64)
        optimism = selection_optimism([_candidates(one, points, positives) for one in solved], seed=seed)
        settings = HeadSettings.from_mapping(best.user_attrs[CHOSEN])
        found.append((_chosen(best, settings, trial_value(best), optimism, finalists), its_counts))
    if finalists:
        leader = max(finalists, key=lambda one: one.value)
        optimism = selection_optimism([Candidates.alone(one.counts) for one in finalists], seed=seed)
        found.append((_chosen(leader.trial, leader.settings, leader.value, optimism, finalists), leader.counts))
    if len(found) < 2:
        return found[0][0] if found else None
    (by_solver, its_counts), (by_adamw, their_counts) = found
    difference = paired_comparison(their_counts, its_counts)["difference_ci95"]
    is_beyond_doubt = (
        difference is not None
        and difference[0] > 0
        and by_adamw.optimism["corrected"] > by_solver.optimism["corrected"]
    )
    return by_adamw if is_beyond_doubt else by_solver


def _chosen(
    trial: FrozenTrial,
    settings: HeadSettings,
    value: float,
    optimism: dict[str, Any],
    finalists: Sequence[Finalist],
) -> Chosen:
    """With the bias subtracted from the trial's own score: the estimate may choose points inside it that it did not."""
    bias = optimism["optimism"]
    own = {"best": value, "corrected": None if bias is None else value - bias}
    return Chosen(trial, settings, value, optimism | own, tuple(finalists))


def _finalists(
    trials: Sequence[FrozenTrial], is_solved: bool, choices: Choices, prepared: Prepared
) -> tuple[Finalist, ...]:
    """The highest on validation of those that compete, each fitted again without each fold."""
    found = []
    for trial in sorted(trials, key=lambda trial: (-trial_value(trial), trial.number)):
        settings = trial_settings(trial, choices)
        if settings is None or (is_solved and settings.kind == "linear"):
            continue
        settings = dataclasses.replace(settings, patience=0, epochs=trial.user_attrs[EPOCHS])
        try:
            scores = scores_without_each_fold(prepared, settings)
        except SettingsError:  # it diverged without some fold
            continue
        clips = prepared.data.fitting
        found.append(Finalist(trial, settings, out_of_fold_counts(clips.Y, scores, clips.sessions)))
        if len(found) == FINALISTS:
            break
    return tuple(found)


def _candidates(trial: FrozenTrial, points: Sequence[GridPoint], positives: npt.NDArray[np.integer]) -> Candidates:
    """The grid points of a convex trial, and how each label's is chosen among them.

    Args:
        trial: The trial.
        points: Its grid.
        positives: Positive clips of each label, shape (C,).
    """
    counts = np.array(trial.user_attrs[COUNTS], np.int64)  # (G, M, 3, C)
    return Candidates(counts, partial(choose_points, positives=positives, points=points))
