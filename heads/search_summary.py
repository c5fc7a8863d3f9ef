"""What a finished search tells: its table of trials, what the settings mattered, and how much too kind its best is.

What this is not: the search, or a figure (`report/searching.py`).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from heads.settings import HeadSettings
from heads.statistics import selection_optimism
from heads.study import CHOSEN, COUNTS, DIVERGED, SOLVER
from heads.trial_settings import Choices

_ENOUGH = 20
"""Completed trials from which importances are told."""


def trial_value(trial: FrozenTrial) -> float:
    """A trial's score, minus infinity without one."""
    return float("-inf") if trial.value is None else trial.value


def best_trial(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The first of the highest score; None if none completed."""
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(completed, key=lambda trial: (trial_value(trial), -trial.number), default=None)


def trial_settings(trial: FrozenTrial, choices: Choices) -> HeadSettings | None:
    """The settings that a trial tried, or chose inside; None of a convex one that did not end."""
    if trial.user_attrs.get(SOLVER) == "convex":
        chosen = trial.user_attrs.get(CHOSEN)
        return None if chosen is None else HeadSettings.from_mapping(chosen)
    try:
        return choices.ask(FixedTrial(trial.params))
    except ValueError:  # killed while it was asked
        return None


def with_steps(
    settings: HeadSettings, trials: Sequence[FrozenTrial], choices: Choices
) -> tuple[HeadSettings, int | None]:
    """Convex settings with learning rate, decay, batch and epochs of the best linear head trained by steps, for LoRA.

    Returns:
        The settings, and that trial's number; None where the steps are the defaults or the settings' own.
    """
    if settings.solver != "convex":
        return settings, None
    linear = {
        trial.number: found
        for trial in trials
        if trial.user_attrs.get(SOLVER) != "convex"
        and (found := trial_settings(trial, choices)) is not None
        and found.kind == "linear"
    }
    best = best_trial([trial for trial in trials if trial.number in linear])
    if best is None:
        return settings, None
    names = ("learning_rate", "weight_decay", "batch_size", "epochs")
    steps = {name: getattr(linear[best.number], name) for name in names}
    return HeadSettings(**{**settings.to_mapping(), **steps}), best.number


def search_optimism(trials: Sequence[FrozenTrial], *, seed: int) -> dict[str, Any] | None:
    """How much too kind the best score is (`statistics.selection_optimism`); None where no trial told its counts."""
    counts = [
        np.array(trial.user_attrs[COUNTS], np.int64)
        for trial in trials
        if trial.state == TrialState.COMPLETE and COUNTS in trial.user_attrs
    ]
    return selection_optimism(np.concatenate(counts), seed=seed) if counts else None


def importances(trials: Sequence[FrozenTrial]) -> dict[str, float] | None:
    """Share of each setting in the difference between good and other trials trained by steps, by Optuna's PED-ANOVA.

    Returns:
        By name, the largest first; None with fewer than 20 completed trials, or where all scored alike.
    """
    completed = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.user_attrs.get(SOLVER) != "convex" and trial.params
    ]
    if len(completed) < _ENOUGH or len({trial.value for trial in completed}) == 1:
        return None
    study = optuna.create_study(direction="maximize")
    study.add_trials(completed)
    return {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}


def trials_table(trials: Sequence[FrozenTrial], choices: Choices) -> str:
    """`trials.csv`: one row per trial; `epochs_seen` is the last epoch that was scored, unused settings are empty."""
    names = list(HeadSettings().to_mapping())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["number", "state", "value", "epochs_seen", "diverged_in_epoch", *names])
    for trial in trials:
        value = "" if trial.value is None else repr(trial.value)
        state = "interrupted" if trial.state == TrialState.FAIL else trial.state.name.lower()
        last, diverged = trial.last_step or "", trial.user_attrs.get(DIVERGED, "")
        settings = trial_settings(trial, choices)
        used = trial.params if settings is None else used_settings(settings)
        writer.writerow([trial.number, state, value, last, diverged, *(used.get(name, "") for name in names)])
    return table.getvalue()


def used_settings(settings: HeadSettings) -> dict[str, Any]:
    """The settings that its kind and solver read, by name."""
    unused = {"hidden_width"} if settings.kind in ("linear", "attention") else set()
    if settings.solver == "convex":
        unused |= {"learning_rate", "weight_decay", "dropout", "batch_size", "epochs", "patience"}
    else:
        unused.add("l2")
    return {name: value for name, value in settings.to_mapping().items() if name not in unused}


def in_words(best: Mapping[str, Any]) -> list[str]:
    """What a search found, as sentences for people.

    Args:
        best: The content of `best.json`.
    """
    settings = HeadSettings.from_mapping(best["settings"])
    counts = best["trials"]
    lines = [
        f"{counts['completed']} trials completed, {counts['pruned']} pruned; best is trial {best['trial']}: "
        f"{_head(settings)}."
    ]
    if settings.solver == "convex":
        source = "the defaults" if best["steps_of_trial"] is None else f"of trial {best['steps_of_trial']}"
        lines.append(
            f"Solved to its optimum with penalty l2 = {settings.l2:.3g}. For LoRA, steps are kept beside it: "
            f"{_steps(settings)} ({source})."
        )
    else:
        dropout = f", dropout {settings.dropout:.2g}" if settings.dropout else ""
        lines.append(f"Trained by AdamW: {_steps(settings)}{dropout}.")
    lines.append(
        f"A positive clip of a label weighs (negatives / positives)^{settings.positive_weight_exponent:.2g}"
        + (f" times {settings.positive_weight_scale:.2g}" if settings.positive_weight_scale != 1 else "")
        + ("." if settings.positive_weight_exponent else ": rare labels are not favoured.")
    )
    if best["importances"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(best["importances"].items())[:5])
        lines.append(f"What mattered among the trials trained by steps: {shares}.")
    optimism = best["optimism"]
    if optimism is not None and optimism["optimism"] is not None:
        lines.append(
            f"The best of many is too kind: {optimism['best']:.3f} here, about {optimism['corrected']:.3f} to be "
            f"expected of it in other sessions ({optimism['optimism']:+.3f} by choosing)."
        )
    elif optimism is not None:
        lines.append(f"The best of many is too kind; by how much cannot be told: {optimism['reason']}.")
    check = best["permutation_check"]
    if check is not None and check["p_value"] is not None:
        lines.append(
            f"Across session folds these settings score {check['observed']:.3f}, and {check['permuted_mean']:.3f} with "
            f"labels dealt to the wrong sessions (p = {check['p_value']:.2g} of {len(check['permuted'])} shufflings)."
        )
    return lines


_KINDS = {
    "linear": "a linear head",
    "mlp": "a head with one hidden layer",
    "attention": "a head that weighs frames",
    "temporal": "a head that convolves frames",
}
_NORMALIZATIONS = {"none": "as they are", "standardize": "standardised", "l2": "scaled to one length"}


def _head(settings: HeadSettings) -> str:
    width = f", {settings.hidden_width} units" if settings.kind in ("mlp", "temporal") else ""
    components = f", {settings.components} principal components" if settings.components else ""
    side = " and ".join(settings.inputs.split("+"))
    return f"{_KINDS[settings.kind]}{width} on {side}, {_NORMALIZATIONS[settings.normalization]}{components}"


def _steps(settings: HeadSettings) -> str:
    return (
        f"learning rate {settings.learning_rate:.2g}, weight decay {settings.weight_decay:.2g}, "
        f"{settings.epochs} epochs in batches of {settings.batch_size}"
    )
