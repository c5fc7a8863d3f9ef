"""What is remembered of a model: no seconds of imports where nothing is computed, and nothing stale."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featurecache.backbones import description
from featurecache.errors import ModelNotFoundError
from featurecache.extraction.plan import plan_extraction
from featurecache.extraction.run import run_plan
from featurecache.extraction.spaces import project_spaces
from featurecache.project.settings import Project
from tests.projects import make_project, make_table

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    project = make_project(tmp_path / "project", model)
    make_table(project)
    project_spaces(project)
    return project


def _fingerprints(project: Project) -> list[str]:
    return [space.fingerprint for space in project_spaces(project)[1].values()]


def _run(project: Project, *arguments: str) -> tuple[set[str], str]:
    """Modules that a command has loaded when it is done, and all that it said."""
    code = "import sys, cli\ntry: cli.app(sys.argv[1:])\nexcept SystemExit: print('MODULES', *sys.modules)"
    command = [sys.executable, "-c", code, *arguments, "--config", str(project.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    said, _, modules = done.stdout.partition("MODULES")
    assert modules, done.stderr
    return set(modules.split()), said + done.stderr


def test_a_second_extraction_waits_for_no_modelling_code(project: Project) -> None:
    run_plan(project, plan_extraction(project))
    loaded, said = _run(project, "extract")
    assert "24 clips: 24 in the cache, 0 to do" in said
    assert not loaded & {"torch", "transformers", "tokenizers", "sklearn", "optuna", "scipy"}


def test_what_no_model_can_mend_is_said_before_modelling_code_is_imported(project: Project) -> None:
    project.path.write_text(project.path.read_text().replace("<video>", ""))
    loaded, said = _run(project, "extract")
    assert "features.prompt must hold <video> exactly once" in said
    assert not loaded & {"torch", "transformers"}


def test_what_is_remembered_of_a_model_is_what_its_files_say(project: Project) -> None:
    described, spaces = project_spaces(project)
    anew, found = project_spaces(project, anew=True)
    assert (described, spaces) == (anew, found)
    inputs = described.open()
    assert (inputs.image_px, inputs.taps, inputs.frames) == (described.image_px, described.taps, described.frames)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json"])
def test_nothing_remembered_is_believed_when_a_file_of_the_model_changes(project: Project, name: str) -> None:
    [path] = (project.path.parent.parent / "model").glob(name)
    before = _fingerprints(project)
    if path.suffix == ".json":
        path.write_text(path.read_text() + "\n")
    else:
        contents = bytearray(path.read_bytes())
        contents[-1] ^= 1
        path.write_bytes(contents)
    assert _fingerprints(project) != before
    path.unlink()
    with contextlib.suppress(ModelNotFoundError):  # another file may serve in its place
        assert _fingerprints(project) != before


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"models": {}, "sha256": 3}', b"\xff"])
def test_a_damaged_memo_of_models_is_ignored(project: Project, damage: bytes) -> None:
    before, memo = _fingerprints(project), project.state / "models.json"
    document = json.loads(memo.read_bytes())
    [entry] = document["models"].values()
    entry["spaces"] = {"final/mean": {"tap": "other"}}
    for contents in (damage, json.dumps(document).encode()):
        memo.write_bytes(contents)
        assert _fingerprints(project) == before


def test_nothing_remembered_is_believed_when_this_package_changed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr("featurecache.extraction.spaces.open_described", lambda *_, **__: opened.append(project.path))
    project_spaces(project)
    assert not opened
    monkeypatch.setattr(description, "version", lambda _: "another")
    with pytest.raises(AttributeError):  # what was patched in returns no model
        project_spaces(project)
    assert opened
