"""Commands that learn, score and report: what they print, log and refuse."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.commands import invoke, run
from tests.projects import edit, make_project


def test_evaluate_counts_a_bundle_once_whatever_command_scores_it_and_another_one_again(tuned: Path) -> None:
    def looks(*arguments: str) -> int:
        return int(json.loads(invoke(*arguments, "--config", tuned, "--json").stdout)["looks"])

    assert [looks(*one.split()) for one in ("evaluate", "evaluate --leave-one-session-out", "compare")] == [1, 1, 1]
    compared = invoke("compare", "--config", tuned)
    assert "optimistically biased" not in compared.stderr
    for baseline in ("nearest neighbours", "ridge regression"):
        assert baseline in compared.stdout
        assert f"\n{baseline},baseline,0." in (tuned / "runs/compare.csv").read_text()
        assert f"\n{baseline} & 0." in (tuned / "runs/compare.tex").read_text()
    invoke("train", "--config", tuned)
    assert looks("evaluate", str(tuned / "runs/train/bundle")) == 2
    again = invoke("evaluate", "--config", tuned)
    assert "test-set evaluation no. 2" in again.stdout
    assert "optimistically biased" in again.stderr
    metrics = json.loads((tuned / "runs/tune/test_metrics.json").read_text())
    assert {"macro_f1", "macro_f1_ci95", "per_class", "undefined", "n_clips", "n_sessions", "split"} <= metrics.keys()
    assert metrics["split"] == "test"


def test_evaluate_compares_two_bundles_on_the_same_clips(tuned: Path) -> None:
    assert invoke("train", "--config", tuned).exit_code == 0
    rarer = ("--prevalence", "ventilation=0.05")
    result = invoke("evaluate", "--against", tuned / "runs/train/bundle", *rarer, "--config", tuned)
    assert result.exit_code == 0, result.output
    assert "difference of macro-F1" in result.stdout
    assert re.search(r"where ventilation is on in 5\.00% of the clips, .*: precision 0\.", result.stdout)
    comparison = json.loads((tuned / "runs/tune/test_comparison.json").read_text())
    assert comparison["against"].endswith("train/bundle")
    assert "test-set evaluation no. 1" in result.stdout
    assert "optimistically biased" not in result.stderr
    assert not (tuned / "runs/train/test_comparison.json").exists()
    own = {name: json.loads((tuned / "runs" / name / "test_metrics.json").read_text()) for name in ("tune", "train")}
    assert comparison["difference"] == pytest.approx(own["tune"]["macro_f1"] - own["train"]["macro_f1"])
    assert {metrics["looks"] for metrics in own.values()} == {1}
    assert invoke("report", "--config", tuned).exit_code == 0
    assert "The test split was looked at" not in (tuned / "runs/report.html").read_text()
    timelines = (tuned / "runs/train/test_timelines.json").read_bytes()
    alone = json.loads(invoke("evaluate", tuned / "runs/train/bundle", "--config", tuned, "--json").stdout)
    assert alone["looks"] == 1
    assert alone["macro_f1"] == own["train"]["macro_f1"]
    assert (tuned / "runs/train/test_timelines.json").read_bytes() == timelines


@pytest.mark.parametrize("other", ["runs/none/bundle", "runs/tune/bundle", "runs/tune/copy", "runs/copy/bundle"])
def test_evaluate_takes_no_look_when_the_other_bundle_cannot_be_compared(tuned: Path, other: str) -> None:
    if "copy" in other:
        shutil.copytree(tuned / "runs/tune/bundle", tuned / other)
    result = invoke("evaluate", "--against", tuned / other, "--config", tuned)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert not (tuned / "runs/test_looks.jsonl").exists()
    assert not (tuned / "runs/tune/test_metrics.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_evaluate_takes_no_look_when_its_results_cannot_be_written(tuned: Path) -> None:
    (tuned / "runs/tune").chmod(0o500)
    result = invoke("evaluate", "--config", tuned)
    (tuned / "runs/tune").chmod(0o700)
    assert result.exit_code == 1
    assert "runs/tune must be usable" in result.stderr
    assert not (tuned / "runs/test_looks.jsonl").exists()


def test_evaluate_leaves_out_one_session_at_a_time_and_says_what_that_is_not(tuned: Path) -> None:
    result = invoke("evaluate", "--leave-one-session-out", "--config", tuned)
    assert result.exit_code == 0, result.output
    assert "chosen on some of these sessions" in result.stderr
    metrics = json.loads((tuned / "runs/tune/leave_one_session_out_metrics.json").read_text())
    assert (metrics["n_sessions"], metrics["looks"], metrics["split_level"]) == (7, 1, "session")
    for of_test in (("--against", "x"), ("--prevalence", "ventilation=0.1")):
        assert invoke("evaluate", "--leave-one-session-out", *of_test, "--config", tuned).exit_code == 2


def test_report_writes_one_file_and_prints_the_methods(tuned: Path) -> None:
    assert invoke("evaluate", "--config", tuned).exit_code == 0
    result = invoke("report", "--config", tuned)
    assert result.exit_code == 0, result.output
    assert "FT-LC" in result.output
    assert "macro-F1" in result.output
    page = (tuned / "runs" / "report.html").read_text()
    assert "Activity recognition report" in page
    assert str(tuned) not in page


def test_report_says_that_labels_have_changed_since_they_were_scored(tuned: Path) -> None:
    def cautioned() -> bool:
        assert invoke("report", "--config", tuned).exit_code == 0
        return "The labels of 1 test recording have changed" in (tuned / "runs" / "report.html").read_text()

    assert invoke("evaluate", "--config", tuned).exit_code == 0
    assert not cautioned()
    table = (tuned / "clips.csv").read_text()
    row = next(line for line in table.splitlines() if ",test," in line)
    (tuned / "clips.csv").write_text(table.replace(row, f"{row[:-1]}{1 - int(row[-1])}"))
    assert cautioned()
    assert invoke("compare", "--config", tuned).exit_code == 0
    assert not cautioned()


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--out labels.csv", 2, r"must name an \.html file"),
        ("--predictions none", 1, r"none must be usable.*No such file"),
        ("--predictions labels.csv", 1, r"labels\.csv must be usable.*Not a directory"),
    ],
)
def test_report_writes_nothing_when_a_place_is_not_as_it_must_be(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, option: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tuned)
    before = (tuned / "labels.csv").read_bytes()
    result = invoke("report", *option.split())
    assert result.exit_code == code
    assert re.search(message, result.stderr)
    assert (tuned / "labels.csv").read_bytes() == before
    assert not (tuned / "runs/report.html").exists()


def test_report_ends_with_3_and_names_what_it_cannot_read(tuned: Path) -> None:
    (tuned / "runs" / "tune" / "best.json").write_text("{")
    result = invoke("report", "--config", tuned)
    assert result.exit_code == 3
    assert "left out: tune/best.json" in result.stderr


def test_tune_resumes_where_it_was_and_adds_no_trial_when_there_are_enough(tuned: Path) -> None:
    first = json.loads(invoke("tune", "--trials", 4, "--config", tuned, "--json").stdout)
    assert first["trials"]["completed"] + first["trials"]["pruned"] == 4
    more = json.loads(invoke("tune", "--trials", 6, "--config", tuned, "--json").stdout)
    assert more["trials"]["completed"] + more["trials"]["pruned"] == 6
    assert len((tuned / "runs/tune/trials.csv").read_text().splitlines()) == 7


def test_training_leaves_failed_clips_out_and_says_so(tuned: Path, tiny_model: Path) -> None:
    train = next(line for line in (tuned / "clips.csv").read_text().splitlines() if ",train," in line)
    (tuned / "videos" / train.split(",")[1]).unlink()
    shutil.rmtree(tuned / "features.zarr")
    shutil.rmtree(tuned / "runs")
    assert invoke("extract", "--config", tuned).exit_code == 3
    result = invoke("tune", "--trials", 2, "--config", tuned)
    assert result.exit_code == 0, result.output
    assert "train: 4 labelled clips left out" in result.stderr


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project that keeps several features, extracted."""
    keep = 'select = ["final/mean", "final/motion", "layer_1/mean", "final/frames"]'
    root = tmp_path_factory.mktemp("several") / "project"
    project = make_project(root, tiny_model, sessions=7, features=keep)
    for command in ("clips", "extract"):
        assert invoke(command, "--config", project.root).exit_code == 0
    return project.root


