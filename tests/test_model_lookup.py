from pathlib import Path

import pytest
from huggingface_hub import constants

from featurecache.backbones import find_model
from featurecache.errors import ModelNotFoundError

FIRST, SECOND = "04a83e0" + "1" * 33, "04b83e0" + "2" * 33


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in the hub's cache with two revisions: main, and a pull request."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--org--name"
    for commit, reference in ((FIRST, "main"), (SECOND, "refs/pr/5")):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs" / reference).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / reference).write_text(commit)
    return folder


@pytest.mark.parametrize(
    ("model", "commit"),
    [
        ("org/name", FIRST),
        ("org/name@main", FIRST),
        ("org/name@refs/pr/5", SECOND),
        (f"org/name@{SECOND}", SECOND),
        ("org/name@04b83e0", SECOND),
    ],
)
def test_revision_names_its_own_snapshot(repository: Path, model: str, commit: str) -> None:
    assert find_model(model) == repository / "snapshots" / commit


@pytest.mark.parametrize("revision", ["v2", "04c83e0", "04"])
def test_revision_that_is_not_here_is_refused_with_those_that_are(revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"'org/name@{revision}'.*those here: {FIRST}, {SECOND}"):
        find_model(f"org/name@{revision}")


@pytest.mark.parametrize("model", ["org/name@", "org/name@../../secret", "org/../name", "org/name@a b", "name@main"])
def test_what_is_no_name_of_a_revision_is_refused(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="must be a folder, or a hub repository"):
        find_model(model)


def test_folder_whose_name_has_an_at_sign_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "name@old").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("models/name@old") == Path("models/name@old")


def test_file_of_a_model_is_refused_with_the_folder_that_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=rf"is a file\. Name the folder that it is in: {tmp_path}$"):
        find_model(str(tmp_path / "config.json"))


def test_download_that_the_environment_forbids_is_one_named_error() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'other/model@v1' must be downloadable, but the hub answered"):
        find_model("other/model@v1", allow_download=True)
