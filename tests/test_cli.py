"""The command line as a contract: exit codes, one-line messages, one JSON document, wrong inputs named."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
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
from tests.projects import edit, set_model

ROOT = Path(__file__).parents[1]


def test_every_command_prints_one_json_document_and_nothing_else_on_stdout(tuned: Path) -> None:
    shutil.rmtree(tuned / "runs")
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
        result = invoke(*command.split(), "--config", tuned, "--json")
        assert result.exit_code == 0, (command, result.output)
        assert isinstance(json.loads(result.stdout), dict), command


def test_clips_keeps_an_edited_table_until_it_is_forced(tuned: Path) -> None:
    edit(tuned / "clips.csv", ",1,0\n", ",0,0\n")
    edited = (tuned / "clips.csv").read_bytes()
    assert invoke("clips", "--config", tuned).exit_code == 1
    assert (tuned / "clips.csv").read_bytes() == edited
    forced = invoke("clips", "--force", "--config", tuned)
    assert forced.exit_code == 0
    assert "clips.csv was edited by hand; that table is kept as clips.edited.csv" in forced.stderr
    assert (tuned / "clips.csv").read_bytes() != edited
    assert (tuned / "clips.edited.csv").read_bytes() == edited
    assert "edited" not in invoke("clips", "--force", "--config", tuned).stderr
    edit(tuned / "clips.csv", ",0,1\n", ",0,0\n")
    assert "kept as clips.edited-2.csv" in invoke("clips", "--force", "--config", tuned).stderr


def test_extract_lists_what_failed_and_ends_with_3(tuned: Path) -> None:
    (tuned / "videos/S0.mp4").unlink()
    shutil.rmtree(tuned / "features.zarr")
    result = invoke("extract", "--config", tuned, "--json")
    assert result.exit_code == 3
    assert {item["recording"] for item in json.loads(result.stdout)["failed"]} == {"S0.mp4"}
    assert "S0.mp4: 4 clips failed" in result.stderr
    assert (tuned / "failed_clips.csv").read_text().count("S0.mp4") == 4


def test_features_serve_when_their_videos_were_moved_away(tuned: Path) -> None:
    shutil.move(tuned / "videos/S0.mp4", tuned / "S0.mp4")
    result = invoke("extract", "--config", tuned, "--json")
    assert (result.exit_code, json.loads(result.stdout)["present"], json.loads(result.stdout)["failed"]) == (0, 28, [])
    assert "S0.mp4" not in (tuned / "failed_clips.csv").read_text()
    shutil.rmtree(tuned / "runs")
    for command in ("train", "tune --trials 2"):
        assert "left out" not in invoke(*command.split(), "--config", tuned).stderr
    edit(tuned / "featurecache.toml", "[features]\n", '[features]\nselect = ["final/mean", "layer_1/mean"]\n')
    assert invoke("extract", "--config", tuned).exit_code == 3, "the other feature space lacks it"
    rows = [line for line in (tuned / "failed_clips.csv").read_text().splitlines() if "S0.mp4" in line]
    assert len(rows) == 4
    assert "left out" not in invoke("train", "--config", tuned).stderr, "which reads final/mean alone"
    shutil.move(tuned / "S0.mp4", tuned / "videos/S0.mp4")
    assert invoke("extract", "--config", tuned).exit_code == 0
    assert "S0.mp4" not in (tuned / "failed_clips.csv").read_text()


def test_predict_of_a_damaged_file_from_elsewhere_leaves_the_list_of_failures_alone(
    tuned: Path, tmp_path: Path
) -> None:
    torn = write_video(
        tmp_path / "jane doe.mp4", count=40, fps=5, options={"g": "5"}, container_options={"movflags": "faststart"}
    )
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size * 3 // 5])
    before = (tuned / "failed_clips.csv").read_bytes()
    result = invoke("predict", torn, "--out", tmp_path / "out", "--config", tuned)
    assert result.exit_code == 3, result.output
    assert (tuned / "failed_clips.csv").read_bytes() == before
    assert invoke("report", "--config", tuned).exit_code == 0
    assert "jane doe" not in (tuned / "runs/report.html").read_text()


def test_extract_says_that_words_behind_the_video_change_nothing(tuned: Path) -> None:
    edit(tuned / "featurecache.toml", "<video>", "<video> what happens here ?")
    result = invoke("extract", "--config", tuned)
    assert result.exit_code == 0
    assert "cannot change a feature" in result.stderr
    assert "28 in the cache, 0 to do" in result.stdout


def test_dry_run_says_what_it_takes_in_lines_that_fit_a_screen(tuned: Path) -> None:
    keep = [f"{tap}/{way}" for tap in ("final", "vision", "layer_1") for way in ("mean", "motion", "frames")]
    edit(tuned / "featurecache.toml", "[features]", f"[features]\nselect = {json.dumps(keep)}")
    said = invoke("extract", "--dry-run", "--config", tuned).stdout
    assert all(name in said for name in keep)
    assert re.search(r"^disk    [\d.]+ MB of [\d.]+ GB that are free: final/mean [\d.]+ MB, ", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 90


def test_dry_run_changes_nothing(tuned: Path) -> None:
    shutil.rmtree(tuned / "features.zarr")
    before = sorted(path for path in tuned.rglob("*"))
    result = invoke("extract", "--dry-run", "--config", tuned, "--json")
    assert json.loads(result.stdout)["todo"] == 28
    assert sorted(path for path in tuned.rglob("*")) == before


def test_extract_refuses_a_table_without_a_clip(tuned: Path) -> None:
    table = tuned / "clips.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    result = invoke("extract", "--config", tuned)
    assert result.exit_code == 1
    assert "clips.csv must have a row for each clip, but it has none below its header." in result.stderr


def test_extract_makes_the_table_when_there_is_none(tuned: Path) -> None:
    (tuned / "clips.csv").unlink()
    (tuned / ".featurecache/clips.json").unlink()
    assert invoke("extract", "--config", tuned).exit_code == 0
    assert (tuned / "clips.csv").exists()


def test_init_proposes_settings_that_clips_accepts(tuned: Path, tmp_path: Path, tiny_model: Path) -> None:
    new = tmp_path / "new"
    result = invoke(
        "init", new, "--videos", tuned / "videos", "--annotations", tuned / "labels.csv", "--model", tiny_model
    )
    assert result.exit_code == 0, result.output
    assert "ventilation" in result.stdout
    assert "is cut off" in result.stdout, "176 x 96 pictures lose their sides in the centre crop"
    edit(new / "featurecache.toml", "length_s = 3", "length_s = 1")
    assert invoke("clips", "--config", new).exit_code == 0
    assert invoke("init", new, "--videos", tuned / "videos").exit_code == 1


def test_init_shows_the_defaults_of_the_sections_that_learning_owns(tuned: Path, tmp_path: Path) -> None:
    assert invoke("init", tmp_path / "new", "--videos", tuned / "videos").exit_code == 0
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
def test_init_names_what_is_missing(tuned: Path, tmp_path: Path, monkeypatch, options: str, message: str) -> None:
    monkeypatch.chdir(tuned)
    result = invoke("init", tmp_path / "new", *options.split())
    assert result.exit_code == 1
    assert re.search(message, result.stderr)
    assert not (tmp_path / "new/featurecache.toml").exists()


def test_doctor_gives_the_fix_of_each_failure(tuned: Path) -> None:
    (tuned / "videos/empty.mp4").write_bytes(b"")
    result = invoke("doctor", "--config", tuned, "--json")
    assert result.exit_code == 1
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert checks["model"]["ok"]
    assert not checks["recording"]["ok"]
    assert "empty" in checks["recording"]["found"]
    assert "pad" in checks["crop"]["fix"]
    set_model(tuned, "/no/such/model")
    broken = json.loads(invoke("doctor", "--config", tuned, "--json").stdout)["checks"]
    assert not next(check for check in broken if check["name"] == "model")["ok"]


def test_python_of_the_readme_runs(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    edit(tuned / "featurecache.toml", "[features]\n", '[features]\nselect = ["final/mean", "layer_1/mean"]\n')
    assert invoke("extract", "--config", tuned).exit_code == 0
    monkeypatch.chdir(tuned)
    ids = [line.split(",")[0] for line in (tuned / "clips.csv").read_text().splitlines()[1:]]
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
    code = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "zarr", "numpy", "optuna", "av")))
import cli
for line in (["--help"], ["extract", "--help"], ["cache", "info", "--help"]):
    cli.app(line, standalone_mode=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout.count("Usage")) == (0, 3), done.stderr