def _inputs_of_trials(project: Path) -> set[str]:
    with (project / "runs/tune/trials.csv").open(newline="") as file:
        return {row["inputs"] for row in csv.DictReader(file)}


def test_tune_searches_kept_vectors_alone_and_side_by_side(several: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(several, tmp_path / "project"))
    found = json.loads(invoke("tune", "--trials", 24, "--permutations", 2, "--config", project, "--json").stdout)
    assert _inputs_of_trials(project) == {
        "final/mean",
        "final/motion",
        "layer_1/mean",
        "final/mean+final/motion",
        "final/mean+layer_1/mean",
        "final/mean+final/motion+layer_1/mean",
    }
    assert list(found["fingerprints"]) == found["inputs"].split("+")
    assert found["split_level"] == "session"
    assert len(found["permutation_check"]["permuted"]) <= 2
    result = invoke("evaluate", "--config", project)
    assert result.exit_code == 0, result.output
    assert invoke("evaluate", "--leave-one-session-out", "--config", project).exit_code == 0
    assert invoke("predict", project / "videos/S0.mp4", "--out", tmp_path / "out", "--config", project).exit_code == 0


def test_train_and_tune_read_the_inputs_that_the_settings_name(several: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(several, tmp_path / "project"))
    assert json.loads(invoke("train", "--config", project, "--json").stdout)["inputs"] == "final/mean"
    edit(
        project / "featurecache.toml",
        "[features]",
        '[train]\ninputs = "final/frames"\nkind = "attention"\n'
        '[search]\ninputs = ["final/frames"]\nkind = ["attention", "temporal"]\nhidden_width = [2, 4]\n[features]',
    )
    assert json.loads(invoke("train", "--config", project, "--json").stdout)["inputs"] == "final/frames"
    assert invoke("tune", "--trials", 4, "--config", project).exit_code == 0
    assert _inputs_of_trials(project) == {"final/frames"}
    result = invoke(
        "evaluate", project / "runs/tune/bundle", "--against", project / "runs/train/bundle", "--config", project
    )
    assert result.exit_code == 0, result.output
    edit(project / "featurecache.toml", 'inputs = ["final/frames"]', 'inputs = ["vision/mean"]')
    stderr = invoke("tune", "--config", project).stderr
    assert re.search(
        r"that features\.select selects: final/mean.*; but 'vision/mean' is not one\. .*features\.select", stderr
    )


