"""What heads read where nobody says it; selected features side by side; what trials share is bounded."""

from collections.abc import Sequence

import numpy as np
import pytest

from featurecache.errors import SettingsError, TrainingDataError
from heads.data import LabelledSplit, LearningData
from heads.engines.prepared import KEPT_BASES, KEPT_INPUTS, Prepared
from heads.inputs import default_inputs
from heads.search.trial_settings import Choices
from heads.settings import SearchSpace
from tests.learning_samples import LABELS
from tests.studies import SPACE, side_by_side


@pytest.mark.parametrize(
    ("kept", "kinds", "expected"),
    [
        (["final/mean"], ["linear"], ("final/mean",)),
        (["layer_3/motion"], ["linear", "mlp"], ("layer_3/motion",)),
        (["final/mean", "final/motion"], ["linear"], ("final/mean", "final/motion", "final/mean+final/motion")),
        (
            ["final/mean", "vision/mean", "vision/motion"],
            ["linear"],
            (
                *("final/mean", "vision/mean", "vision/motion", "vision/mean+vision/motion", "final/mean+vision/mean"),
                "final/mean+vision/mean+vision/motion",
            ),
        ),
        (
            ["a/mean", "b/mean", "c/mean"],
            ["linear"],
            ("a/mean", "b/mean", "c/mean", "a/mean+b/mean+c/mean"),
        ),
        (["final/mean", "final/frames", "layer_0/tokens"], ["linear"], ("final/mean",)),
        (["final/mean", "final/last"], ["linear"], ("final/mean", "final/last", "final/mean+final/last")),
        (["final/mean", "final/frames"], ["attention"], ("final/frames",)),
        (["final/mean", "final/frames"], ["mlp", "temporal"], ("final/mean", "final/frames")),
        (["final/frames"], ["linear"], ("final/frames",)),  # does not fit, which the search then says
    ],
)
def test_default_inputs_are_vectors_alone_and_what_belongs_together(
    kept: list[str], kinds: list[str], expected: tuple[str, ...]
) -> None:
    assert default_inputs(kept, kinds) == expected


@pytest.mark.parametrize(
    ("inputs", "value_of", "pairs", "sets"),
    [
        (("a/mean",), {"a/mean": 0.5}, [], []),
        (default_inputs(["a/mean", "b/mean"]), {"a/mean": 0.5, "b/mean": 0.4}, [], []),
        (default_inputs(["a/mean", "b/mean"]), {}, [], []),
        (
            default_inputs(["a/motion", "a/mean", "b/mean"]),
            {"a/motion": 0.5, "a/mean": 0.4, "b/mean": 0.3},
            ["a/motion+b/mean"],
            [],
        ),
        (
            [f"mean({one})" for one in default_inputs(["a/mean", "b/mean", "c/mean", "d/mean"])],
            {"mean(b/mean)": 0.5, "mean(a/mean)": 0.4, "mean(c/mean)": 0.3, "mean(d/mean)": 0.2}
            | {"mean(a/mean+b/mean)": 0.5, "mean(b/mean+c/mean)": 0.6, "mean(b/mean+d/mean)": 0.9},
            ["mean(a/mean+b/mean)", "mean(b/mean+c/mean)", "mean(b/mean+d/mean)"],
            ["mean(b/mean+c/mean+d/mean)"],
        ),
    ],
)
def test_no_set_of_vectors_is_solved_twice_and_the_best_is_joined_by_what_helps_it_most(
    inputs: Sequence[str], value_of: dict[str, float], pairs: list[str], sets: list[str]
) -> None:
    choices = Choices(SearchSpace(), tuple(inputs), (), lambda _: 24, has_words=False)
    assert choices.leading(value_of) == (pairs, sets)


def test_kept_split_puts_features_side_by_side_in_the_order_asked() -> None:
    split = side_by_side().train
    both = split.of("final/mean+layer_2/mean")
    np.testing.assert_array_equal(both.X[:, :24], split.features["final/mean"])
    np.testing.assert_array_equal(both.X[:, 24:], split.features["layer_2/mean"])
    assert split.part_widths("final/mean+layer_2/mean") == [24, 7]
    assert split.of("final/mean").X is split.features["final/mean"], "one selected feature is not copied"
    assert (split.are_frames("final/frames"), split.are_frames("final/mean")) == (True, False)


def test_kept_split_refuses_what_was_not_loaded_or_does_not_fit() -> None:
    split = side_by_side().train
    with pytest.raises(SettingsError, match="'vision/mean' is not one"):
        split.of("final/mean+vision/mean")
    with pytest.raises(SettingsError, match=r"have shapes \(24,\), \(5, 24\) per clip"):
        split.of("final/mean+final/frames")


def test_learning_data_has_another_digest_when_anything_in_it_changes() -> None:
    def changed(split: LabelledSplit, **changes: object) -> LabelledSplit:
        return LabelledSplit(**{**vars(split), **changes})

    data = side_by_side()
    other = {name: features + (name == "final/frames") for name, features in data.train.features.items()}
    variants = [
        data,
        LearningData(changed(data.train, features=other), data.validation, LABELS, data.spaces),
        LearningData(changed(data.train, Y=1 - data.train.Y), data.validation, LABELS, data.spaces),
        LearningData(data.train, changed(data.validation, sessions=data.train.sessions), LABELS, data.spaces),
        LearningData(data.train, data.validation, ("x", "y", "z"), data.spaces),
        LearningData(data.train, data.validation, LABELS, {"final/mean": SPACE}),
    ]
    assert len({variant.digest() for variant in variants}) == len(variants)
    assert side_by_side().digest() == data.digest()


def test_learning_data_is_refused_when_frames_are_not_finite() -> None:
    data = side_by_side()
    data.validation.features["final/frames"][7, 2, 3] = np.nan
    with pytest.raises(TrainingDataError, match="row 7 of the validation split"):
        data.check()


def test_prepared_keeps_a_few_and_makes_the_others_again() -> None:
    prepared = Prepared(side_by_side(), seed=0, device="cpu")
    names = ["layer_2/mean", "final/mean", "layer_2/mean+final/mean"]
    first = {name: prepared.basis(name, "standardize", 0) for name in names}
    assert (len(prepared._fitting), len(prepared._bases)) == (KEPT_INPUTS, KEPT_BASES)
    assert prepared.basis(names[-1], "standardize", 0) is first[names[-1]]
    again = prepared.basis(names[0], "standardize", 0)
    assert again is not first[names[0]]
    assert (again.axes == first[names[0]].axes).all()
