"""One way to fit: K heads at once, sharing every pass over the features (K = 1 is the same code).

Source: Guerriero et al., section 3.5 (FT-LC). The loss is weighted binary cross-entropy with logits, the
mean over clips and labels; the optimiser is AdamW. Notable choices:

- Features are shuffled once, into one contiguous copy in their own dtype. Each epoch starts at another
  random place of that circle, so batches are slices and their borders move; a slice becomes float32 when used.
- Heads that share features (raw or standardised) train as one stack (`stack.py`); where a batch size
  does not divide another the heads go into separate stacks.
- A head's result does not depend on its company, up to rounding: data order and noise come from the seed alone.
- At rungs, a callback sees the validation scores of all live heads and says which stop.

What this is not: a search (`search.py`), or a place that reads or writes files.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.errors import SettingsError, TrainingDataError
from heads.data import row_blocks
from heads.models import Head, log_prior_odds
from heads.settings import HeadSettings
from heads.stack import HeadStack

Scores = npt.NDArray[np.float32]
Outcome = Literal["finished", "stopped", "diverged"]
AtRung = Callable[[int, Mapping[int, Scores]], Collection[int]]
"""Called as `at_rung(epoch, {head: validation scores (N, C)})` after `epoch` epochs; returns the heads that stop."""


@dataclass(frozen=True)
class FittedHead:
    """What became of one head.

    Attributes:
        settings: As given.
        outcome: `finished` all epochs; `stopped` at a rung; `diverged`: loss or weights were no longer finite.
        epochs: Epochs trained.
        train_loss: Mean loss over the last epoch; NaN or infinite if diverged.
        head: The head, on the CPU; None if stopped or diverged.
    """

    settings: HeadSettings
    outcome: Outcome
    epochs: int
    train_loss: float
    head: Head | None

    def diverged_error(self) -> SettingsError:
        """What a caller raises that cannot do without the head."""
        return SettingsError(
            f"training must stay finite, but it diverged in epoch {self.epochs} with learning_rate "
            f"{self.settings.learning_rate:g} and weight_decay {self.settings.weight_decay:g}. Lower the learning rate."
        )


class TrainingClips:
    """Training clips made ready for any number of fits: shuffled once, standardised once.

    Args:
        X: Features, shape (N, D), float16 or float32.
        Y: Targets, shape (N, C), 0 or 1.
        seed: Of the data's order.
        device: Where the copy lives and training runs.

    Raises:
        TrainingDataError: If a label is never or always on: its prior odds are not finite.
    """

    def __init__(
        self, X: npt.NDArray[np.floating], Y: npt.NDArray[np.integer], *, seed: int, device: str = "cpu"
    ) -> None:
        positives = Y.sum(axis=0, dtype=np.int64)
        if not ((positives > 0) & (positives < len(Y))).all():
            raise TrainingDataError(
                f"each label must be on in some training clips and off in others, but of {len(Y)} clips "
                f"{positives.tolist()} are on, label by label. Leave such labels out."
            )
        self.seed = seed
        self.device = torch.device(device)
        self.prior_log_odds = log_prior_odds(Y)
        self.negatives_per_positive = torch.from_numpy((len(Y) - positives) / positives)  # (C,)
        self._X = _as_tensor(X)
        self._order = torch.from_numpy(np.random.default_rng(seed).permutation(len(X)))
        self.targets = torch.from_numpy(Y.astype(np.float32))[self._order].to(self.device)
        self._copies: dict[bool, Tensor] = {}
        self._moments: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._X)

    @property
    def feature_width(self) -> int:
        """D, the features' width."""
        return self._X.shape[1]

    def mean_and_scale(self, *, standardize: bool) -> tuple[Tensor, Tensor]:
        """What is subtracted and divided by, both (D,) float32; a constant feature has scale 1."""
        if not standardize:
            return torch.zeros(self.feature_width), torch.ones(self.feature_width)
        if self._moments is None:
            self._moments = _mean_and_scale(self._X)
        return self._moments

    def features(self, *, standardize: bool) -> Tensor:
        """The shuffled copy, (N, D), in the features' own dtype; made at first use."""
        if standardize not in self._copies:
            mean, scale = self.mean_and_scale(standardize=standardize)
            copy = torch.empty_like(self._X)
            for rows in row_blocks(len(copy)):
                block = self._X[self._order[rows]]
                copy[rows] = ((block.float() - mean) / scale).to(block.dtype) if standardize else block
            self._copies[standardize] = copy.to(self.device)
        return self._copies[standardize]

    def slices(self, size: int, epoch: int, *, standardize: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch: x (B, D) float32 and y (B, C) in order from a start that seed and epoch give; x is reused."""
        X, N = self.features(standardize=standardize), len(self)
        start = int(np.random.default_rng((self.seed, epoch)).integers(N))
        buffer = torch.empty(min(size, N), self.feature_width, device=self.device)
        for seen in range(0, N, size):
            count = min(size, N - seen)
            here = (start + seen) % N
            before_end = min(count, N - here)
            x = buffer[:count]
            x[:before_end].copy_(X[here : here + before_end])
            x[before_end:].copy_(X[: count - before_end])
            y = torch.cat([self.targets[here : here + before_end], self.targets[: count - before_end]])
            yield x, y


@torch.no_grad()
def fit_heads(
    clips: TrainingClips,
    settings: Sequence[HeadSettings],
    *,
    X_validation: npt.NDArray[np.floating] | None = None,
    rungs: Collection[int] = (),
    at_rung: AtRung | None = None,
) -> list[FittedHead]:
    """Trains heads on the same clips.

    Args:
        clips: The training clips.
        settings: One per head.
        X_validation: Features that `at_rung` gets scores of, (N, D), in rows as given.
        rungs: Epochs after which `at_rung` is called with all live heads of a stack. It is also called with
            the heads that finish, after their last epoch.
        at_rung: See `AtRung`; needs X_validation. An exception it raises ends the training.

    Returns:
        One result per head, in the order of `settings`.

    Raises:
        ValueError: If only one of at_rung and X_validation is given.
    """
    if (at_rung is None) != (X_validation is None):
        raise ValueError("at_rung and X_validation go together, but only one of them is given. Give both or none.")
    validation = None if X_validation is None else _as_tensor(X_validation)
    results: dict[int, FittedHead] = {}
    for members in _stacks(settings, len(clips)):
        _fit_stack(clips, settings, members, validation, frozenset(rungs), at_rung, results)
    return [results[index] for index in range(len(settings))]


def _stacks(settings: Sequence[HeadSettings], clip_count: int) -> list[list[int]]:
    """Which heads train together: same kind and features, batch sizes each dividing the next, or all clips."""
    stacks: list[list[int]] = []
    for index in sorted(range(len(settings)), key=lambda index: settings[index].batch_size):
        ours = settings[index]
        for stack in stacks:
            last = settings[stack[-1]]
            same = (ours.kind, ours.standardize) == (last.kind, last.standardize)
            if same and (ours.batch_size % last.batch_size == 0 or ours.batch_size >= clip_count):
                stack.append(index)
                break
        else:
            stacks.append([index])
    return stacks


def _fit_stack(
    clips: TrainingClips,
    settings: Sequence[HeadSettings],
    members: list[int],
    X_validation: Tensor | None,
    rungs: frozenset[int],
    at_rung: AtRung | None,
    results: dict[int, FittedHead],
) -> None:
    live = list(members)
    standardize = settings[live[0]].standardize
    mean, scale = clips.mean_and_scale(standardize=standardize)
    exponents = torch.tensor([settings[index].positive_weight_exponent for index in live], dtype=torch.float64)
    stack = HeadStack(
        [settings[index] for index in live],
        feature_width=clips.feature_width,
        prior_log_odds=clips.prior_log_odds,
        positive_weights=(clips.negatives_per_positive ** exponents.unsqueeze(1)).float(),
        seed=clips.seed,
        device=clips.device,
    )
    epoch = 0
    while live:
        sizes = [settings[index].batch_size for index in live]
        seen = 0
        for x, y in clips.slices(sizes[0], epoch, standardize=standardize):
            stack.accumulate(x, y)
            seen += len(x)
            due = len(live) if seen == len(clips) else sum(seen % size == 0 for size in sizes)
            if due:
                stack.step(due)
        epoch += 1
        losses = [loss / (len(clips) * stack.label_count) for loss in stack.take_loss()]
        finite = stack.are_finite()
        diverged = {index for at, index in enumerate(live) if not (finite[at] and np.isfinite(losses[at]))}
        finished = {index for index in live if settings[index].epochs == epoch} - diverged
        stopped: set[int] = set()
        if at_rung is not None and X_validation is not None and (epoch in rungs or finished):
            shown = [i for i in live if i not in diverged and (epoch in rungs or i in finished)]
            scores = _validation_scores(stack, [live.index(i) for i in shown], X_validation, mean, scale, clips.device)
            stopped = set(at_rung(epoch, dict(zip(shown, scores, strict=True))))
        for at, index in enumerate(live):
            if index in finished:
                head = stack.export(at, mean, scale)
                results[index] = FittedHead(settings[index], "finished", epoch, losses[at], head)
            elif index in diverged or index in stopped:
                outcome: Outcome = "diverged" if index in diverged else "stopped"
                results[index] = FittedHead(settings[index], outcome, epoch, losses[at], None)
        left = [at for at, index in enumerate(live) if index not in results]
        if left and len(left) < len(live):
            stack.keep(left)
        live = [live[at] for at in left]


def _validation_scores(
    stack: HeadStack,
    heads: list[int],
    X: Tensor,
    mean: Tensor,
    scale: Tensor,
    device: torch.device,
) -> list[Scores]:
    """Each asked head's probabilities of validation clips, (N, C), by one product for the whole stack."""
    scores = np.empty((len(heads), len(X), stack.label_count), np.float32)
    for rows in row_blocks(len(X)):
        block = (X[rows].float() - mean) / scale
        probabilities = torch.sigmoid(stack.logits(block.to(device)))[:, heads]  # (B, asked, C)
        scores[:, rows] = probabilities.transpose(0, 1).cpu().numpy()
    return list(scores)


def _as_tensor(X: npt.NDArray[np.floating]) -> Tensor:
    """The array's own memory, or a copy if it is read-only, which torch has no notion of."""
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


def _mean_and_scale(X: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per feature, summed in float64 over blocks; 1 where a feature is constant."""
    total = torch.zeros(X.shape[1], dtype=torch.float64)
    for rows in row_blocks(len(X)):
        total += X[rows].float().sum(dim=0)
    mean = (total / len(X)).float()
    squares = torch.zeros_like(total)
    for rows in row_blocks(len(X)):
        squares += (X[rows].float() - mean).square().sum(dim=0)
    deviation = (squares / len(X)).sqrt().float()
    is_constant = deviation <= mean.abs() * torch.finfo(torch.float32).eps
    return mean, torch.where(is_constant, torch.ones_like(deviation), deviation)
