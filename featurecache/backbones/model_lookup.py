"""Where a model's files are: a folder, a snapshot in the Hugging Face cache of this machine, or, on request, the hub.

A repository may be named with a revision, `organisation/name@revision`: a branch, a tag, a pull request (`refs/pr/5`),
a commit, or the first digits of one. A snapshot that was downloaded in part is found too; what it lacks is for the door
to say (`featurecache.backbones.model_folder`).
"""

from collections.abc import Sequence
from pathlib import Path

from featurecache.backbones.obtaining import how_to_get, repository_of
from featurecache.errors import ModelNotFoundError

DEMO_MODEL = "demo"
"""The name that stands for the small backbone shipped with the package."""

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "README.md", "LICENSE*"]
_SHORTEST_COMMIT = 7


def find_model(model: str, *, allow_download: bool = False, setting: str = "features.model") -> Path:
    """The folder with the model's files.

    Args:
        model: `demo`, a local folder, or the name of a hub repository whose snapshot is on this machine, where another
            than main is meant with its revision: `organisation/name@revision`.
        allow_download: Fetch the repository from the Hugging Face hub when it is not here. The only network use.
        setting: What names the model, for the messages.

    Raises:
        ModelNotFoundError: If there is no such folder and no such snapshot, or it is a file.
    """
    if model == DEMO_MODEL:
        return Path(__file__).parent.parent / "demo" / "backbone"
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelNotFoundError(
            f"{setting} must be the folder of a model, but {model!r} is a file. Name the folder that it is in: "
            f"{folder.parent}"
        )
    repository = repository_of(model)
    if repository is None:
        raise ModelNotFoundError(
            f"{setting} must be a folder, or a hub repository such as llava-hf/LLaVA-NeXT-Video-7B-hf, with "
            f"@revision where another than main is meant, but {model!r} is neither. "
            f"{how_to_get(model, setting)}"
        )
    name, revision = repository
    if allow_download:
        return _downloaded(name, revision or None, setting)
    here = _snapshots(name)
    wanted = _commit(name, revision or "main")
    found = [path for path in here if path.name == wanted or _is_abbreviated(wanted, path.name)]
    if len(found) == 1:
        return found[0]
    others = f" (those here: {', '.join(path.name for path in here)})" if here else ""
    raise ModelNotFoundError(
        f"the model {model!r} must be on this machine, but no snapshot of it is in the Hugging Face cache{others}. "
        f"{how_to_get(model, setting)} Or let a command fetch it: --allow-download."
    )


def _downloaded(name: str, revision: str | None, setting: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        asked = f"{name}@{revision}" if revision else name
        raise ModelNotFoundError(
            f"the model {asked!r} must be downloadable, but the hub answered: {str(error).splitlines()[0]} "
            f"Check the name and the connection, or name a local folder in {setting}."
        ) from error


def _repository(name: str) -> Path:
    """A repository's folder in the Hugging Face cache, whether it is there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def snapshots_here() -> dict[str, Path]:
    """The main snapshot of every repository in the Hugging Face cache, by the repository's name."""
    from huggingface_hub import constants

    repositories = sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*"))
    names = [path.name.removeprefix("models--").replace("--", "/", 1) for path in repositories]
    found = {name: _repository(name) / "snapshots" / _commit(name, "main") for name in names}
    return {name: path for name, path in found.items() if path.is_dir()}


def _snapshots(name: str) -> Sequence[Path]:
    """Folders of a repository's snapshots on this machine, each named by its commit."""
    folder = _repository(name) / "snapshots"
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _commit(name: str, revision: str) -> str:
    """The commit that a branch, a tag or a pull request stood at when it was downloaded; any other revision itself."""
    reference = _repository(name) / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else revision


def _is_abbreviated(digits: str, commit: str) -> bool:
    return len(digits) >= _SHORTEST_COMMIT and commit.startswith(digits)
