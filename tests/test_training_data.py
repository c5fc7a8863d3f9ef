"""Splits from which nothing can be learned, or nothing honestly, are refused with what is wrong."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featurecache.errors import TrainingDataError
from heads.data import LabelledFeatures, check_labelled, check_training
from tests.learning_samples import LABELS, make_clips


def with_changes(data: LabelledFeatures, **arrays: Callable[[np.ndarray], np.ndarray]) -> LabelledFeatures:
    return dataclasses.replace(data, **{name: change(getattr(data, name).copy()) for name, change in arrays.items()})


def put(value: float, at: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return change


BAD_SPLITS = {
    "no rows": ({"X": lambda x: x[:0], "Y": lambda y: y[:0], "sessions": lambda s: s[:0]}, "must have labelled clips"),
    "row missing": ({"Y": lambda y: y[1:]}, "their shapes are"),
    "label missing": ({"Y": lambda y: y[:, 1:]}, "Y has 2 columns"),
    "float64": ({"X": lambda x: x.astype(np.float64)}, "are float64"),
    "unlabelled": ({"Y": put(-1, (7, 1))}, "1 of 200 clips have another .first: row 7."),
    "NaN target": ({"Y": lambda y: put(np.nan, (7, 1))(y.astype(np.float32))}, "first: row 7"),
    "NaN feature": ({"X": put(np.nan, (11, 0))}, "row 11 of the train split"),
    "infinite feature": ({"X": put(np.inf, (11, 0))}, "row 11 of the train split"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_check_labelled_refuses_a_split_when_its_arrays_are_unusable(case: str) -> None:
    changes, message = BAD_SPLITS[case]
    check_labelled(make_clips(), LABELS, "train")
    with pytest.raises(TrainingDataError, match=message):
        check_labelled(with_changes(make_clips(), **changes), LABELS, "train")


BAD_PAIRS = {
    "never on": ({"Y": put(0, (slice(None), 1))}, {}, "never are: suction"),
    "always on": ({"Y": put(1, (slice(None), 2))}, {}, "off in at least one .* never are: stimulation"),
    "one session": (
        {"sessions": lambda s: np.full_like(s, "one")},
        {"sessions": lambda s: np.full_like(s, "one")},
        "one",
    ),
    "other width": ({}, {"X": lambda x: x[:, :-1]}, r"have \(24,\) and \(23,\)"),
    "none in validation": ({}, {"Y": put(0, slice(None))}, "none of ventilation, suction, stimulation"),
    "unlabelled in validation": ({}, {"Y": put(2, (0, 0))}, "validation split must be 0 or 1"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_check_training_refuses_splits_when_nothing_honest_can_be_learned(case: str) -> None:
    of_train, of_validation, message = BAD_PAIRS[case]
    train, validation = make_clips(), make_clips(seed=1)
    check_training(train, validation, LABELS)
    with pytest.raises(TrainingDataError, match=message):
        check_training(with_changes(train, **of_train), with_changes(validation, **of_validation), LABELS)
