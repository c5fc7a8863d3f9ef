"""The command line as a contract: exit codes, one-line messages, one JSON document, wrong inputs named."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import typer

import cli
from featurecache.project.settings import open_project, parse_section
from heads.settings import HeadSettings, SearchSpace
from tests.commands import invoke
from tests.make_videos import write_video
from tests.projects import make_project

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A project taken through clips, extract and tune once; tests work on copies."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project", tiny_model, sessions=7)
    assert invoke("clips", "--config", project.root).exit_code == 0
    assert invoke("extract", "--config", project.root).exit_code == 0
    assert invoke("tune", "--trials", 4, "--config", project.root).exit_code == 0
    return project.root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    # Times are kept, so that the remembered digests still hold.
    return Path(shutil.copytree(finished, tmp_path / "project"))


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new))


def _settings(old: str, new: str) -> Callable[[Path], None]:
    return lambda project: _edit(project / "featurecache.toml", old, new)


def _remove(name: str) -> Callable[[Path], None]:
    def act(project: Path) -> None:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def _table(old: str, new: str) -> Callable[[Path], None]:
    return lambda project: _edit(project / "clips.csv", old, new)


def _all_zero(project: Path) -> None:
    lines = (project / "clips.csv").read_text().splitlines()
    rows = [lines[0]] + [re.sub(r",[01],([01])$", r",0,\1", line) for line in lines[1:]]
    (project / "clips.csv").write_text("\n".join(rows) + "\n")


def _no_test_sessions(project: Path) -> None:
    _edit(project / "clips.csv", ",test,", ",,")


def _one_session(project: Path) -> None:
    text = (project / "clips.csv").read_text()
    (project / "clips.csv").write_text(re.sub(r",(validation|test),", ",train,", text))


def _damage_a_segment(project: Path) -> None:
    shard = next((project / "features.zarr").glob("spaces/*/segments/*/features/c.0.0"))
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)


def _damage_bundle(project: Path) -> None:
    head = project / "runs/tune/bundle/head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(data)


def _unknown_device(project: Path) -> None:
    _remove("features.zarr")(project)
    _edit(project / "featurecache.toml", "[features]", '[extract]\ndevice = "gpu7"\n[features]')


def _newer_cache(project: Path) -> None:
    _edit(project / "features.zarr/zarr.json", '"version":1', '"version":99')


def _hostile_eaf(project: Path) -> None:
    (project / "eaf").mkdir()
    (project / "eaf/S0.eaf").write_text('<!DOCTYPE x [<!ENTITY a "b">]><ANNOTATION_DOCUMENT>&a;</ANNOTATION_DOCUMENT>')
    _edit(project / "featurecache.toml", 'annotations = "labels.csv"', 'annotations = "eaf"')


WRONG = {
    "no project": (_remove("featurecache.toml"), "clips", 1, r"must have a featurecache\.toml.*featurecache init"),
    "settings not TOML": (_settings("[data]", "[data"), "clips", 1, r"must be TOML"),
    "unknown section": (_settings("[clips]", "[clip]"), "clips", 1, r"Did you mean 'clips'"),
    "unknown setting": (_settings("length_s", "lenght_s"), "clips", 1, r"Did you mean 'length_s'"),
    "value of a wrong type": (_settings("length_s = 1", 'length_s = "one"'), "clips", 1, r"clips\.length_s must be"),
    "negative length": (_settings("length_s = 1", "length_s = -1"), "clips", 1, r"equal to 0\.01, but it is -1"),
    "clip longer than every video": (_settings("length_s = 1", "length_s = 60"), "clips", 1, r"longest recording"),
    "no folder of videos": (_remove("videos"), "clips", 1, r"folder of videos must be readable"),
    "no video in the folder": (_settings('videos = "videos"', 'videos = "runs"'), "clips", 1, r"must hold recordings"),
    "wrong label name": (_settings("'ventilation'", "'ventilaton'"), "clips", 1, r"'ventilaton'.*'ventilation'"),
    "no annotations file": (_remove("labels.csv"), "clips", 1, r"data\.annotations must be"),
    "malformed annotations": (lambda p: _edit(p / "labels.csv", "start_s", "begin"), "clips", 1, r"start_s is missing"),
    "annotation ends before it starts": (
        lambda p: (p / "labels.csv").write_text("recording,start_s,end_s,label\nS0.mp4,3,2,ventilation\n"),
        "clips",
        1,
        r"line 2: end_s must not lie before start_s",
    ),
    "hostile annotation file": (
        _hostile_eaf,
        "clips",
        1,
        r"left out: S0\.eaf: an \.eaf file must not declare a document type",
    ),
    "session pattern without a group": (
        _settings('videos = "videos"', 'videos = "videos"\nsession_from = "pattern"\nsession_pattern = "S"'),
        "clips",
        1,
        r"exactly one group",
    ),
    "session column without a column": (
        _settings('videos = "videos"', 'videos = "videos"\nsession_from = "column"'),
        "clips",
        1,
        r"session column",
    ),
    "unknown fixed session": (
        _settings("[features]", '[splits]\nsessions = {S99 = "test"}\n[features]'),
        "clips",
        1,
        r"'S99' does not",
    ),
    "edited table": (_table(",train,", ",test,"), "clips", 1, r"--force"),
    "table with a malformed target": (
        _table(",1,0\n", ",yes,0\n"),
        "extract",
        1,
        r"line \d+, column ventilation: 'yes'",
    ),
    "table whose session is in two splits": (
        lambda p: (p / "clips.csv").write_text((p / "clips.csv").read_text().replace(",train,", ",test,", 1)),
        "extract",
        1,
        r"lies in",
    ),
    "missing model": (lambda p: _set_model(p, "/no/such/model"), "extract", 1, r"features\.model must be a folder"),
    "model not on this machine": (lambda p: _set_model(p, "some-group/some-model"), "extract", 1, r"--allow-download"),
    "model of another architecture": (
        lambda p: _other_architecture(p),
        "extract",
        1,
        r"must be one of llava_next_video",
    ),
    "prompt without the video": (_settings("<video>", "here"), "extract", 1, r"<video> exactly once"),
    "unknown device": (
        _unknown_device,
        "extract",
        1,
        r"the device must be auto, cpu, .* Set extract\.device",
    ),
    "limit of nothing": (lambda p: None, "extract --limit 0", 2, r"--limit"),
    "unknown option": (lambda p: None, "extract --frames 8", 2, r"--frames"),
    "unknown command": (lambda p: None, "extrakt", 2, r"extrakt"),
    "cache of a newer version": (_newer_cache, "extract", 1, r"version"),
    "cache is a file": (
        lambda p: (_remove("features.zarr")(p), (p / "features.zarr").write_text("")),
        "tune",
        1,
        r"features\.zarr",
    ),
    "no features": (_remove("features.zarr"), "tune", 1, r"featurecache extract"),
    "features of another prompt": (_settings("the hand", "the baby"), "tune", 1, r"featurecache extract"),
    "damaged segment": (_damage_a_segment, "tune", 1, r"segment .* must be as it was written"),
    "no positive clip": (_all_zero, "tune", 1, r"never are: ventilation"),
    "nothing to validate on": (_one_session, "tune", 1, r"validation split must have labelled clips"),
    "another study": (
        _settings("[features]", "[search]\ndropout = [0.1, 0.2]\n[features]"),
        "tune",
        1,
        r"mv .*runs.tune-1",
    ),
    "search range upside down": (
        _settings("[features]", "[search]\nepochs = [9, 3]\n[features]"),
        "tune",
        1,
        r"search\.epochs",
    ),
    "unknown search setting": (
        _settings("[features]", "[search]\nepoch = [3, 9]\n[features]"),
        "tune",
        1,
        r"Did you mean 'epochs'",
    ),
    "train setting out of range": (
        _settings("[features]", "[train]\nlearning_rate = -1.0\n[features]"),
        "train",
        1,
        r"train\.learning_rate must be",
    ),
    "no bundle": (_remove("runs"), "evaluate", 1, r"featurecache tune"),
    "damaged bundle": (_damage_bundle, "evaluate", 1, r"bundle"),
    "labels changed after training": (_table(",ventilation,", ",breathing,"), "evaluate", 1, r"own labels"),
    "empty test split": (_no_test_sessions, "evaluate", 1, r"test split must have labelled clips"),
    "unreadable settings": (lambda p: (p / "featurecache.toml").chmod(0), "clips", 1, r"must be readable"),
}


def _set_model(project: Path, model: str) -> None:
    path = project / "featurecache.toml"
    path.write_text(re.sub(r"model = .*", f'model = "{model}"', path.read_text()))


def _other_architecture(project: Path) -> None:
    (project / "model").mkdir()
    (project / "model/config.json").write_text('{"model_type": "paligemma"}')
    (project / "model/preprocessor_config.json").write_text("{}")
    _set_model(project, str(project / "model"))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_in_one_line(project: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    act, command, code, message = WRONG[name]
    if name.startswith("unreadable") and os.geteuid() == 0:
        pytest.skip("root reads everything")
    act(project)
    result = invoke(*command.split(), "--config", project)
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output
    if code == 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        as_json = invoke(*command.split(), "--config", project, "--json")
        assert json.loads(as_json.stdout)["error"]["message"] == errors[0].removeprefix("error: ")
        assert as_json.exit_code == 1


def test_every_command_prints_one_json_document_and_nothing_else_on_stdout(project: Path) -> None:
    shutil.rmtree(project / "runs")
    for command in (
        "clips",
        "extract --dry-run",
        "extract",
        "train",
        "tune --trials 2",
        "evaluate",
        "cache info",
        "doctor",
    ):
        result = invoke(*command.split(), "--config", project, "--json")
        assert result.exit_code == 0, (command, result.output)
        assert isinstance(json.loads(result.stdout), dict), command


def test_evaluate_counts_a_bundle_once_whatever_command_scores_it_and_another_one_again(project: Path) -> None:
    def looks(*arguments: str) -> int:
        return int(json.loads(invoke(*arguments, "--config", project, "--json").stdout)["looks"])

    assert [looks(*one.split()) for one in ("evaluate", "evaluate --leave-one-session-out", "compare")] == [1, 1, 1]
    compared = invoke("compare", "--config", project)
    assert "optimistically biased" not in compared.stderr
    for baseline in ("nearest neighbours", "ridge regression"):
        assert baseline in compared.stdout
        assert f"\n{baseline},baseline,0." in (project / "runs/compare.csv").read_text()
    invoke("train", "--config", project)
    assert looks("evaluate", str(project / "runs/train/bundle")) == 2
    again = invoke("evaluate", "--config", project)
    assert "test-set evaluation no. 2" in again.stdout
    assert "optimistically biased" in again.stderr
    metrics = json.loads((project / "runs/tune/test_metrics.json").read_text())
    assert {"macro_f1", "macro_f1_ci95", "per_class", "undefined", "n_clips", "n_sessions", "split"} <= metrics.keys()
    assert metrics["split"] == "test"


def test_evaluate_refuses_test_sessions_that_made_the_bundle(project: Path) -> None:
    table = project / "clips.csv"
    swapped = table.read_text().replace(",test,", ",other,").replace(",train,", ",test,").replace(",other,", ",train,")
    table.write_text(swapped)
    result = invoke("evaluate", "--config", project)
    assert result.exit_code == 1
    assert re.search(
        r"sessions that it has not seen, but \d of the test split \(S\d.*Put those back, or tune", result.stderr
    )
    assert not (project / "runs" / "test_looks.jsonl").exists()
    result = invoke("clips", "--force", "--config", project)
    assert "sessions changed split" in result.stderr
    assert invoke("evaluate", "--config", project).exit_code == 0


def test_evaluate_compares_two_bundles_on_the_same_clips(project: Path) -> None:
    assert invoke("train", "--config", project).exit_code == 0
    rarer = ("--prevalence", "ventilation=0.05")
    result = invoke("evaluate", "--against", project / "runs/train/bundle", *rarer, "--config", project)
    assert result.exit_code == 0, result.output
    assert "difference of macro-F1" in result.stdout
    assert re.search(r"where ventilation is on in 5\.00% of the clips, .*: precision 0\.", result.stdout)
    comparison = json.loads((project / "runs/tune/test_comparison.json").read_text())
    assert comparison["against"].endswith("train/bundle")
    assert "test-set evaluation no. 1" in result.stdout
    assert "optimistically biased" not in result.stderr
    assert not (project / "runs/train/test_comparison.json").exists()
    own = {name: json.loads((project / "runs" / name / "test_metrics.json").read_text()) for name in ("tune", "train")}
    assert comparison["difference"] == pytest.approx(own["tune"]["macro_f1"] - own["train"]["macro_f1"])
    assert {metrics["looks"] for metrics in own.values()} == {1}
    assert invoke("report", "--config", project).exit_code == 0
    assert "The test split was looked at" not in (project / "runs/report.html").read_text()
    timelines = (project / "runs/train/test_timelines.json").read_bytes()
    alone = json.loads(invoke("evaluate", project / "runs/train/bundle", "--config", project, "--json").stdout)
    assert alone["looks"] == 1
    assert alone["macro_f1"] == own["train"]["macro_f1"]
    assert (project / "runs/train/test_timelines.json").read_bytes() == timelines


@pytest.mark.parametrize("other", ["runs/none/bundle", "runs/tune/bundle", "runs/tune/copy", "runs/copy/bundle"])
def test_evaluate_takes_no_look_when_the_other_bundle_cannot_be_compared(project: Path, other: str) -> None:
    if "copy" in other:
        shutil.copytree(project / "runs/tune/bundle", project / other)
    result = invoke("evaluate", "--against", project / other, "--config", project)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert not (project / "runs/test_looks.jsonl").exists()
    assert not (project / "runs/tune/test_metrics.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_evaluate_takes_no_look_when_its_results_cannot_be_written(project: Path) -> None:
    (project / "runs/tune").chmod(0o500)
    result = invoke("evaluate", "--config", project)
    (project / "runs/tune").chmod(0o700)
    assert result.exit_code == 1
    assert "runs/tune must be usable" in result.stderr
    assert not (project / "runs/test_looks.jsonl").exists()


@pytest.mark.parametrize("command", ["tune --trials 9", "train", "evaluate"])
def test_a_rule_of_an_unknown_label_is_refused_before_any_work(project: Path, command: str) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (project / "runs").rglob("*")}

    _edit(project / "featurecache.toml", "[features]", '[timeline]\nexclusive = [["ventilation", "x"]]\n[features]')
    before = files()
    result = invoke(*command.split(), "--config", project)
    assert result.exit_code == 1
    assert re.search(r"'x' is none of ventilation, stimulation\. Correct exclusive", result.stderr)
    assert files() == before


def test_evaluate_leaves_out_one_session_at_a_time_and_says_what_that_is_not(project: Path) -> None:
    result = invoke("evaluate", "--leave-one-session-out", "--config", project)
    assert result.exit_code == 0, result.output
    assert "chosen on some of these sessions" in result.stderr
    metrics = json.loads((project / "runs/tune/leave_one_session_out_metrics.json").read_text())
    assert (metrics["n_sessions"], metrics["looks"], metrics["split_level"]) == (7, 1, "session")
    for of_test in (("--against", "x"), ("--prevalence", "ventilation=0.1")):
        assert invoke("evaluate", "--leave-one-session-out", *of_test, "--config", project).exit_code == 2


def test_evaluate_says_in_every_document_that_a_split_by_clips_was_forced(project: Path) -> None:
    table = project / "clips.csv"
    table.write_text(table.read_text().replace(",train,", ",test,", 1))
    assert "allow_clip_level = true" in invoke("evaluate", "--config", project).stderr
    _edit(project / "featurecache.toml", "[features]", "[splits]\nallow_clip_level = true\n[features]")
    result = invoke("evaluate", "--config", project)
    assert result.exit_code == 0, result.output
    assert "splits cut sessions" in result.stderr
    metrics = json.loads((project / "runs/tune/test_metrics.json").read_text())
    assert metrics["split_level"] == "clip"
    assert metrics["purged_clips"]["train"] == 1


def test_report_writes_one_file_and_prints_the_methods(project: Path) -> None:
    assert invoke("evaluate", "--config", project).exit_code == 0
    result = invoke("report", "--config", project)
    assert result.exit_code == 0, result.output
    assert "FT-LC" in result.output
    assert "macro-F1" in result.output
    page = (project / "runs" / "report.html").read_text()
    assert "Activity recognition report" in page
    assert str(project) not in page


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--out labels.csv", 2, r"must name an \.html file"),
        ("--predictions none", 1, r"none must be usable.*No such file"),
        ("--predictions labels.csv", 1, r"labels\.csv must be usable.*Not a directory"),
    ],
)
def test_report_writes_nothing_when_a_place_is_not_as_it_must_be(
    project: Path, monkeypatch: pytest.MonkeyPatch, option: str, code: int, message: str
) -> None:
    monkeypatch.chdir(project)
    before = (project / "labels.csv").read_bytes()
    result = invoke("report", *option.split())
    assert result.exit_code == code
    assert re.search(message, result.stderr)
    assert (project / "labels.csv").read_bytes() == before
    assert not (project / "runs/report.html").exists()


def test_report_ends_with_3_and_names_what_it_cannot_read(project: Path) -> None:
    (project / "runs" / "tune" / "best.json").write_text("{")
    result = invoke("report", "--config", project)
    assert result.exit_code == 3
    assert "left out: tune/best.json" in result.stderr


def test_tune_goes_on_where_it_was_and_adds_no_trial_when_there_are_enough(project: Path) -> None:
    first = json.loads(invoke("tune", "--trials", 4, "--config", project, "--json").stdout)
    assert first["trials"]["completed"] + first["trials"]["pruned"] == 4
    more = json.loads(invoke("tune", "--trials", 6, "--config", project, "--json").stdout)
    assert more["trials"]["completed"] + more["trials"]["pruned"] == 6
    assert len((project / "runs/tune/trials.csv").read_text().splitlines()) == 7


def test_clips_keeps_an_edited_table_until_it_is_forced(project: Path) -> None:
    _edit(project / "clips.csv", ",1,0\n", ",0,0\n")
    edited = (project / "clips.csv").read_bytes()
    assert invoke("clips", "--config", project).exit_code == 1
    assert (project / "clips.csv").read_bytes() == edited
    forced = invoke("clips", "--force", "--config", project)
    assert forced.exit_code == 0
    assert "clips.csv was edited by hand; that table is kept as clips.edited.csv" in forced.stderr
    assert (project / "clips.csv").read_bytes() != edited
    assert (project / "clips.edited.csv").read_bytes() == edited
    assert "edited" not in invoke("clips", "--force", "--config", project).stderr
    _edit(project / "clips.csv", ",0,1\n", ",0,0\n")
    assert "kept as clips.edited-2.csv" in invoke("clips", "--force", "--config", project).stderr


def test_extract_lists_what_failed_and_ends_with_3(project: Path) -> None:
    (project / "videos/S0.mp4").unlink()
    shutil.rmtree(project / "features.zarr")
    result = invoke("extract", "--config", project, "--json")
    assert result.exit_code == 3
    assert {item["recording"] for item in json.loads(result.stdout)["failed"]} == {"S0.mp4"}
    assert "S0.mp4: 4 clips failed" in result.stderr
    assert (project / "failed_clips.csv").read_text().count("S0.mp4") == 4


def test_features_serve_when_their_videos_were_moved_away(project: Path) -> None:
    shutil.move(project / "videos/S0.mp4", project / "S0.mp4")
    result = invoke("extract", "--config", project, "--json")
    assert (result.exit_code, json.loads(result.stdout)["present"], json.loads(result.stdout)["failed"]) == (0, 28, [])
    assert "S0.mp4" not in (project / "failed_clips.csv").read_text()
    shutil.rmtree(project / "runs")
    for command in ("train", "tune --trials 2"):
        assert "left out" not in invoke(*command.split(), "--config", project).stderr
    _settings("[features]\n", '[features]\nselect = ["final/mean", "layer_1/mean"]\n')(project)
    assert invoke("extract", "--config", project).exit_code == 3, "the other feature space lacks it"
    rows = [line for line in (project / "failed_clips.csv").read_text().splitlines() if "S0.mp4" in line]
    assert len(rows) == 4
    assert "left out" not in invoke("train", "--config", project).stderr, "which reads final/mean alone"
    shutil.move(project / "S0.mp4", project / "videos/S0.mp4")
    assert invoke("extract", "--config", project).exit_code == 0
    assert "S0.mp4" not in (project / "failed_clips.csv").read_text()


def test_predict_of_a_damaged_file_from_elsewhere_leaves_the_list_of_failures_alone(
    project: Path, tmp_path: Path
) -> None:
    torn = write_video(
        tmp_path / "jane doe.mp4", count=40, fps=5, options={"g": "5"}, container_options={"movflags": "faststart"}
    )
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size * 3 // 5])
    before = (project / "failed_clips.csv").read_bytes()
    result = invoke("predict", torn, "--out", tmp_path / "out", "--config", project)
    assert result.exit_code == 3, result.output
    assert (project / "failed_clips.csv").read_bytes() == before
    assert invoke("report", "--config", project).exit_code == 0
    assert "jane doe" not in (project / "runs/report.html").read_text()


def test_training_leaves_failed_clips_out_and_says_so(project: Path, tiny_model: Path) -> None:
    train = next(line for line in (project / "clips.csv").read_text().splitlines() if ",train," in line)
    (project / "videos" / train.split(",")[1]).unlink()
    shutil.rmtree(project / "features.zarr")
    shutil.rmtree(project / "runs")
    assert invoke("extract", "--config", project).exit_code == 3
    result = invoke("tune", "--trials", 2, "--config", project)
    assert result.exit_code == 0, result.output
    assert "train: 4 labelled clips left out" in result.stderr


def test_extract_says_that_words_behind_the_video_change_nothing(project: Path) -> None:
    _edit(project / "featurecache.toml", "<video>", "<video> what happens here ?")
    result = invoke("extract", "--config", project)
    assert result.exit_code == 0
    assert "cannot change a feature" in result.stderr
    assert "28 in the cache, 0 to do" in result.stdout


def test_dry_run_says_what_it_takes_in_lines_that_fit_a_screen(project: Path) -> None:
    keep = [f"{tap}/{way}" for tap in ("final", "vision", "layer_1") for way in ("mean", "motion", "frames")]
    _edit(project / "featurecache.toml", "[features]", f"[features]\nselect = {json.dumps(keep)}")
    said = invoke("extract", "--dry-run", "--config", project).stdout
    assert all(name in said for name in keep)
    assert re.search(r"^disk    [\d.]+ MB of [\d.]+ GB that are free: final/mean [\d.]+ MB, ", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 90


def test_dry_run_changes_nothing(project: Path) -> None:
    shutil.rmtree(project / "features.zarr")
    before = sorted(path for path in project.rglob("*"))
    result = invoke("extract", "--dry-run", "--config", project, "--json")
    assert json.loads(result.stdout)["todo"] == 28
    assert sorted(path for path in project.rglob("*")) == before


def test_extract_refuses_a_table_without_a_clip(project: Path) -> None:
    table = project / "clips.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    result = invoke("extract", "--config", project)
    assert result.exit_code == 1
    assert "clips.csv must have a row for each clip, but it has none below its header." in result.stderr


def test_extract_makes_the_table_when_there_is_none(project: Path) -> None:
    (project / "clips.csv").unlink()
    (project / ".featurecache/clips.json").unlink()
    assert invoke("extract", "--config", project).exit_code == 0
    assert (project / "clips.csv").exists()


def test_init_proposes_settings_that_clips_accepts(project: Path, tmp_path: Path, tiny_model: Path) -> None:
    new = tmp_path / "new"
    result = invoke(
        "init", new, "--videos", project / "videos", "--annotations", project / "labels.csv", "--model", tiny_model
    )
    assert result.exit_code == 0, result.output
    assert "ventilation" in result.stdout
    assert "is cut off" in result.stdout, "176 x 96 pictures lose their sides in the centre crop"
    _edit(new / "featurecache.toml", "length_s = 3", "length_s = 1")
    assert invoke("clips", "--config", new).exit_code == 0
    assert invoke("init", new, "--videos", project / "videos").exit_code == 1


def test_init_shows_the_defaults_of_the_sections_that_learning_owns(project: Path, tmp_path: Path) -> None:
    assert invoke("init", tmp_path / "new", "--videos", project / "videos").exit_code == 0
    path = tmp_path / "new/featurecache.toml"
    head, _, sections = path.read_text().partition("[train]")
    path.write_text(f"{head}[train]{re.sub(r'(?m)^# ', '', sections)}")
    settings = open_project(path).settings
    assert settings.train.keys() | {"hidden_width"} == HeadSettings().to_mapping().keys()
    assert settings.search.keys() | {"hidden_width"} == SearchSpace().to_mapping().keys()
    assert parse_section(settings.train, HeadSettings, "train") == HeadSettings()
    assert parse_section(settings.search, SearchSpace, "search") == SearchSpace()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--videos nowhere", r"folder of videos must be readable"),
        ("--videos runs", r"must hold recordings"),
        ("--videos videos --annotations nowhere", r"does not exist"),
        ("--videos videos --annotations videos", r"holds no \.eaf file"),
    ],
)
def test_init_names_what_is_missing(project: Path, tmp_path: Path, monkeypatch, options: str, message: str) -> None:
    monkeypatch.chdir(project)
    result = invoke("init", tmp_path / "new", *options.split())
    assert result.exit_code == 1
    assert re.search(message, result.stderr)
    assert not (tmp_path / "new/featurecache.toml").exists()


def test_doctor_gives_the_fix_of_each_failure(project: Path) -> None:
    (project / "videos/empty.mp4").write_bytes(b"")
    result = invoke("doctor", "--config", project, "--json")
    assert result.exit_code == 1
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["model"]["ok"]
    assert not checks["recording"]["ok"]
    assert "empty" in checks["recording"]["found"]
    assert "pad" in checks["crop"]["fix"]
    _set_model(project, "/no/such/model")
    broken = json.loads(invoke("doctor", "--config", project, "--json").stdout)["checks"]
    assert not next(check for check in broken if check["name"] == "model")["ok"]


def test_cache_heals_after_damage(project: Path) -> None:
    _damage_a_segment(project)
    assert invoke("cache", "verify", "--config", project).exit_code == 0, "a quick check reads records and sizes"
    assert invoke("cache", "verify", "--deep", "--config", project).exit_code == 1
    repaired = json.loads(invoke("cache", "repair", "--config", project, "--json").stdout)
    assert len(repaired["set_aside"]) == 1
    assert len(repaired["lost"]) == 28
    assert json.loads(invoke("extract", "--config", project, "--json").stdout)["extracted"] == 28
    assert invoke("cache", "verify", "--deep", "--config", project).exit_code == 0
    listed = json.loads(invoke("cache", "gc", "--quarantine", "--config", project, "--json").stdout)
    assert len(listed["garbage"]) == 1
    assert len(list(project.glob("features.zarr/spaces/*/quarantine/*"))) == 1
    assert invoke("cache", "gc", "--quarantine", "--apply", "--config", project).exit_code == 0
    assert not list(project.glob("features.zarr/spaces/*/quarantine/*"))


def test_cache_why_names_the_input_that_differs(project: Path) -> None:
    clip = (project / "clips.csv").read_text().splitlines()[1].split(",")[0]
    assert "found" in invoke("cache", "why", clip, "--config", project).stdout
    _edit(project / "featurecache.toml", "frames = 4", "frames = 8")
    reasons = json.loads(invoke("cache", "why", clip, "--config", project, "--json").stdout)["reasons"]
    assert re.search(r"computed otherwise: sampling\.frames: settings 8, cache 4\.$", reasons[0])
    _edit(project / "featurecache.toml", "frames = 8", "frames = 4")
    other = json.loads(
        invoke("cache", "why", clip.replace("-0-1000000", "-500000-1500000"), "--config", project, "--json").stdout
    )
    assert "at other times" in other["reasons"][0]
    _edit(project / "featurecache.toml", "length_s = 1", "length_s = 2")
    drifted = invoke("cache", "why", clip, "--config", project)
    assert "clips.length_s was 1.0 and is 2.0" in drifted.stderr
    unknown = json.loads(invoke("cache", "why", f"{'0' * 16}-0-1000000", "--config", project, "--json").stdout)
    assert "anything of this recording" in unknown["reasons"][0]
    assert invoke("cache", "why", "S0.mp4", "--config", project).exit_code == 1


def test_cache_forget_removes_a_recording_by_its_name(project: Path) -> None:
    lines = (project / "clips.csv").read_text().splitlines()
    content = next(line for line in lines if ",S3.mp4," in line)[:16]
    assert json.loads(invoke("cache", "forget", "S3.mp4", "--config", project, "--json").stdout)["rows"] == 4
    held = b"".join(path.read_bytes() for path in (project / "features.zarr").rglob("*") if path.is_file())
    assert bytes.fromhex(content) not in held
    assert content.encode() not in held
    left = json.loads(invoke("extract", "--dry-run", "--config", project, "--json").stdout)
    assert left["todo"] == 0, "a withdrawn recording is not extracted again"
    assert "Did you mean 'S3.mp4'" in invoke("cache", "forget", "S3.mp5", "--config", project).stderr
    mistyped = invoke("cache", "forget", "0123456789abcdef", "--config", project)
    assert "nothing here is known to be of this recording" in " ".join(mistyped.output.split()), mistyped.output


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
        "final/motion+layer_1/mean",
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
    _edit(
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
    _edit(project / "featurecache.toml", 'inputs = ["final/frames"]', 'inputs = ["vision/mean"]')
    stderr = invoke("tune", "--config", project).stderr
    assert re.search(
        r"that features\.select selects: final/mean.*; but 'vision/mean' is not one\. .*features\.select", stderr
    )


def test_learning_says_that_a_split_by_clips_was_forced_and_what_was_purged(project: Path) -> None:
    table = project / "clips.csv"
    table.write_text(table.read_text().replace(",train,", ",test,", 1))
    assert "allow_clip_level = true" in invoke("train", "--config", project).stderr
    _edit(project / "featurecache.toml", "[features]", "[splits]\nallow_clip_level = true\n[features]")
    shutil.rmtree(project / "runs")
    for command in ("train", "tune --trials 2"):
        result = invoke(*command.split(), "--config", project)
        assert result.exit_code == 0, result.output
        assert "train: 1 clip left out for touching clips that score them" in result.stderr
        assert "splits cut sessions" in result.stderr
        folder = project / "runs" / command.split()[0]
        for name in ("best.json", "out_of_fold_metrics.json"):
            document = json.loads((folder / name).read_text())
            assert (document["split_level"], document["purged_clips"]["train"]) == ("clip", 1)


def test_heads_train_on_features_made_by_others(project: Path, tmp_path: Path) -> None:
    ids = [line.split(",")[0] for line in (project / "clips.csv").read_text().splitlines()[1:]]
    np.savez(tmp_path / "other.npz", features=np.random.default_rng(0).normal(size=(28, 5)), clip_id=np.array(ids, "S"))
    assert invoke("cache", "import", tmp_path / "other.npz", "--config", project).exit_code == 1, "they need a name"
    result = invoke("cache", "import", tmp_path / "other.npz", "--name", "other", "--config", project)
    assert result.exit_code == 0, result.output
    assert invoke("tune", "--trials", 2, "--features", "other", "--config", project).exit_code == 0
    result = invoke("evaluate", project / "runs/tune-other/bundle", "--config", project)
    assert result.exit_code == 0, result.output
    assert (project / "runs/tune-other/test_metrics.json").exists()


def test_export_comes_back_as_it_was(project: Path, tmp_path: Path) -> None:
    assert invoke("cache", "export", tmp_path / "features.h5", "--config", project).exit_code == 0
    shutil.rmtree(project / "features.zarr")
    assert invoke("cache", "import", tmp_path / "features.h5", "--config", project).exit_code == 0
    assert json.loads(invoke("extract", "--config", project, "--json").stdout)["todo"] == 0


def test_import_lists_withdrawn_recordings_that_it_left_out_and_ends_with_3(project: Path, tmp_path: Path) -> None:
    assert invoke("cache", "export", tmp_path / "features.h5", "--config", project).exit_code == 0
    assert invoke("cache", "forget", "S3.mp4", "--config", project).exit_code in (0, 1)
    done = invoke("cache", "import", tmp_path / "features.h5", "--config", project)
    assert (done.exit_code, "left out 4 features of 1 withdrawn recording:" in done.stderr) == (3, True), done.output
    document = json.loads(invoke("cache", "import", tmp_path / "features.h5", "--config", project, "--json").stdout)
    [(content, rows)] = document["withdrawn"]
    assert rows == 4
    assert content in done.output


def test_python_of_the_readme_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    _settings("[features]\n", '[features]\nselect = ["final/mean", "layer_1/mean"]\n')(project)
    assert invoke("extract", "--config", project).exit_code == 0
    monkeypatch.chdir(project)
    ids = [line.split(",")[0] for line in (project / "clips.csv").read_text().splitlines()[1:]]
    names: dict[str, object] = {"clip_ids": ids}
    exec(code[1], names)
    assert np.shape(names["scores"]) == (28, 2)


def test_every_command_has_help_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()

    def visit(command: typer.core.TyperGroup, path: str) -> None:
        for name, inner in command.commands.items():
            assert inner.help, f"{path} {name}"
            if hasattr(inner, "commands"):
                visit(inner, f"{path} {name}")
            else:
                assert f"{path} {name}" in readme or f"make {name}" in readme, f"{path} {name}"

    visit(typer.main.get_command(cli.app), "featurecache")


def _commands(group: typer.core.TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in group.commands.items():
        yield (*path, name)
        if hasattr(inner, "commands"):
            yield from _commands(inner, (*path, name))


def test_help_fits_80_columns_and_ends_with_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path in [(), *_commands(typer.main.get_command(cli.app))]:
        lines = invoke(*path, "--help").stdout.rstrip().splitlines()
        assert max(map(len, lines)) <= 80, path
        assert not [line for line in lines if line.endswith("...") and "Usage" not in line], f"{path}: cut short"
        examples = [line.strip() for line in lines if line.startswith("  Example: ")]
        assert len(examples) == 1, path
        assert examples[0].startswith(f"Example: {' '.join(['featurecache', *path])}"), path
        assert "\n\n" not in "\n".join(lines).partition(examples[0])[2], f"{path}: the example is not the end"


def test_version_is_the_installed_one() -> None:
    assert invoke("--version").stdout == f"featurecache {version('featurecache')}\n"


def test_a_shell_completes_commands() -> None:
    asked = {"_FEATURECACHE_COMPLETE": "complete_bash", "COMP_WORDS": "featurecache ex", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['featurecache']; import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | asked
    )
    assert done.stdout.split() == ["extract"]


@pytest.mark.parametrize(
    "start",
    [["-m", "featurecache"], ["-c", "from featurecache.__main__ import main; main()"]],
    ids=["module", "script"],
)
def test_the_command_runs_when_files_of_the_same_names_come_first(start: list[str], tmp_path: Path) -> None:
    for name in ("cli.py", "heads.py"):
        (tmp_path / name).write_text("raise SystemExit('a foreign file was run')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for arguments, code, words in (
        (["--help"], 0, "Usage: "),
        (["train", "--config", "none"], 1, "must have a feature"),
    ):
        done = subprocess.run(
            [sys.executable, *start, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done.stderr
        assert "foreign" not in done.stderr
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"featurecache": "featurecache.__main__:main"}


def test_help_needs_no_heavy_library() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'zarr', 'numpy', 'optuna', 'av')))"
    for arguments in (["--help"], ["extract", "--help"], ["cache", "info", "--help"]):
        code = f"{block}; sys.argv = ['featurecache', *{arguments!r}]; import cli; cli.main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