def test_every_command_says_that_a_split_by_clips_was_forced_and_what_was_purged(tuned: Path) -> None:
    table = tuned / "clips.csv"
    table.write_text(table.read_text().replace(",train,", ",test,", 1))
    for command in ("train", "evaluate"):
        assert "allow_clip_level = true" in invoke(command, "--config", tuned).stderr
    edit(tuned / "featurecache.toml", "[features]", "[splits]\nallow_clip_level = true\n[features]")
    assert "splits cut sessions" in invoke("evaluate", "--config", tuned).stderr
    shutil.rmtree(tuned / "runs")
    for command in ("train", "tune --trials 2"):
        result = invoke(*command.split(), "--config", tuned)
        assert result.exit_code == 0, result.output
        assert "train: 1 clip left out for touching clips that score them" in result.stderr
        assert "splits cut sessions" in result.stderr


def test_heads_train_on_features_made_by_others(tuned: Path, tmp_path: Path) -> None:
    ids = [line.split(",")[0] for line in (tuned / "clips.csv").read_text().splitlines()[1:]]
    np.savez(tmp_path / "other.npz", features=np.random.default_rng(0).normal(size=(28, 5)), clip_id=np.array(ids, "S"))
    assert invoke("cache", "import", tmp_path / "other.npz", "--config", tuned).exit_code == 1, "they need a name"
    result = invoke("cache", "import", tmp_path / "other.npz", "--name", "other", "--config", tuned)
    assert result.exit_code == 0, result.output
    assert invoke("tune", "--trials", 2, "--features", "other", "--config", tuned).exit_code == 0
    result = invoke("evaluate", tuned / "runs/tune-other/bundle", "--config", tuned)
    assert result.exit_code == 0, result.output
    assert (tuned / "runs/tune-other/test_metrics.json").exists()


def test_review_serves_its_page_until_it_is_interrupted_and_then_ends_with_its_document(tuned: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def interrupt_once_it_listens() -> None:
        for _ in range(600):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=interrupt_once_it_listens, daemon=True).start()
    try:
        assert run("review", "--port", port, "--config", tuned)["reviewed"] == 0
    finally:
        signal.signal(signal.SIGINT, before)
