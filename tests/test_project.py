"""Settings: what is written can be read, what is wrong is named."""

import dataclasses
import inspect
import re
from decimal import Decimal
from pathlib import Path
from typing import get_type_hints

import pytest

from featurecache.errors import ProjectExistsError, ProjectNotFoundError, SettingsError
from featurecache.project.features import FeatureSettings
from featurecache.project.settings import DataSettings, Settings, open_project, parse_section
from featurecache.project.template import write_settings
from heads.finetuning.settings import FinetuneSettings
from heads.sections import SECTIONS

MINIMAL = '[data]\nvideos = "videos"\n[features]\nmodel = "demo"\n'


def _open(folder: Path, text: str):
    (folder / "featurecache.toml").write_text(text)
    return open_project(folder)


def test_open_project_fills_in_defaults_when_only_the_needed_is_set(tmp_path: Path) -> None:
    project = _open(tmp_path, MINIMAL)
    assert project.videos == tmp_path / "videos"
    assert project.annotations is None
    assert project.settings.clips.length_us == 3_000_000
    assert project.settings.features.frames == 16
    assert project.settings.features.select == ("final/mean",)
    assert project.settings.extract.batch_size == "auto"
    assert project.settings.splits.sessions == {}


def test_open_project_finds_the_file_when_it_is_named_itself(tmp_path: Path) -> None:
    _open(tmp_path, MINIMAL)
    assert open_project(tmp_path / "featurecache.toml").root == tmp_path


def test_open_project_keeps_decimals_exact_when_clips_are_fractions_of_a_second(tmp_path: Path) -> None:
    settings = _open(tmp_path, MINIMAL + "[clips]\nlength_s = 2.4\nstride_s = 0.1\n").settings
    assert (settings.clips.length_us, settings.clips.stride_us) == (2_400_000, 100_000)
    assert settings.clips.length_s == Decimal("2.4")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("[clip]\nlength_s = 3", r"'clip' is not: there is no such section\. Did you mean 'clips'\?"),
        ("[clips]\nlenght_s = 3", r"'clips\.lenght_s' is not: .* Did you mean 'length_s'\?"),
        ("[clips]\nlength_s = -3", r"clips\.length_s must be greater than or equal to 0\.01, but it is -3"),
        ('[clips]\nlength_s = "three"', r"clips\.length_s must be .*, but it is 'three'"),
        ("[clips]\nlength_s = nan", r"clips\.length_s must be .*, but it is nan"),
        ("clips = 3", r"'clips' is not|clips must be a section, but it is 3"),
        ("[splits]\ntrain = 0.9", r"must be 1, but 0\.9 \+ 0\.2 \+ 0\.2 = 1\.3"),
        ('[splits]\nsessions = {S1 = "exam"}', r"splits\.sessions\.S1 must be .*, but it is 'exam'"),
        (
            "[extract]\nbatch_size = 0",
            r'extract\.batch_size must be "auto" or a whole number from 1 to 4096, but it is 0',
        ),
        ("[extract]\nbatch_size = 2.5", r"extract\.batch_size must be .*, but it is 2\.5"),
        ("[extract]\nbatch_size = true", r'extract\.batch_size must be "auto" or a whole number .*, but it is true'),
        ("[clips]\nlength_s = true", r"clips\.length_s must be a number, but it is true"),
        ("[clips]\nlength_s = [3]", r"clips\.length_s must be a number, but it is \[3\]"),
        ('[splits]\nseed = "x"', r"splits\.seed must be a whole number, but it is 'x'"),
        ("[splits]\nallow_clip_level = 3", r"splits\.allow_clip_level must be true or false, but it is 3"),
        ("[splits]\nsessions = 3", r"splits\.sessions must be a table, but it is 3"),
        ('[extract]\nbatch_size = "all"', r"extract\.batch_size must be .*, but it is 'all'"),
        ("[extract", r"must be TOML in UTF-8"),
        ('[extract]\ndevice = "cpu\\u0000"', r"extract\.device must be text .* zero character"),
    ],
)
def test_open_project_names_the_setting_when_it_is_wrong(tmp_path: Path, extra: str, message: str) -> None:
    text = extra + "\n" + MINIMAL if extra == "clips = 3" else MINIMAL + extra + "\n"
    with pytest.raises(SettingsError, match=message) as caught:
        _open(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_settings_that_windows_saved_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "featurecache.toml").write_text(MINIMAL, encoding="utf-8-sig")
    assert open_project(tmp_path).settings == _open(tmp_path, MINIMAL).settings


