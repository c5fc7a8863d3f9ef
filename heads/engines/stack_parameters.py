"""The parameters of stacked heads: one tensor for all, and what each head has of it."""

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
