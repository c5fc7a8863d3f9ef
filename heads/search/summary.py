"""What a finished search tells: its table of trials, the importance of settings, and all of it in words.

What this is not: the search, its choice (`choosing.py`), or a figure (`report/searching.py`).
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from featurecache.csv_fields import csv_bytes
from featurecache.spelling import counted
from heads.samples.joining import selected
from heads.search.study import CHOSEN, DIVERGED, FINISHED, SOLVER
from heads.search.trial_settings import Choices
from heads.settings import WEIGHING, HeadSettings

_ENOUGH = 20
"""Scored trials from which importances are told."""


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


def with_adamw_settings(
    settings: HeadSettings, trials: Sequence[FrozenTrial], choices: Choices
) -> tuple[HeadSettings, int | None]:
    """Convex settings with learning rate, decay, batch and epochs of the best linear head trained by AdamW.

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
    return replace(settings, **{name: getattr(linear[best.number], name) for name in names}), best.number


def importances(trials: Sequence[FrozenTrial]) -> dict[str, float] | None:
    """Share of each setting in the difference between good and other trials trained by AdamW, by Optuna's PED-ANOVA.

    A pruned trial counts with the last score that it reported.

    Returns:
        By name, the largest first; None with fewer than 20 scored trials, or where nearly all scored alike.
    """
    scored = [
        optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value)
        for trial in trials
        if trial.state in FINISHED
        and trial.user_attrs.get(SOLVER) != "convex"
        and trial.params
        and (value := _last_score(trial)) is not None
    ]
    if len(scored) < _ENOUGH:
        return None
    study = optuna.create_study(direction="maximize")
    study.add_trials(scored)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        shares = optuna.importance.get_param_importances(study)
    return None if said else {name: float(share) for name, share in shares.items()}


def _last_score(trial: FrozenTrial) -> float | None:
    return trial.value if trial.last_step is None else trial.intermediate_values[trial.last_step]


