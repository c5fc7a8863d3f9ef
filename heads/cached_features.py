"""Clip ids to features, as a scikit-learn transformer: what puts a feature cache in front of any estimator.

    make_pipeline(CachedFeatures("features.zarr", inputs="final/mean"), LinearHeadClassifier()).fit(clip_ids, Y)

Notable choices: X stays an array of clip ids, so cross-validation splits and copies ids, not features, and a grid
search may choose the inputs: `{"cachedfeatures__inputs": ["final/mean", "layer_16/mean+final/motion"]}`.

What this is not: a way to heads on frames or tokens; here a clip is one vector.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from featurecache import FeatureCache
from featurecache.errors import SettingsError


class CachedFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Loads the features of clips.

    Args:
        cache: An open cache, or the path of one.
        inputs: Selected features as `tap/pooling`, side by side where joined by `+`.
        space: Fingerprint, or its first digits, where several feature spaces have that tap and pooling.
    """

    def __init__(
        self, cache: FeatureCache | str | Path, *, inputs: str = "final/mean", space: str | None = None
    ) -> None:
        self.cache = cache
        self.inputs = inputs
        self.space = space

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.requires_fit = False
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002 - scikit-learn's signature
        """Learns nothing."""
        return self

    def transform(self, X: Sequence[str]) -> npt.NDArray[np.floating]:
        """Clip ids (N,) -> features (N, D), as the cache stores them.

        Raises:
            SettingsError: If `inputs` names no selected features, or those of a clip are more than one vector.
            MissingFeaturesError: If the cache lacks a clip.
            AmbiguousSpaceError: If several feature spaces match.
        """
        cache = self.cache if isinstance(self.cache, FeatureCache) else FeatureCache.open(self.cache)
        clip_ids = [str(clip_id) for clip_id in X]
        parts = []
        for name in self.inputs.split("+"):
            tap, slash, pooling = name.partition("/")
            if not (tap and slash and pooling):
                raise SettingsError(
                    f"inputs must be selected features as tap/pooling, joined by +, but {name!r} is not. "
                    "Write e.g. final/mean+final/motion."
                )
            features = cache.load(clip_ids, tap, pooling, self.space)
            if features.ndim != 2:
                raise SettingsError(
                    f"inputs must be one vector a clip, but {name} has shape {features.shape[1:]}. Take a pooled one."
                )
            parts.append(features)
        return np.concatenate(parts, axis=1)
