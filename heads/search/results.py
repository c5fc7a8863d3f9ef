"""What a finished search writes: the run of the chosen settings, all trials, and how far scores can be trusted."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from featurecache.errors import StudyError
from featurecache.files import write_private
from heads.data import LabelledFeatures
from heads.engines.fitting import refitting
from heads.engines.prepared import Prepared
from heads.folds import Folds, session_folds
from heads.runs import ChooseTimeline, write_run
from heads.scoring.cross_fitting import FitScores, fold_scores
from heads.scoring.permutation import permutation_check
from heads.scoring.statistics import seed_fold_spread
from heads.search.summary import (
    choose_trial,
    importances,
    trial_settings,
    trials_table,
    with_steps,
)
from heads.search.trial_settings import Choices
from heads.settings import HeadSettings

REFIT_FOLDS = 5


def write_results(
    study: optuna.Study,
    prepared: Prepared,
    choices: Choices,
    folder: Path,
    permutations: int,
    refit_seeds: int,
    choose_timeline: ChooseTimeline,
) -> dict[str, Any]:
    """The run of the best settings, and what the search tells."""
    trials = study.get_trials(deepcopy=False)
    chosen = choose_trial(trials, choices.grid(), seed=prepared.seed)
    found = None if chosen is None else trial_settings(chosen.trial, choices)
    if chosen is None or found is None:
        raise StudyError(
            f"at least one trial must complete, but all {len(trials)} diverged or failed. "
            "Lower the learning rates of the search space, and start in a new folder."
        )
    highest = chosen.highest or chosen.trial
    settings, steps_of = with_steps(found, trials, choices)
    check = _permutation_check(prepared, settings, permutations) if permutations else None
    spread = _spread(prepared, settings, refit_seeds) if refit_seeds else None
    states = [trial.state for trial in trials]
    write_private(folder / "trials.csv", trials_table(trials, choices).encode())
    return write_run(
        prepared,
        settings,
        folder=folder,
        choose_timeline=choose_timeline,
        of_study={
            "value": chosen.trial.value,
            "trial": chosen.trial.number,
            "highest_value": highest.value,
            "highest_trial": highest.number,
            "steps_of_trial": steps_of,
            "trials": {
                "completed": states.count(TrialState.COMPLETE),
                "pruned": states.count(TrialState.PRUNED),
                "interrupted": states.count(TrialState.FAIL),
            },
            "optimism": chosen.optimism,
            "importances": importances(trials),
            "permutation_check": check,
            "spread": spread,
        },
    )


def _permutation_check(prepared: Prepared, settings: HeadSettings, permutations: int) -> dict[str, Any]:
    """The best settings on training and validation sessions, against the same with labels dealt to wrong sessions."""
    both, fold_of = _crossed(prepared, settings)
    return permutation_check(
        _refitting(prepared, settings, both, prepared.seed),
        both.Y,
        both.sessions,
        fold_of,
        permutations=permutations,
        seed=prepared.seed,
    )


def _spread(prepared: Prepared, settings: HeadSettings, refit_seeds: int) -> dict[str, Any]:
    """How far scores of the best settings spread over seeds and session folds; the convex solver draws nothing."""
    both, fold_of = _crossed(prepared, settings)
    seeds = [prepared.seed + at for at in range(1 if settings.solver == "convex" else refit_seeds)]
    values = [fold_scores(_refitting(prepared, settings, both, seed), both.Y, fold_of) for seed in seeds]
    return {**seed_fold_spread(np.stack(values)), "n_seeds": len(seeds), "n_folds": int(fold_of.max()) + 1}


def _crossed(prepared: Prepared, settings: HeadSettings) -> tuple[LabelledFeatures, Folds]:
    """Training and validation clips together, and folds of their sessions."""
    train, validation = prepared.train(settings.inputs), prepared.validation(settings.inputs)
    both = LabelledFeatures(
        np.concatenate([train.X, validation.X]),
        np.concatenate([train.Y, validation.Y]),
        np.concatenate([train.sessions, validation.sessions]),
    )
    count = min(REFIT_FOLDS, len(np.unique(both.sessions)))
    return both, session_folds(both.Y, both.sessions, count=count, seed=prepared.seed)


def _refitting(prepared: Prepared, settings: HeadSettings, both: LabelledFeatures, seed: int) -> FitScores:
    widths = prepared.data.train.part_widths(settings.inputs)
    unstopped = dataclasses.replace(settings, patience=0)
    return refitting(both, unstopped, seed=seed, device=prepared.device, part_widths=widths)
