"""The search's sampler draws what Optuna's own does from the same history."""

import warnings
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from heads.search.sampler import UnivariateTPE


def reference(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)


def drawn(trial: Trial) -> dict[str, float | str]:
    """Each sort of setting; one of them not always there."""
    found: dict[str, float | str] = {
        "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True),
        "share": trial.suggest_float("share", 0, 0.5),
        "epochs": trial.suggest_int("epochs", 2, 40, log=True),
        "kind": trial.suggest_categorical("kind", ["a", "b", "c"]),
    }
    if found["kind"] != "c":
        found["width"] = trial.suggest_int("width", 1, 9)
        found["tenths"] = trial.suggest_float("tenths", 0, 1, step=0.1)
    return found


def value_of(found: dict[str, float | str]) -> float:
    off = [np.log10(found["rate"]) + 3, 4 * (float(found["share"]) - 0.2), (float(found["epochs"]) - 10) / 10]
    return 1 - float(np.square(off).sum()) / 10


def history(seed: int, trials: int, complete: float = 0.5) -> optuna.Study:
    """Trials of Optuna's sampler: a share completed, others pruned or failed, five still running."""
    study = optuna.create_study(direction="maximize")
    random = np.random.default_rng(seed)
    out: list[tuple[Trial, float]] = []
    for number in range(trials):
        trial = study.ask()
        study.sampler = reference(1000 * seed + number)
        out.append((trial, value_of(drawn(trial)) + 0.01 * random.standard_normal()))
        if len(out) <= 5:
            continue
        trial, value = out.pop(0)
        if random.random() < complete:
            study.tell(trial, value)
            continue
        ends = random.choice(["pruned", "silent", "unfinite", "failed"], p=[0.6, 0.2, 0.1, 0.1])
        if ends in ("pruned", "unfinite"):
            trial.report(value if ends == "pruned" else float("nan"), int(random.integers(1, 9)))
        study.tell(trial, state=TrialState.FAIL if ends == "failed" else TrialState.PRUNED)
    return study


def next_of(study: optuna.Study, sampler: BaseSampler) -> dict[str, float | str]:
    trial = study.ask()
    study.sampler = sampler
    found = drawn(trial)
    study.tell(trial, state=TrialState.FAIL)
    return found


@pytest.mark.parametrize(("trials", "complete"), [(8, 0.5), (16, 0.5), (20, 0.5), (45, 0.5), (120, 0.5), (60, 0.02)])
def test_it_draws_what_optunas_own_sampler_draws(trials: int, complete: float) -> None:
    compared, other_choices = 0, 0
    for of_history in range(3):
        study = history(of_history, trials, complete)
        for seed in range(8):
            ours, theirs = (next_of(study, make(seed)) for make in (UnivariateTPE, reference))
            compared += 1
            if ours["kind"] != theirs["kind"]:  # two choices may be equally good; then rounding decides
                other_choices += 1
                theirs = {name: value for name, value in theirs.items() if name in ("rate", "share", "epochs")}
            for name, value in theirs.items():
                assert ours[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), name
    assert other_choices <= compared // 8


def best_after(make: Callable[[int], BaseSampler], seed: int, trials: int) -> float:
    study = optuna.create_study(direction="maximize")
    for number in range(trials):
        trial = study.ask()
        study.sampler = make(100 * seed + number)
        study.tell(trial, value_of(drawn(trial)))
    return study.best_value


def test_it_finds_more_than_chance() -> None:
    ours, chance = (
        np.mean([best_after(make, seed, 60) for seed in range(5)])
        for make in (UnivariateTPE, lambda seed: optuna.samplers.RandomSampler(seed=seed))
    )
    assert 1 - ours < 0.5 * (1 - chance)


def test_it_refuses_a_setting_that_is_neither_number_nor_choice() -> None:
    class Other(optuna.distributions.BaseDistribution):
        def to_internal_repr(self, param_value_in_external_repr: object) -> float:
            return 0.0

        def _contains(self, param_value_in_internal_repr: float) -> bool:
            return True

        def single(self) -> bool:
            return False

    study = history(0, 20)
    trial = study.ask()
    frozen = study.get_trials(deepcopy=False)[trial.number]
    with pytest.raises(TypeError, match="a number or a choice"):
        UnivariateTPE(0).sample_independent(study, frozen, "other", Other())
