"""What trials share: clips in training order, and bases of the convex engine, made when first asked for.

Notable choices: each costs one to three copies of the features, so only the last few are kept; asking again for one
that was dropped makes it anew, with the same numbers. The convex engine's bases are of all clips that are not test: it
chooses by folds of them. What is trained by AdamW trains on the training split and stops by the validation split.

What this is not: a reader of files, or a place that fits.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from heads.data import LabelledFeatures, LearningData
from heads.engines.axes import AXES_AT_ONCE
from heads.engines.basis import Basis
from heads.engines.solving import basis_of
from heads.engines.training_clips import TrainingClips
from heads.prior import Weights, prior_weights
from heads.scoring.cross_fitting import FOLDS, CrossFolds
from heads.settings import HeadSettings

T = TypeVar("T")

KEPT_INPUTS, KEPT_BASES = 2, 2


class Prepared:
    """Training and validation clips of a project by inputs, ready for any number of fits.

    Args:
        data: The clips.
        seed: Seed of the order of training clips, and of the assignment to folds.
        device: Where to train.
        fold_count: Folds of the sessions that are not test; fewer where there are fewer sessions.

    Attributes:
        folds: Folds of training and validation clips together (`LearningData.fitting`).
    """

    def __init__(self, data: LearningData, *, seed: int, device: str, fold_count: int = FOLDS) -> None:
        self.data, self.seed, self.device = data, seed, device
        clips = data.fitting
        self.folds = CrossFolds.assign(clips.Y, clips.sessions, clips.clip_ids, count=fold_count, seed=seed)
        self._fitting: OrderedDict[str, LabelledFeatures] = OrderedDict()
        self._splits: OrderedDict[str, tuple[LabelledFeatures, TrainingClips]] = OrderedDict()
        self._bases: OrderedDict[tuple[str, str, int], Basis] = OrderedDict()

    def clips(self, inputs: str) -> TrainingClips:
        """The training clips."""
        return self._of(inputs)[1]

    def fitting(self, inputs: str) -> LabelledFeatures:
        """Training and validation clips together."""
        return _recalled(self._fitting, inputs, lambda: self.data.fitting.of(inputs), KEPT_INPUTS)

    def validation(self, inputs: str) -> LabelledFeatures:
        """The validation split."""
        return self._of(inputs)[0]

    def basis(self, inputs: str, normalization: str, components: int) -> Basis:
        """The convex engine's basis of all clips, for heads that read so many components or fewer."""
        axes = max(components, AXES_AT_ONCE)

        def make() -> Basis:
            clips = self.fitting(inputs)
            return basis_of(
                clips.X,
                clips.Y,
                normalization,
                components=axes,
                part_widths=clips.part_widths,
                device=self.device,
            )

        return _recalled(self._bases, (inputs, normalization, axes), make, KEPT_BASES)

    def prior(self, settings: HeadSettings) -> Weights | None:
        """The prior of a head with these settings; as `prior_weights`."""
        return prior_weights(settings, self.data.prior, self.data.train.part_widths(settings.inputs))

    def _of(self, inputs: str) -> tuple[LabelledFeatures, TrainingClips]:
        def make() -> tuple[LabelledFeatures, TrainingClips]:
            train = self.data.train.of(inputs)
            return self.data.validation.of(inputs), TrainingClips.of(train, seed=self.seed, device=self.device)

        return _recalled(self._splits, inputs, make, KEPT_INPUTS)


K = TypeVar("K")


def _recalled(kept: "OrderedDict[K, T]", key: K, make: Callable[[], T], most: int) -> T:
    """What is kept under a key, made if absent; the one that was not asked for the longest goes."""
    if key not in kept:
        if len(kept) >= most:
            kept.popitem(last=False)
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]
