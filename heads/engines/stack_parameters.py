"""The parameters of stacked heads: one tensor for all, and what each head has of it."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from heads.settings import HeadSettings


class Parameter:
    """One parameter of all heads: rows of the heads one after the other, with gradient and AdamW's two moments.

    Args:
        width: Width of a row.
        decays: Whether weight decay acts on it.
        device: Where it lives.
    """

    def __init__(self, width: int, *, decays: bool, device: torch.device) -> None:
        self.decays = decays
        self.counts: list[int] = []  # rows per head
        self._stores = [torch.zeros(0, width, device=device) for _ in range(4)]

    @property
    def value(self) -> Tensor:
        """(R, width)."""
        return self._stores[0][: sum(self.counts)]

    @property
    def gradient(self) -> Tensor:
        """Of the loss over the clips since a head's last step, (R, width)."""
        return self._stores[1][: sum(self.counts)]

    def rows(self, head: int) -> slice:
        """Where a head's rows are."""
        start = sum(self.counts[:head])
        return slice(start, start + self.counts[head])

    def of_head(self, head: int) -> list[Tensor]:
        """A head's value, gradient, and AdamW's means of gradients and of squares, each (rows, width)."""
        rows = self.rows(head)
        return [store[rows] for store in self._stores]

    def append(self, value: Tensor) -> None:
        """Adds a head's rows behind all others; memory grows by doubling, so a head that follows another takes none."""
        start, end = sum(self.counts), sum(self.counts) + len(value)
        self.counts.append(len(value))
        for index, store in enumerate(self._stores):
            if end > len(store):
                self._stores[index] = store.new_zeros(max(end, 2 * len(store)), store.shape[1])
                self._stores[index][:start] = store[:start]
            self._stores[index][start:end] = value if index == 0 else 0

    def remove(self, head: int) -> None:
        """Drops a head's rows; those behind move up."""
        rows, end = self.rows(head), sum(self.counts)
        for store in self._stores:
            store[rows.start : end - self.counts[head]] = store[rows.stop : end].clone()
        del self.counts[head]


class Member:
    """A head of the stack: its settings, how far it is, and views of its rows."""

    def __init__(self, settings: HeadSettings, clip_count: int, device: torch.device, seed: int) -> None:
        self.settings = settings
        self.batch_size = min(settings.batch_size, clip_count)
        self.steps = 0
        self.step_count = torch.zeros((), device=device)  # AdamW's own
        self.generator = torch.Generator(device).manual_seed(seed)
        self.noise: Tensor | None = None  # (clips of the batch, H): which hidden units each clip keeps, scaled
        self.masks: Tensor | None = None  # which features the clips of a batch keep, scaled, for all steps together
        self.mask: Tensor | None = None  # (D,): the stretch of it that is in use
        self.groups: list[tuple[float, list[list[Tensor]]]] = []  # decay; values, gradients, means, squares
        self.dropped: list[Tensor] = []  # rows that feature dropout acts on: value, gradient, effective value
        self.undropped: list[Tensor] = []  # the other rows: value, effective value


def split_deeper(widths: Sequence[Sequence[int]], weights: Tensor, biases: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """The layers above the first of each head: values of all heads, (n, 1), as matrices (above, below) and biases."""
    of_heads, weight_at, bias_at = [], 0, 0
    for own in widths:
        layers = []
        for below, above in pairwise(own):
            matrix = weights[weight_at : weight_at + above * below].view(above, below)
            layers.append((matrix, biases[bias_at : bias_at + above, 0]))
            weight_at, bias_at = weight_at + above * below, bias_at + above
        of_heads.append(layers)
    return of_heads


def initial_hidden(width: int, taps: int, feature_width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Hidden weights (taps * H, D) and biases (H, 1), uniform as `torch.nn.Linear` and `Conv1d` draw them."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(taps * feature_width)
    weight = torch.empty(taps * width, feature_width).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(width, 1).uniform_(-bound, bound, generator=generator)
