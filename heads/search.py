"""The search over head settings: Optuna's TPE, asked for a batch of trials that train together as one stack.

Source: Guerriero et al., section 4 (TPE, pruning, macro-F1 as the score). Notable choices:

- The score is macro-F1 on the validation split at a threshold of 0.5. Tuning thresholds inside the score would
  pick lucky trials: tuned thresholds gained .041 on validation but .008 on unseen sessions. The positive weights
  that are searched move scores across 0.5 anyway. The test split is not an argument here.
- Univariate TPE with the constant liar, 16 trials a batch: best validation macro-F1 after 200 trials .662, against
  .659 one by one, and .646 for a multivariate batch without the liar.
- A trial is pruned at epochs 2, 4, 8, ... when its best score is below the median of completed trials there.
- Each batch has a sampler of its own, seeded by the seed and the trial it begins with. So a run gives the same numbers
  each time, and a resumed one does not draw its first trials again.
- A trial that diverges counts as pruned at once: the sampler learns to stay away.

What this is not: nested validation; the best score is the best of many and therefore too kind.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.trial import FrozenTrial, TrialState

from featurecache.errors import SettingsError, StudyError
from featurecache.files import write_private
from featurecache.spec import FeatureSpace
from heads.data import LabelledFeatures, check_training, data_digest
from heads.metrics import macro_f1
from heads.runs import write_run
from heads.settings import HeadSettings, SearchSpace
from heads.study import FINISHED, open_study, sync
from heads.training import TrainingClips, fit_heads

OnProgress = Callable[[int, int, float | None], None]
"""Called as `on_progress(finished trials, asked trials, best score so far)`."""

STACKED_TRIALS = 16
PRUNING_STARTS_AFTER = 10
"""Completed trials before any is pruned."""


def search_heads(
    train: LabelledFeatures,
    validation: LabelledFeatures,
    *,
    labels: Sequence[str],
    space: FeatureSpace,
    search_space: SearchSpace,
    trials: int,
    seed: int,
    folder: Path,
    stacked_trials: int = STACKED_TRIALS,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Searches, fits the best settings once more, and writes the run; resumes what an earlier call left.

    Args:
        train: The training split.
        validation: The validation split; scores trials and sets thresholds.
        labels: Names of the C labels.
        space: The feature space of both splits.
        search_space: The ranges.
        trials: Finished (completed or pruned) trials that the study shall have, earlier calls' included.
        seed: Of sampler, data order, initial weights and dropout.
        folder: The run's folder.
        stacked_trials: Trials per batch.
        device: Where to train: `cpu`, `cuda`, ...
        on_progress: See `OnProgress`.

    Returns:
        The content of `best.json`.

    Raises:
        SettingsError: If a number is too small.
        TrainingDataError: If the splits cannot train a head.
        StudyError: If the folder's study cannot go on, or every trial diverged.
    """
    for name, number, least in (("trials", trials, 1), ("stacked_trials", stacked_trials, 1), ("seed", seed, 0)):
        if number < least:
            raise SettingsError(f"{name} must be at least {least}, but it is {number}. Give a larger number.")
    check_training(train, validation, labels)
    began_with = {
        "data": data_digest([train, validation], labels)[:16],
        "fingerprint": space.fingerprint[:16],
        "search_space": search_space.to_mapping(),
        "seed": seed,
    }
    clips = TrainingClips(train.X, train.Y, seed=seed, device=device)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNING_STARTS_AFTER, n_min_trials=5)
    with open_study(folder, began_with, pruner) as study:
        while (missing := trials - _finished(study)) > 0:
            first = len(study.get_trials(deepcopy=False))
            study.sampler = optuna.samplers.TPESampler(
                seed=int(np.random.SeedSequence((seed, first)).generate_state(1)[0]),
                multivariate=False,
                constant_liar=True,
            )
            batch = [study.ask() for _ in range(min(stacked_trials, missing))]
            settings = [suggest_settings(trial, search_space) for trial in batch]
            _run_batch(study, batch, settings, clips, validation, search_space, trials, on_progress)
            sync(folder)
        done = study.get_trials(deepcopy=False)
        completed = [trial for trial in done if trial.state == TrialState.COMPLETE]
        if not completed:
            raise StudyError(
                f"at least one trial must complete, but all {len(done)} diverged. "
                "Lower the learning rates of the search space, and begin in a new folder."
            )
        best = max(completed, key=lambda trial: (_value(trial), -trial.number))
        write_private(folder / "trials.csv", _trials_table(done).encode())
        return write_run(
            clips,
            validation,
            labels=labels,
            space=space,
            settings=HeadSettings(**best.params),
            folder=folder,
            of_study={
                "value": best.value,
                "trial": best.number,
                "trials": {
                    "completed": len(completed),
                    "pruned": sum(trial.state == TrialState.PRUNED for trial in done),
                    "interrupted": sum(trial.state == TrialState.FAIL for trial in done),
                },
            },
        )


