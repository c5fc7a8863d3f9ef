"""Settings of heads and of the search: read from files, and refused when they mean nothing."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from featurecache.errors import SettingsError
from featurecache.project.settings import parse_section
from heads.settings import HeadSettings, SearchSpace


def test_head_settings_are_the_same_when_read_back_from_json() -> None:
    for settings in (
        HeadSettings(learning_rate=1e-2, batch_size=24, epochs=4, normalization="none", inputs="a/mean+b/mean"),
        HeadSettings(kind="mlp", hidden_width=(9, 6), dropout=0.2, positive_weight_exponent=(0.2, 0.9, 0.0)),
        HeadSettings(solver="convex", l2=0.1, components=6),
    ):
        assert HeadSettings.from_mapping(json.loads(json.dumps(settings.to_mapping()))) == settings
    assert json.loads(json.dumps(SearchSpace().to_mapping())) == SearchSpace().to_mapping()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "svm"),
        ("hidden_width", 0),
        ("hidden_width", ()),
        ("hidden_width", (4, 0)),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("positive_weight_exponent", 2.5),
        ("positive_weight_exponent", (0.5, 2.5)),
        ("positive_weight_exponent", ()),
        ("positive_weight_exponent", "0.5"),
        ("dropout", 1.0),
        ("batch_size", 2.5),
        ("epochs", 0),
        ("normalization", "whiten"),
        ("solver", "sgd"),
        ("inputs", "final"),
        ("inputs", "final/mean+final/mean"),
        ("components", -1),
        ("l2", 0.0),
        ("positive_weight_exponent", 2.1),
        ("patience", -1),
    ],
)
def test_head_settings_are_refused_when_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be .*, but it is "):
        HeadSettings(**{name: value})


@pytest.mark.parametrize("other", [{"kind": "mlp"}, {"dropout": 0.1}, {"patience": 3}])
def test_head_settings_are_refused_when_the_convex_solver_cannot_fit_them(other: dict[str, Any]) -> None:
    assert HeadSettings(solver="convex").solver == "convex"
    with pytest.raises(SettingsError, match=r'Set solver = "adamw"'):
        HeadSettings(solver="convex", **other)


def test_settings_that_do_not_fit_each_other_are_refused_in_one_sentence() -> None:
    with pytest.raises(SettingsError, match=r"^\[train\] the convex solver must have .*, or change these\.$"):
        parse_section({"solver": "convex", "kind": "mlp"}, HeadSettings, "train")


def test_head_settings_of_a_file_that_names_label_smoothing_load_when_it_was_off() -> None:
    mapping = HeadSettings().to_mapping()
    assert HeadSettings.from_mapping({**mapping, "label_smoothing": 0.0}) == HeadSettings()
    with pytest.raises(SettingsError, match="these differ: label_smoothing"):
        HeadSettings.from_mapping({**mapping, "label_smoothing": 0.1})


def test_head_settings_are_refused_when_a_name_is_unknown_or_missing() -> None:
    mapping = HeadSettings().to_mapping()
    with pytest.raises(SettingsError, match="momentum"):
        HeadSettings.from_mapping({**mapping, "momentum": 0.9})
    del mapping["dropout"]
    with pytest.raises(SettingsError, match="dropout"):
        HeadSettings.from_mapping(mapping)


def test_search_space_reads_from_a_settings_section() -> None:
    table = {"learning_rate": [1e-4, 1], "kind": ["linear", "mlp"], "epochs": [5, 5]}
    space = parse_section(table, SearchSpace, "search")
    assert space == SearchSpace(learning_rate=(1e-4, 1.0), kind=("linear", "mlp"), epochs=(5, 5))
    with pytest.raises(SettingsError, match=r"search\.epochs must be two numbers, the lower one first"):
        parse_section({"epochs": [9, 5]}, SearchSpace, "search")
    with pytest.raises(SettingsError, match=r"train\.learning_rate must be greater than 0, but it is -1"):
        parse_section({"learning_rate": -1}, HeadSettings, "train")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("epochs", [5], "two values"),
        ("epochs", [5, 6, 7], "two values"),
        ("epochs", 5, r"a list \(in Python a tuple\)"),
        ("kind", [], "a list of 1 or more"),
        ("kind", "linear", r"a list \(in Python a tuple\)"),
        ("components", [0, 64, 0], "choices that differ from each other"),
        ("inputs", ["final/mean", "final/mean"], "choices that differ from each other"),
        ("folds", 1, "greater than or equal to 2"),
    ],
)
def test_a_search_space_that_is_no_list_of_its_kind_is_refused_in_plain_words(name: str, value: Any, rule: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^search.{name} must be {rule}, but it is {re.escape(repr(value))}. Correct"
    ):
        parse_section({name: value}, SearchSpace, "search")


def test_import_of_heads_and_its_settings_loads_no_torch() -> None:
    code = "import sys, heads\nheads.HeadSettings(), heads.SearchSpace()\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
