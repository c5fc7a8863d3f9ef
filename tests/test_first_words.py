"""What is said before the seconds that imports of torch and transformers take, tried in child processes."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import run
from tests.projects import make_project

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
RUN_EACH = """
import json, sys
from typer.testing import CliRunner
import cli
for line in json.load(sys.stdin):
    done = CliRunner().invoke(cli.app, line)
    print(json.dumps([done.exit_code, done.output, sorted({"torch", "transformers", "sklearn"} & set(sys.modules))]))
"""
FIRST_WORDS_OF_EACH = """
import io, json, os, sys
import typer
import cli

class Terminal(io.TextIOBase):
    def isatty(self):
        return True
    def write(self, text):
        if text.strip():
            os.write(told, json.dumps([line, text, sorted(set(sys.modules))]).encode() + b"\\n")
            os._exit(0)
        return len(text)

def each(command, *names):
    for name, one in getattr(command, "commands", {}).items():
        yield from each(one, *names, name)
    if not hasattr(command, "commands"):
        example = command.epilog.removeprefix("Example: featurecache ").split()
        yield example + ["--config", sys.argv[1]] * any(one.name == "config" for one in command.params)

told = os.dup(1)
for line in each(typer.main.get_command(cli.app)):
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    sys.stdout = sys.stderr = Terminal()
    try:
        cli.app(line)
    finally:
        os._exit(1)
"""

MISSING_TABLE, MISSING_BUNDLE = "there must be a clip table", "a bundle must be a folder with bundle.json"


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """A project in which nothing was run, and one with a trained head."""
    root = tmp_path_factory.mktemp("projects")
    new = make_project(root / "new", tiny_model, sessions=7).root
    trained = Path(shutil.copytree(new, root / "trained"))
    run("extract", "--config", trained)
    run("train", "--config", trained)
    shutil.copytree(trained / "runs" / "train", trained / "runs" / "tune")
    return new, trained


def test_what_no_model_can_mend_is_said_before_torch_is_imported(projects: tuple[Path, Path], tmp_path: Path) -> None:
    new, trained = projects
    untabled = Path(shutil.copytree(trained, tmp_path / "untabled"))
    (untabled / "clips.csv").unlink()
    (untabled / "features.zarr").rename(tmp_path / "elsewhere")
    (trained / "prompts" / "zs-b").mkdir(parents=True)
    for label in ("ventilation", "stimulation"):
        (trained / "prompts" / "zs-b" / f"{label}.txt").write_text("Is it taking place?")
    text, empty, folder = (tmp_path / name for name in ("notes.txt", "empty.mp4", "some"))
    text.write_text("no video")
    empty.touch()
    folder.mkdir()
    cases: list[tuple[list[object], Path, int, str]] = [
        (["predict", tmp_path / "nosuch.mp4"], trained, 3, "there is no such file"),
        (["predict", text, empty, folder], trained, 3, "the file is empty"),
        (["predict", tmp_path / "nosuch.mp4", "--bundle", tmp_path], trained, 1, MISSING_BUNDLE),
        (["predict", tmp_path / "nosuch.mp4"], new, 1, MISSING_BUNDLE),
        (["extract", "--dry-run"], trained, 0, "28 in the cache, 0 to do"),
        (["zeroshot", "zs-b"], trained, 1, "must hold <video> exactly once, but it holds it 0 times"),
        (["zeroshot", "zs-b", "--labels", "nosuch"], trained, 2, "'nosuch' is none"),
        (["zeroshot", "zs-b"], untabled, 1, MISSING_TABLE),
        *((line.split(), untabled, 1, MISSING_TABLE) for line in ("train", "tune", "evaluate", "lora-finetune")),
        (["finetune"], untabled, 1, "finetune.model must be set"),
        (["evaluate"], trained.parent / "without runs", 1, MISSING_BUNDLE),
        (["evaluate", "--leave-one-session-out"], new, 1, MISSING_BUNDLE),
        (["evaluate", "runs/tune"], new, 1, MISSING_BUNDLE),
        (["lora-finetune"], trained.parent / "without runs", 1, MISSING_BUNDLE),
        (["compare"], trained.parent / "without runs", 1, "there is no run"),
        (["report"], trained.parent / "without runs", 0, "report.html"),
        (["cache", "export", tmp_path / "all.h5"], untabled, 1, "there must be a feature cache"),
        (["cache", "why", "0123456789abcdef-0-1000000"], trained, 0, "0123456789abcdef"),
    ]
    without = Path(shutil.copytree(trained, trained.parent / "without runs"))
    shutil.rmtree(without / "runs")
    lines = [[*map(str, line), "--config", str(project)] for line, project, _, _ in cases]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    for line, (_, _, code, words), found in zip(lines, cases, done.stdout.splitlines(), strict=True):
        exit_code, said, imported = json.loads(found)
        assert exit_code == code, (line, said)
        assert words in " ".join(said.split()), line
        assert not imported, line


def test_every_command_says_a_word_on_a_terminal_before_imports_that_take_time(
    projects: tuple[Path, Path], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_WORDS_OF_EACH, str(projects[0])],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) >= 25, done.stderr
    for line, said, imported in found:
        is_told = "--config" in line
        assert not is_told or said.startswith("reading "), (line, said)
        slow = {"torch", "transformers", "sklearn", "zarr", "optuna"} | ({"av", "scipy"} if is_told else set())
        assert not slow & set(imported), (line, said)


def test_a_terminal_is_told_what_is_loaded_and_a_log_is_not(projects: tuple[Path, Path]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "import cli; cli.main()", "train", "--config", str(projects[1])]
    with os.fdopen(theirs, "w") as terminal:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, check=True, env=ENVIRONMENT)
    with os.fdopen(ours, "rb", buffering=0) as said:
        first, second = said.read(4096).splitlines()[:2]
        assert first == f"reading {projects[1] / 'featurecache.toml'} ...".encode()
        assert second == b"loading PyTorch ..."
    logged = subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT)
    for quiet in (done.stdout, logged.stderr):
        assert b"loading" not in quiet
        assert b"reading" not in quiet