def suggest_settings(trial: optuna.Trial, search_space: SearchSpace) -> HeadSettings:
    """Draws one head's settings."""
    kind = trial.suggest_categorical("kind", search_space.kind)
    drawn: dict[str, Any] = {"kind": kind}
    if kind == "mlp":
        drawn["hidden_width"] = trial.suggest_int("hidden_width", *search_space.hidden_width, log=True)
    drawn["learning_rate"] = trial.suggest_float("learning_rate", *search_space.learning_rate, log=True)
    drawn["weight_decay"] = trial.suggest_float("weight_decay", *search_space.weight_decay, log=True)
    drawn["positive_weight_exponent"] = trial.suggest_float(
        "positive_weight_exponent", *search_space.positive_weight_exponent
    )
    drawn["dropout"] = trial.suggest_float("dropout", *search_space.dropout)
    drawn["batch_size"] = trial.suggest_categorical("batch_size", search_space.batch_size)
    drawn["epochs"] = trial.suggest_int("epochs", *search_space.epochs, log=True)
    drawn["standardize"] = trial.suggest_categorical("standardize", search_space.standardize)
    return HeadSettings(**drawn)


def _run_batch(
    study: optuna.Study,
    batch: Sequence[optuna.Trial],
    settings: Sequence[HeadSettings],
    clips: TrainingClips,
    validation: LabelledFeatures,
    search_space: SearchSpace,
    trials: int,
    on_progress: OnProgress | None,
) -> None:
    """Trains a batch as one stack; each trial is told to the study as soon as its end is known."""

    def tell(index: int, state: TrialState, value: float | None = None) -> None:
        study.tell(batch[index], value, state=state)
        if on_progress is not None:
            completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            on_progress(_finished(study), trials, max(map(_value, completed), default=None))

    def at_rung(epoch: int, scores: Mapping[int, npt.NDArray[np.float32]]) -> list[int]:
        pruned = []
        for index, of_head in scores.items():
            value = macro_f1(validation.Y, of_head)
            batch[index].report(value, epoch)
            if epoch == settings[index].epochs:
                tell(index, TrialState.COMPLETE, value)
            elif batch[index].should_prune():
                tell(index, TrialState.PRUNED)
                pruned.append(index)
        return pruned

    rungs = [2**power for power in range(1, 20) if 2**power < search_space.epochs[1]]
    fitted = fit_heads(clips, settings, X_validation=validation.X, rungs=rungs, at_rung=at_rung)
    for index, head in enumerate(fitted):
        if head.outcome == "diverged":
            batch[index].set_user_attr("diverged_in_epoch", head.epochs)
            tell(index, TrialState.PRUNED)


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def _value(trial: FrozenTrial) -> float:
    return float("-inf") if trial.value is None else trial.value


def _trials_table(done: Sequence[FrozenTrial]) -> str:
    """`trials.csv`: one row per trial; `epochs_seen` is the last epoch that was scored."""
    names = list(HeadSettings().to_mapping())
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["number", "state", "value", "epochs_seen", "diverged_in_epoch", *names])
    for trial in done:
        value = "" if trial.value is None else repr(trial.value)
        state = "interrupted" if trial.state == TrialState.FAIL else trial.state.name.lower()
        last, diverged = trial.last_step or "", trial.user_attrs.get("diverged_in_epoch", "")
        writer.writerow([trial.number, state, value, last, diverged, *(trial.params.get(name, "") for name in names)])
    return table.getvalue()
