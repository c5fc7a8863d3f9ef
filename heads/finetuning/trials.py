"""Settings of the supervised baseline chosen by trials, each a whole training through the same loop.

Source: Guerriero et al., section 4 (TPE with pruning, macro-F1 as the score). Notable choices:

- The score is macro-F1 on validation at 0.5 after the selected epoch. The best trial's score has a selection bias.
- The first trial has the settings as they stand; the others are drawn by TPE (`heads/search/study.py`).
- A trial is pruned after an epoch when its best score is below the median of completed trials there. One that diverges
  counts as pruned, so that the sampler learns to stay away.
- A better trial's bundle replaces the run's at once: whenever the search is stopped, the run is of the best trial so
  far, and no weights of other trials lie about.
- A trial that was interrupted is restarted with its settings and resumes from its checkpoint.

Not here: several processes on one study; trials side by side, for one training fills a device.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from featurecache.errors import DivergedError, SettingsError, StudyError
from heads.finetuning.data import PixelClips, digest_of
from heads.finetuning.run import CHECKPOINT_NAME
from heads.finetuning.settings import FinetuneSettings
from heads.finetuning.timesformer import TimesformerPlan, TimesformerRun
from heads.finetuning.training_state import Training
from heads.runs import ChooseTimeline, no_timeline, write_document
from heads.search.study import AGAIN, FINISHED, JOURNAL_NAME, OpenStudy, interrupted_trial, open_study

PRUNING_STARTS_AFTER = 5
"""Completed trials before any is pruned."""


class _Pruned(Exception):  # noqa: N818 - no error
    """A trial is not worth going on with."""


def search_timesformer(
    plan: TimesformerPlan,
    *,
    trials: int,
    seed: int,
    device: str,
    folder: Path,
    choose_timeline: ChooseTimeline = no_timeline,
    on_trial: Callable[[int, FinetuneSettings], None] = lambda _number, _settings: None,
    on_progress: Callable[[Training], None] = lambda _: None,
) -> dict[str, Any]:
    """Trains until the study has so many finished trials; resumes what an earlier call left.

    Args:
        plan: An examined plan; what trials draw from is in its settings.
        trials: Finished (completed or pruned) trials that the study shall have in all.
        seed: Seed of sampler, order of clips and dropout.
        device: A torch device.
        folder: The run's folder, which also keeps the study.
        choose_timeline: Gives timeline settings to each bundle that is better than those before.
        on_trial: Called when a trial begins, with its place in the study and its settings.
        on_progress: Called by the loop, whose steps begin anew with each trial.

    Returns:
        The content of `best.json`.

    Raises:
        SettingsError: If a range reaches above the head's learning rate, or one clip does not fit in memory.
        StudyError: If the study was started with something else, another process has it, or no trial completed.
        KeyboardInterrupt: On SIGINT or SIGTERM, when the trial's checkpoint is written.
    """
    ranges = plan.settings.search
    if ranges.learning_rate[1] > plan.settings.head_learning_rate:
        raise SettingsError(
            "finetune.search.learning_rate must not reach above finetune.head_learning_rate, but they are "
            f"{ranges.learning_rate[1]:g} and {plan.settings.head_learning_rate:g}. Raise the one or lower the other."
        )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNING_STARTS_AFTER, n_warmup_steps=1)
    with open_study(folder, _beginning(plan, seed), pruner) as opened:
        study = opened.study
        while len(study.get_trials(deepcopy=False, states=FINISHED)) < trials:
            trial, place = _ask(opened, plan.settings, seed)
            settings = _drawn(trial, plan.settings)
            on_trial(place, settings)
            run = TimesformerRun(replace(plan, settings=settings), seed=seed, device=device, folder=folder)
            if AGAIN not in trial.user_attrs:
                run.checkpoint.unlink(missing_ok=True)
            value = _train(run, trial, on_progress)
            if value is not None and all(value > better for better in _values(study)):
                run.finish(of_study={"trial": trial.number}, choose_timeline=choose_timeline)
            run.checkpoint.unlink(missing_ok=True)
            study.tell(trial, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
            opened.sync()
        return _told(study, folder)


def refuse_trials(folder: Path) -> None:
    """For a single training: refuses a folder whose run is of a search.

    Raises:
        StudyError: If there is one.
    """
    if (folder / JOURNAL_NAME).exists():
        raise StudyError(
            f"a run's folder must be of one training or of one search, but {folder} is of a search. "
            "Resume it by --trials, or start over with --fresh."
        )


def forget_trials(folder: Path) -> None:
    """Removes the study and the checkpoint of an earlier call; its bundle stays until it is replaced."""
    for name in (JOURNAL_NAME, CHECKPOINT_NAME):
        (folder / name).unlink(missing_ok=True)


def _beginning(plan: TimesformerPlan, seed: int) -> dict[str, Any]:
    """What a study's scores depend on, JSON-ready."""
    return {
        "model": plan.space.fingerprint,
        "clips": digest_of({name: PixelClips(split, plan.store) for name, split in plan.splits.items()}),
        "settings": plan.settings.deciding(),
        "search": {name: list(value) for name, value in asdict(plan.settings.search).items()},
        "seed": seed,
    }


