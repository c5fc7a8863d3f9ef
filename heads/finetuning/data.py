"""Clips as fine-tuning reads them: tokens from the cache a few clips at a time, small features held in memory."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurecache import FeatureCache
from featurecache.spec import FeatureSpace
from featurecache.store import bfloat16
from heads.data import KeptSplit


class CachedClips:
    """Labelled clips of one split.

    Args:
        split: Targets, sessions, clip ids, and the kept features that no adapter changes.
        cache: An open cache with the clips' tokens.
        name: What the tokens are called, e.g. `layer_0/tokens`.
        tokens: Their feature space.

    Attributes:
        Y: Targets, shape (N, C), 0 or 1.
        sessions: Of each clip, shape (N,), str.
        clip_ids: Of the N clips.
    """

    Y: npt.NDArray[np.integer]

    def __init__(self, split: KeptSplit, cache: FeatureCache, name: str, tokens: FeatureSpace) -> None:
        self.Y, self.sessions, self.clip_ids = split.Y, split.sessions, split.clip_ids or ()
        self._features = split.features
        self._cache, self._name, self._tokens = cache, name, tokens

    def read(self, numbers: Sequence[int]) -> Mapping[str, Tensor]:
        """Tokens (B, S, D) in the dtype they are stored in, and features (B, ...), by name.

        Raises:
            MissingFeaturesError: If the cache lacks a clip.
            DamagedSegmentError: If one is damaged on disk.
        """
        space, ids = self._tokens, [self.clip_ids[number] for number in numbers]
        rows = torch.from_numpy(self._cache.load(ids, space.tap, space.pooling, space.fingerprint))
        tokens = rows.view(torch.bfloat16) if space.stored_dtype == bfloat16.NAME else rows
        features = {name: torch.from_numpy(one[list(numbers)]) for name, one in self._features.items()}
        return {self._name: tokens, **features}
