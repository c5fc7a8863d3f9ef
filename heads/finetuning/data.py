"""Clips as fine-tuning reads them: stored tokens a few at a time with small features in memory, or pixels."""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache import FeatureCache
from featurecache.clips.clip import ClipTable
from featurecache.errors import TrainingDataError
from featurecache.extraction.pixels import PixelStore
from featurecache.spec import FeatureSpace
from featurecache.store import bfloat16
from heads.data import LabelledSplit, more_sessions
from heads.loading import labelled_split

PIXELS = "pixels"
"""Key of decoded frames among a network's rows."""


class CachedClips:
    """Labelled clips of one split.

    Args:
        split: Targets, sessions, clip ids, and the selected features that no adapter changes.
        cache: An open cache with the clips' tokens.
        name: What the tokens are called, e.g. `layer_0/tokens`.
        tokens: Their feature space.

    Attributes:
        Y: Targets, shape (N, C), 0 or 1.
        sessions: Session of each clip, shape (N,), str.
        clip_ids: Ids of the N clips.
    """

    Y: npt.NDArray[np.integer]

    def __init__(self, split: LabelledSplit, cache: FeatureCache, name: str, tokens: FeatureSpace) -> None:
        self.Y, self.sessions, self.clip_ids = split.Y, split.sessions, split.clip_ids or ()
        self._features = split.features
        self._cache, self._name, self._tokens = cache, name, tokens

    def read(self, numbers: Sequence[int]) -> Mapping[str, Tensor]:
        """Tokens (B, S, D) in the dtype they are stored in, and features (B, ...), by name.

        Raises:
            MissingFeaturesError: If a clip is missing from the cache.
            DamagedSegmentError: If one is damaged on disk.
        """
        space, ids = self._tokens, [self.clip_ids[number] for number in numbers]
        rows = torch.from_numpy(self._cache.load(ids, space.tap, space.pooling, space.fingerprint))
        tokens = rows.view(torch.bfloat16) if space.stored_dtype == bfloat16.NAME else rows
        features = {name: torch.from_numpy(one[list(numbers)]) for name, one in self._features.items()}
        return {self._name: tokens, **features}

    def expect(self, numbers: Sequence[int]) -> None:
        """Nothing to do: the cache is quick."""


class PixelClips:
    """Labelled clips of one split, as decoded frames.

    Args:
        split: Targets, sessions and clip ids.
        store: Has all of these clips, and maybe those of other splits.

    Attributes:
        Y: Targets, shape (N, C), 0 or 1.
        sessions: Session of each clip, shape (N,), str.
        clip_ids: Ids of the N clips.
    """

    Y: npt.NDArray[np.integer]

    def __init__(self, split: LabelledSplit, store: PixelStore) -> None:
        self.Y, self.sessions, self.clip_ids = split.Y, split.sessions, split.clip_ids or ()
        self._store = store
        self._coming: dict[str, None] = {}

    def read(self, numbers: Sequence[int]) -> Mapping[str, Tensor]:
        """`pixels` (B, T, px, px, 3), uint8.

        Raises:
            UnreadableVideoError: If a clip that was decoded before cannot be decoded any more.
        """
        ids = [self.clip_ids[number] for number in numbers]
        for clip_id in ids:
            self._coming.pop(clip_id, None)
        return {PIXELS: self._store.read(ids, coming=self._coming)}

    def expect(self, numbers: Sequence[int]) -> None:
        """Which clips are read next, in this order."""
        self._coming = dict.fromkeys(self.clip_ids[number] for number in numbers)


def labelled_splits(table: ClipTable, seen: Collection[str]) -> dict[str, LabelledSplit]:
    """Training clips, and those of validation that end the training (`ending_clips`), without features."""
    train, validation = (labelled_split(table, name).data for name in ("train", "validation"))
    return {"train": train, "validation": ending_clips(validation, seen)}


def ending_clips(validation: LabelledSplit, seen: Collection[str]) -> LabelledSplit:
    """Validation clips that end a training: whoever saw predictions may have accepted them, so such labels do not.

    Args:
        validation: The validation split.
        seen: Ids of clips that are labelled by a review with predictions in sight.

    Raises:
        TrainingDataError: If no clip is left.
    """
    left = validation.without(seen) if seen else validation
    if not len(left.Y):
        raise TrainingDataError(
            "validation must have clips that were labelled without sight of predictions, but all are of reviews with "
            "them. Annotate some sessions of it, or review them blind."
        )
    return left


def check_targets(Y: npt.NDArray[np.integer], labels: Sequence[str]) -> None:
    """Refuses training clips (N, C) of which all, or none, have a label.

    Raises:
        TrainingDataError: Naming the labels.
    """
    positives = Y.sum(axis=0)
    one_sided = [label for label, on in zip(labels, positives, strict=True) if not 0 < on < len(Y)]
    if one_sided:
        raise TrainingDataError(
            "each label must be on in some training clips and off in others, but these are not: "
            f"{', '.join(one_sided)}. {more_sessions('train')}"
        )


def digest_of(splits: Mapping[str, CachedClips | PixelClips]) -> str:
    """sha256 of the clips of all splits and their targets, in order: 64 hex digits."""
    digest = hashlib.sha256()
    for one in splits.values():
        digest.update("\0".join(one.clip_ids).encode())
        digest.update(np.ascontiguousarray(one.Y, np.int8).data)
    return digest.hexdigest()
