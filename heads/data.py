"""Labelled features as arrays, and the checks that come before learning from them.

What a head reads is *inputs*: one selected feature (`final/mean`), or several side by side
(`final/mean+final/motion`); of samples of several clips, all parts of them or parts joined (`pair(final/mean)`). A
split holds each selected feature once; inputs are put side by side when they are asked for. A split is refused before
any work when nothing honest can be learned from it: no positive clip of a label, a session on both sides, unlabelled
rows, features that are not finite. This file makes no split and reads no file.
"""

import hashlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from featurecache.clips.samples import Sample
from featurecache.errors import SettingsError, TrainingDataError
from featurecache.spec import FeatureSpace
from heads.clip_rule import ClipRule, Unit
from heads.prior import Prior
from heads.samples.joining import join_of, joined, joined_widths, selected

ROWS_AT_ONCE = 1024
"""Rows converted to float32 in one go, so that memory stays bounded by (1024, D)."""


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """The labelled clips of one split with the inputs of one head.

    Attributes:
        X: Features, shape (N, D), or (N, T, D) of frames, float16 or float32.
        Y: Targets, shape (N, C), 0 or 1.
        sessions: The session of each clip, shape (N,), str.
        clip_ids: Ids of the N clips, which tell whether a bundle was made with them. None where unknown.
        samples: The samples of several clips that the rows are, with X of shape (N, P, D) where parts are not joined,
            NaN where a part is absent; None where rows are clips.
        teacher: Weights (N, P) that heads that weigh parts are taught, 0 for samples without; None: they are not.
        part_widths: Widths of what stands side by side in X; None for one part.
    """

    X: npt.NDArray[np.floating]
    Y: npt.NDArray[np.integer]
    sessions: npt.NDArray[np.str_]
    clip_ids: tuple[str, ...] | None = None
    samples: tuple[Sample, ...] | None = None
    teacher: npt.NDArray[np.float32] | None = None
    part_widths: Sequence[int] | None = None

    @property
    def unit(self) -> Unit:
        """What its rows are."""
        return "clip" if self.samples is None else "sample"


@dataclass(frozen=True, eq=False)
class LabelledSplit:
    """The labelled clips of one split with any number of selected features.

    Attributes:
        features: Features by name (`tap/pooling`), each of shape (N, D), or (N, T, D) of frames.
        Y: Targets, shape (N, C), 0 or 1.
        sessions: The session of each clip, shape (N,), str.
        clip_ids: Ids of the N clips; None where unknown.
        samples: The samples of several clips that the rows are; features are then (N, P, D), and NaN where a part is
            absent. None where rows are clips.
        teacher: As `LabelledFeatures`.
    """

    features: Mapping[str, npt.NDArray[np.floating]]
    Y: npt.NDArray[np.integer]
    sessions: npt.NDArray[np.str_]
    clip_ids: tuple[str, ...] | None = None
    samples: tuple[Sample, ...] | None = None
    teacher: npt.NDArray[np.float32] | None = None

    def of(self, inputs: str) -> LabelledFeatures:
        """What a head with these inputs reads: the array itself of one selected feature, a new one of several.

        Raises:
            SettingsError: If one was not loaded, or they do not fit side by side.
        """
        parts = self._parts(inputs)
        X = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if join := join_of(inputs):
            X = joined(X, join)
        widths = self.part_widths(inputs)
        return LabelledFeatures(X, self.Y, self.sessions, self.clip_ids, self.samples, self.teacher, widths)

    def without(self, gone: Collection[str]) -> "LabelledSplit":
        """The split without clips of these ids."""
        ids = self.clip_ids or ()
        rows = [row for row, clip_id in enumerate(ids) if clip_id not in gone]
        return LabelledSplit(
            {name: own[rows] for name, own in self.features.items()},
            self.Y[rows],
            self.sessions[rows],
            tuple(ids[row] for row in rows),
            None if self.samples is None else tuple(self.samples[row] for row in rows),
        )

    def part_widths(self, inputs: str) -> list[int]:
        """Widths of what stands side by side in these inputs."""
        parts = self._parts(inputs)
        return joined_widths([part.shape[-1] for part in parts], parts[0].shape[1], join_of(inputs))

    def most_components(self, inputs: str) -> int:
        """The highest rank that the centred features of these inputs can have."""
        rows = self._parts(inputs)[0].shape[:-1]
        return min(sum(self.part_widths(inputs)), math.prod(rows[:1] if join_of(inputs) else rows) - 1)

    def are_frames(self, inputs: str) -> bool:
        """Whether these inputs are features of a clip's frames or of a sample's parts, not one vector."""
        return self._parts(inputs)[0].ndim == 3 and not join_of(inputs)

    def _parts(self, inputs: str) -> list[npt.NDArray[np.floating]]:
        names = selected(inputs)
        if join_of(inputs) and self.samples is None:
            raise SettingsError(
                f"inputs must join parts only where samples have several clips, but they are {inputs} and each sample "
                "is one clip. Set a rule under [samples], or leave the brackets out."
            )
        missing = [name for name in names if name not in self.features]
        if missing:
            raise SettingsError(
                f"inputs must be features that features.select selects: {', '.join(self.features)}; but {missing[0]!r} "
                "is not one. Choose others, or add it to features.select and run: featurecache extract."
            )
        parts = [self.features[name] for name in names]
        if len({part.shape[:-1] for part in parts}) > 1:
            raise SettingsError(
                f"inputs side by side must be all of clips or all of the same number of frames, but those of {inputs} "
                f"have shapes {', '.join(str(part.shape[1:]) for part in parts)} per clip. Choose others."
            )
        return parts


