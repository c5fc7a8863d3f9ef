"""From clip table and cache to the arrays of one split: each selected feature is read once, into one array.

Only labelled clips of the split are read. A clip that the cache lacks for a recorded reason is left out and counted,
and so is one whose window overlaps or touches a clip that scores this split; any other clip without a feature is an
error, since leaving it out would change what is trained or scored without a word. Of samples of several clips, a clip
that is left out is an absent part, and a sample without any part is left out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from featurecache import FeatureCache
from featurecache.clips.clip import Clip, ClipTable
from featurecache.clips.leakage import purged_clips
from featurecache.clips.samples import Sample, SampleTable
from featurecache.errors import TrainingDataError
from featurecache.extraction.failures import KnownFailures
from featurecache.spec import FeatureSpace
from featurecache.store import bfloat16
from heads.clip_rule import Unit
from heads.data import LabelledSplit

NONE_KNOWN = KnownFailures()


@dataclass(frozen=True)
class LoadedSplit:
    """A split's arrays.

    Attributes:
        data: Features, targets, sessions and clip ids.
        left_out: Labelled clips of the split without a feature, for recorded reasons.
        purged: Labelled clips left out because they overlap or touch a clip that scores this split.
    """

    data: LabelledSplit
    left_out: int
    purged: int

    @property
    def clips(self) -> int:
        """Number of its clips, or samples."""
        return len(self.data.Y)

    @property
    def sessions(self) -> int:
        """Number of sessions that they are of."""
        return len(set(self.data.sessions))


def load_split(
    table: ClipTable,
    split: str,
    cache: FeatureCache,
    spaces: Mapping[str, FeatureSpace],
    *,
    known: KnownFailures = NONE_KNOWN,
    needed: Iterable[FeatureSpace] = (),
    samples: SampleTable | None = None,
) -> LoadedSplit:
    """The labelled clips of a split with their features, in order of the table; or its labelled samples.

    Args:
        table: The clip table.
        split: "train", "validation" or "test".
        cache: An open cache.
        spaces: The feature spaces to read, by the name of the selected feature.
        known: Why clips could not be extracted; those that the cache lacks for such a reason are left out.
        needed: Feature spaces that clips must be in besides, though they are not read here.
        samples: The samples of several clips, where targets are theirs; None: each clip is a sample.

    Raises:
        TrainingDataError: If the table has no label, or the split no labelled clip with features; or a part of a
            sample has several vectors, or one that is not finite.
        MissingFeaturesError: If the cache lacks a clip for no known reason.
        DamagedSegmentError: If a feature is damaged on disk.
    """
    if samples is not None:
        gone = purged_clips(table.clips).get(split, frozenset())
        own = [sample for sample in samples.samples if sample.split == split and sample.labelled]
        kept = [sample for sample in own if gone.isdisjoint(sample.clip_ids)]
        purged = len(own) - len(kept)
        return _of_samples(kept, samples.places, f"the {split} split", cache, spaces, known, purged, needed)
    clips, purged = _labelled(table, split)
    return _with_features(clips, f"the {split} split", cache, spaces, known, purged=purged, needed=needed)


def labelled_split(table: ClipTable, split: str) -> LoadedSplit:
    """As `load_split`, without features: for callers that make their own from the recordings."""
    clips, purged = _labelled(table, split)
    return _targets(clips, f"the {split} split", frozenset(), purged=purged)


def _labelled(table: ClipTable, split: str) -> tuple[list[Clip], int]:
    """The labelled clips of a split that touch none which scores them, and the number of those that do."""
    if not table.labels:
        raise TrainingDataError(
            "a head needs labels, but clips.csv has no label column. "
            "Set data.annotations and data.labels in featurecache.toml, then: featurecache clips --force."
        )
    labelled = [clip for clip in table.clips if clip.split == split and clip.labelled]
    gone = purged_clips(table.clips).get(split, frozenset())
    return [clip for clip in labelled if clip.clip_id not in gone], len(gone)


def load_all_splits(
    table: ClipTable,
    cache: FeatureCache,
    spaces: Mapping[str, FeatureSpace],
    *,
    known: KnownFailures = NONE_KNOWN,
    samples: SampleTable | None = None,
) -> LoadedSplit:
    """The labelled clips of all splits, for callers that divide them anew and purge for themselves.

    Args:
        table: The clip table.
        cache: An open cache.
        spaces: The feature spaces to read, by the name of the selected feature.
        known: As `load_split`.
        samples: As `load_split`.

    Raises:
        TrainingDataError, MissingFeaturesError, DamagedSegmentError: As `load_split`.
    """
    if samples is not None:
        own = [sample for sample in samples.samples if sample.split and sample.labelled]
        return _of_samples(own, samples.places, "the sample table", cache, spaces, known)
    labelled = [clip for clip in table.clips if clip.split and clip.labelled]
    return _with_features(labelled, "the clip table", cache, spaces, known)


def read_features(cache: FeatureCache, clip_ids: Sequence[str], space: FeatureSpace) -> npt.NDArray[np.floating]:
    """Features of clips as heads take them, shape (N, ...): float16 or float32; bfloat16 comes as float32.

    Raises:
        MissingFeaturesError: If the cache lacks a clip.
    """
    stored = cache.load(clip_ids, space.tap, space.pooling, space.fingerprint)
    return bfloat16.to_float32(stored) if space.inputs.get("stored_dtype") == bfloat16.NAME else stored


def _of_samples(
    samples: Sequence[Sample],
    places: int,
    what: str,
    cache: FeatureCache,
    spaces: Mapping[str, FeatureSpace],
    known: KnownFailures,
    purged: int = 0,
    needed: Iterable[FeatureSpace] = (),
) -> LoadedSplit:
    """Samples with the features of their parts, (N, P, D), NaN where a part is absent."""
    ids = list(dict.fromkeys(part for sample in samples for part in sample.clip_ids))
    missing = known.missing(cache, ids, [*spaces.values(), *needed])
    without = {sample.clip_id for sample in samples if missing.keys() >= {*sample.clip_ids}}
    loaded = _targets(samples, what, without, purged=purged, unit="sample")
    had = tuple(sample for sample in samples if sample.clip_id not in without)
    features = part_features(had, places, cache, spaces, missing)
    return replace(loaded, data=replace(loaded.data, features=features, samples=had))


def part_features(
    samples: Sequence[Sample],
    places: int,
    cache: FeatureCache,
    spaces: Mapping[str, FeatureSpace],
    missing: Collection[str],
) -> dict[str, npt.NDArray[np.floating]]:
    """Features of the parts of samples by selected feature, (N, P, D), NaN where a part is absent or missing.

    Args:
        samples: N samples.
        places: P, at least as many as a sample has parts.
        cache: An open cache.
        spaces: The feature spaces to read, by the name of the selected feature.
        missing: Ids of clips that the cache lacks.

    Raises:
        TrainingDataError: If a clip has several vectors, or one that is not finite.
    """
    ids = dict.fromkeys(part for sample in samples for part in sample.clip_ids if part not in missing)
    row_of = {clip_id: row for row, clip_id in enumerate(ids)}
    rows = np.full((len(samples), places), len(row_of))  # of what is read, and one more that stands for an absent part
    for at, sample in enumerate(samples):
        rows[at, : len(sample.parts)] = [row_of.get(part, len(row_of)) for part in sample.parts]
    features = {}
    for name, space in spaces.items():
        read = read_features(cache, list(row_of), space)
        if read.ndim != 2 or not np.isfinite(read).all():
            raise TrainingDataError(
                f"parts of samples must have one finite vector a clip, but those of {name} are "
                f"{'not finite' if read.ndim == 2 else f'of shape {read.shape[1:]}'}. Choose a pooled feature, e.g. "
                "final/mean, or find the damage: featurecache cache verify."
            )
        features[name] = np.concatenate([read, np.full((1, read.shape[1]), np.nan, read.dtype)])[rows]
    return features


def _targets(
    clips: Sequence[Clip] | Sequence[Sample],
    what: str,
    missing: Collection[str],
    *,
    purged: int,
    unit: Unit = "clip",
) -> LoadedSplit:
    had = [clip for clip in clips if clip.clip_id not in missing]
    if not had:
        beside = f" besides {purged} that touch clips which score them" if purged else ""
        todo = "Annotate more sessions" if unit == "clip" else "Annotate more, or add labelled samples to samples.csv"
        if clips:
            todo = "See failed_clips.csv for what their extraction met"
        way_out = "change the split in clips.csv"
        if what == "the test split":
            way_out = "score without it: featurecache evaluate --leave-one-session-out"
        raise TrainingDataError(
            f"{what} must have labelled {unit}s with features, but it has {len(clips)} labelled {unit}s{beside} "
            f"and features of none. {todo}, or {way_out}."
        )
    clip_ids = tuple(clip.clip_id for clip in had)
    Y = np.array([clip.targets for clip in had], np.int8)  # (N, C)
    sessions = np.array([clip.session for clip in had])  # (N,)
    return LoadedSplit(LabelledSplit({}, Y, sessions, clip_ids), len(clips) - len(had), purged)


def _with_features(
    clips: Sequence[Clip],
    what: str,
    cache: FeatureCache,
    spaces: Mapping[str, FeatureSpace],
    known: KnownFailures,
    *,
    purged: int = 0,
    needed: Iterable[FeatureSpace] = (),
) -> LoadedSplit:
    missing = known.missing(cache, [clip.clip_id for clip in clips], [*spaces.values(), *needed])
    loaded = _targets(clips, what, missing.keys(), purged=purged)
    ids = loaded.data.clip_ids or ()
    features = {name: read_features(cache, ids, space) for name, space in spaces.items()}
    return replace(loaded, data=replace(loaded.data, features=features))
