"""From clip table and cache to the arrays of one split: each kept feature is read once, into one array.

Only labelled clips of the split are read. A clip whose extraction failed for a recorded reason is left
out and counted, and so is one whose window overlaps or touches a clip that scores this split; any other clip
without a feature is an error, since leaving it out would change what is trained or scored without a word.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.leakage import purged_clips
from featurecache.errors import TrainingDataError
from featurecache.spec import FeatureSpace
from featurecache.store import bfloat16
from heads.data import KeptSplit


@dataclass(frozen=True)
class LoadedSplit:
    """A split's arrays.

    Attributes:
        data: Features, targets, sessions and clip ids.
        left_out: Labelled clips of the split without a feature, for recorded reasons.
        purged: Labelled clips left out because they overlap or touch a clip that scores this split.
    """

    data: KeptSplit
    left_out: int
    purged: int


def load_split(
    table: ClipTable,
    split: str,
    cache: FeatureCache,
    spaces: Mapping[str, FeatureSpace],
    *,
    failed: Collection[str] = (),
) -> LoadedSplit:
    """The labelled clips of a split with their features, in order of the table.

    Args:
        table: The clip table.
        split: "train", "validation" or "test".
        cache: An open cache.
        spaces: The feature spaces to read, by the name of what is kept.
        failed: Clips that extraction could not have.

    Raises:
        TrainingDataError: If the table has no label, or the split no labelled clip.
        MissingFeaturesError: If the cache lacks a clip that did not fail.
        DamagedSegmentError: If a feature is damaged on disk.
    """
    return _with_features(labelled_split(table, split, failed=failed), cache, spaces)


def labelled_split(table: ClipTable, split: str, *, failed: Collection[str] = ()) -> LoadedSplit:
    """As `load_split`, without features: for whoever makes its own from the recordings."""
    if not table.labels:
        raise TrainingDataError(
            "a head needs labels, but clips.csv has no label column. "
            "Set data.annotations and data.labels in featurecache.toml, then: featurecache clips --force."
        )
    labelled = [clip for clip in table.clips if clip.split == split and clip.labelled]
    gone = purged_clips(table.clips).get(split, frozenset())
    kept = [clip for clip in labelled if clip.clip_id not in gone]
    return _targets(kept, f"the {split} split", failed, purged=len(gone))


def load_all_splits(
    table: ClipTable, cache: FeatureCache, spaces: Mapping[str, FeatureSpace], *, failed: Collection[str] = ()
) -> LoadedSplit:
    """The labelled clips of all splits, for whoever divides them anew and purges for himself.

    Args:
        table: The clip table.
        cache: An open cache.
        spaces: The feature spaces to read, by the name of what is kept.
        failed: Clips that extraction could not have.

    Raises:
        TrainingDataError, MissingFeaturesError, DamagedSegmentError: As `load_split`.
    """
    labelled = [clip for clip in table.clips if clip.split and clip.labelled]
    return _with_features(_targets(labelled, "the clip table", failed, purged=0), cache, spaces)


def read_features(cache: FeatureCache, clip_ids: Sequence[str], space: FeatureSpace) -> npt.NDArray[np.floating]:
    """Features of clips as heads take them, shape (N, ...): float16 or float32; bfloat16 comes as float32.

    Raises:
        MissingFeaturesError: If the cache lacks a clip.
    """
    stored = cache.load(clip_ids, space.tap, space.pooling, space.fingerprint)
    return bfloat16.to_float32(stored) if space.inputs.get("stored_dtype") == bfloat16.NAME else stored


def _targets(clips: Sequence[Clip], what: str, failed: Collection[str], *, purged: int) -> LoadedSplit:
    had = [clip for clip in clips if clip.clip_id not in failed]
    if not had:
        beside = f" besides {purged} that touch clips which score them" if purged else ""
        todo = "See failed_clips.csv for what their extraction met" if clips else "Annotate more sessions"
        raise TrainingDataError(
            f"{what} must have labelled clips with features, but it has {len(clips)} labelled clips{beside} "
            f"and features of none. {todo}, or change the split in clips.csv."
        )
    clip_ids = tuple(clip.clip_id for clip in had)
    Y = np.array([clip.targets for clip in had], np.int8)  # (N, C)
    sessions = np.array([clip.session for clip in had])  # (N,)
    return LoadedSplit(KeptSplit({}, Y, sessions, clip_ids), len(clips) - len(had), purged)


def _with_features(loaded: LoadedSplit, cache: FeatureCache, spaces: Mapping[str, FeatureSpace]) -> LoadedSplit:
    ids = loaded.data.clip_ids or ()
    features = {name: read_features(cache, ids, space) for name, space in spaces.items()}
    return replace(loaded, data=replace(loaded.data, features=features))
