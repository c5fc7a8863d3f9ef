"""A small network and clips for the fine-tuning loop, light to import in other processes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from heads.finetuning.loop import FineTuning
from heads.finetuning.training_state import Group, positive_weight

if TYPE_CHECKING:
    pass


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
