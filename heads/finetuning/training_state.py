"""What a training of a backbone reads, and what it says of itself: clips, parameters, epochs, progress, cost."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Rows = Mapping[str, Tensor]
"""What a network reads of B clips, by name, each (B, ...)."""


class Clips(Protocol):
    """Labelled clips that are read a few at a time.

    Attributes:
        Y: Targets, shape (N, C), 0 or 1.
        clip_ids: Ids of the N clips.
    """

    Y: npt.NDArray[np.integer]
    clip_ids: tuple[str, ...]

    def read(self, numbers: Sequence[int]) -> Rows:
        """What the network reads of these clips, on the CPU; called from another thread."""
        ...

    def expect(self, numbers: Sequence[int]) -> None:
        """Which clips will be read next, in this order, so that what is slow to read can be read ahead."""
        ...


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate.

    Attributes:
        prefix: Prefix of their names in the network.
        learning_rate: At its highest.
        weight_decay: Weight decay of matrices, as in AdamW; vectors do not decay.
        l2: (l2 / 2) w' P w, summed over the rows w of each matrix, is added to the loss, which is not the same thing;
            not to the losses that are told.
        penalise: P, as a function of rows; the identity by default. The first process alone asks for it.
    """

    prefix: str
    learning_rate: float
    weight_decay: float
    l2: float = 0.0
    penalise: Callable[[Tensor], Tensor] = lambda rows: rows


@dataclass(frozen=True)
class Epoch:
    """Scores after an epoch; epoch 0 is the network before training."""

    epoch: int
    train_loss: float | None
    validation_loss: float
    validation_macro_f1: float


@dataclass(frozen=True)
class Training:
    """Where a run stands.

    Attributes:
        step: Steps done.
        steps: Steps of the whole run, if it is not stopped early.
        loss: Loss of the last batch; None at the start.
        epochs: Scored so far.
        micro_batch: Clips at once by now.
        elapsed_s: Seconds since this process began.
    """

    step: int
    steps: int
    loss: float | None
    epochs: tuple[Epoch, ...]
    micro_batch: int
    elapsed_s: float


@dataclass(frozen=True)
class Cost:
    """What clips cost, measured.

    Attributes:
        train_s: Seconds per clip, forward and backward.
        score_s: Seconds per clip, forward alone.
        peak_bytes: Peak memory so far: the device's, or this process's on a CPU.
    """

    train_s: float
    score_s: float
    peak_bytes: int


def positive_weight(Y: npt.NDArray[np.integer], *, exponent: float | tuple[float, ...]) -> Tensor:
    """Each label's weight of the positive term: (negatives / positives) ^ exponent, (C,); exponents may be."""
    positives = Y.sum(axis=0, dtype=np.float64)
    return torch.from_numpy(((len(Y) - positives) / positives) ** np.asarray(exponent)).float()


def parameter_groups(trainable: Mapping[str, nn.Parameter], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """What an optimiser takes: each group's matrices with its weight decay, and its vectors without.

    Raises:
        ValueError: If a parameter is of no group.
    """
    made: list[dict[str, Any]] = []
    left = copy.copy(dict(trainable))
    for group in groups:
        own = {name: left.pop(name) for name in list(left) if name.startswith(group.prefix)}
        for parameters, decay in (
            ([one for one in own.values() if one.ndim > 1], group.weight_decay),
            ([one for one in own.values() if one.ndim <= 1], 0.0),
        ):
            if parameters:
                made.append({"params": parameters, "lr": group.learning_rate, "weight_decay": decay})
    if left:
        raise ValueError(f"every trainable parameter must be of a group, but {min(left)} is of none.")
    return made


def micro_batch_seed(seed: int, step: int, clip: int) -> int:
    """A generator's seed of its own for each micro-batch."""
    return int(np.random.SeedSequence((seed, step, clip)).generate_state(1, np.uint64)[0] >> 1)


def read_ahead(
    clips: Clips, numbers: Sequence[int], micro_batch: int, *, places: Sequence[int] | None = None
) -> Iterator[tuple[Sequence[int], Rows]]:
    """Micro-batches with their rows; the next one is read while the last is computed.

    Yields:
        Numbers of the clips, or their `places`, and their rows.
    """
    starts = range(0, len(numbers), micro_batch)
    parts = [numbers[start : start + micro_batch] for start in starts]
    named = parts if places is None else [places[start : start + micro_batch] for start in starts]
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(clips.read, parts[0])] if parts else []
        for number, part in enumerate(named):
            rows = coming.pop().result()
            if number + 1 < len(parts):
                coming.append(reader.submit(clips.read, parts[number + 1]))
            yield part, rows


def clock_s(device: torch.device) -> float:
    """Seconds of a clock that never goes back, read when the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
