"""Labelled features as arrays, and the checks that come before learning from them.

A split is refused before any work when nothing honest can be learned from it: no positive clip of a
label, a session on both sides, unlabelled rows, features that are not finite. This file makes no
split and reads no file.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurecache.errors import TrainingDataError

ROWS_AT_ONCE = 1024
"""Rows converted to float32 in one go, so that memory stays bounded by (1024, D)."""


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """The labelled clips of one split.

    Attributes:
        X: Features, shape (N, D), float16 or float32.
        Y: Targets, shape (N, C), 0 or 1.
        sessions: The session of each clip, shape (N,), str.
    """

    X: npt.NDArray[np.floating]
    Y: npt.NDArray[np.integer]
    sessions: npt.NDArray[np.str_]


def row_blocks(row_count: int) -> Iterator[slice]:
    """Slices of `ROWS_AT_ONCE` rows that cover all rows in order."""
    return (slice(start, min(start + ROWS_AT_ONCE, row_count)) for start in range(0, row_count, ROWS_AT_ONCE))


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
    if X.ndim != 2 or Y.ndim != 2 or sessions.ndim != 1 or not len(X) == len(Y) == len(sessions):
        raise TrainingDataError(
            f"the {split} split must have X (N, D), Y (N, C) and sessions (N,), but their shapes are "
            f"{X.shape}, {Y.shape} and {sessions.shape}. Load features and targets by the same clip ids."
        )
    if Y.shape[1] != len(labels) or not labels:
        raise TrainingDataError(
            f"the {split} split must have a target for each of the labels {', '.join(labels)}, but Y has "
            f"{Y.shape[1]} columns. Take both from the same clip table."
        )
    if len(X) == 0 or X.shape[1] == 0:
        raise TrainingDataError(
            f"the {split} split must have labelled clips with features, but X has shape {X.shape}. "
            "Annotate more sessions, or change the split."
        )
    if X.dtype not in (np.float16, np.float32):
        raise TrainingDataError(
            f"features must be float16 or float32, but those of the {split} split are {X.dtype}. Cast them first."
        )
    unlabelled = np.flatnonzero(~((Y == 0) | (Y == 1)).all(axis=1))
    if len(unlabelled):
        raise TrainingDataError(
            f"every target of the {split} split must be 0 or 1, but {len(unlabelled)} of {len(Y)} clips have another "
            f"(first: row {unlabelled[0]}). Leave unlabelled clips out."
        )
    for rows in row_blocks(len(X)):
        bad = np.flatnonzero(~np.isfinite(X[rows]).all(axis=1))
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
    if train.X.shape[1] != validation.X.shape[1]:
        raise TrainingDataError(
            f"train and validation must have features of one width, but have {train.X.shape[1]} and "
            f"{validation.X.shape[1]}. Load both from one feature space."
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
                f"each label must be {state} in at least one training clip, but these never are: {names}. "
                f"Move a session that has them into train, or leave these labels out."
            )
    if not validation.Y.any():
        raise TrainingDataError(
            f"at least one label must be on in validation, but none of {', '.join(labels)} is. "
            "Move a session with annotated activity into validation."
        )


def data_digest(parts: Sequence[LabelledFeatures], labels: Sequence[str]) -> str:
    """sha256 of labels, features, targets and sessions: 64 hex digits, equal only for equal data in equal order."""
    digest = hashlib.sha256("\0".join(labels).encode())
    for part in parts:
        targets = part.Y.astype(np.int8)
        for array in (part.X, targets):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        digest.update("\0".join(part.sessions.tolist()).encode())
    return digest.hexdigest()
