"""A small network and clips for the fine-tuning loop, light to import in other processes."""

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from heads.finetuning.loop import FineTuning
from heads.finetuning.training_state import Group, positive_weight

if TYPE_CHECKING:
    import pytest


class SmallNetwork(nn.Module):
    """A backbone and a head of a few numbers; refuses more clips at once than `most`, as a full device does."""

    def __init__(self, dropout: float = 0.3, most: int = 100) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.language_model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(8, 2)
        self.most = most

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        if len(rows["x"]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.head(self.language_model(rows["x"]))


class SmallClips:
    """Clips whose first label can be learned."""

    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.x = torch.from_numpy(draw.standard_normal((count, 6)).astype(np.float32))
        self.Y = np.stack([self.x[:, 0] * self.x[:, 1] > 0, draw.random(count) < 0.4], axis=1).astype(np.int8)

    def read(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {"x": self.x[list(numbers)]}

    def expect(self, numbers: Sequence[int]) -> None:
        self.expected = list(numbers)


def assert_halved_steps_are_the_same(
    whole: FineTuning, short: FineTuning, *, training: bool, bound: float, monkeypatch: "pytest.MonkeyPatch"
) -> None:
    """Runs two equal loops of micro-batches of 4, of which one has memory for a clip at once, in training or scoring.

    Each time that a device's cache is emptied, the tensors of the failed attempt must be gone.
    """
    failed: list[weakref.ref[Tensor]] = []
    gone: list[bool] = []

    def ask(module: nn.Module, rows: tuple[Mapping[str, Tensor]]) -> None:
        if module.training == training and len(next(iter(rows[0].values()))) > 1:
            of_this_attempt = torch.zeros(1)
            failed.append(weakref.ref(of_this_attempt))
            torch.empty(10**15)

    short.network.register_forward_pre_hook(ask)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: gone.append(all(one() is None for one in failed)))
    whole.run()
    short.run()
    assert (whole.micro_batch, short.micro_batch) == (4, 1)
    assert gone == [True, True]
    assert all(torch.allclose(one, parameters(whole)[name], atol=bound) for name, one in parameters(short).items())


GROUPS = (Group("language_model.", 1e-3, 0.0), Group("head.", 1e-2, 0.1))


def loop(network: nn.Module | None = None, groups: Sequence[Group] = GROUPS, **options: Any) -> FineTuning:
    train = SmallClips(37, 1)
    chosen: dict[str, Any] = {
        "positive_weight": positive_weight(train.Y, exponent=0.5),
        "epochs": 4,
        "patience": 0,
        "select": "loss",
        "batch_size": 8,
        "micro_batch": 4,
        "warmup": 0.1,
        "clip_norm": 1.0,
        "seed": 3,
        **options,
    }
    return FineTuning(network or SmallNetwork(), groups, train, SmallClips(20, 2), **chosen)


def parameters(run: FineTuning) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in run.trainable.items()}
