"""Wrong input to a command is named in one line, with exit code 1 or 2 and no traceback."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import invoke
from tests.projects import damage_a_segment, edit, set_model


def _settings(old: str, new: str) -> Callable[[Path], None]:
    return lambda project: edit(project / "featurecache.toml", old, new)


def _remove(name: str) -> Callable[[Path], None]:
    def act(project: Path) -> None:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def _table(old: str, new: str) -> Callable[[Path], None]:
    return lambda project: edit(project / "clips.csv", old, new)


def _all_zero(project: Path) -> None:
    lines = (project / "clips.csv").read_text().splitlines()
    rows = [lines[0]] + [re.sub(r",[01],([01])$", r",0,\1", line) for line in lines[1:]]
    (project / "clips.csv").write_text("\n".join(rows) + "\n")


def _no_test_sessions(project: Path) -> None:
    edit(project / "clips.csv", ",test,", ",,")


def _one_session(project: Path) -> None:
    text = (project / "clips.csv").read_text()
    (project / "clips.csv").write_text(re.sub(r",(validation|test),", ",train,", text))


def _damage_bundle(project: Path) -> None:
    head = project / "runs/tune/bundle/head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(data)


def _unknown_device(project: Path) -> None:
    _remove("features.zarr")(project)
    edit(project / "featurecache.toml", "[features]", '[extract]\ndevice = "gpu7"\n[features]')


def _newer_cache(project: Path) -> None:
    edit(project / "features.zarr/zarr.json", '"version":1', '"version":99')


def _hostile_eaf(project: Path) -> None:
    (project / "eaf").mkdir()
    (project / "eaf/S0.eaf").write_text('<!DOCTYPE x [<!ENTITY a "b">]><ANNOTATION_DOCUMENT>&a;</ANNOTATION_DOCUMENT>')
    edit(project / "featurecache.toml", 'annotations = "labels.csv"', 'annotations = "eaf"')


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
    "malformed annotations": (lambda p: edit(p / "labels.csv", "start_s", "begin"), "clips", 1, r"start_s is missing"),
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
    "missing model": (lambda p: set_model(p, "/no/such/model"), "extract", 1, r"features\.model must be a folder"),
    "model not on this machine": (lambda p: set_model(p, "some-group/some-model"), "extract", 1, r"--allow-download"),
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
    "damaged segment": (damage_a_segment, "tune", 1, r"segment .* must be as it was written"),
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


def _other_architecture(project: Path) -> None:
    (project / "model").mkdir()
    (project / "model/config.json").write_text('{"model_type": "paligemma"}')
    (project / "model/preprocessor_config.json").write_text("{}")
    set_model(project, str(project / "model"))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_in_one_line(tuned: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    act, command, code, message = WRONG[name]
    if name.startswith("unreadable") and os.geteuid() == 0:
        pytest.skip("root reads everything")
    act(tuned)
    result = invoke(*command.split(), "--config", tuned)
    assert result.exit_code == code, result.output
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.output
    if code == 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        as_json = invoke(*command.split(), "--config", tuned, "--json")
        assert json.loads(as_json.stdout)["error"]["message"] == errors[0].removeprefix("error: ")
        assert as_json.exit_code == 1