@dataclass(frozen=True, eq=False)
class LearningData:
    """All that `train` and `tune` learn from.

    Attributes:
        train: The training split.
        validation: The validation split: it stops early what is trained by AdamW.
        labels: Names of the C labels.
        spaces: Feature space of each selected feature, by name.
        leakage: What `featurecache.clips.leakage.leakage_record` says of the splits; goes into every document.
        clips: What a clip is; None where that is not known.
        exclusive: Groups of labels of which one at most is on at a time.
        seen: Ids of clips that are labelled by a review with predictions in sight: they train, and score nothing.
        prior: What words make of `joint/mean`; None where there are none.
    """

    train: LabelledSplit
    validation: LabelledSplit
    labels: tuple[str, ...]
    spaces: Mapping[str, FeatureSpace]
    leakage: Mapping[str, Any] = field(default_factory=dict)
    clips: ClipRule | None = None
    exclusive: tuple[tuple[str, ...], ...] = ()
    seen: frozenset[str] = frozenset()
    prior: Prior | None = None

    @cached_property
    def fitting(self) -> LabelledSplit:
        """Training and validation clips together: what settings are chosen by, out of fold, and heads are fitted on."""
        return joined_splits([self.train, self.validation])

    def check(self) -> None:
        """Refuses what cannot train and select a head; errors as for `check_training`."""
        for name in self.spaces:
            check_training(self.train.of(name), self.validation.of(name), self.labels)

    def digest(self) -> str:
        """sha256 of labels, features, targets and sessions: 64 hex digits, equal only for equal data in equal order."""
        digest = hashlib.sha256("\0".join([*self.labels, *self.spaces]).encode())
        for part in (self.train, self.validation):
            for array in (*(part.features[name] for name in self.spaces), part.Y.astype(np.int8)):
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).view(np.uint8).data)
            digest.update("\0".join(part.sessions.tolist()).encode())
        return digest.hexdigest()


def joined_splits(splits: Sequence[LabelledSplit]) -> LabelledSplit:
    """The clips of several splits with the same features, one split after the other."""
    ids = [one.clip_ids for one in splits if one.clip_ids is not None]
    samples = [one.samples for one in splits if one.samples is not None]
    teachers = [one.teacher for one in splits if one.teacher is not None]
    return LabelledSplit(
        {name: np.concatenate([one.features[name] for one in splits]) for name in splits[0].features},
        np.concatenate([one.Y for one in splits]),
        np.concatenate([one.sessions for one in splits]),
        tuple(itertools.chain(*ids)) if len(ids) == len(splits) else None,
        tuple(itertools.chain(*samples)) if samples else None,
        np.concatenate(teachers) if len(teachers) == len(splits) else None,
    )


def row_blocks(row_count: int) -> Iterator[slice]:
    """Slices of `ROWS_AT_ONCE` rows that cover all rows in order."""
    return (slice(start, min(start + ROWS_AT_ONCE, row_count)) for start in range(0, row_count, ROWS_AT_ONCE))


