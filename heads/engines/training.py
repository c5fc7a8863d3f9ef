"""Training by AdamW: K heads at once, sharing every pass over the features (K = 1 is the same code).

Source: Guerriero et al., section 3.5 (FT-LC). The loss is weighted binary cross-entropy with logits, the
mean over clips and labels; the optimiser is AdamW. Notable choices:

- Slots are refilled as language-model servers refill their batches: where a head ends, the next one begins with the
  next epoch while its neighbours go on. That works because every epoch is the same slices (`training_clips.py`).
- Heads of one kind and view train as one stack (`stack.py`); other stacks take the same clips in turn.
- A head's result does not depend on its company or on when it began, up to rounding: data order and noise come from
  the seed alone.
- At rungs a callback says which heads stop; heads with patience are scored after each epoch.

What this is not: a search (`search.py`), the solver of convex heads, or a place that reads or writes files.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.errors import SettingsError
from heads.data import row_blocks
from heads.engines.stack import HeadStack
from heads.engines.training_clips import Features, TrainingClips, View, as_tensor, on_device
from heads.models import Head
from heads.settings import OF_FRAMES, HeadSettings

Scores = npt.NDArray[np.float32]
Outcome = Literal["finished", "stopped", "diverged"]


@dataclass(frozen=True, eq=False)
class RungReport:
    """How far one head is at a rung.

    Attributes:
        number: Number of the head, in the order in which settings were given, from 0.
        epoch: Epochs trained.
        value: What the score function makes of the validation clips' probabilities.
    """

    number: int
    epoch: int
    value: float


NextSettings = Callable[[], HeadSettings | None]
"""Gives the settings of the next head, or None while there are none."""

ScoreFunction = Callable[[Scores], float]
"""From probabilities of the validation clips (N, C) to a value of which more is better."""

AtRung = Callable[[Sequence[RungReport]], Collection[int]]
"""Gets the heads of a stack that are at a rung, none of them at its end; returns the numbers of those that stop."""


@dataclass(frozen=True)
class FittedHead:
    """What became of one head.

    Attributes:
        number: Number of the head, in the order in which settings were given, from 0.
        settings: As given.
        outcome: `finished`, by its epochs or its patience; `stopped` at a rung; `diverged`: loss or weights were no
            longer finite.
        epochs: Epochs behind the head: with patience those of the best one, or else all that were trained.
        train_loss: Mean loss over the last of these epochs; NaN or infinite if diverged.
        value: Validation score after these epochs; None if diverged, or nothing is scored.
        head: The head, on the CPU; None if stopped or diverged.
    """

    number: int
    settings: HeadSettings
    outcome: Outcome
    epochs: int
    train_loss: float
    value: float | None
    head: Head | None

    def diverged_error(self) -> SettingsError:
        """What a caller raises that cannot do without the head."""
        return SettingsError(
            f"training must stay finite, but it diverged in epoch {self.epochs} with learning_rate "
            f"{self.settings.learning_rate:g} and weight_decay {self.settings.weight_decay:g}. Lower the learning rate."
        )


@dataclass(eq=False)
class _Trainee:
    """A head in a slot; `best` is the epoch to go back to: its number, loss, report and parameters."""

    number: int
    settings: HeadSettings
    epoch: int = 0
    last: RungReport | None = None
    best: tuple[int, float, RungReport, list[Tensor]] | None = None


class StackedTrainer:
    """Trains any number of heads on the same clips, `slots` of them at a time.

    Args:
        clips: The training clips.
        slots: Heads that train at once.
        X_validation: Features that heads are scored on, (N, ...) as stored.
        score: See `ScoreFunction`; needed with X_validation.
        rungs: Epochs after which `at_rung` is asked.

    Raises:
        ValueError: If only one of X_validation and score is given.
    """

    def __init__(
        self,
        clips: TrainingClips,
        *,
        slots: int,
        X_validation: Features | None = None,
        score: ScoreFunction | None = None,
        rungs: Collection[int] = (),
    ) -> None:
        if (X_validation is None) != (score is None):
            raise ValueError("X_validation and score go together, but only one of them is given. Give both or none.")
        self._clips = clips
        self._slots = slots
        self._X_validation = None if X_validation is None else as_tensor(X_validation)
        self._score = score
        self._rungs = frozenset(rungs)
        self._validation: dict[View, Tensor] = {}  # float32, so that values are exactly those of the finished heads
        self._stacks: dict[tuple[str, View], tuple[HeadStack, list[_Trainee]]] = {}
        self._started = 0

    @property
    def live(self) -> int:
        """Heads in training."""
        return sum(len(trainees) for _, trainees in self._stacks.values())

    def run(self, next_settings: NextSettings, at_rung: AtRung | None = None) -> Iterator[FittedHead]:
        """Trains until no head is left and `next_settings` gives none.

        Args:
            next_settings: Asked whenever a slot is free, after all heads that ended have been given out.
            at_rung: See `AtRung`. An exception it raises ends the training.

        Yields:
            Heads as they end, numbered from 0. A head that diverged or stopped is given out in the same epoch.

        Raises:
            SettingsError: If settings cannot train here: they are of the convex solver, ask for patience where nothing
                is scored, or are of a kind that does not take these features.
        """
        self._stacks.clear()  # of a run that was left
        self._started = 0
        while True:
            yield from self.train_epoch(next_settings, at_rung)
            if not self.live:
                self._fill(next_settings)
                if not self.live:
                    return

    @torch.no_grad()
    def train_epoch(self, next_settings: NextSettings, at_rung: AtRung | None = None) -> list[FittedHead]:
        """One epoch of a run, for callers that have several trainers take turns: fills the slots and trains.

        Arguments and errors as for `run`.

        Returns:
            The heads that ended.
        """
        self._fill(next_settings)
        if self.live:
            self._train_epoch()
        return [fitted for key in list(self._stacks) for fitted in self._end_epoch(key, at_rung)]

    @torch.no_grad()
    def _fill(self, next_settings: NextSettings) -> None:
        while self.live < self._slots and (settings := next_settings()) is not None:
            self._start(_Trainee(self._started, settings))
            self._started += 1

    def _start(self, trainee: _Trainee) -> None:
        settings, clips = trainee.settings, self._clips
        self._check(settings)
        view = View(settings.normalization, settings.components)
        key = (settings.kind, view)
        if key not in self._stacks:
            stack = HeadStack(
                settings.kind,
                feature_width=clips.front(view).output_width,
                prior_log_odds=clips.prior_log_odds,
                clip_count=len(clips),
                seed=clips.seed,
                device=clips.device,
            )
            self._stacks[key] = stack, []
        stack, trainees = self._stacks[key]
        balance = clips.negatives_per_positive
        balance = balance ** balance.new_tensor(settings.exponents(len(balance)))
        stack.add(settings, balance.float())
        trainees.append(trainee)

    def _check(self, settings: HeadSettings) -> None:
        if settings.solver != "adamw":
            raise SettingsError(
                f'training by SGD/AdamW must have solver "adamw", but it is {settings.solver!r}. Use solve_grid.'
            )
        if settings.patience and self._score is None:
            raise SettingsError(
                f"patience must be 0 where no validation clips are scored, but it is {settings.patience}. "
                "Give validation clips, or set patience = 0."
            )
        if settings.teacher_weight and self._clips.teacher is None:
            raise SettingsError(
                f"teacher_weight must be 0 where there is no teacher, but it is {settings.teacher_weight:g}. "
                "Give its weights, or set teacher_weight = 0."
            )
        of_frames = settings.kind in OF_FRAMES
        if len(self._clips.row_shape) != 1 + of_frames:
            needs = "features of frames or parts (T, D)" if of_frames else "one feature vector (D,)"
            raise SettingsError(
                f"a head of kind {settings.kind!r} must have {needs} per clip, but a clip's features have shape "
                f"{self._clips.row_shape}. Choose other inputs, or another kind."
            )
        if settings.kind == "temporal" and self._clips.has_absent:
            raise SettingsError(
                'a head of kind "temporal" must have all time steps, but some samples have absent parts. Choose '
                'kind = "attention", which leaves them out.'
            )

    def _train_epoch(self) -> None:
        for (_, view), (stack, _) in self._stacks.items():
            stack.train(self._clips.features(view), self._clips.targets, seen=0, teacher=self._clips.teacher)

    def _end_epoch(self, key: tuple[str, View], at_rung: AtRung | None) -> Iterator[FittedHead]:
        """What an epoch means for the heads of one stack; gives out those that ended, and frees their slots."""
        stack, trainees = self._stacks[key]
        losses, finite = stack.take_loss(), stack.are_finite()
        for trainee in trainees:
            trainee.epoch += 1
        diverged = {at for at in range(len(trainees)) if not (finite[at] and np.isfinite(losses[at]))}
        ended = {at for at, trainee in enumerate(trainees) if trainee.epoch == trainee.settings.epochs} - diverged
        reports = self._reports(key, [at for at in range(len(trainees)) if at not in diverged], at_rung is not None)
        for at, report in reports.items():
            trainee = trainees[at]
            trainee.last = report
            if trainee.settings.patience:
                if trainee.best is None or report.value > trainee.best[2].value:
                    trainee.best = (trainee.epoch, losses[at], report, stack.values(at))
                elif trainee.epoch - trainee.best[0] >= trainee.settings.patience:
                    ended.add(at)
        stopped: set[int] = set()
        if at_rung is not None:
            shown = {r.number: at for at, r in reports.items() if at not in ended and r.epoch in self._rungs}
            if shown:
                numbers = at_rung([reports[at] for at in shown.values()])
                stopped = {shown[number] for number in numbers}
        fitted = []
        for at in sorted(diverged | ended | stopped):
            trainee = trainees[at]
            epoch, loss, head = trainee.epoch, losses[at], None
            last = trainee.last
            outcome: Outcome = "diverged" if at in diverged else "stopped" if at in stopped else "finished"
            if outcome == "diverged":
                last = None
            elif outcome == "finished":
                values = stack.values(at)
                if trainee.best is not None:
                    epoch, loss, last, values = trainee.best
                head = stack.export(trainee.settings, values, self._clips.front(key[1]))
            value = None if last is None else last.value
            fitted.append(FittedHead(trainee.number, trainee.settings, outcome, epoch, loss, value, head))
        for at in sorted(diverged | ended | stopped, reverse=True):
            stack.remove(at)
            del trainees[at]
        if not trainees:
            del self._stacks[key]
        yield from fitted

    def _reports(self, key: tuple[str, View], candidates: list[int], has_callback: bool) -> dict[int, RungReport]:
        """Scores those heads of a stack, given by place, that are at a rung, at their end, or have patience."""
        if self._score is None or self._X_validation is None:
            return {}
        stack, trainees = self._stacks[key]
        asked = [
            at
            for at in candidates
            if trainees[at].epoch == trainees[at].settings.epochs
            or trainees[at].settings.patience
            or (has_callback and trainees[at].epoch in self._rungs)
        ]
        if not asked:
            return {}
        X = self._validation_view(key[1], self._X_validation)
        scores = np.empty((len(asked), len(X), stack.label_count), np.float32)
        for rows in row_blocks(len(X)):
            probabilities = torch.sigmoid(stack.logits(X[rows].to(self._clips.device), asked))  # (B, asked, C)
            scores[:, rows] = probabilities.transpose(0, 1).cpu().numpy()
        return {
            at: RungReport(trainees[at].number, trainees[at].epoch, float(self._score(of_head)))
            for at, of_head in zip(asked, scores, strict=True)
        }

    def _validation_view(self, view: View, X: Tensor) -> Tensor:
        if view not in self._validation:
            front = self._clips.front(view)
            copy = torch.empty(*X.shape[:-1], front.output_width, device=self._clips.device)
            for rows in row_blocks(len(X)):
                copy[rows] = on_device(front.keeping_absent(X[rows].float()), self._clips.device)
            self._validation[view] = copy
        return self._validation[view]


def fit_heads(
    clips: TrainingClips,
    settings: Sequence[HeadSettings],
    *,
    X_validation: Features | None = None,
    score: ScoreFunction | None = None,
) -> list[FittedHead]:
    """Trains heads on the same clips, all at once.

    Args:
        clips: The training clips.
        settings: One per head.
        X_validation: As for `StackedTrainer`; heads with patience need it.
        score: As for `StackedTrainer`.

    Returns:
        One result per head, in the order of `settings`.

    Raises:
        ValueError, SettingsError: As for `StackedTrainer`.
    """
    waiting = iter(settings)
    trainer = StackedTrainer(clips, slots=len(settings), X_validation=X_validation, score=score)
    return sorted(trainer.run(lambda: next(waiting, None)), key=lambda fitted: fitted.number)
