"""Training clips made ready for any number of fits: their order, and what heads see of them.

Notable choices:

- The order is drawn once and is the same in each epoch, so batches are the same slices in each epoch. That is what
  lets a head begin at any epoch of its neighbours and still see what it would see alone.
- A *view* is what a head sees: features normalised, and maybe reduced to principal components. It is one contiguous
  copy in that order and in the features' own dtype, made at first use, block by block, where training runs.
- Statistics are summed in float64, block by block.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache.device import device_of
from featurecache.errors import TrainingDataError
from heads.data import ROWS_AT_ONCE, LabelledFeatures, row_blocks
from heads.engines.axes import AXES_AT_ONCE, leading_axes
from heads.models import Front

Features = npt.NDArray[np.floating] | Tensor
Targets = npt.NDArray[np.integer]


class View(NamedTuple):
    """What a head sees: the fields of `HeadSettings` of the same names."""

    normalization: str
    components: int


class TrainingClips:
    """Training clips in a fixed order.

    Args:
        X: Features, shape (N, D) or of frames (N, T, D), float16, bfloat16 or float32.
        Y: Targets, shape (N, C), 0 or 1.
        seed: Seed of the order.
        device: Where the copies live and training runs.
        part_widths: Widths of the selected features that lie side by side in D; one by default.
        shuffle: Draw an order; else rows are taken as they come.
        teacher: Weights of parts (N, P) that heads are taught, 0 for samples without; None for none.

    Attributes:
        seed: Seed of the order.
        device: Where training runs.
        targets: In order, (N, C), float32, on the device.
        teacher: In order, (N, P), on the device; None as given.
        prior_log_odds: Log-odds of each label's frequency, (C,).
        negatives_per_positive: Negative clips per positive clip of each label, (C,).
        row_shape: A clip's features: (D,), or (T, D) of frames.
        has_absent: Whether some samples have absent parts, which are NaN.

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
        teacher: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.seed = seed
        self.device = torch.device(device_of(device))
        self._part_widths = part_widths
        self._fronts: dict[View, Front] = {}
        self._axes: dict[tuple[str, int], Tensor] = {}  # by normalisation, and how many were looked for
        self._X = as_tensor(X)
        self.has_absent = any(
            bool(rows.sum(dtype=torch.float32).isnan()) for rows in torch.split(self._X, ROWS_AT_ONCE)
        )
        self.row_shape = tuple(self._X.shape[1:])
        self._count_labels(Y.sum(axis=0, dtype=np.int64), len(Y))
        self._order = (
            torch.from_numpy(np.random.default_rng((seed, 0)).permutation(len(Y))) if shuffle else torch.arange(len(Y))
        )
        self.targets = torch.from_numpy(Y.astype(np.float32))[self._order].to(self.device)
        self.teacher = None if teacher is None else torch.from_numpy(teacher)[self._order].to(self.device)
        self._copies: dict[View, Tensor] = {}

    @classmethod
    def of(cls, clips: LabelledFeatures, *, seed: int, device: str) -> "TrainingClips":
        """Clips with what belongs to them."""
        widths, teacher = clips.part_widths, clips.teacher
        return cls(clips.X, clips.Y, seed=seed, device=device, part_widths=widths, teacher=teacher)

    def __len__(self) -> int:
        return len(self._X)

    @torch.no_grad()
    def features(self, view: View) -> Tensor:
        """The features of a view in order, (N, ...), in the stored dtype; components may not fit it and are float32."""
        if view not in self._copies:
            front = self.front(view)
            is_identity = view == View("none", 0) and not self.has_absent
            dtype = torch.float32 if view.components else self._X.dtype
            copy = torch.empty(*self._X.shape[:-1], front.output_width, dtype=dtype, device=self.device)
            for rows in row_blocks(len(self)):
                block = self._X[self._order[rows]]
                copy[rows] = on_device(
                    block if is_identity else front.keeping_absent(block.float()).to(dtype), self.device
                )
            self._copies[view] = copy
        return self._copies[view]

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
        """All stored features as rows (n, D), a thousand at once, without parts that are absent."""
        for rows in torch.split(self._X.reshape(-1, self.feature_width), ROWS_AT_ONCE):
            yield rows[~rows[:, 0].isnan()] if self.has_absent and len(self.row_shape) > 1 else rows

    def _mean_and_scale(self, front: Front) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of what the front makes, before it is filled; 1 where a feature is constant.

        Source: Chan, Golub and LeVeque, 1983 (merging the moments of blocks).
        """
        count = torch.zeros(self.feature_width, dtype=torch.float64)  # of each feature, where it is there
        mean = torch.zeros(self.feature_width, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for rows in self._row_blocks():
            block = (front(rows.float()) if front.unit_length else rows).double()
            here = torch.full_like(mean, len(block))
            if self.has_absent:
                here = (~block.isnan()).sum(dim=0).double()
            of_block = block.nansum(dim=0) / here.clamp(min=1)
            difference = of_block - mean
            together = (count + here).clamp(min=1)
            squares += (block - of_block).square_().nansum(dim=0) + difference.square() * (count * here / together)
            mean += difference * (here / together)
            count += here
        deviation = (squares / count.clamp(min=1)).sqrt()
        is_constant = deviation <= mean.abs() * torch.finfo(torch.float32).eps
        return mean.float(), torch.where(is_constant, 1.0, deviation).float()

    def _leading_axes(self, front: Front, view: View) -> Tensor:
        """Axes (D, M) of what the front makes; M is the view's components, or the rank where that is lower."""
        found = view.normalization, max(view.components, AXES_AT_ONCE)
        if found not in self._axes:
            row_count = sum(map(len, self._row_blocks()))
            axes, _ = leading_axes(
                lambda: (front(rows.float()) for rows in self._row_blocks()), (row_count, self.feature_width), found[1]
            )
            self._axes[found] = axes.float()
        return self._axes[found][:, : view.components]


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
