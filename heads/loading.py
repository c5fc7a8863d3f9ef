"""From clip table and cache to the arrays of one split.

Only labelled clips of the split are read. A clip whose extraction failed for a recorded reason is left
out and counted; any other clip without a feature is an error, since leaving it out would change what
is trained or scored without a word.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from featurecache import FeatureCache
from featurecache.clips import ClipTable
from featurecache.errors import TrainingDataError
from featurecache.spec import FeatureSpace
from heads.data import LabelledFeatures


@dataclass(frozen=True)
class LoadedSplit:
    """A split's arrays.

    Attributes:
        data: Features, targets, sessions.
        left_out: Labelled clips of the split without a feature, for recorded reasons.
    """

    data: LabelledFeatures
    left_out: int


def load_split(
    table: ClipTable, split: str, cache: FeatureCache, space: FeatureSpace, *, failed: Collection[str] = ()
) -> LoadedSplit:
    """The labelled clips of a split with their features, in order of the table.

    Args:
        table: The clip table.
        split: "train", "validation" or "test".
        cache: An open cache.
        space: The feature space to read.
        failed: Clips that extraction could not have.

    Raises:
        TrainingDataError: If the table has no label, or the split no labelled clip.
        MissingFeaturesError: If the cache lacks a clip that did not fail.
        DamagedSegmentError: If a feature is damaged on disk.
    """
    if not table.labels:
        raise TrainingDataError(
            "a head needs labels, but clips.csv has no label column. "
            "Set data.annotations and data.labels in featurecache.toml, then: featurecache clips --force."
        )
    clips = [clip for clip in table.clips if clip.split == split and clip.labelled]
    had = [clip for clip in clips if clip.clip_id not in failed]
    if not had:
        raise TrainingDataError(
            f"the {split} split must have labelled clips with features, but it has {len(clips)} labelled clips "
            f"and features of none. Annotate more sessions, or change the split in clips.csv."
        )
    X = cache.load([clip.clip_id for clip in had], space.tap, space.pooling, space.fingerprint)  # (N, D)
    Y = np.array([clip.targets for clip in had], np.int8)  # (N, C)
    sessions = np.array([clip.session for clip in had])  # (N,)
    return LoadedSplit(LabelledFeatures(X, Y, sessions), len(clips) - len(had))