BAD_BOXES = (
    "[0.5, 0, 0.6, 1]",
    "[-0.1, 0, 0.5, 1]",
    "[0, 0, 0.01, 1]",
    "[0, 0, nan, 1]",
    "[0, 0, 1]",
    "[0, 0, 1, true]",
    "{}",
    '{ "1920x1080" = [0, 0, 2, 1] }',
    '{ "S01" = [0, 0, 0.5, 1] }',
    '{ "640x480" = [0, 0, 0.5, 1], "*_top*" = [0, 0, 0.5, 1] }',
    '{ "*_top*" = [0, 0, 2, 1] }',
    "true",
    "[0, 0, 640, 480]",
    '"centre"',
    "0.5",
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nvideos = "v"\n', r"features must be set"),
        ('[data]\n[features]\nmodel = "demo"\n', r"data\.videos must be set"),
        (MINIMAL + "select = []\n", r"features\.select must be at least one tap/pooling, .*, but it is \[\]"),
        (MINIMAL + 'select = ["a/mean", "a/mean"]\n', r"features\.select must be .* none of them twice"),
        (MINIMAL + 'select = "final/mean"\n', r"features\.select must be .*, but it is 'final/mean'"),
        *((MINIMAL + f"crop = {box}\n", r'features\.crop.* must be .*"1920x1080".*, but it is') for box in BAD_BOXES),
        (MINIMAL + 'crop = { "S01" = [0, 0, 0.5, 1] }\n', r"keys are all WIDTHxHEIGHT, or all patterns with \*"),
        (MINIMAL + 'dtype = "float8"\n', r"features\.dtype must be .*'bfloat16'.*, but it is 'float8'"),
        (
            '[data]\nvideos = "v"\nsession_from = "pattern"\n[features]\nmodel = "demo"\n',
            r"session_pattern must be given",
        ),
        (
            '[data]\nvideos = ["a"]\n[features]\nmodel = "demo"\n',
            r"data\.videos must be text in quotes, but it is \['a'\]",
        ),
    ],
)
def test_open_project_names_the_setting_when_it_is_missing_or_does_not_fit(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        _open(tmp_path, text)


def test_open_project_says_how_to_make_one_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ProjectNotFoundError, match="featurecache init"):
        open_project(tmp_path)


def test_write_settings_is_read_back_when_names_are_odd(tmp_path: Path) -> None:
    odd = ['a "quoted" tier', "back\\slash", "ünï", "tab\there", "del\x7f"]
    data = {
        "videos": "my videos",
        "annotations": "labels.csv",
        "labels_from": "values",
        "tiers": odd,
        "labels": odd,
        "mapping": {odd[0]: {odd[3]: odd[2], "*": ""}},
        "rename": {odd[4]: odd[1]},
        "session_from": "pattern",
        "session_pattern": r"^(\w+)_",
    }
    features = {"model": "demo", "dtype": "float32", "select": ["final/mean", "layer_2/motion"]}
    path = write_settings(tmp_path / "new", {"data": data, "features": features}, reason="two tiers hold few values")
    project = open_project(path)
    assert project.settings.data.tiers == project.settings.data.labels == tuple(odd)
    assert project.settings.data.mapping == {odd[0]: {odd[3]: odd[2], "*": ""}}
    assert project.settings.data.rename == {odd[4]: odd[1]}
    assert project.settings.data.session_pattern == r"^(\w+)_"
    assert project.settings.features.dtype == "float32"
    assert project.settings.features.select == ("final/mean", "layer_2/motion")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_write_settings_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "featurecache.toml").write_text("mine")
    with pytest.raises(ProjectExistsError, match="is there"):
        write_settings(tmp_path, {"data": {"videos": "v"}, "features": {"model": "demo"}})
    assert (tmp_path / "featurecache.toml").read_text() == "mine"


def test_written_settings_show_every_setting_with_its_default_or_an_example_that_is_read(tmp_path: Path) -> None:
    write_settings(tmp_path, {"data": {"videos": "v"}, "features": {"model": "demo"}}, sections=SECTIONS)
    text = (tmp_path / "featurecache.toml").read_text()
    assert max(map(len, text.splitlines())) <= 120
    uncommented = re.sub(r"(?m)^# (?=[\w.\"]+ = )", "", text)
    (tmp_path / "featurecache.toml").write_text(
        uncommented.replace('session_from = "file"', 'session_from = "pattern"')
    )
    settings = open_project(tmp_path).settings
    given = {
        "data": DataSettings(Path("v")),
        "features": FeatureSettings("demo"),
        "finetune": FinetuneSettings(model=""),
    }
    for name, kind in {**get_type_hints(Settings), **SECTIONS}.items():
        section = getattr(settings, name)
        shown = parse_section(section, kind, name) if isinstance(section, dict) else section
        expected = given.get(name) or kind()
        by_example = {match[1] for match in re.finditer(r"E\.g\. `(\w+)", inspect.getdoc(kind) or "")}
        for field in dataclasses.fields(kind):
            is_default = getattr(shown, field.name) == getattr(expected, field.name)
            assert is_default is (field.name not in by_example | {"session_from"}), (name, field.name)
