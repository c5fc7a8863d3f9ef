"""Training clips made ready for any number of fits: their order, and what heads see of them.

Notable choices:

- The order is drawn once and is the same in each epoch, so batches are the same slices in each epoch. That is what
  lets a head begin at any epoch of its neighbours and still see what it would see alone. Clips in memory are copied in
  that order; streamed ones keep the order of their blocks and are shuffled inside each.
- A *view* is what a head sees: features normalised, and maybe reduced to principal components. In memory a view is one
  contiguous copy in the features' own dtype, made at first use, block by block, where training runs; streamed, it is
  computed in float32 block by block.
- Statistics are summed in float64, by a pass of their own, so that both ways give the same view.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.device import device_of
from featurecache.errors import TrainingDataError
from heads.data import ROWS_AT_ONCE, row_blocks
from heads.engines.axes import AXES_AT_ONCE, leading_axes
from heads.models import Front

Features = npt.NDArray[np.floating] | Tensor
Targets = npt.NDArray[np.integer]


class View(NamedTuple):
    """What a head sees: the fields of `HeadSettings` of the same names."""

    normalization: str
    components: int


class ClipSource(ABC):
    """Training clips in a fixed order.

    Attributes:
        seed: Of the order.
        device: Where blocks come and training runs.
        prior_log_odds: Of each label, (C,).
        negatives_per_positive: Of each label, (C,).
        row_shape: A clip's features: (D,), or (T, D) of frames.
    """

    seed: int
    device: torch.device
    prior_log_odds: Tensor
    negatives_per_positive: Tensor
    row_shape: tuple[int, ...]

    def __init__(self, *, seed: int, device: str, part_widths: Sequence[int] | None) -> None:
        self.seed = seed
        self.device = torch.device(device_of(device))
        self._part_widths = part_widths
        self._fronts: dict[View, Front] = {}
        self._axes: dict[tuple[str, int], Tensor] = {}  # by normalisation, and how many were looked for

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def blocks(self, views: Collection[View]) -> Iterator[tuple[Mapping[View, Tensor], Tensor]]:
        """One epoch: of each block, (n, ...) features by view and (n, C) float32 targets, both on the device."""

    @abstractmethod
    def _stored_blocks(self) -> Iterator[Tensor]:
        """All features as they are stored, in any order."""

    @property
    def feature_width(self) -> int:
        """D, the features' width."""
        return self.row_shape[-1]

    @torch.no_grad()
    def front(self, view: View) -> Front:
        """The module that makes a view of stored features, on the CPU; statistics are those of these clips."""
        if view not in self._fronts:
            D, unit_length = self.feature_width, view.normalization == "l2"
            front = Front(D, unit_length=unit_length, part_widths=self._part_widths)
            if view.normalization == "standardize" or view.components:
                mean, scale = self._mean_and_scale(front)
                front.mean.copy_(mean)
                if view.normalization == "standardize":
                    front.scale.copy_(scale)
            if view.components and (axes := self._leading_axes(front, view)).numel():
                rotated = Front(D, unit_length=unit_length, part_widths=self._part_widths, components=axes.shape[1])
                rotated.load_state_dict({**front.state_dict(), "axes": axes})
                front = rotated
            self._fronts[view] = front
        return self._fronts[view]

    def _count_labels(self, positives: npt.NDArray[np.int64], clip_count: int) -> None:
        if not ((positives > 0) & (positives < clip_count)).all():
            raise TrainingDataError(
                f"each label must be on in some training clips and off in others, but of {clip_count} clips "
                f"{positives.tolist()} are on, label by label. Leave such labels out."
            )
        self.negatives_per_positive = torch.from_numpy((clip_count - positives) / positives)
        self.prior_log_odds = -self.negatives_per_positive.log().float()

    def _row_blocks(self) -> Iterator[Tensor]:
        """All stored features as rows (n, D), a thousand at once."""
        for block in self._stored_blocks():
            yield from torch.split(block.reshape(-1, self.feature_width), ROWS_AT_ONCE)

    def _mean_and_scale(self, front: Front) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what the front makes, before it is filled; 1 where a feature is constant.

        Source: Chan, Golub and LeVeque, 1983 (merging the moments of blocks).
        """
        count = 0
        mean = torch.zeros(self.feature_width, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for rows in self._row_blocks():
            block = (front(rows.float()) if front.unit_length else rows).double()
            of_block = block.mean(dim=0)
            difference = of_block - mean
            together = count + len(block)
            squares += (block - of_block).square_().sum(dim=0) + difference.square() * (count * len(block) / together)
            mean += difference * (len(block) / together)
            count = together
        deviation = (squares / count).sqrt()
        is_constant = deviation <= mean.abs() * torch.finfo(torch.float32).eps
        return mean.float(), torch.where(is_constant, 1.0, deviation).float()

    def _leading_axes(self, front: Front, view: View) -> Tensor:
        """Axes (D, M) of what the front makes; M is the view's components, or the rank where that is lower."""
        found = view.normalization, max(view.components, AXES_AT_ONCE)
        if found not in self._axes:
            row_count = len(self) * math.prod(self.row_shape[:-1])
            axes, _ = leading_axes(
                lambda: (front(rows.float()) for rows in self._row_blocks()), (row_count, self.feature_width), found[1]
            )
            self._axes[found] = axes.float()
        return self._axes[found][:, : view.components]