def trials_table(trials: Sequence[FrozenTrial], choices: Choices) -> bytes:
    """`trials.csv`: one row per trial, with the value's source in `scored` and the last scored epoch in `epochs_seen`.

    Settings that are not used are empty.
    """
    names = list(HeadSettings().to_mapping())
    rows: list[list[object]] = [["number", "state", "value", "scored", "epochs_seen", "diverged_in_epoch", *names]]
    for trial in trials:
        value = "" if trial.value is None else repr(trial.value)
        state = "interrupted" if trial.state == TrialState.FAIL else trial.state.name.lower()
        scored = "out-of-fold" if trial.user_attrs.get(SOLVER) == "convex" else "validation"
        last, diverged = trial.last_step or "", trial.user_attrs.get(DIVERGED, "")
        settings = trial_settings(trial, choices)
        used = trial.params if settings is None else used_settings(settings)
        cells = [used.get(name, "") for name in names]
        cells = [" ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells]
        rows.append([trial.number, state, value, scored, last, diverged, *cells])
    return csv_bytes(rows)


def used_settings(settings: HeadSettings) -> dict[str, Any]:
    """The settings that its kind and solver read, by name."""
    unused = {"hidden_width"} if settings.kind in ("linear", *WEIGHING) else set()
    if settings.solver == "convex":
        unused |= {"learning_rate", "weight_decay", "dropout", "batch_size", "epochs", "patience"}
    else:
        unused |= {"l2", "variance_exponent", "prior"}
    return {name: value for name, value in settings.to_mapping().items() if name not in unused}


def in_words(best: Mapping[str, Any]) -> list[str]:
    """What a search found, as sentences for people.

    Args:
        best: The content of `best.json`.
    """
    settings, counts = HeadSettings.from_mapping(best["settings"]), best["trials"]
    pruned = f"{counts['pruned']} pruned" + (f" ({counts['diverged']} diverged)" if counts["diverged"] else "")
    lines = [
        f"{counted(counts['convex'], 'trial')} by the convex solver, "
        f"{counts['completed'] + counts['pruned'] - counts['convex']} by AdamW: "
        f"{counted(counts['completed'], 'trial')} completed, {pruned}; best is trial {best['trial']}: "
        f"{_head(settings)}. Chosen out of fold, then refitted on all training and validation sessions."
    ]
    lines += _solved_in_words(settings, best) if settings.solver == "convex" else _trained_in_words(settings)
    lines.append(_positive_weights(settings, best["labels"]))
    if best["importances"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in list(best["importances"].items())[:5])
        lines.append(f"Importance of the settings among the trials trained by AdamW: {shares}.")
    return lines + list(_reliability_in_words(best))


def _solved_in_words(settings: HeadSettings, best: Mapping[str, Any]) -> Iterator[str]:
    exponent = settings.variance_exponent
    along = f", weaker along directions in which features vary more (variance exponent {exponent:.2g})"
    on = " on the distance to the weights that words make (prompts/text)" if settings.prior == "words" else ""
    yield f"Solved to its optimum with penalty l2 = {settings.l2:.3g}{on}{along if exponent else ''}."
    if "by_prior" in best:
        tried = best["by_prior"]
        yield f"Highest out of fold with words' weights {tried['words']:.3f}, without {tried['none']:.3f}."
    if best["steps_of_trial"] is not None:
        yield (
            f"Of the linear heads trained by AdamW, trial {best['steps_of_trial']} is highest on the validation "
            f"split: {_steps(settings)}. They do not compete: the convex solver finds the optimum they approach. "
            "So only the best eighth of them was trained beyond 1, 8, ... epochs."
        )


def _trained_in_words(settings: HeadSettings) -> Iterator[str]:
    dropout = f", dropout {settings.dropout:.2g}" if settings.dropout else ""
    yield f"Trained by AdamW: {_steps(settings)}{dropout}."


def _reliability_in_words(best: Mapping[str, Any]) -> Iterator[str]:
    """How far the best trial's score can be trusted: runners-up, its selection bias, chance, and other folds."""
    others = [one for one in best["finalists"] if one["trial"] != best["trial"]]
    if others:
        found = ", ".join(
            f"trial {one['trial']} {one['out_of_fold']:.3f} (validation {one['validation']:.3f})" for one in others
        )
        yield f"Highest on validation of those trained by AdamW, refitted out of fold: {found}."
    optimism = best["optimism"]
    if optimism["optimism"] is not None:
        yield (
            f"Selection bias of the best trial: {optimism['best']:.3f} out of fold, {optimism['corrected']:.3f} "
            f"bias-corrected, to be expected in other sessions (bias {optimism['optimism']:+.3f})."
        )
    else:
        yield f"The best trial's score has a selection bias that could not be estimated: {optimism['reason']}."
    check = best["permutation_check"]
    if check is not None and check["p_value"] is not None:
        yield (
            f"Across session folds these settings score {check['observed']:.3f}, and {check['permuted_mean']:.3f} with "
            f"labels permuted across sessions (p = {check['p_value']:.2g} of {len(check['permuted'])} shufflings)."
        )
    spread = best["spread"]
    if spread is not None and spread["sd_over_folds"] is not None:
        drawn = (
            "" if spread["sd_over_seeds"] is None else f", {spread['sd_over_seeds']:.3f} over {spread['n_seeds']} seeds"
        )
        yield (
            f"Fitted again across {spread['n_folds']} session folds, they score {spread['mean']:.3f} on average, "
            f"{spread['lowest']:.3f} to {spread['highest']:.3f}; standard deviation {spread['sd_over_folds']:.3f} over "
            f"folds{drawn}."
        )


_KINDS = {
    "linear": "a linear head",
    "mlp": "a head with hidden layers",
    "attention": "an attention head with a query for each label",
    "weighted": "an attention head with one score for all labels",
    "temporal": "a head that convolves frames",
}
_NORMALIZATIONS = {"none": "as they are", "standardize": "standardised", "l2": "scaled to one length"}


def _head(settings: HeadSettings) -> str:
    widths = " and ".join(map(str, settings.hidden_widths))
    width = f", {widths} units" if settings.kind in ("mlp", "temporal") else ""
    components = f", {settings.components} principal components" if settings.components else ""
    side = " and ".join(selected(settings.inputs))
    return f"{_KINDS[settings.kind]}{width} on {side}, {_NORMALIZATIONS[settings.normalization]}{components}"


def _positive_weights(settings: HeadSettings, labels: Sequence[str]) -> str:
    exponents = settings.exponents(len(labels))
    text = "A positive of a label weighs (negatives / positives)^"
    if len(set(exponents)) == 1:
        return f"{text}{exponents[0]:.2g}" + ("." if exponents[0] else ": rare labels are not favoured.")
    of = {
        exponent: [name for name, own in zip(labels, exponents, strict=True) if own == exponent]
        for exponent in exponents
    }
    each = "; ".join(f"{exponent:.2g} for {', '.join(of[exponent])}" for exponent in sorted(of))
    return f"{text}e, with e = {each}."


def _steps(settings: HeadSettings) -> str:
    return (
        f"learning rate {settings.learning_rate:.2g}, weight decay {settings.weight_decay:.2g}, "
        f"{counted(settings.epochs, 'epoch')} in batches of {settings.batch_size}"
    )