def more_sessions(split: str, unit: Unit = "clip", *, always_on: bool = False) -> str:
    """What to do where a split lacks clips, or samples, that a label needs; `always_on`: that are off."""
    smaller = "make samples of fewer clips (most_clips under [samples]), " if always_on and unit == "sample" else ""
    return (
        f'If a session of another split has such {unit}s, fix it (sessions = {{ NAME = "{split}" }} under [splits]) '
        f"and run featurecache clips; else annotate more sessions, {smaller}or take the labels out of labels under "
        f"[data]{'' if unit == 'clip' else ', or out of your samples.csv'}."
    )


def check_labelled(data: LabelledFeatures, labels: Sequence[str], split: str) -> None:
    """Refuses a split whose arrays do not fit together or hold what no head can use.

    Args:
        data: The split's arrays.
        labels: Names of the C labels, in the order of Y's columns.
        split: The split's name, for messages.

    Raises:
        TrainingDataError: If it is empty, shapes or dtypes do not fit, a target is not 0 or 1
            (an unlabelled clip), or a feature is not finite.
    """
    X, Y, sessions = data.X, data.Y, data.sessions
    if X.ndim not in (2, 3) or Y.ndim != 2 or sessions.ndim != 1 or not len(X) == len(Y) == len(sessions):
        raise TrainingDataError(
            f"the {split} split must have X (N, D) or (N, T, D), Y (N, C) and sessions (N,), but their shapes are "
            f"{X.shape}, {Y.shape} and {sessions.shape}. Load features and targets by the same clip ids."
        )
    if Y.shape[1] != len(labels) or not labels:
        raise TrainingDataError(
            f"the {split} split must have a target for each of the labels {', '.join(labels)}, but Y has "
            f"{Y.shape[1]} columns. Take both from the same clip table."
        )
    if X.size == 0:
        raise TrainingDataError(
            f"the {split} split must have labelled {data.unit}s with features, but X has shape {X.shape}. "
            "Annotate more sessions, or change the split."
        )
    if X.dtype not in (np.float16, np.float32):
        raise TrainingDataError(
            f"features must be float16 or float32, but those of the {split} split are {X.dtype}. Cast them first."
        )
    unlabelled = np.flatnonzero(~((Y == 0) | (Y == 1)).all(axis=1))
    if len(unlabelled):
        raise TrainingDataError(
            f"every target of the {split} split must be 0 or 1, but {len(unlabelled)} of {len(Y)} {data.unit}s have "
            f"another (first: row {unlabelled[0]}). Leave unlabelled {data.unit}s out."
        )
    for rows in row_blocks(len(X)):
        is_sound = np.isfinite(X[rows]) if data.samples is None else ~np.isinf(X[rows])  # absent parts are NaN
        bad = np.flatnonzero(~is_sound.reshape(len(X[rows]), -1).all(axis=1))
        if len(bad):
            raise TrainingDataError(
                f"features must be finite, but row {rows.start + bad[0]} of the {split} split is not. "
                "Find the damage: featurecache cache verify."
            )


def check_training(train: LabelledFeatures, validation: LabelledFeatures, labels: Sequence[str]) -> None:
    """Refuses a pair of splits that cannot train and select a head.

    Raises:
        TrainingDataError: As `check_labelled`; or if a label is never or always on in training, no label is on in
            validation, the two splits share a session, or their features differ in width.
    """
    check_labelled(train, labels, "train")
    check_labelled(validation, labels, "validation")
    if train.X.shape[1:] != validation.X.shape[1:]:
        raise TrainingDataError(
            "train and validation must have features of one shape, but have "
            f"{train.X.shape[1:]} and {validation.X.shape[1:]}. Load both from one feature space."
        )
    shared = np.intersect1d(train.sessions, validation.sessions)
    if len(shared):
        raise TrainingDataError(
            f"no session may be in both train and validation, but {len(shared)} are (first: {shared[0]}). "
            "At least two sessions are needed; split by session: featurecache clips."
        )
    positives = train.Y.sum(axis=0)
    for state, here in (("on", positives == 0), ("off", positives == len(train.Y))):
        if here.any():
            names = ", ".join(label for label, is_bad in zip(labels, here, strict=True) if is_bad)
            raise TrainingDataError(
                f"each label must be {state} in at least one training {train.unit}, but these never are: {names}. "
                f"{more_sessions('train', train.unit, always_on=state == 'off')}"
            )
    if not validation.Y.any():
        raise TrainingDataError(
            f"at least one label must be on in validation, but none of {', '.join(labels)} is. "
            f"{more_sessions('validation', train.unit)}"
        )