class TrainingClips(ClipSource):
    """Training clips in memory.

    Args:
        X: Features, shape (N, D) or of frames (N, T, D), float16, bfloat16 or float32.
        Y: Targets, shape (N, C), 0 or 1.
        seed: Of the order.
        device: Where the copy lives and training runs.
        part_widths: Widths of the kept features that lie side by side in D; one by default.
        shuffle: Draw an order; else rows are taken as they come.

    Raises:
        TrainingDataError: If a label is never or always on: its prior odds are not finite.
    """

    def __init__(
        self,
        X: Features,
        Y: Targets,
        *,
        seed: int,
        device: str = "cpu",
        part_widths: Sequence[int] | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(seed=seed, device=device, part_widths=part_widths)
        self._X = as_tensor(X)
        self.row_shape = tuple(self._X.shape[1:])
        self._count_labels(Y.sum(axis=0, dtype=np.int64), len(Y))
        self._order = _order(seed, 0, len(Y)) if shuffle else torch.arange(len(Y))
        self._targets = torch.from_numpy(Y.astype(np.float32))[self._order].to(self.device)
        self._copies: dict[View, Tensor] = {}

    def __len__(self) -> int:
        return len(self._X)

    def blocks(self, views: Collection[View]) -> Iterator[tuple[Mapping[View, Tensor], Tensor]]:
        """All clips as one block."""
        yield {view: self._copy(view) for view in views}, self._targets

    def _stored_blocks(self) -> Iterator[Tensor]:
        yield self._X

    @torch.no_grad()
    def _copy(self, view: View) -> Tensor:
        """The features of a view in order, (N, ...), in the stored dtype; components may not fit it and are float32."""
        if view not in self._copies:
            front = self.front(view)
            is_identity = view == View("none", 0)
            dtype = torch.float32 if view.components else self._X.dtype
            copy = torch.empty(*self._X.shape[:-1], front.output_width, dtype=dtype, device=self.device)
            for rows in row_blocks(len(self)):
                block = self._X[self._order[rows]]
                copy[rows] = on_device(block if is_identity else front(block.float()).to(dtype), self.device)
            self._copies[view] = copy
        return self._copies[view]


class StreamedClips(ClipSource):
    """Training clips that are read block by block in each epoch; one block is in memory at a time.

    A first pass counts clips and labels; each view that is used costs a pass for its statistics, and for principal axes
    one more, or four where more than a thousand clips have more than a thousand features.

    Args:
        source: Gives (features, targets) of consecutive clips each time it is iterated, with the shapes and dtypes of
            `TrainingClips`. Blocks should mix sessions: clips are shuffled inside a block only.
        seed: Of the order inside blocks.
        device: Where training runs.
        part_widths: As for `TrainingClips`.

    Raises:
        TrainingDataError: If the source can be iterated only once or is empty, or as for `TrainingClips`.
    """

    def __init__(
        self,
        source: Iterable[tuple[Features, Targets]],
        *,
        seed: int,
        device: str = "cpu",
        part_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__(seed=seed, device=device, part_widths=part_widths)
        if iter(source) is source:
            raise TrainingDataError(
                f"streamed clips must be read once per epoch, but a {type(source).__name__} can be iterated only once. "
                "Give an object whose __iter__ starts again, such as a list or a class of your own."
            )
        self._source = source
        positives, self._clip_count = np.zeros(0, np.int64), 0
        for X, Y in source:
            positives = positives + Y.sum(axis=0, dtype=np.int64) if self._clip_count else Y.sum(axis=0, dtype=np.int64)
            self._clip_count += len(Y)
            self.row_shape = tuple(X.shape[1:])
        if not self._clip_count:
            raise TrainingDataError("streamed clips must not be empty, but no block came. Check the source.")
        self._count_labels(positives, self._clip_count)

    def __len__(self) -> int:
        return self._clip_count

    @torch.no_grad()
    def blocks(self, views: Collection[View]) -> Iterator[tuple[Mapping[View, Tensor], Tensor]]:
        """One block of the source after the other."""
        seen = 0
        for number, (X, Y) in enumerate(self._source):
            order = _order(self.seed, number, len(Y))
            block = on_device(as_tensor(X)[order], self.device)
            of_view = {view: deepcopy(self.front(view)).to(self.device)(block.float()) for view in views}
            yield of_view, torch.from_numpy(Y.astype(np.float32))[order].to(self.device)
            seen += len(Y)
        if seen != len(self):
            raise TrainingDataError(
                f"streamed clips must be the same in each epoch, but {seen} came after {len(self)} at first. "
                "Let nothing change the source while heads train."
            )

    def _stored_blocks(self) -> Iterator[Tensor]:
        return (as_tensor(X) for X, _ in self._source)


def as_tensor(X: Features) -> Tensor:
    """The array's own memory, or a copy if it is read-only, which torch has no notion of."""
    return X if isinstance(X, Tensor) else torch.from_numpy(np.require(X, requirements=["C", "W"]))


def on_device(block: Tensor, device: torch.device) -> Tensor:
    """A block of features where training runs: itself if it is there.

    On the way to a GPU it lies in page-locked memory, which torch keeps and uses again for the next block; so the next
    one is made while this one is copied. Page-locking all features instead would hold memory for an array that the
    device never reads: clips are put in order and normalised first.
    """
    if device.type == "cuda" and block.device.type == "cpu":
        return block.pin_memory().to(device, non_blocking=True)
    return block.to(device)


def _order(seed: int, block: int, count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, block)).permutation(count))
