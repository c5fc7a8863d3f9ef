"""What init, doctor and extract say of a model before it costs anything: how to get it, what it is, what it needs."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from featurecache.backbones import find_model
from featurecache.backbones.obtaining import how_to_get, provenance_of
from featurecache.errors import ModelNotFoundError
from featurecache.extraction.forecast import Memory, Outlook, outlook
from featurecache.extraction.plan import plan_extraction
from featurecache.project.settings import Project
from featurecache.setup.doctor import examine
from featurecache.setup.proposal import propose
from featurecache.terminal.extraction import outlook_lines
from tests.projects import make_project, make_table
from tests.tiny_video_language import make_smolvlm

COMMIT = "1a2b3c4d" * 5
GIB = 1024**3


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Project:
    return make_project(tmp_path / "project", shutil.copytree(tiny_model, tmp_path / "model"), sessions=3, clips=2)


# --- getting a model ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "here", "there", "copied"),
    [
        (
            "/models/LLaVA-NeXT-Video-7B-hf",
            "hf download llava-hf/LLaVA-NeXT-Video-7B-hf --local-dir /models/LLaVA-NeXT-Video-7B-hf.",
            "hf download llava-hf/LLaVA-NeXT-Video-7B-hf --local-dir LLaVA-NeXT-Video-7B-hf",
            "rsync -a LLaVA-NeXT-Video-7B-hf/ THIS_MACHINE:/models/LLaVA-NeXT-Video-7B-hf/.",
        ),
        (
            "/models/of ours",
            "hf download ORGANISATION/NAME --local-dir '/models/of ours'.",
            "hf download ORGANISATION/NAME --local-dir 'of ours'",
            "rsync -a 'of ours'/ THIS_MACHINE:'/models/of ours'/.",
        ),
        (
            "some-group/some-model@refs/pr/5",
            "hf download some-group/some-model --revision refs/pr/5.",
            "hf download some-group/some-model --revision refs/pr/5 --local-dir some-model",
            "rsync -a some-model/ THIS_MACHINE:/models/some-model/ and set features.model to that folder.",
        ),
        (
            "some-group/some-model",
            "hf download some-group/some-model.",
            "hf download some-group/some-model --local-dir some-model",
            "rsync -a some-model/ THIS_MACHINE:/models/some-model/ and set features.model to that folder.",
        ),
    ],
)
def test_a_model_that_is_not_here_is_refused_with_the_commands_that_bring_it(
    model: str, here: str, there: str, copied: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError) as refused:
        find_model(model)
    for command in (here, there, copied):
        assert command in str(refused.value)
    assert "\n" not in str(refused.value)


def test_commands_name_a_relative_folder_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"THIS_MACHINE:{tmp_path}/mine/" in how_to_get("./mine")


def test_init_refuses_a_model_folder_that_is_not_there(project: Project, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"--model must be a folder, .*hf download"):
        propose(tmp_path / "new", videos=project.videos, annotations=None, model=str(tmp_path / "nothing"))
    assert not (tmp_path / "new").exists()


def test_init_takes_a_repository_that_is_not_here_yet_and_warns(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    made = propose(tmp_path / "new", videos=project.videos, annotations=None, model="some-group/some-model")
    (warning,) = (one for one in made.warnings if one.startswith("model: "))
    assert "hf download some-group/some-model" in warning


def test_init_without_a_model_writes_the_proposed_one_and_says_why(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = make_smolvlm(tmp_path / "models" / "small")
    made = propose(tmp_path / "new", videos=project.videos, annotations=None)
    assert f'model = "{folder}"' in made.path.read_text()
    assert any(note.startswith(f"proposed: {folder}") for note in made.notes)


def test_init_says_what_the_model_is_and_what_it_needs(project: Project, tmp_path: Path) -> None:
    made = propose(tmp_path / "new", videos=project.videos, annotations=None, model=project.settings.features.model)
    notes = {note.partition(": ")[0]: note for note in made.notes}
    assert "llava_next_video" in notes["model"]
    assert "1 file" in notes["weights"]
    assert "of weights in bfloat16" in notes["memory"]


def test_init_warns_of_a_model_that_cannot_be_opened(project: Project, tmp_path: Path) -> None:
    model = Path(project.settings.features.model)
    (model / "model.safetensors").unlink()
    made = propose(tmp_path / "new", videos=project.videos, annotations=None, model=str(model))
    assert any(one.startswith("weights: ") for one in made.warnings)


# --- where it is from -----------------------------------------------------------------------------


def downloaded(folder: Path) -> None:
    path = folder / ".cache/huggingface/download/config.json.metadata"
    path.parent.mkdir(parents=True)
    path.write_text(f"{COMMIT}\nanother\n1700000000.0\n")


def cloned(folder: Path) -> None:
    (folder / ".git/refs/heads").mkdir(parents=True)
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git/refs/heads/main").write_text(f"{COMMIT}\n")


@pytest.mark.parametrize("came", [downloaded, cloned])
def test_doctor_says_revision_and_licence_where_the_folder_has_them(project: Project, came) -> None:
    folder = Path(project.settings.features.model)
    before = next(check for check in examine(project) if check.name == "weights").found
    assert "revision not recorded; no licence in the folder" in before
    came(folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: llama2\n---\nlicense: of the text\n")
    after = next(check for check in examine(project) if check.name == "weights").found
    assert f"revision {COMMIT}; licence llama2" in after


def test_revision_of_a_snapshot_is_its_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b/snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_text("\n  LLAMA 2 COMMUNITY LICENSE\x1b[31m AGREEMENT\nmore\n")
    found = provenance_of(folder)
    assert found.revision == COMMIT
    assert found.licence == "LLAMA 2 COMMUNITY LICENSE[31m AGREEMENT"


def test_provenance_reads_nothing_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("---\nlicense: secret\n---\n")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    (folder / ".git").mkdir()
    (folder / ".git/HEAD").write_text("ref: refs/heads/../../../secret\n")
    assert provenance_of(folder).licence == provenance_of(folder).revision == ""


# --- an early word --------------------------------------------------------------------------------


def words(found: Outlook) -> list[str]:
    return [line.text for line in outlook_lines(found)]


def test_extract_says_early_that_a_cpu_takes_days_or_that_memory_is_short() -> None:
    fits = Memory(4, 14 * GIB, GIB, 32 * GIB)
    assert words(Outlook("cpu", 100, 600.0, fits)) == []
    (slow,) = words(Outlook("cpu", 1000, 1000 * 220.0, fits))
    assert "2.55 days for 1000 clips (3.67 min each)" in slow
    (short,) = words(Outlook("cuda", 1000, 0.0, dataclasses.replace(fits, free_bytes=8 * GIB)))
    assert "about 16.1 GB, but 8.6 GB are free on cuda" in short


def test_outlook_reckons_with_the_plans_clips_and_the_cpus_speed(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(project)
    plan = plan_extraction(project)
    assert outlook(project, plan).model_s == 0, "a tiny model needs no measuring"
    monkeypatch.setattr("featurecache.extraction.forecast._QUICK_FLOP", 0)
    monkeypatch.setattr("featurecache.extraction.forecast.product_rate", lambda *_: 1e6)
    found = outlook(project, plan)
    assert found.clips == plan.todo == 6
    assert found.model_s > 1
    assert found.memory.fits
