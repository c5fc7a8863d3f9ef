"""The search over head settings: Optuna's TPE asks for trials, and they train side by side.

Source: Guerriero et al., section 4 (TPE, pruning, macro-F1 as the score). Notable choices:

- Scores are macro-F1 at a threshold of 0.5. Tuning thresholds inside the score would pick lucky trials: tuned
  thresholds gained .041 on validation but .008 on unseen sessions. The positive weights that are searched move scores
  across 0.5 anyway. The test split is not an argument here.
- Linear heads without dropout go to the convex solver first: a trial for each combination of inputs, normalisation,
  components, variance exponent and prior, which tries a whole grid at once (`convex_trials.py`). Its score is out of
  fold, by folds of all sessions that are not test. Then the vector that scored best alone next to each other one, and
  with those that did best next to it (`Choices.leading`). Where there are more combinations than half of the trials
  (all of them, with that solver alone), some of them are taken, each once, in an order drawn by the seed.
- All other trials train by AdamW on the training split, as the paper has them, and their score is that of the
  validation split. They are trained 16 at a time, and a slot whose trial ends is given the next asked one. Univariate
  TPE with the constant liar: after 200 trials .662, against .659 one by one, and .646 multivariate without the liar.
- A stack reads one set of inputs. Where there are several, 32 trials are in flight at once (.660) and the fullest stack
  trains; the others pause and gather what is asked for them meanwhile.
- A trial is pruned at epochs 2, 4, 8, ... when its best score is below the median of completed trials there.
- A linear head trained by AdamW approaches the optimum that the convex solver has found already, so it is not chosen.
  Its trial is pruned by asynchronous successive halving instead (Li et al. 2020, https://arxiv.org/abs/1810.05934):
  after 1, 8, ... epochs the best eighth continues.
- Each trial has a sampler of its own, and an interrupted one is restarted at its place (`study.py`). So an unbroken run
  gives the same numbers bit for bit each time, and a resumed one continues with the trials that the unbroken one would
  have; only what the sampler learns from may come in another order. What a trial gives depends on its settings and the
  seed alone.
- The run is of the trial of the highest out-of-fold score (`choosing.py`), fitted again on all that is not test.
- A trial that diverges counts as pruned at once: the sampler learns to stay away.

What this is not: nested cross-validation; the best trial's score has a selection bias. It is estimated from the
trials' scores session by session, and reported with it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from featurecache.device import device_of
from featurecache.errors import SettingsError, TrainingDataError
from heads.data import LearningData
from heads.engines.fallback import first_that_fits
from heads.engines.prepared import Prepared
from heads.engines.training import FittedHead, RungReport, StackedTrainer
from heads.runs import ChooseTimeline, no_timeline
from heads.scoring.metrics import macro_f1
from heads.search.convex_trials import solve_trial
from heads.search.results import write_results
from heads.search.study import (
    AGAIN,
    CHOSEN,
    COMBINATION,
    COUNTS,
    DIVERGED,
    EPOCHS,
    FINISHED,
    OWN,
    SOLVER,
    OpenStudy,
    interrupted_trial,
    open_study,
)
from heads.search.summary import best_trial, trial_settings, trial_value
from heads.search.trial_settings import Choices, combination_name, combination_params
from heads.settings import HeadSettings, SearchSpace

OnProgress = Callable[[int, int, float | None], None]
"""Called as `on_progress(finished trials, asked trials, best score so far)`; out of fold once there is such a score."""

HALVING = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=8)
"""Prunes linear heads trained by AdamW where the convex solver has trials."""

STACKED_TRIALS = 16
_FEWER = 4  # where memory is not enough, a quarter of the heads train at once
PRUNING_STARTS_AFTER = 10
"""Completed trials before any is pruned."""


def search_heads(
    data: LearningData,
    *,
    search_space: SearchSpace,
    trials: int,
    seed: int,
    folder: Path,
    stacked_trials: int = STACKED_TRIALS,
    permutations: int = 0,
    refit_seeds: int = 0,
    device: str = "cpu",
    choose_timeline: ChooseTimeline = no_timeline,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Searches, fits the best settings once more, and writes the run; resumes what an earlier call left.

    Args:
        data: Training and validation clips.
        search_space: The ranges.
        trials: Finished (completed or pruned) trials that the study shall have, earlier calls' included. With the
            convex solver alone there are at most as many as it has combinations.
        seed: Seed of sampler, data order, initial weights and dropout.
        folder: The run's folder.
        stacked_trials: Trials that train at once.
        permutations: Fits of the best settings to shuffled labels, to see what chance gives.
        refit_seeds: Seeds with which the best settings are fitted again across session folds, to see how far scores
            spread.
        device: Where to train: `cpu`, `cuda`, ...; where its memory is not enough, the search continues with fewer
            heads at once, then on the CPU, and warns.
        choose_timeline: Gives the bundle's timeline settings before it is saved.
        on_progress: See `OnProgress`.

    Returns:
        The content of `best.json`.

    Raises:
        SettingsError: If a number is too small, or kinds, inputs and solvers do not fit each other.
        TrainingDataError: If the splits cannot train a head.
        StudyError: If the study cannot be resumed, or no trial completed.
    """
    for name, number, least in (
        ("trials", trials, 1),
        ("stacked_trials", stacked_trials, 1),
        ("seed", seed, 0),
        ("permutations", permutations, 0),
        ("refit_seeds", refit_seeds, 0),
    ):
        if number < least:
            raise SettingsError(f"{name} must be at least {least}, but it is {number}. Give a larger number.")
    data.check()
    choices = Choices.of(search_space, data)
    tried = search_space.to_mapping()
    signature: dict[str, Any] = {
        "data": data.digest()[:16],
        "fingerprints": {name: space.fingerprint[:16] for name, space in data.spaces.items()},
        "search_space": tried,
        "seed": seed,
    }
    priors = tried.pop("prior")  # without words there is one
    if data.prior is not None:
        signature["prior"] = {"tried": priors, "weights": data.prior.digest[:16]}

    def search_on(device: str, slots: int) -> dict[str, Any]:
        prepared = Prepared(data, seed=seed, device=device, fold_count=search_space.folds)
        median = optuna.pruners.MedianPruner(n_startup_trials=PRUNING_STARTS_AFTER, n_min_trials=5)
        with open_study(folder, signature, median) as opened:
            _Search(opened, prepared, choices, trials=trials, slots=slots, on_progress=on_progress).run()
            return write_results(opened.study, prepared, choices, folder, permutations, refit_seeds, choose_timeline)

    device, fewer = device_of(device), max(1, stacked_trials // _FEWER)
    attempts = dict.fromkeys([(device, stacked_trials), (device, fewer), ("cpu", fewer)])
    return first_that_fits(
        [(f"{on} with {slots} heads at once", partial(search_on, on, slots)) for on, slots in attempts]
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """A trial that this process has asked for; a convex one chooses some of its settings inside."""

    trial: optuna.Trial
    settings: HeadSettings


@dataclass(eq=False)
class _Stack:
    """Trials that read the same inputs: those in training, by the trainer's number, and those that wait for a slot."""

    trainer: StackedTrainer
    training: dict[int, _Asked] = field(default_factory=dict)
    waiting: deque[_Asked] = field(default_factory=deque)
    started: int = 0

    @property
    def in_flight(self) -> int:
        """Number of trials that were asked for and not yet told."""
        return len(self.training) + len(self.waiting)


class _Search:
    """Asks for trials, trains or solves them, and tells how they ended, until there are as many as wanted."""

    def __init__(
        self,
        opened: OpenStudy,
        prepared: Prepared,
        choices: Choices,
        *,
        trials: int,
        slots: int,
        on_progress: OnProgress | None,
    ) -> None:
        self._opened, self._study = opened, opened.study
        self._prepared, self._choices, self._slots = prepared, choices, slots
        self._on_progress = on_progress
        space = choices.space
        self._points = choices.grid()
        self._adamw_too = "adamw" in space.solver
        self._trials, self._most_convex = trials, trials // 2 if self._adamw_too else trials
        self._offered = choices.combinations(choices.vectors)
        if len(self._offered) > self._most_convex:  # some of them, each once
            order = np.random.default_rng(prepared.seed).permutation(len(self._offered))
            self._offered = [self._offered[at] for at in order]
        self._stacks: dict[str, _Stack] = {}  # by inputs
        self._most_in_flight = slots if len({*choices.vectors, *choices.frames}) == 1 else 2 * slots
        self._rungs = [2**power for power in range(20) if 2**power < space.epochs[1]]
        self._median = self._study.pruner
        self._ended = 0

    def run(self) -> None:
        """Until the study has as many finished trials as wanted."""
        current: _Stack | None = None
        while True:
            fullest = max(self._stacks.values(), key=lambda stack: stack.in_flight, default=None)
            if current is None or (
                fullest is not None and fullest.in_flight > max(current.in_flight, current.trainer.live)
            ):
                current = fullest
            if current is not None and current.in_flight:
                self._train_epoch(current)
            elif (asked := self._ask()) is not None:
                self._begin(asked)
            else:
                self._opened.sync()
                return

    def _ask(self) -> _Asked | None:
        """The next trial, one that was interrupted first; None where all are asked for, or enough are in flight."""
        if sum(stack.in_flight for stack in self._stacks.values()) >= self._most_in_flight:
            return None
        known = self._study.get_trials(deepcopy=False)
        taken = [trial for trial in known if trial.state in (*FINISHED, TrialState.RUNNING)]
        if len(taken) >= self._trials:
            return None
        if not any(trial.state == TrialState.WAITING for trial in known):  # else it was queued just before a kill
            if (interrupted := interrupted_trial(known)) is not None:
                self._queue_again(interrupted, known)
            elif (fixed := self._next_convex(known)) is not None:
                self._queue_convex(fixed)
            elif not self._adamw_too:
                return None
        trial, _ = self._opened.ask(self._prepared.seed)
        if trial.user_attrs.get(SOLVER) == "convex":
            settings = self._combinations(known)[trial.user_attrs[COMBINATION]]
            self._choices.ask_convex(trial, settings)
            return _Asked(trial, settings)
        return _Asked(trial, self._choices.ask(trial))

    def _queue_convex(self, settings: HeadSettings, **notes: Any) -> None:
        """Queues a trial that solves a combination."""
        notes = {SOLVER: "convex", COMBINATION: combination_name(settings), **notes}
        self._study.enqueue_trial(combination_params(settings), user_attrs=notes)

    def _queue_again(self, interrupted: FrozenTrial, known: Sequence[FrozenTrial]) -> None:
        """Queues a trial with its settings; interrupted while they were drawn, it draws them again."""
        attributes = interrupted.user_attrs
        again = {AGAIN: attributes.get(AGAIN, interrupted.number)}
        if attributes.get(SOLVER) == "convex":
            self._queue_convex(self._combinations(known)[attributes[COMBINATION]], **again)
        else:
            is_drawn = trial_settings(interrupted, self._choices) is not None
            self._study.enqueue_trial(interrupted.params if is_drawn else {}, user_attrs=again)

    def _next_convex(self, known: Sequence[FrozenTrial]) -> HeadSettings | None:
        """The combination that the convex solver takes next; None after the last."""
        started = {trial.user_attrs[COMBINATION] for trial in known if trial.user_attrs.get(SOLVER) == "convex"}
        if len(started) >= self._most_convex:
            return None
        return next((one for name, one in self._combinations(known).items() if name not in started), None)

    def _combinations(self, known: Sequence[FrozenTrial]) -> dict[str, HeadSettings]:
        """What the convex solver takes, by name: what is offered, and each time that is solved, a step of `leading`."""
        found = {combination_name(one): one for one in self._offered}
        value_of: dict[str, float] = {}
        for trial in known:
            if trial.user_attrs.get(SOLVER) == "convex" and trial.state == TrialState.COMPLETE:
                inputs = trial.user_attrs[CHOSEN]["inputs"]
                value_of[inputs] = max(trial_value(trial), value_of.get(inputs, 0.0))
        ended = {trial.user_attrs.get(COMBINATION) for trial in known if trial.state in FINISHED}
        for step in self._choices.leading(value_of):
            if not found.keys() <= ended:
                break
            found |= {combination_name(one): one for one in self._choices.combinations(step)}
        return found

    def _begin(self, asked: _Asked) -> None:
        """Solves a convex trial, or queues one that is trained by AdamW with those of the same inputs."""
        if asked.settings.solver == "convex":
            self._solve(asked)
            return
        inputs = asked.settings.inputs
        if inputs not in self._stacks:
            validation = self._prepared.validation(inputs)
            trainer = StackedTrainer(
                self._prepared.clips(inputs),
                slots=self._slots,
                X_validation=validation.X,
                score=lambda scores: macro_f1(validation.Y, scores),
                rungs=self._rungs,
            )
            self._stacks[inputs] = _Stack(trainer)
        self._stacks[inputs].waiting.append(asked)

    def _solve(self, asked: _Asked) -> None:
        try:
            solved = solve_trial(self._prepared, asked.settings, self._points)
        except TrainingDataError as error:  # no point converged; the study records the reason
            self._end(asked.trial, None, {"reason": str(error)})
            return
        self._end(
            asked.trial,
            solved.value,
            {
                CHOSEN: solved.settings.to_mapping(),
                COUNTS: solved.counts.tolist(),
                OWN: solved.own.tolist(),
                "converged": solved.converged,
            },
        )

    def _train_epoch(self, stack: "_Stack") -> None:
        """Refills a stack, from what waits for it and by asking, trains it for an epoch and tells what ended."""

        def next_settings() -> HeadSettings | None:
            while not stack.waiting:
                asked = self._ask()
                if asked is None:
                    return None
                self._begin(asked)
            taken = stack.waiting.popleft()
            stack.training[stack.started] = taken
            stack.started += 1
            return taken.settings

        def at_rung(reports: Sequence[RungReport]) -> list[int]:
            return [report.number for report in reports if self._is_pruned(stack.training[report.number], report)]

        for fitted in stack.trainer.train_epoch(next_settings, at_rung):
            self._end_trained(stack.training.pop(fitted.number).trial, fitted)

    def _is_pruned(self, asked: _Asked, report: RungReport) -> bool:
        is_solved = self._most_convex > 0 and bool(self._offered) and asked.settings.kind == "linear"
        if report.epoch == 1 and not is_solved:  # the median's rungs begin at 2
            return False
        self._study.pruner = HALVING if is_solved else self._median
        asked.trial.report(report.value, report.epoch)
        return asked.trial.should_prune()

    def _end_trained(self, trial: optuna.Trial, fitted: FittedHead) -> None:
        if fitted.outcome == "finished":
            self._end(trial, fitted.value, {EPOCHS: fitted.epochs}, step=fitted.epochs)
        else:
            self._end(trial, None, {DIVERGED: fitted.epochs} if fitted.outcome == "diverged" else {})

    def _end(self, trial: optuna.Trial, value: float | None, notes: dict[str, Any], step: int | None = None) -> None:
        """Tells how a trial ended: completed with a value, pruned without one."""
        for name, note in notes.items():
            trial.set_user_attr(name, note)
        if step is not None and value is not None:
            trial.report(value, step)
        self._study.tell(trial, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
        self._ended += 1
        if self._ended % self._slots == 0:
            self._opened.sync()
        if self._on_progress is not None:
            finished = self._study.get_trials(deepcopy=False, states=FINISHED)
            solved = [one for one in finished if one.user_attrs.get(SOLVER) == "convex"]
            best = best_trial(solved) or best_trial(finished)
            total = self._trials if self._adamw_too else min(self._trials, len(self._combinations(finished)))
            self._on_progress(len(finished), total, None if best is None else trial_value(best))
