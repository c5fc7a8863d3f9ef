"""How a model comes onto this machine, in commands; and what its folder says of where it came from.

Not here: looking for it and downloading it (`featurecache.backbones.model_lookup`).
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featurecache.backbones.model_folder import require_regular
from featurecache.errors import ModelNotFoundError, UnsafeFileError

_PUBLISHED = (
    "llava-hf/LLaVA-NeXT-Video-7B-hf",
    "llava-hf/LLaVA-NeXT-Video-7B-32K-hf",
    "llava-hf/LLaVA-NeXT-Video-7B-DPO-hf",
    "llava-hf/LLaVA-NeXT-Video-34B-hf",
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "facebook/timesformer-base-finetuned-k400",
    "MCG-NJU/videomae-base",
    "facebook/vjepa2-vitl-fpc64-256",
    "openai/clip-vit-large-patch14-336",
    "google/siglip-base-patch16-224",
    "facebook/dinov2-base",
)
"""Repositories by which a folder's last name is known."""

_NAME = r"[\w.-]+/[\w.-]+"
_REVISION = r"[\w.-]+(/[\w.-]+)*"
_READ_BYTES = 65_536
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_LONGEST_LINE = 80
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Provenance:
    """What a model folder says of where it came from.

    Attributes:
        revision: The repository's commit, where a download or a clone left it; empty where nothing did.
        licence: Its licence in one line, by README.md or a licence file; empty where there is none.
    """

    revision: str
    licence: str


def repository_of(model: str) -> tuple[str, str] | None:
    """Name and revision (empty for main) of the hub repository that a model which is no folder means; None if none."""
    name, at, revision = model.partition("@")
    is_name = re.fullmatch(_NAME, name) and ".." not in model and not name.startswith(".")
    return (name, revision) if is_name and (not at or re.fullmatch(_REVISION, revision)) else None


def how_to_get(model: str, setting: str = "features.model") -> str:
    """Commands that bring a model here, from a network or from a machine that has one; in one line.

    Args:
        model: A folder that is not there, or a hub repository, `organisation/name` or `organisation/name@revision`.
        setting: What names the model.
    """
    repository = repository_of(model)
    if repository is not None:
        name, revision = repository
        fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        folder = name.partition("/")[2]
        here, target, then = fetch, f"/models/{folder}", f" and set {setting} to that folder"
    else:
        target = str(Path(model).expanduser().absolute())
        folder = Path(target).name or "MODEL"
        name = next((one for one in _PUBLISHED if one.endswith(f"/{folder}")), "ORGANISATION/NAME")
        fetch, then = f"hf download {name}", ""
        here = f"{fetch} --local-dir {shlex.quote(target)}"
    local = shlex.quote(folder)
    return (
        f"Where this machine has a network: {here}. Where it has none: {fetch} --local-dir {local} on a machine that "
        f"has one, then copy it: rsync -a {local}/ THIS_MACHINE:{shlex.quote(target)}/{then}."
    )


def provenance_of(folder: Path) -> Provenance:
    """Reads what a download, a clone or the repository's own files tell; every file is optional."""
    revision = next((one for one in _revisions(folder) if _COMMIT.fullmatch(one)), "")
    return Provenance(revision, next((one for one in _licences(folder) if one), ""))


def _revisions(folder: Path) -> Iterator[str]:
    real = folder.resolve()
    if real.parent.name == "snapshots":
        yield real.name
    yield _beginning(folder, ".cache/huggingface/download/config.json.metadata").partition("\n")[0].strip()
    head = _beginning(folder, ".git/HEAD").strip()
    yield head
    name = head.removeprefix("ref: ")
    if re.fullmatch(r"refs/heads/[\w.-]+", name):
        yield _beginning(folder, f".git/{name}").strip()


def _licences(folder: Path) -> Iterator[str]:
    front_matter = _beginning(folder, "README.md").removeprefix("---\n").partition("\n---")[0]
    found: dict[str, str] = dict(re.findall(r"(?m)^(license|license_name):[ \t]*(.+)$", front_matter))
    name = found.get("license", "")
    yield _line(found.get("license_name", name) if name == "other" else name)
    for file in _LICENCE_FILES:
        yield next((_line(line) for line in _beginning(folder, file).splitlines() if line.strip()), "")


def _beginning(folder: Path, name: str) -> str:
    """The first bytes of a file as text; empty where it is absent, not readable or no file of the folder."""
    try:
        path = require_regular(folder, name)
        if path is None:
            return ""
        with path.open("rb") as file:
            return file.read(_READ_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    except (ModelNotFoundError, UnsafeFileError, OSError):
        return ""


def _line(text: str) -> str:
    """A line of an external file, without quotes, control characters and what is too long."""
    return "".join(one for one in text if one.isprintable()).strip().strip("'\"")[:_LONGEST_LINE]
