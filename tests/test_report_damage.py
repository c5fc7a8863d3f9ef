"""The report when documents are missing, damaged or wrong: the rest is there, and it says what is not."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.report_samples import (
    Page,
    edit,
    report_on,
    write_json,
    write_learning,
    write_prediction,
)


def test_report_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    report = report_on(tmp_path)
    text = Page(report.path).text
    assert not report.problems
    for command in ("extract", "tune", "clips", "predict", "evaluate"):
        assert f"featurecache {command}" in text, command


@pytest.mark.parametrize(
    "name",
    [
        "best.json",
        "bundle/bundle.json",
        "validation_metrics.json",
        "test_metrics.json",
        "test_timelines.json",
        "study.journal",
    ],
)
@pytest.mark.parametrize("content", [None, b"[1", b'{"macro_f1": "high", "per_class": [], "curves": 3}'])
def test_report_of_a_damaged_run_keeps_the_others(reported: Path, name: str, content: bytes | None) -> None:
    path = reported / "runs" / "tune" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    report = report_on(reported)
    assert "FT-MLP" in report.methods
    assert bool(report.problems) == (content is not None)
    assert all(str(reported) not in problem for problem in report.problems)


def _without_its_start(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[1] = re.sub(rb'"datetime_start":"[^"]*"', b'"datetime_start":null', lines[1])
    journal.write_bytes(b"".join(lines))


def _with_an_unknown_record(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 77}\n')


def _with_zeros_inside(journal: Path) -> None:
    content = journal.read_bytes()
    journal.write_bytes(content[:2000] + bytes(50) + content[2050:])


def _as_a_folder(journal: Path) -> None:
    journal.unlink()
    journal.mkdir()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (_without_its_start, "ValueError: `datetime_start` is supposed to be set"),
        (_with_an_unknown_record, "AssertionError"),
        (_with_zeros_inside, "JSONDecodeError: "),
        (_as_a_folder, "it is no file"),
    ],
)
def test_report_names_a_damaged_journal_and_leaves_its_search_out(reported: Path, damage: Any, found: str) -> None:
    damage(reported / "runs" / "tune" / "study.journal")
    report = report_on(reported)
    (problem,) = report.problems
    assert problem.startswith("tune/study.journal: a study's journal must be readable, but ")
    assert found in problem
    assert "\n" not in problem
    assert str(reported) not in problem
    page = Page(report.path)
    assert not [name for name in page.blocks["figures"] if name.startswith("search")]
    assert {"macro", "cooccurrence"} <= page.blocks["figures"].keys()


@pytest.mark.parametrize(
    "damage",
    [{"macro_f1": "high"}, {"macro_f1_ci95": [0.1, "x"]}, {"per_class": {"a": {"f1": "b"}}}, {"per_class": {"a": 1}}],
)
def test_report_leaves_a_run_out_of_the_methods_when_its_scores_are_no_numbers(
    reported: Path, damage: dict[str, Any]
) -> None:
    whole = report_on(reported).methods
    edit(reported / "runs" / "tune" / "test_metrics.json", **damage)
    report = report_on(reported)
    assert len(report.methods) == len(whole) - 1
    assert [problem for problem in report.problems if problem.startswith("tune/test_metrics.json: ")]


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"recording": 3}', b'{"recording": {"content": [], "name": 1}}'])
def test_report_names_a_prediction_that_is_none(reported: Path, content: bytes) -> None:
    (reported / "predictions" / "x.predicted.json").write_bytes(content)
    report = report_on(reported)
    assert report.recordings == 3
    (problem,) = report.problems
    assert "x.predicted.json" in problem


@pytest.mark.parametrize("scored", [3, [None], [{}], [{"recording": {"content": "a", "duration_us": float("inf")}}]])
def test_report_names_a_scored_timeline_that_is_none(reported: Path, scored: Any) -> None:
    edit(reported / "runs" / "tune" / "test_timelines.json", recordings=scored)
    (problem,) = report_on(reported).problems
    assert "test_timelines.json" in problem


def test_report_names_what_it_leaves_out_of_a_comparison_and_the_log_of_looks(reported: Path) -> None:
    (reported / "runs" / "tune" / "test_comparison.json").write_text('{"difference": "more"}')
    with (reported / "runs" / "test_looks.jsonl").open("a") as log:
        log.write("{\n[]\n")
    report = report_on(reported)
    assert report.problems == (
        "test_looks.jsonl: 2 of its lines cannot be read, and each counts as a test-set evaluation",
        "tune/test_comparison.json: its difference is not a number",
    )
    assert "The test split was evaluated 4 times" in Page(report.path).text


@pytest.mark.parametrize(
    ("learning", "reason"),
    [
        ({"epochs": 3}, "it has no list of epochs"),
        ({"epochs": [1]}, "it has no list of epochs"),
        ({"epochs": [{"epoch": "a"}]}, "its epochs are not counted"),
        ({"epochs": [{"epoch": 0}, {"epoch": 0}]}, "its epochs are not counted"),
        ({"epochs": [{"epoch": 0, "train_loss": float("nan")}]}, "its losses and scores are not all numbers"),
        ({"epochs": [{"epoch": 0}], "kept_epoch": 2}, "the selected epoch is none of its epochs"),
        ({}, "it holds an empty JSON object"),
    ],
)
def test_report_names_learning_curves_that_are_none(reported: Path, learning: Any, reason: str) -> None:
    write_json(reported / "runs" / "train" / "learning.json", learning)
    report = report_on(reported)
    assert report.problems == (f"train/learning.json: {reason}",)
    assert not [id for id in Page(report.path).blocks["figures"] if id.startswith("learning")]


def test_report_draws_losses_and_macro_f1_over_epochs_with_the_kept_one_marked(reported: Path) -> None:
    write_learning(reported / "runs" / "lora", epochs=5, kept=3)
    page = Page(report_on(reported).path)
    losses, scores = (page.blocks["figures"][f"learning-lora-{kind}"] for kind in ("loss", "macro"))
    train, validation = losses["data"]
    assert train["x"] == validation["x"] == [0, 1, 2, 3, 4, 5]
    assert train["y"][0] is None
    assert min(validation["y"]) == validation["y"][3]
    assert max(scores["data"][0]["y"]) == scores["data"][0]["y"][3]
    for figure in (losses, scores):
        (kept,) = figure["layout"]["shapes"]
        assert kept["x0"] == kept["x1"] == 3
    assert "lora : 5 epochs, epoch 3 selected" in page.text


def test_report_says_in_words_what_one_epoch_did(reported: Path) -> None:
    write_learning(reported / "runs" / "lora", epochs=1, kept=0)
    page = Page(report_on(reported).path)
    assert not [id for id in page.blocks["figures"] if id.startswith("learning")]
    assert "validation loss 0.5000 before and 0.5100 after it" in page.text
    assert "macro-F1 at 0.5 0.7000 before and 0.6800 after" in page.text
    assert "1 epoch, epoch 0 selected" in page.text


def test_report_names_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    for out in (Path("/proc/report.html"), tmp_path):  # nobody can write there; a folder
        with pytest.raises(OSError) as failed:
            report_on(tmp_path / "project", out)
        assert failed.value.filename == str(out)
        assert "tmp" not in str(failed.value).replace(str(out), "")


def test_report_draws_a_recording_without_annotation(reported: Path) -> None:
    write_prediction(reported, "new.mp4", {"ventilation": [[0, 10, 0.7]]}, None, duration_us=50)
    assert report_on(reported).recordings == 4
    page = Page(reported / "runs" / "report.html")
    (drawn,) = [one for one in page.blocks["timelines-data"] if one["name"] == "new.mp4"]
    assert drawn["labels"] == [
        {"name": "ventilation", "annotated": None, "predicted": [0, 10], "confidence": [0.7], "differ": []}
    ]
