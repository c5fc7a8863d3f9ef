"""What a finished search writes: the run of the chosen settings, all trials, and how far scores can be trusted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from featurecache.errors import StudyError
from featurecache.files import write_private
from heads.engines.prepared import Prepared
from heads.engines.refit import refitting_prepared
from heads.runs import ChooseTimeline, write_run
from heads.scoring.cross_fitting import fold_scores
from heads.scoring.permutation import permutation_check
from heads.scoring.statistics import seed_fold_spread
from heads.search.choosing import choose_trial
from heads.search.study import DIVERGED, FINISHED, SOLVER
from heads.search.summary import importances, trial_settings, trials_table, with_adamw_settings
from heads.search.trial_settings import Choices
from heads.settings import HeadSettings


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
    chosen = choose_trial(trials, choices, prepared)
    if chosen is None:
        raise StudyError(
            f"at least one trial must complete, but all {len(trials)} diverged or failed. "
            "Lower the learning rates of the search space, and start in a new folder."
        )
    settings, steps_of = with_adamw_settings(chosen.settings, trials, choices)
    check = _permutation_check(prepared, settings, permutations) if permutations else None
    spread = _spread(prepared, settings, refit_seeds) if refit_seeds else None
    states = [trial.state for trial in trials]
    write_private(folder / "trials.csv", trials_table(trials, choices))
    return write_run(
        prepared,
        settings,
        folder=folder,
        choose_timeline=choose_timeline,
        of_study={
            "value": chosen.value,
            "trial": chosen.trial.number,
            "finalists": [
                {"trial": one.trial.number, "validation": one.trial.value, "out_of_fold": one.value}
                for one in chosen.finalists
            ],
            "steps_of_trial": steps_of,
            "trials": {
                "completed": states.count(TrialState.COMPLETE),
                "pruned": states.count(TrialState.PRUNED),
                "interrupted": states.count(TrialState.FAIL),
                "convex": sum(one.user_attrs.get(SOLVER) == "convex" for one in trials if one.state in FINISHED),
                "diverged": sum(DIVERGED in one.user_attrs for one in trials),
            },
            **_by_prior(trials, choices),
            "optimism": chosen.optimism,
            "importances": importances(trials),
            "permutation_check": check,
            "spread": spread,
        },
    )


def _by_prior(trials: Sequence[FrozenTrial], choices: Choices) -> dict[str, dict[str, float]]:
    """Highest out-of-fold score of each prior, where several were tried."""
    found: dict[str, float] = {}
    for trial in trials:
        if trial.value is not None and trial.user_attrs.get(SOLVER) == "convex":
            settings = trial_settings(trial, choices)
            if settings is not None:
                found[settings.prior] = max(trial.value, found.get(settings.prior, trial.value))
    return {"by_prior": found} if len(found) > 1 else {}


def _permutation_check(prepared: Prepared, settings: HeadSettings, permutations: int) -> dict[str, Any]:
    """The best settings on all sessions that are not test, against the same with labels permuted across sessions."""
    clips = prepared.data.fitting
    return permutation_check(
        refitting_prepared(prepared, settings, prepared.seed),
        clips.Y,
        clips.sessions,
        prepared.folds.of[0],
        permutations=permutations,
        seed=prepared.seed,
    )


def _spread(prepared: Prepared, settings: HeadSettings, refit_seeds: int) -> dict[str, Any]:
    """How far scores of the best settings spread over seeds and session folds; the convex solver draws nothing."""
    Y, fold_of = prepared.data.fitting.Y, prepared.folds.of[0]
    seeds = [prepared.seed + at for at in range(1 if settings.solver == "convex" else refit_seeds)]
    values = [fold_scores(refitting_prepared(prepared, settings, seed), Y, fold_of) for seed in seeds]
    return {**seed_fold_spread(np.stack(values)), "n_seeds": len(seeds), "n_folds": int(fold_of.max()) + 1}