def _ask(opened: OpenStudy, settings: FinetuneSettings, seed: int) -> tuple[optuna.Trial, int]:
    """The next trial, one that was interrupted first, and its place."""
    known = opened.study.get_trials(deepcopy=False)
    if not any(trial.state == TrialState.WAITING for trial in known):  # else it was queued just before a kill
        interrupted = interrupted_trial(known)
        if interrupted is not None:
            again = {AGAIN: interrupted.user_attrs.get(AGAIN, interrupted.number)}
            opened.study.enqueue_trial(interrupted.params, user_attrs=again)
        elif not known:
            opened.study.enqueue_trial(_inside(settings))
    return opened.ask(seed)


def _inside(settings: FinetuneSettings) -> dict[str, Any]:
    """The settings as they stand, of those that trials draw, where they are inside the ranges."""
    ranges = settings.search
    bounds = {name: getattr(ranges, name) for name in ("learning_rate", "weight_decay", "positive_weight_exponent")}
    inside = {name: getattr(settings, name) for name, (low, high) in bounds.items()}
    inside = {name: value for name, value in inside.items() if bounds[name][0] <= value <= bounds[name][1]}
    choices = {name: getattr(ranges, name) for name in ("batch_size", "last_layers")}
    return inside | {name: getattr(settings, name) for name, of in choices.items() if getattr(settings, name) in of}


def _drawn(trial: optuna.Trial, settings: FinetuneSettings) -> FinetuneSettings:
    """The settings with what the trial draws."""
    ranges = settings.search
    drawn: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", *ranges.learning_rate, log=True),
        "weight_decay": trial.suggest_float("weight_decay", *ranges.weight_decay, log=True),
        "positive_weight_exponent": trial.suggest_float("positive_weight_exponent", *ranges.positive_weight_exponent),
    }
    for name in ("batch_size", "last_layers"):
        if getattr(ranges, name):
            drawn[name] = trial.suggest_categorical(name, getattr(ranges, name))
    return replace(settings, **drawn)


def _train(run: TimesformerRun, trial: optuna.Trial, on_progress: Callable[[Training], None]) -> float | None:
    """A trial's score; None where it was pruned or diverged."""
    told = 0

    def at_step(now: Training) -> None:
        nonlocal told
        on_progress(now)
        for epoch in now.epochs[told:]:
            trial.report(max(one.validation_macro_f1 for one in now.epochs[: epoch.epoch + 1]), epoch.epoch)
        if len(now.epochs) > told and now.step < now.steps and trial.should_prune():
            raise _Pruned
        told = len(now.epochs)

    try:
        run.train(at_step)
    except (_Pruned, DivergedError):
        return None
    return run.value


def _values(study: optuna.Study) -> list[float]:
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial.value for trial in completed if trial.value is not None]


def _told(study: optuna.Study, folder: Path) -> dict[str, Any]:
    """`best.json` of the best trial, with how many there were by now."""
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    if TrialState.COMPLETE not in states:
        raise StudyError(
            f"at least one trial must complete, but all {len(states)} diverged or failed. "
            "Lower finetune.search.learning_rate, and start over with --fresh."
        )
    best: dict[str, Any] = json.loads((folder / "best.json").read_bytes())
    best["trials"] = {
        "completed": states.count(TrialState.COMPLETE),
        "pruned": states.count(TrialState.PRUNED),
        "interrupted": states.count(TrialState.FAIL),
    }
    write_document(folder / "best.json", best)
    return best
